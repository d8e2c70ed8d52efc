# SPDX-License-Identifier: Apache-2.0
"""Keys of a class named by `_target_`, collected along its method resolution order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poptransformer.errors import ConfigError
from poptransformer.utils.targets import accepted_keys, check_target, find_target


class Base:
    def __init__(self, *, first: int = 1, second: int = 2) -> None: ...


class Silent(Base):
    """Has no constructor of its own."""


class HandsOn(Silent):
    def __init__(self, third: int = 3, *args: Any, **kwargs: Any) -> None: ...


class HandsAllOn(HandsOn):
    def __init__(self, **kwargs: Any) -> None: ...


class Closed(HandsOn):
    def __init__(self, only: int = 0) -> None: ...


class Open:
    def __init__(self, known: int = 0, **kwargs: Any) -> None: ...


class Empty:
    pass


@pytest.mark.parametrize(
    ("target", "keys", "takes_any"),
    [
        (Base, ["first", "second"], False),
        (Silent, ["first", "second"], False),
        (HandsOn, ["third", "first", "second"], False),
        (HandsAllOn, ["third", "first", "second"], False),
        (Closed, ["only"], False),
        (Open, ["known"], True),
        (Empty, [], False),
        (lambda a, *, b=1: None, ["a", "b"], False),
        (lambda **kwargs: None, [], True),
    ],
)
def test_accepted_keys(target: Any, keys: list[str], takes_any: bool) -> None:
    assert accepted_keys(target) == (keys, takes_any)


def test_a_real_model_takes_the_keys_of_its_bases() -> None:
    keys, takes_any = accepted_keys(find_target("model._target_", "poptransformer.models.GPT2DecModel"))
    assert {"hf_model_name", "topk", "layer_per_ipu"} <= set(keys)
    assert not takes_any


def test_unknown_key_of_a_target() -> None:
    with pytest.raises(ConfigError, match=r"^Unknown key model\.frist\. Nearest: first"):
        check_target("model", {"_target_": f"{__name__}.HandsAllOn", "frist": 1})


def test_hydras_and_private_keys_pass() -> None:
    check_target("model", {"_target_": f"{__name__}.Base", "_convert_": "all", "_width": 3, "first": 2})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "model._target_ must name a class as <module>.<class>, found nothing"),
        ("GPT2DecModel", "must name a class as <module>.<class>, found 'GPT2DecModel'"),
        (7, "must name a class as <module>.<class>, found 7"),
        ("popx.models.GPT2DecModel", "there is no module popx. Check the spelling"),
        ("poptransformer.build.Biuld", "poptransformer.build has no Biuld. Nearest: Build"),
        ("poptransformer.models.GPT2DecModell", "has no class GPT2DecModell. Nearest: GPT2DecModel"),
        ("poptransformer.build.MODEL_TYPES", "which is a tuple; expected a class"),
    ],
)
def test_targets_that_are_not_there(path: object, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        find_target("model._target_", path)
    assert message in str(error.value)


def test_a_broken_import_inside_the_users_module_is_shown_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user_module_with_a_broken_import.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        find_target("model._target_", "user_module_with_a_broken_import.Model")
