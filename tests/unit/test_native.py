# SPDX-License-Identifier: Apache-2.0
"""Finding and loading the library of custom ops."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

from poptransformer import native


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Forgets what other tests loaded and warned of."""
    monkeypatch.setattr(native, "_loaded", {})
    native._warn.cache_clear()
    yield
    native._warn.cache_clear()


def built() -> Path:
    path = native.library_path()
    if path is None or not path.is_file():
        pytest.skip("the custom ops are not built: run `make`")
    return path


def test_importing_it_is_cheap():
    code = (
        "import sys, poptransformer.native; print([m for m in ('numpy', 'onnxruntime', 'torch') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_default_path_is_where_make_puts_it(monkeypatch):
    monkeypatch.delenv(native.LIBRARY_VARIABLE, raising=False)
    path = native.library_path()
    assert path.parts[-3:] == ("custom_ops", "build", "libpoptransformer_ops.so")
    assert (path.parents[2] / "Makefile").is_file()


@pytest.mark.parametrize("value", ["", "none", "None"])
def test_disabled_without_a_word(monkeypatch, caplog, value):
    monkeypatch.setenv(native.LIBRARY_VARIABLE, value)
    assert native.library_path() is None
    assert not native.load(ort.SessionOptions())
    assert not native.available()
    assert native.set_threads(2) == 0
    assert native.build_id() == "none"
    assert not caplog.records


def test_loads(monkeypatch):
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(built()))
    assert native.load(ort.SessionOptions())
    assert native.available()
    assert native.set_threads(2) == 2
    assert native.set_threads(None) >= 1


def test_build_id_follows_the_content(monkeypatch, tmp_path):
    copy = Path(shutil.copy(built(), tmp_path / "a.so"))
    ids = []
    for path in (built(), copy):
        monkeypatch.setenv(native.LIBRARY_VARIABLE, str(path))
        ids.append(native.build_id())
    assert ids[0] == ids[1] != "none"
    with copy.open("ab") as file:
        file.write(b"more")
    assert native.build_id() not in ("none", ids[0])


def unusable(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.so"
    if kind == "text":
        path.write_text("not a library")
    elif kind == "foreign":  # a library, but not ours
        import numpy.linalg._umath_linalg as module

        shutil.copy(module.__file__, path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"), [("missing", "does not exist"), ("text", "do not load"), ("foreign", "do not load")]
)
def test_unusable_library_is_one_warning(monkeypatch, caplog, tmp_path, kind, message):
    path = unusable(kind, tmp_path)
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(path))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert not native.load(ort.SessionOptions())
        assert native.build_id() == "none"
    (record,) = caplog.records
    assert record.name == "poptransformer.native"
    assert message in record.message and str(path) in record.message
    assert f"run `make` in {Path(native.__file__).parents[1]}" in record.message


def test_other_version_is_a_warning(monkeypatch, caplog):
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(built()))
    monkeypatch.setattr(native, "OPS_VERSION", "next")
    assert not native.load(ort.SessionOptions())
    assert f"are version {expected_version()}, but this package needs version next" in caplog.text


def expected_version() -> str:
    source = Path(native.__file__).parents[1] / "custom_ops" / "library.cpp"
    return source.read_text().split('kVersion[] = "')[1].split('"')[0]


def test_versions_in_python_and_cpp_agree():
    assert expected_version() == native.OPS_VERSION


def test_onnxruntime_that_refuses_is_a_warning(monkeypatch, caplog):
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(built()))

    class Options:
        def register_custom_ops_library(self, path):
            raise RuntimeError("built for a newer onnxruntime\nand more")

    assert not native.load(Options())
    assert "refuses" in caplog.text and "built for a newer onnxruntime. Running without" in caplog.text
