# SPDX-License-Identifier: Apache-2.0
"""The one piece of ambient state: what is being built right now.

A `Build` is carried by a context variable while a model builds its graph. Layers read it through `self.build`;
nothing outside that `with` block sees it, so two models can be built in one process, in threads too.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from poptransformer.errors import ConfigError, PopTransformerError, did_you_mean
from poptransformer.recipe import QuantizationConfig, Recipe

if TYPE_CHECKING:
    from poptransformer.checkpoint import StateDict
    from poptransformer.graph import Graph

MODEL_TYPES = ("shard", "tp")


@dataclasses.dataclass(frozen=True)
class Build:
    """Everything a layer may ask about the model that is being built.

    Attributes:
        graph: the graph that nodes are added to; None before `build_graph`.
        state_dict: the checkpoint's tensors, read lazily.
        model_type: `shard` (one replica) or `tp` (tensor parallel).
        num_replicas: tensor-parallel replicas.
        replica: which of them is being built; their graphs are equal, their weights are not.
        precision: how the weights of matrix products are stored, a name or a recipe {name pattern: precision};
            layers always emit fp32 arithmetic.
        quantization: keys of `QuantizationConfig`, the details of it.
        batch_size: rows of one batch.
        batch_per_step: batches that one `session.run` takes.
        enable_pipeline: overlap the stages of `layer_per_ipu`.
        layer_per_ipu: decoder blocks on each IPU, in order; None puts all on IPU 0.
        advance: called with the number of weights just loaded, to show progress.
    """

    graph: Graph | None = None
    state_dict: StateDict | None = None
    model_type: str = "shard"
    num_replicas: int = 1
    replica: int = 0
    precision: str | Mapping[str, Any] = "fp32"
    quantization: QuantizationConfig | Mapping[str, Any] = dataclasses.field(default_factory=QuantizationConfig)
    batch_size: int = 1
    batch_per_step: int = 1
    enable_pipeline: bool = False
    layer_per_ipu: tuple[int, ...] | None = None
    advance: Callable[[int], None] | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_choice("model_type", self.model_type, MODEL_TYPES)
        self.recipe.check_calibration()
        for name in ("num_replicas", "batch_size", "batch_per_step"):
            check_positive(name, getattr(self, name))
        self._check_replicas()

    @functools.cached_property
    def recipe(self) -> Recipe:
        """What each weight is stored as."""
        return Recipe.of(self.precision, self.quantization)

    def ipu_of_layer(self, index: int) -> int:
        """Returns the IPU that holds decoder block `index`."""
        end = 0
        for ipu, count in enumerate(self.layer_per_ipu or ()):
            end += count
            if index < end:
                return ipu
        return 0

    @property
    def last_ipu(self) -> int:
        """The IPU of the last decoder block, or the one after it that `layer_per_ipu` keeps for the head."""
        return max(0, len(self.layer_per_ipu or ()) - 1)

    def _check_replicas(self) -> None:
        if self.num_replicas > 1 and self.model_type != "tp":
            raise ConfigError(
                f"num_replicas is {self.num_replicas}, but model_type is {self.model_type}, which runs on one replica. "
                "Set global_args.model_type=tp, or global_args.num_replicas=1."
            )
        if not 0 <= self.replica < self.num_replicas:
            raise ConfigError(f"replica must be 0 to {self.num_replicas - 1}, found {self.replica}.")


def check_choice(name: str, value: str, options: tuple[str, ...]) -> None:
    """Raises `Invalid <name> <value>, options: [...]` unless `value` is one of `options`."""
    if value not in options:
        raise ConfigError(f"Invalid {name} {value}, options: {list(options)}. {did_you_mean(str(value), options)}")


def check_positive(name: str, value: int) -> None:
    """Raises unless `value` is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be an integer of at least 1, found {value!r}.")


_CURRENT: contextvars.ContextVar[Build | None] = contextvars.ContextVar("poptransformer_build", default=None)


def current_build() -> Build:
    """Returns the active `Build`.

    Raises:
        PopTransformerError: outside of `use_build`, where a layer has no graph to add to.
    """
    build = _CURRENT.get()
    if build is None:
        raise PopTransformerError(
            "No model is being built here. Create layers inside a model's build_model_graph, "
            "or under `with use_build(Build(...)):`."
        )
    return build


@contextlib.contextmanager
def use_build(build: Build) -> Iterator[Build]:
    """Makes `build` the current one within the block."""
    token = _CURRENT.set(build)
    try:
        yield build
    finally:
        _CURRENT.reset(token)


class _Registry(Mapping[str, Any]):
    """Read-only view of the current `Build` under the name that PopTransformer's users know."""

    _names = {field.name: field.name for field in dataclasses.fields(Build)} | {"main_graph": "graph"}

    def __getitem__(self, name: str) -> Any:
        build = _CURRENT.get()
        if build is None:
            raise KeyError(name)
        return getattr(build, self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names if _CURRENT.get() is not None else ())

    def __len__(self) -> int:
        return len(self._names) if _CURRENT.get() is not None else 0


REGISTRY = _Registry()
