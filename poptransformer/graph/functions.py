# SPDX-License-Identifier: Apache-2.0
"""Registry of our own ops: each is an ONNX function whose body is standard ONNX.

With the native library registered, onnxruntime runs the kernel of the same domain and name; without it, it inlines
the body. So a saved model runs anywhere, and every kernel has its reference beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir

DOMAIN = "poptransformer"
DOMAIN_VERSION = 1


@dataclasses.dataclass(frozen=True)
class FunctionSpec:
    """Signature and reference body of one op of our domain.

    Attributes:
        name: op type.
        inputs: input names, in order.
        attributes: attribute name -> type.
        body: called with an op builder and one value per input; returns the output value(s).
    """

    name: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, ir.AttributeType]
    body: Callable[..., Any]


_SPECS: dict[str, FunctionSpec] = {}


def register_function(
    *inputs: str, **attributes: ir.AttributeType
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: registers the function it decorates as the body of the op of the same name.

    Args:
        *inputs: the op's input names.
        **attributes: the op's attributes and their types; the body reads them with `attribute(op, name, type)`.
    """

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        _SPECS[body.__name__] = FunctionSpec(body.__name__, inputs, dict(attributes), body)
        return body

    return decorate


def function_spec(name: str) -> FunctionSpec:
    """Returns the registered op `name`; raises KeyError for an unknown one."""
    return _SPECS[name]


def function_names() -> list[str]:
    """Names of all registered ops."""
    return sorted(_SPECS)
