#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Finds onnxruntime's C headers and prints the folder that holds onnxruntime_c_api.h. The Python wheel ships none, so:
#   1. ORT_INCLUDE_DIR, where it is set: nothing else is tried then;
#   2. an installed libonnxruntime-dev, or a release unpacked below /usr/local or /opt;
#   3. the distribution's libonnxruntime-dev, downloaded into BUILD_FOLDER: an own apt configuration, no root, nothing installed.
# Usage: ort_headers.sh BUILD_FOLDER
# Environment: ORT_INCLUDE_DIR; DEBIAN_MIRROR (a Debian mirror to use in place of the system's); ORT_OFFLINE=1 (no download).
set -euo pipefail

readonly header=onnxruntime_c_api.h
readonly oldest_api=21 # the oldest the kernels are compiled with
build=${1:?usage: ort_headers.sh BUILD_FOLDER}

say() { printf '%s\n' "$*" >&2; }

api_version() { sed -n 's/^#define ORT_API_VERSION \([0-9]*\).*/\1/p' "$1/$header"; }

# Prints the folder with the header in or below $1, in any of the layouts onnxruntime's packages use.
header_folder() {
    local below
    for below in "" include onnxruntime include/onnxruntime core/session include/onnxruntime/core/session onnxruntime/core/session; do
        if [ -f "$1/$below/$header" ]; then
            (cd "$1/$below" && pwd)
            return 0
        fi
    done
    return 1
}

usable() { # folder: is its header recent enough?
    local version
    version=$(api_version "$1")
    [ "${version:-0}" -ge "$oldest_api" ] && return 0
    say "onnxruntime headers in $1 are of API version ${version:-unknown}; $oldest_api or newer is needed"
    return 1
}

from_variable() {
    local found
    if ! found=$(header_folder "$ORT_INCLUDE_DIR"); then
        say "ORT_INCLUDE_DIR is '$ORT_INCLUDE_DIR', but there is no $header in it."
        return 1
    fi
    usable "$found" && printf '%s\n' "$found"
}

from_system() {
    local place found
    for place in /usr/include/onnxruntime /usr/local/include/onnxruntime /usr/local/include /opt/onnxruntime*; do
        if found=$(header_folder "$place") && usable "$found"; then
            printf '%s\n' "$found"
            return 0
        fi
    done
    return 1
}

system_mirror() { # component, release names...: the address this system's apt takes that component from
    local component=$1 name
    shift
    for name in "$@"; do
        # shellcheck disable=SC2016 # apt fills these in
        apt-get indextargets --format '$(CREATED_BY) $(REPO_URI) $(RELEASE) $(COMPONENT)' |
            awk -v r="$name" -v c="$component" '$1 == "Packages" && $3 == r && $4 == c { print $2; found = 1; exit } END { exit !found }' &&
            return 0
    done
    return 1
}

download() { # work folder, mirror, suite, component, keyring: leaves the package unpacked in WORK/unpacked
    local work=$1 mirror=$2 suite=$3 component=$4 keyring=$5
    [ -r "$keyring" ] || { say "no keyring $keyring"; return 1; }
    mkdir -p "$work"/{state/lists/partial,cache/archives/partial,parts,unpacked}
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: %s\nSigned-By: %s\n' \
        "$mirror" "$suite" "$component" "$keyring" >"$work/parts/headers.sources"
    : >"$work/status"
    # Read after the system's own configuration: proxies stay, hooks that expect root go.
    cat >"$work/apt.conf" <<EOF
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$work/parts";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "$work/state";
Dir::State::status "$work/status";
Dir::Cache "$work/cache";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "2";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
EOF
    apt-get -c "$work/apt.conf" -qq update >&2 &&
        (cd "$work" && apt-get -c "$work/apt.conf" -qq download libonnxruntime-dev >&2) &&
        dpkg-deb -x "$work"/libonnxruntime-dev_*.deb "$work/unpacked"
}

from_download() {
    local work=$1 ID="" ID_LIKE="" VERSION_CODENAME="" UBUNTU_CODENAME="" mirror suite
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    # shellcheck disable=SC1091
    [ ! -r /etc/os-release ] || . /etc/os-release
    local debian_keys=/usr/share/keyrings/debian-archive-keyring.gpg ubuntu_keys=/usr/share/keyrings/ubuntu-archive-keyring.gpg
    if [ -n "${DEBIAN_MIRROR:-}" ]; then
        download "$work" "$DEBIAN_MIRROR" trixie main "$debian_keys"
    elif [ -n "$UBUNTU_CODENAME" ] || [ "$ID" = ubuntu ]; then
        mirror=$(system_mirror universe "${UBUNTU_CODENAME:-$VERSION_CODENAME}") || return 1
        for suite in resolute questing; do # the releases that carry the package
            download "$work" "$mirror" "$suite" universe "$ubuntu_keys" && return 0
        done
        return 1
    elif [[ " $ID $ID_LIKE " == *" debian "* ]]; then
        mirror=$(system_mirror main "$VERSION_CODENAME" stable testing unstable sid) || return 1
        download "$work" "$mirror" trixie main "$debian_keys"
    else
        return 1
    fi
}

downloaded() {
    local target=$build/headers work found
    if [ ! -f "$target/$header" ]; then
        [ -z "${ORT_OFFLINE:-}" ] || return 1
        say "onnxruntime's headers are not installed; downloading them into $target"
        work=$(mktemp -d "${TMPDIR:-/tmp}/ort-headers.XXXXXX")
        # shellcheck disable=SC2064
        trap "rm -rf '$work'" EXIT
        from_download "$work" && found=$(header_folder "$work/unpacked/usr") && usable "$found" || return 1
        rm -rf "$target" "$target.tmp"
        mkdir -p "$build"
        cp -R "$found" "$target.tmp"
        mv "$target.tmp" "$target"
    fi
    (cd "$target" && pwd)
}

ways_out() {
    cat >&2 <<EOF

The custom ops need onnxruntime's C headers ($header), and none were found. One of these brings them:
  - install the distribution's package (Debian 13 or newer, recent releases of Ubuntu):
        sudo apt-get install libonnxruntime-dev
  - let make download that package without installing it: needs apt-get, a network, and on a system other than Debian
    and Ubuntu the package debian-archive-keyring and the address of a Debian mirror:
        make DEBIAN_MIRROR=http://<mirror>/debian
  - unpack a release archive of onnxruntime (onnxruntime-linux-x64-1.32.0.tgz, on the releases page of
    github.com/microsoft/onnxruntime) and point to it:
        make ORT_INCLUDE_DIR=/path/to/onnxruntime-linux-x64-1.32.0/include
EOF
}

if [ -n "${ORT_INCLUDE_DIR:-}" ]; then
    from_variable || { ways_out; exit 1; }
else
    from_system || downloaded || { ways_out; exit 1; }
fi
