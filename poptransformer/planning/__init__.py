# SPDX-License-Identifier: Apache-2.0
"""Plans models for emulated IPUs, from configurations alone."""

from poptransformer.planning.configured import (
    Planned,
    global_args_of,
    model_of,
    plan_config,
    score_config,
    sweep,
    workload_of,
)
from poptransformer.planning.model import PlannedModel, build_model, built_model, find_config, shipped_configs

__all__ = [
    "Planned",
    "PlannedModel",
    "build_model",
    "built_model",
    "find_config",
    "global_args_of",
    "model_of",
    "plan_config",
    "score_config",
    "shipped_configs",
    "sweep",
    "workload_of",
]
