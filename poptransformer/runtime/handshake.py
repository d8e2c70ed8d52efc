# SPDX-License-Identifier: Apache-2.0
"""What the ranks of a job must have in common, compared before any weight is read."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from poptransformer import native
from poptransformer.runtime.cache import cache_parts

if TYPE_CHECKING:
    from poptransformer.models.base_model import HFModel


def handshake_facts(model: HFModel, compiler_options: Mapping[str, bool], fuse: bool) -> dict[str, str]:
    """Returns configuration, checkpoint and versions by name, each as text; the same on hosts that fit together."""
    facts = {"checkpoint (hash of its content)": model.checkpoint.content_hash}
    facts |= {"Python": platform.python_version(), "numpy": np.__version__, "custom ops": native.build_id()}
    for name, value in cache_parts(model, compiler_options, fuse).items():
        if isinstance(value, dict):
            facts |= {f"{name}.{key}": _text(inner) for key, inner in value.items()}
        else:
            facts[name] = _text(value)
    facts["batch_per_step"] = str(model.build.batch_per_step)
    facts["enable_pipeline"] = str(model.build.enable_pipeline)
    return facts


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)
