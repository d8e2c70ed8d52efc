# SPDX-License-Identifier: Apache-2.0
"""poptransformer: transformer inference from small layer classes that build ONNX graphs.

engine = poptransformer.load("gpt2")
print(engine.generate("My name is Lewis and I like to", max_new_tokens=20))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from poptransformer.build import REGISTRY as REGISTRY
    from poptransformer.engine import Engine as Engine
    from poptransformer.loading import load as load

__all__ = ["REGISTRY", "Engine", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Importing the package must stay cheap; onnxruntime and the rest come with the first use.
    if name == "load":
        from poptransformer.loading import load

        return load
    if name == "Engine":
        from poptransformer.engine import Engine

        return Engine
    if name == "REGISTRY":
        from poptransformer.build import REGISTRY

        return REGISTRY
    raise AttributeError(f"module 'poptransformer' has no attribute {name!r}")
