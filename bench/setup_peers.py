# SPDX-License-Identifier: Apache-2.0
"""Installs the peers from PyPI, each in a virtual environment below $PEERS_DIR (default: bench/peers).

    python -m bench.setup_peers                          # all of them: about 6 GB, 10 to 20 minutes
    python -m bench.setup_peers llama-cpp-python ...     # some

Each gets its section of bench/requirements.txt, and what converts Hugging Face models into its format. These
converters want versions that exclude each other, which is why the environments are separate. A peer that is installed
is left alone; --force makes its environment anew.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from bench.catalog import PEERS
from bench.environments import PEERS_DIR, environment_folder, llama_cpp_source
from bench.runner import ROOT

REQUIREMENTS = ROOT / "bench" / "requirements.txt"
TORCH = "torch"
SECTIONS = {peer: [TORCH, peer] for peer in PEERS} | {"llama-cpp-python": ["llama-cpp-python"]}
# For converting alone.
CONVERTERS = {
    "onnxruntime-genai": ["transformers>=5.20,<6", "safetensors", "sentencepiece", "accelerate"],
    "ctranslate2": ["transformers>=5.20,<6", "safetensors", "sentencepiece", "accelerate"],
    "openvino-genai": ["nncf==3.4.0", "transformers==5.5.4", "optimum==2.3.0"]
    + ["requests", "safetensors", "sentencepiece", "accelerate", "setuptools"],
    "llama-cpp-python": ["gguf>=0.17,<1"],
}
# It names torchvision, which would pull in another torch; nothing that is used here needs it.
WITHOUT_DEPENDENCIES = {"openvino-genai": ["optimum-intel==2.2.0"]}
# llama.cpp picks the instructions of this machine's processor when it is compiled, never those of a finished wheel.
FROM_SOURCE = {"llama-cpp-python": ["--no-binary", "llama-cpp-python"]}
FINISHED = ".installed"


def sections(text: str) -> dict[str, list[str]]:
    """The requirements of each section of a requirements file; a section begins with a comment `# [name]`."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("# [") and line.endswith("]"):
            name = line[3:-1]
        elif line and not line.startswith("#"):
            found.setdefault(name, []).append(line)
    return found


def install(peer: str, force: bool) -> None:
    """Makes a peer's environment.

    Raises:
        subprocess.CalledProcessError: pip failed; it has said why.
    """
    folder = environment_folder(peer)
    if not force and (folder / FINISHED).exists():
        print(f"{peer}: installed in {folder}", file=sys.stderr)
        return
    print(f"{peer}: installing into {folder}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    wanted = sections(REQUIREMENTS.read_text(encoding="utf-8"))
    first, rest = wanted[TORCH], [line for name in SECTIONS[peer] if name != TORCH for line in wanted[name]]
    constraint = PEERS_DIR / "constraints.txt"
    constraint.write_text("\n".join(first) + "\n", encoding="utf-8")
    if TORCH in SECTIONS[peer]:
        _pip(peer, *first)
    _pip(peer, "-c", str(constraint), *FROM_SOURCE.get(peer, []), *rest, *CONVERTERS.get(peer, []))
    for requirement in WITHOUT_DEPENDENCIES.get(peer, []):
        _pip(peer, "--no-deps", requirement)
    (folder / FINISHED).touch()


def _pip(peer: str, *arguments: str, command: str = "install") -> None:
    python = environment_folder(peer) / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", command, "--disable-pip-version-check", "-q", *arguments], check=True)


def fetch_llama_cpp() -> None:
    """Unpacks the source of llama-cpp-python: llama.cpp's converter is in no wheel."""
    if llama_cpp_source() is not None:
        return
    target = PEERS_DIR / "src"
    downloads = target / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    peer = "llama-cpp-python"
    (requirement,) = (
        line for line in sections(REQUIREMENTS.read_text(encoding="utf-8"))[peer] if line.startswith(peer)
    )
    options = ["--no-deps", "--no-binary", peer, "-d", str(downloads)]
    _pip(peer, *options, requirement, command="download")
    for archive in downloads.glob("*.tar.gz"):
        with tarfile.open(archive) as packed:
            packed.extractall(target, filter="data")
    shutil.rmtree(downloads)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.setup_peers", description=__doc__.splitlines()[0])
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"default: {' '.join(PEERS)}")
    parser.add_argument("--force", action="store_true", help="make environments anew that are there already")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.peers) - set(PEERS))
    if unknown:
        parser.error(f"there is no peer {unknown[0]}, options: {' '.join(PEERS)}")
    PEERS_DIR.mkdir(parents=True, exist_ok=True)
    failed = []
    for peer in options.peers or PEERS:
        try:
            install(peer, options.force)
            if peer == "llama-cpp-python":
                fetch_llama_cpp()
        except subprocess.CalledProcessError as error:
            failed.append(peer)
            print(f"{peer}: FAILED: {' '.join(map(str, error.cmd))}", file=sys.stderr, flush=True)
    print(f"peers are in {Path(PEERS_DIR)}" + (f"; failed: {' '.join(failed)}" if failed else ""), file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
