# SPDX-License-Identifier: Apache-2.0
"""`BaseLayer`: weight binding and the choice between a layer's plain and tensor-parallel form."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from poptransformer.build import Build, current_build
from poptransformer.checkpoint import UnsupportedCheckpointError
from poptransformer.errors import ConfigError, GraphError
from poptransformer.graph import Graph

if TYPE_CHECKING:
    from poptransformer.checkpoint import StateDict

logger = logging.getLogger(__name__)


def _once(collect: Callable[[Any], None]) -> Callable[[Any], None]:
    """Makes `collect_bind_layer_weights` run once per layer, whoever calls it first.

    The framework calls it after `__init__`; layers written for PopTransformer call it themselves, and hand-written
    dispatch classes call their parents' version from inside their own.
    """

    @functools.wraps(collect)
    def guarded(self: Any) -> None:
        if self._binding == "done":
            return
        if self._binding == "running":
            collect(self)
            return
        self._binding = "running"
        collect(self)
        self._binding = "done"

    return guarded


class _LayerType(type):
    """Binds a layer's weights once its `__init__` has finished."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        layer = super().__call__(*args, **kwargs)
        layer.collect_bind_layer_weights()
        return layer


def _variant_class(cls: type[BaseLayer], bases: tuple[type[BaseLayer], ...]) -> Any:
    """Makes the tensor-parallel form of `cls`; it goes by the same name."""
    return _LayerType(cls.__name__, bases, {"__module__": cls.__module__, "__doc__": cls.__doc__}, _variant=True)


