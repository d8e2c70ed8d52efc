# SPDX-License-Identifier: Apache-2.0
"""onnxruntime sessions whose weights stay where they are: in a mapped file, or in one array shared by sessions."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from poptransformer import native

logger = logging.getLogger(__name__)

# Smaller tensors travel inside the serialized model, where onnxruntime's optimizer can fold them.
EXTERNAL_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class SessionSettings:
    """How sessions run.

    Attributes:
        threads: CPU threads; None is one for each core that this process may use.
        profile_prefix: write an onnxruntime profile to `<prefix>_<time>.json`.
        log_severity: onnxruntime's own log level, 0 verbose to 4 fatal.
        use_native: run our own kernels; False runs the function bodies.
    """

    threads: int | None = None
    profile_prefix: str | None = None
    log_severity: int = 3
    use_native: bool = True

    @property
    def num_threads(self) -> int:
        """Threads to use."""
        return self.threads or len(os.sched_getaffinity(0))


class WeightStore:
    """Arrays of the weights, each materialised once however many sessions use it."""

    def __init__(self) -> None:
        self._values: dict[str, ort.OrtValue] = {}

    def value(self, name: str, tensor: ir.TensorProtocol) -> ort.OrtValue:
        """Returns the tensor as an OrtValue over its own memory."""
        if name not in self._values:
            array = tensor.numpy()
            if tensor.dtype == ir.DataType.BFLOAT16:
                value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
                    array.view(np.uint16), int(ir.DataType.BFLOAT16)
                )
            else:
                value = ort.OrtValue.ortvalue_from_numpy(array)
            # The OrtValue does not own the memory of read-only arrays: keep both.
            value.source_array = array
            self._values[name] = value
        return self._values[name]


@contextlib.contextmanager
def replaced_weights(graph: ir.Graph, references: Mapping[str, ir.TensorProtocol]) -> Iterator[None]:
    """Puts `references` in place of the initializers of the same names for the time of the block."""
    originals = {name: graph.initializers[name].const_value for name in references}
    try:
        for name, reference in references.items():
            graph.initializers[name].const_value = reference
        yield
    finally:
        for name, tensor in originals.items():
            graph.initializers[name].const_value = tensor


def serialize_without_weights(model: ir.Model) -> tuple[bytes, dict[str, ir.TensorProtocol]]:
    """Returns the model as protobuf with references in place of large weights, and those weights by name."""
    taken = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes >= EXTERNAL_BYTES
    }
    references = {
        name: ir.ExternalTensor("weights.bin", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)
        for name, tensor in taken.items()
    }
    with replaced_weights(model.graph, references):
        return ir.serde.serialize_model(model).SerializeToString(), taken


def make_session(
    model: ir.Model, settings: SessionSettings, weights: WeightStore | None = None
) -> ort.InferenceSession:
    """Creates an onnxruntime session for `model` without copying its weights.

    Args:
        model: any model of this package.
        settings: threads and the like.
        weights: arrays shared with other sessions.
    """
    options = session_options(settings)
    serialized, tensors = serialize_without_weights(model)
    weights = weights or WeightStore()
    names = list(tensors)
    options.add_external_initializers(names, [weights.value(name, tensors[name]) for name in names])
    return ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])


def session_options(settings: SessionSettings) -> ort.SessionOptions:
    """Options for our sessions; loads the native library where it is to be used."""
    options = ort.SessionOptions()
    options.log_severity_level = settings.log_severity
    options.enable_mem_pattern = False  # shapes change from step to step
    options.inter_op_num_threads = 1
    if settings.use_native and native.load(options):
        # Our kernels have one thread pool for the process; a second, spinning one would take its cores.
        native.set_threads(settings.num_threads)
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.disable_prepacking", "1")
    else:
        options.intra_op_num_threads = settings.num_threads
    if settings.profile_prefix:
        options.enable_profiling = True
        options.profile_file_prefix = settings.profile_prefix
    return options
