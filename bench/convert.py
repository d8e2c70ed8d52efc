# SPDX-License-Identifier: Apache-2.0
"""Models in each engine's own format, made by the engine's own tools from the same Hugging Face folder, once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import poptransformer
from bench.catalog import OURS
from bench.environments import MODELS_DIR, llama_cpp_source, python_of
from bench.models import model_folder
from bench.our_precisions import settings
from bench.runner import ROOT

Commands = list[list[str]]
LOG_TAIL = 300  # characters of a failed command's output that its message shows


class NotConvertedError(Exception):
    """A model could not be converted; the message is one line that says why."""


def converted(engine: str, variant: str, model: str) -> Path:
    """A model in an engine's format; made if it is not there.

    Raises:
        NotConvertedError: the engine's tools are missing or failed.
    """
    source = model_folder(model)
    if engine == "transformers":
        return source
    path = MODELS_DIR / model / _file_name(engine, variant)
    if not path.exists():
        print(f"converting {model} for {engine} {variant}", file=sys.stderr, flush=True)
        _convert(engine, variant, model, source, path)
    return path


def _file_name(engine: str, variant: str) -> str:
    if engine == "llama-cpp-python":
        return f"{engine}-{variant}.gguf"
    # What this package writes changes with its source.
    return f"{engine}-{variant}-{package_digest()}" if engine == OURS else f"{engine}-{variant}"


def package_digest() -> str:
    """A hash of this package's Python files."""
    digest = hashlib.sha256()
    for file in sorted(Path(poptransformer.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _convert(engine: str, variant: str, model: str, source: Path, path: Path) -> None:
    temporary = path.with_name(f"part-{path.name}")
    _remove(temporary)
    log = path.with_name(f"{path.name}.log")
    if engine == OURS:
        for old in path.parent.iterdir():
            if re.fullmatch(re.escape(f"{engine}-{variant}-") + r"[0-9a-f]{12}(\.log)?", old.name):
                _remove(old)
    try:
        with log.open("w", encoding="utf-8") as output:
            for command in COMMANDS[engine](variant, model, source, temporary):
                environment = _environment()
                status = subprocess.run(command, stdout=output, stderr=output, cwd=ROOT, env=environment).returncode
                if status:
                    raise NotConvertedError(f"{_last_line(log)} (status {status}, see {log})")
        temporary.rename(path)
    finally:
        _remove(temporary)


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[-LOG_TAIL:] if lines else "it printed nothing"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


# ---- how each engine's models are made: commands, run one after the other ------------------------------------------


def _python(engine: str) -> str:
    found = python_of(engine)
    if found is None:
        raise NotConvertedError(f"{engine} is not installed")
    return str(found)


def _ours(variant: str, model: str, source: Path, path: Path) -> Iterator[list[str]]:
    yield [sys.executable, "-m", "bench.save_model", str(source), str(path), json.dumps(settings(variant))]


def _llama(variant: str, model: str, source: Path, path: Path) -> Iterator[list[str]]:
    if variant not in ("f32", "f16", "bf16"):
        base = converted("llama-cpp-python", "f16", model)
        yield [_python("llama-cpp-python"), "-m", "bench.quantize_gguf", str(base), str(path), variant]
        return
    tools = llama_cpp_source()
    if tools is None:
        raise NotConvertedError("llama.cpp's converter is missing: python -m bench.setup_peers llama-cpp-python")
    converter = str(tools / "convert_hf_to_gguf.py")
    yield [_python("transformers"), converter, str(source), "--outfile", str(path), "--outtype", variant]


def _genai(variant: str, model: str, source: Path, path: Path) -> Iterator[list[str]]:
    cache = str(path.with_name(f"{path.name}.cache"))
    command = [_python("onnxruntime-genai"), "-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-c", cache]
    options = [] if variant == "fp32" else ["--extra_options", "accuracy_level=4", "block_size=32"]
    yield [*command, "-m", str(source), "-o", str(path), "-p", variant, *options]


def _ct2(variant: str, model: str, source: Path, path: Path) -> Iterator[list[str]]:
    options = [] if variant == "fp32" else ["--quantization", variant]
    converter = Path(_python("ctranslate2")).with_name("ct2-transformers-converter")
    yield [str(converter), "--model", str(source), "--output_dir", str(path), *options]


def _openvino(variant: str, model: str, source: Path, path: Path) -> Iterator[list[str]]:
    tool = Path(_python("openvino-genai")).with_name("optimum-cli")
    if not tool.exists():
        raise NotConvertedError("optimum-intel is missing: python -m bench.setup_peers openvino-genai")
    options = ["--group-size", "32", "--ratio", "1.0", "--sym"] if variant == "int4" else []
    command = [str(tool), "export", "openvino", "-m", str(source), "--task", "text-generation-with-past"]
    yield [*command, "--weight-format", variant, *options, str(path)]


COMMANDS: dict[str, Callable[[str, str, Path, Path], Iterator[list[str]]]] = {
    OURS: _ours,
    "llama-cpp-python": _llama,
    "onnxruntime-genai": _genai,
    "ctranslate2": _ct2,
    "openvino-genai": _openvino,
}