class BaseLayer(metaclass=_LayerType):
    """A named piece of the model: binds its weights when it is created, adds its nodes when it is called.

    Subclasses override `collect_bind_layer_weights` and `__call__(graph, ...)`. A layer whose tensor-parallel form
    differs names it in the class statement; `build.model_type` then picks:

        class CustomLayer(BaseCustomLayer, tp=TPCustomLayer):
            ...

    Attributes:
        build: the model being built: graph, state dict, model type, replicas, precision, batch size.
        context: dotted path of this layer, equal to the prefix of its weights in the checkpoint.
        name: last part of `context`.
    """

    build: Build
    _binding: str
    _tp_class: type[BaseLayer] | None = None

    def __init_subclass__(cls, tp: type[BaseLayer] | None = None, _variant: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "collect_bind_layer_weights" in cls.__dict__:
            cls.collect_bind_layer_weights = _once(cls.collect_bind_layer_weights)  # type: ignore
        if _variant:
            return
        inherited = cls._tp_class
        cls._tp_class = None
        if tp is not None:
            cls._tp_class = _variant_class(cls, (tp, cls))
        elif inherited is not None:
            # What a subclass overrides wins over the inherited tensor-parallel form.
            cls._tp_class = _variant_class(cls, (cls, inherited))

    def __new__(cls, *args: Any, **kwargs: Any) -> BaseLayer:
        build = current_build()
        variant = cls._tp_class if build.model_type == "tp" else None
        layer = super().__new__(variant or cls)
        layer.build = build
        layer._binding = "waiting"
        return layer

    def __init__(self, context: str | None = None, name: str | None = None) -> None:
        self.name = name or ""
        self.context = ".".join(part for part in (context, name) if part)

    # -- what subclasses override -------------------------------------------------------------------------------

    def collect_bind_layer_weights(self) -> None:
        """Loads this layer's weights and binds them to the graph; layers without weights leave it as it is."""

    def __call__(self, graph: Graph, *args: Any, **kwargs: Any) -> Any:
        """Adds this layer's nodes to `graph` and returns its output."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, graph, ...).")

    # -- what they use ------------------------------------------------------------------------------------------

    def key(self, suffix: str) -> str:
        """Returns the checkpoint key of this layer's `suffix`, e.g. `transformer.h.0.ln_1.weight`."""
        return f"{self.context}.{suffix}" if self.context else suffix

    def get_param_from_state_dict(self, weight_key: str, shape_list: Sequence[int] | None = None) -> np.ndarray:
        """Returns the checkpoint's tensor `weight_key`, in its stored dtype, not yet read from disk.

        Args:
            weight_key: full key, see `key`.
            shape_list: the shape it must have; None takes any.

        Raises:
            MissingWeightError: no such key; names the nearest ones.
            ShapeMismatchError: another shape.
            UnsupportedCheckpointError: the tensor holds integers; `self.state_dict[weight_key]` takes them.
        """
        weight = self.state_dict.get_tensor(weight_key, shape_list)
        if weight.dtype.kind in "biu":
            raise UnsupportedCheckpointError(
                f"weight {weight_key!r} of {self.state_dict.source} holds {weight.dtype} values; expected floats. "
                "If another program quantized the checkpoint, take the original one"
            )
        logger.info("loading %s with shape %s, dtype %s.", weight_key, weight.shape, weight.dtype)
        if self.build.advance is not None:
            self.build.advance(1)
        return weight

    def has_param(self, weight_key: str) -> bool:
        """Whether the checkpoint holds `weight_key`."""
        return weight_key in self.state_dict

    def add_initialized_input_tensor(
        self, weight_np: np.ndarray, weight_key: str | None = None, **variable_setting: object
    ) -> ir.Value:
        """Binds an array to the graph and returns the value that nodes take.

        Args:
            weight_np: any float dtype (seen as fp32 by the graph) or an integer one; views stay views.
            weight_key: name of the initializer; `<context>.weight` by default.
            **variable_setting: PopART's `vs_type`, `group_size`, `retrieval_mode`: how several replicas share the
                tensor. With `vs_type` `consecutive` or `orthogonal`, the first axis of `weight_np` has one entry for
                each group of `group_size` replicas, and this replica gets its group's; otherwise all get everything.
        """
        unknown = set(variable_setting) - {"vs_type", "group_size", "retrieval_mode"}
        if unknown:
            raise ConfigError(
                f"Unknown variable settings {sorted(unknown)} for {weight_key}; "
                "options: ['vs_type', 'group_size', 'retrieval_mode']."
            )
        name = weight_key or self.key("weight")
        vs_type = variable_setting.get("vs_type")
        if self.num_replicas > 1 and vs_type in ("consecutive", "orthogonal"):
            weight_np = self._own_entry(name, weight_np, str(vs_type), variable_setting.get("group_size", 1))
        return self.main_graph.initializer(weight_np, name)

    def _own_entry(self, name: str, stacked: np.ndarray, vs_type: str, group_size: Any) -> np.ndarray:
        groups = self.num_replicas // group_size
        if groups * group_size != self.num_replicas or stacked.shape[0] != groups:
            raise ConfigError(
                f"{name} has shape {list(stacked.shape)}; with {self.num_replicas} replicas and group_size "
                f"{group_size} its first axis must have {groups} entries."
            )
        replica = self.build.replica
        return stacked[replica // group_size if vs_type == "consecutive" else replica % groups]

    def device_scope(
        self,
        graph: Graph,
        virtual_graph_id: int | None = None,
        pipeline_stage_id: int | None = None,
        outline_attr: Mapping[str, object] | None = None,
    ) -> AbstractContextManager[None]:
        """Places the nodes of the block on an IPU, in a pipeline stage, under outlining attributes."""
        outline = {f"outline.{key}": value for key, value in (outline_attr or {}).items()}
        return graph.annotate(ipu=virtual_graph_id, pipeline_stage=pipeline_stage_id, **outline)

    def option_scope(
        self,
        amp: float | None = None,
        partialtype: str | None = None,
        serial_factor: int | None = None,
        serial_mode: str | None = None,
    ) -> AbstractContextManager[None]:
        """Records PopART's matmul options on the nodes of the block, for the IPU's cost model."""
        return self.main_graph.annotate(
            amp=amp, partialtype=partialtype, serial_factor=serial_factor, serial_mode=serial_mode
        )

    def block_scope(self, graph: Graph, index: int) -> AbstractContextManager[None]:
        """Marks the nodes of decoder block `index`, and places them on the IPU that `layer_per_ipu` gives it."""
        ipu = self.build.ipu_of_layer(index)
        graph.blocks.add(index)
        logger.info("block %d placed on IPU %d", index, ipu)
        return graph.annotate(block=index, ipu=ipu, pipeline_stage=ipu)

    @property
    def main_graph(self) -> Graph:
        """The graph being built."""
        if self.build.graph is None:
            raise GraphError("This build has no graph to bind weights to; layers belong in build_model_graph.")
        return self.build.graph

    @property
    def state_dict(self) -> StateDict:
        """The checkpoint's tensors."""
        if self.build.state_dict is None:
            raise GraphError("This build has no state dict to take weights from.")
        return self.build.state_dict

    @property
    def model_type(self) -> str:
        """`shard` or `tp`."""
        return self.build.model_type

    @property
    def num_replicas(self) -> int:
        """Tensor-parallel replicas."""
        return self.build.num_replicas

    @property
    def batch_size(self) -> int:
        """Rows of one batch."""
        return self.build.batch_size

    @property
    def precision(self) -> str:
        """Storage precision of weights, or the recipe as JSON; arithmetic is fp32 whatever it is."""
        return self.build.recipe.text
