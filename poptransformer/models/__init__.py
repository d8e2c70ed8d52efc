# SPDX-License-Identifier: Apache-2.0
"""Model classes, found by directory: `models/<name>/__init__.py` names the class and the config types it builds.

Each directory's `__init__.py` defines

    MODEL_CLASS = "GPT2DecModel"        # a class in the directory's model.py
    MODEL_TYPES = ("gpt2",)             # `model_type` values of config.json that it builds

so that adding a model touches no file but its own.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Any

from poptransformer.checkpoint import HFConfig
from poptransformer.errors import ConfigError, did_you_mean


@functools.cache
def _directory() -> dict[str, Any]:
    """Class name -> package of every model directory."""
    packages = {}
    for module in pkgutil.iter_modules(__path__):
        if module.ispkg:
            package = importlib.import_module(f"{__name__}.{module.name}")
            missing = [name for name in ("MODEL_CLASS", "MODEL_TYPES") if not hasattr(package, name)]
            if missing:
                raise ConfigError(f"{package.__file__} must define {' and '.join(missing)}; see poptransformer.models.")
            packages[package.MODEL_CLASS] = package
    return packages


def __getattr__(name: str) -> Any:
    package = _directory().get(name)
    if package is None:
        raise AttributeError(f"poptransformer.models has no class {name}. {did_you_mean(name, _directory())}")
    return getattr(importlib.import_module(f"{package.__name__}.model"), name)


def model_class_for(config: HFConfig) -> Any:
    """Returns the class that builds a checkpoint's architecture.

    A package may define `accepts(config) -> bool` where the type alone does not tell.

    Raises:
        ConfigError: no model directory builds this `model_type`.
    """
    model_type = config.get("model_type")
    known = set()
    for name, package in _directory().items():
        known.update(package.MODEL_TYPES)
        if model_type in package.MODEL_TYPES and getattr(package, "accepts", lambda _: True)(config):
            return __getattr__(name)
    raise ConfigError(
        f"No model here builds model_type {model_type!r} (from the checkpoint's config.json). "
        f"{did_you_mean(str(model_type), known)} A model is added as a directory below poptransformer/models."
    )
