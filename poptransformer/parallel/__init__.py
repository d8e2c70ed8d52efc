# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism: how weights are divided among replicas, and how ranks talk to each other."""

from poptransformer.parallel.shares import Share, take
from poptransformer.parallel.strategies import (
    End,
    FusedQKV,
    Heads,
    Identity,
    MultiQueryQKV,
    Start,
    Strategy,
    Vocabulary,
    local_heads,
    strategy_of,
    valid_replicas,
)

__all__ = [
    "End",
    "FusedQKV",
    "Heads",
    "Identity",
    "MultiQueryQKV",
    "Share",
    "Start",
    "Strategy",
    "Vocabulary",
    "local_heads",
    "strategy_of",
    "take",
    "valid_replicas",
]
