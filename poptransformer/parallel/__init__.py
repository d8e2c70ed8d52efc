# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism: how weights are divided among replicas, and how ranks talk to each other.

Strategies and shares are found here: `from poptransformer.parallel import FusedQKV, Share`. They are imported when they
are asked for: a saved model, whose ranks only talk, needs none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poptransformer.parallel.shares import Share as Share
    from poptransformer.parallel.shares import take as take
    from poptransformer.parallel.strategies import End as End
    from poptransformer.parallel.strategies import FusedQKV as FusedQKV
    from poptransformer.parallel.strategies import FusedStart as FusedStart
    from poptransformer.parallel.strategies import Heads as Heads
    from poptransformer.parallel.strategies import Identity as Identity
    from poptransformer.parallel.strategies import MultiQueryQKV as MultiQueryQKV
    from poptransformer.parallel.strategies import Start as Start
    from poptransformer.parallel.strategies import Strategy as Strategy
    from poptransformer.parallel.strategies import Vocabulary as Vocabulary
    from poptransformer.parallel.strategies import local_heads as local_heads
    from poptransformer.parallel.strategies import strategy_of as strategy_of
    from poptransformer.parallel.strategies import valid_replicas as valid_replicas

_SHARES = ("Share", "take")
_STRATEGIES = ("End", "FusedQKV", "FusedStart", "Heads", "Identity", "MultiQueryQKV", "Start", "Strategy", "Vocabulary")
_FUNCTIONS = ("local_heads", "strategy_of", "valid_replicas")


def __getattr__(name: str) -> Any:
    if name in _SHARES:
        return getattr(importlib.import_module("poptransformer.parallel.shares"), name)
    if name in (*_STRATEGIES, *_FUNCTIONS):
        return getattr(importlib.import_module("poptransformer.parallel.strategies"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
