# SPDX-License-Identifier: Apache-2.0
"""What docs/architecture.md and the decisions promise about who imports whom."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "poptransformer"

# What each package may import of the others, besides errors and itself.
ALLOWED = {
    "checkpoint": set(),
    "graph": set(),
    "generation": set(),
    "data": {"checkpoint", "utils"},
    "ops": {"graph"},
    "passes": {"graph", "quantization", "quantization_report", "recipe", "state"},
    "quantization": {"native"},
    "parallel": {"ops", "build", "graph", "checkpoint", "native"},
    "layers": {"ops", "step", "build", "graph", "checkpoint", "positions", "attention_rules", "parallel"},
    "nn": {"build", "checkpoint", "positions", "attention_rules"},
    "training": {"nn", "build", "checkpoint", "graph", "program", "rules", "utils", "validation", "validation_memory"}
    | {"planning", "ipu", "program_graph", "recipe"},
    "models": {"layers", "parallel", "ops", "step", "build", "graph", "checkpoint", "placement", "utils"},
    "ipu": {"graph", "placement", "state"},
}
NEED_TORCH = ("nn", "training")
OF_TRAINING = [["poptransformer", name] for name in NEED_TORCH]


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Every `module, name` that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    for path in (PACKAGE / package).rglob("*.py"):
        for module, name in imports(path):
            parts = [*module.split("."), name]
            if parts[0] == "poptransformer" and parts[1]:
                assert parts[1] in ALLOWED[package] | {package, "errors"}, f"{path}: {module}"


def test_one_module_knows_the_graph_builder() -> None:
    users = {path for path in PACKAGE.rglob("*.py") for module, _ in imports(path) if module.startswith("onnxscript")}
    assert users == {PACKAGE / "graph" / "builder.py"}


def test_only_training_needs_torch_and_nothing_else_needs_training() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] in NEED_TORCH:
            continue
        assert not any(module.split(".")[:2] in OF_TRAINING for module, _ in imports(path)), path
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "torch" for name in names), path


def test_importing_the_package_does_nothing_heavy() -> None:
    code = "import sys, poptransformer; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "transformers", "torch", "hydra", "rich"}
    assert not heavy & set(done.stdout.split())


def test_architecture_lists_every_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in PACKAGE.iterdir():
        if (path / "__init__.py").is_file():
            assert f"| `{path.name}/` |" in page, path.name


def test_architecture_lists_every_op_and_pass() -> None:
    from poptransformer import passes
    from poptransformer.graph import function_names

    importlib.import_module("poptransformer.ops")  # registers them
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in function_names():
        assert f"| `{name}(" in page, name
    for name in passes.__all__:
        assert f"| `{name}` |" in page, name
