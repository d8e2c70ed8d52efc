# SPDX-License-Identifier: Apache-2.0
"""Registry of our own ops: each is an ONNX function whose body is standard ONNX.

With the native library registered, onnxruntime runs the kernel of the same domain and name; without it, it inlines
the body. So a saved model runs anywhere, and every kernel has its reference beside it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

DOMAIN = "poptransformer"
DOMAIN_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Variant:
    """What tells the bodies of one op apart: its `overload` in ONNX's terms.

    Attributes:
        constants: name and value of the attributes that the body is made for.
        present: the optional inputs that the body reads.
    """

    constants: tuple[tuple[str, str], ...] = ()
    present: tuple[str, ...] = ()

    @property
    def overload(self) -> str:
        """Its name in the file, `int4_bias`; empty for an op with a single body, and where no part has a name."""
        return "_".join(filter(None, [*(value for _, value in self.constants), *self.present]))


@dataclasses.dataclass(frozen=True)
class FunctionSpec:
    """Signature and reference body of one op of our domain.

    Attributes:
        name: op type.
        inputs: input names, in order.
        optional: those of them that a node may leave out.
        attributes: attribute name -> type.
        constant: attributes whose value decides what the body looks like -> the values they may have.
        body: called with an op builder, one value per input (None for one that is left out) and the constant
            attributes by name; returns the output value(s).
    """

    name: str
    inputs: tuple[str, ...]
    optional: tuple[str, ...]
    attributes: Mapping[str, ir.AttributeType]
    constant: Mapping[str, Sequence[str]]
    body: Callable[..., Any]

    def variant(self, inputs: Sequence[object | None], attributes: Mapping[str, ir.Attr]) -> Variant:
        """Returns which of the op's bodies a node with these inputs and attributes has.

        A constant attribute that the node leaves out has the first of its values.
        """
        given = {name for name, value in zip(self.inputs, inputs, strict=False) if value is not None}
        return Variant(
            tuple((k, attributes[k].as_string() if k in attributes else v[0]) for k, v in self.constant.items()),
            tuple(name for name in self.optional if name in given),
        )

    def variants(self) -> list[Variant]:
        """Returns all of the op's bodies."""
        values = itertools.product(*([(name, value) for value in self.constant[name]] for name in self.constant))
        given = itertools.product(*([(), (name,)] for name in self.optional))
        return [Variant(v, tuple(itertools.chain(*g))) for v, g in itertools.product(list(values), list(given))]


_SPECS: dict[str, FunctionSpec] = {}


def register_function(
    *inputs: str, constant: Mapping[str, Sequence[str]] | None = None, **attributes: ir.AttributeType
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: registers the function it decorates as the body of the op of the same name.

    An op whose body hangs on an attribute's value, or on which inputs there are, has several: ONNX calls them
    overloads. The kernel serves all of them.

    Args:
        *inputs: the op's input names; one that may be left out ends with `?`.
        constant: string attributes whose value the body takes as a keyword argument -> the values they may have.
        **attributes: the op's attributes and their types; the body reads them with `attribute(op, name, type)`.
    """

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        names = tuple(name.removesuffix("?") for name in inputs)
        optional = tuple(name.removesuffix("?") for name in inputs if name.endswith("?"))
        _SPECS[body.__name__] = FunctionSpec(body.__name__, names, optional, dict(attributes), constant or {}, body)
        return body

    return decorate


def function_spec(name: str) -> FunctionSpec:
    """Returns the registered op `name`; raises KeyError for an unknown one."""
    return _SPECS[name]


def function_names() -> list[str]:
    """Names of all registered ops."""
    return sorted(_SPECS)
