# SPDX-License-Identifier: Apache-2.0
"""What the examples stand on: the command line, from a configuration to a session, and what is printed.

The names are imported when they are first used, so that the core can use `poptransformer.utils.progress`
without importing Hydra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poptransformer.utils.conversation import turns
    from poptransformer.utils.hydra_app import hydra_main
    from poptransformer.utils.logging import set_up_logging
    from poptransformer.utils.prepare import prepare_model_session
    from poptransformer.utils.printing import log_performance, print_stream, print_texts

__all__ = [
    "hydra_main",
    "log_performance",
    "prepare_model_session",
    "print_stream",
    "print_texts",
    "set_up_logging",
    "turns",
]

_MODULES = {
    "hydra_main": "hydra_app",
    "log_performance": "printing",
    "prepare_model_session": "prepare",
    "print_stream": "printing",
    "print_texts": "printing",
    "set_up_logging": "logging",
    "turns": "conversation",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
