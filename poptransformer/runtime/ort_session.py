# SPDX-License-Identifier: Apache-2.0
"""onnxruntime sessions whose weights stay where they are: in a mapped file, or in one array shared by sessions."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from poptransformer import native
from poptransformer.build import check_positive
from poptransformer.errors import PopTransformerError

if TYPE_CHECKING:
    # Imported where a graph is at hand, or where there are several ranks; opening a saved model needs none of it.
    import onnx_ir as ir

    from poptransformer.parallel.communicator import Groups

logger = logging.getLogger(__name__)

# Smaller tensors travel inside the serialized model, where onnxruntime's optimizer can fold them.
EXTERNAL_BYTES = 1024
WEIGHTS = "weights.bin"
# Our ops over weights: for each, the number of its first weight. They and what follows are read by the kernel alone; a
# chain hands all that it gets to kernels.
FIRST_WEIGHT = {"Linear": 1, "QuantizedLinear": 1, "QuantizedEmbedding": 1, "FusedLinear": 1, "Chain": 0}
PROVIDERS = ["CPUExecutionProvider"]
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclasses.dataclass(frozen=True)
class SessionSettings:
    """How sessions run.

    Attributes:
        threads: CPU threads; None is one for each core that this process may use.
        profile_prefix: write an onnxruntime profile to `<prefix>_<time>.json`.
        log_severity: onnxruntime's own log level, 0 verbose to 4 fatal.
        use_native: run our own kernels; False runs the function bodies.
        groups: whom the sessions talk to, for one rank of several.
    """

    threads: int | None = None
    profile_prefix: str | None = None
    log_severity: int = 3
    use_native: bool = True
    groups: Groups | None = None

    def __post_init__(self) -> None:
        if self.threads is not None:
            check_positive("threads", self.threads)

    @property
    def num_threads(self) -> int:
        """Threads to use."""
        return self.threads or len(os.sched_getaffinity(0))


class WeightStore:
    """Arrays of the weights, each materialised once however many sessions use it.

    onnxruntime keeps bare pointers to what `value` returns, so every session holds its store.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[np.ndarray, ort.OrtValue]] = {}

    def value(self, name: str, tensor: ir.TensorProtocol) -> ort.OrtValue:
        """Returns the tensor as an OrtValue over its own memory."""
        if name not in self._held:
            array = _materialised(tensor)
            if tensor.dtype.name == "BFLOAT16":
                bits = array.view(np.uint16)
                value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, int(tensor.dtype))
            else:
                value = ort.OrtValue.ortvalue_from_numpy(array)
            self._held[name] = array, value
        return self._held[name][1]


def _materialised(tensor: ir.TensorProtocol) -> np.ndarray:
    """Returns the values; a weight that had to be cast or transposed lets go of what it was made from.

    So a model whose precision is not the checkpoint's takes its own size in memory and one weight, not both sizes.
    """
    from poptransformer.checkpoint import release
    from poptransformer.graph import WeightTensor

    array = tensor.numpy()
    if not isinstance(tensor, WeightTensor):
        return array
    if getattr(tensor.array, "is_lazy", False):  # Unpacked just now, and only once for all sessions.
        tensor.array = array
    elif not np.may_share_memory(array, tensor.array):
        release(tensor.array)
        tensor.array = array
    return array


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


def large_weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Returns the weights that do not travel inside the serialized model, by name."""
    return {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes >= EXTERNAL_BYTES
    }


def serialize(model: ir.Model, left_out: Mapping[str, ir.TensorProtocol]) -> bytes:
    """Returns the model as protobuf: references to `weights.bin` for `left_out`, all other weights inside."""
    import onnx_ir as ir

    # What lies in another file comes inside however small it is: that file is not this session's.
    inside = large_weights(model) | _external_weights(model)
    tensors: dict[str, ir.TensorProtocol] = {
        name: ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
        for name, tensor in inside.items()
        if name not in left_out
    }
    for name, tensor in left_out.items():
        shape = ir.Shape(tensor.shape.numpy())
        tensors[name] = ir.ExternalTensor(WEIGHTS, 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)
    with replaced_weights(model.graph, tensors):
        return ir.serde.serialize_model(model).SerializeToString()


def _external_weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    import onnx_ir as ir

    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, ir.ExternalTensor)}


def make_session(
    model: ir.Model, settings: SessionSettings, weights: WeightStore | None = None
) -> ort.InferenceSession:
    """Creates an onnxruntime session for `model`.

    With the native library, weights that only its kernels and lookups read are shared with onnxruntime, not copied.
    Without it, onnxruntime folds constants of the function bodies and so needs weights of its own.

    Args:
        model: any model of this package.
        settings: threads and the like.
        weights: arrays shared with other sessions.
    """
    options, native_loaded = session_options(settings)
    weights = weights or WeightStore()
    large = large_weights(model)
    if not native_loaded:
        names = list(large)
        options.add_external_initializers(names, [weights.value(name, large[name]) for name in names])
        return _session(serialize(model, large), options, settings, weights)
    shared = {name: tensor for name, tensor in large.items() if _only_read_by_row(model.graph.initializers[name])}
    for name, tensor in shared.items():
        options.add_initializer(name, weights.value(name, tensor))
    with _stand_in_file(shared) as folder:
        options.add_session_config_entry(_WEIGHTS_FOLDER, folder)
        return _session(serialize(model, shared), options, settings, weights)


def open_session(
    path: Path,
    settings: SessionSettings,
    weights_folder: Path | None = None,
    on_read: Callable[[], None] | None = None,
) -> ort.InferenceSession:
    """Opens a saved model.

    Args:
        path: its graph.
        settings: threads and the like.
        weights_folder: where its weights lie, which onnxruntime maps; beside the graph by default.
        on_read: called when the graph has been read, and most of the work is still to be done.
    """
    options, _ = session_options(settings)
    if weights_folder is None:
        return _create(str(path), options, settings, on_read)
    options.add_session_config_entry(_WEIGHTS_FOLDER, str(weights_folder))
    return _create(path.read_bytes(), options, settings, on_read)


def _session(
    model: bytes, options: ort.SessionOptions, settings: SessionSettings, weights: WeightStore
) -> ort.InferenceSession:
    session = _create(model, options, settings)
    session.weight_store = weights  # whoever holds the session holds the memory that it reads
    return session


def _create(
    model: str | bytes,
    options: ort.SessionOptions,
    settings: SessionSettings,
    on_read: Callable[[], None] | None = None,
) -> ort.InferenceSession:
    def disabled_optimizers() -> Iterator[str]:
        # None. But onnxruntime asks for them right after it has read the graph, and gives no other sign of that.
        if on_read is not None:
            on_read()
        yield from ()

    with settings.groups.in_use() if settings.groups is not None else contextlib.nullcontext():
        return ort.InferenceSession(model, options, providers=PROVIDERS, disabled_optimizers=disabled_optimizers())


def _only_read_by_row(value: ir.Value) -> bool:
    """Whether no optimizer of onnxruntime looks at the values: only products and lookups take them."""
    return all(_reads_by_row(use.node, use.idx) for use in value.uses()) and not value.is_graph_output()


def _reads_by_row(node: ir.Node, index: int) -> bool:
    if node.domain:
        return index >= FIRST_WEIGHT.get(node.op_type, index + 1)
    return (node.op_type, index) == ("Gather", 0)


@contextlib.contextmanager
def _stand_in_file(shared: Mapping[str, ir.TensorProtocol]) -> Iterator[str]:
    """Yields a folder with an empty (sparse) `weights.bin`.

    onnxruntime takes a tensor from `add_initializer` in place of one in a file, but insists that the file is there.
    """
    with tempfile.TemporaryDirectory(prefix="poptransformer-") as folder:
        path = Path(folder) / WEIGHTS
        path.touch()
        os.truncate(path, max((tensor.nbytes for tensor in shared.values()), default=0))
        yield folder


def session_options(settings: SessionSettings) -> tuple[ort.SessionOptions, bool]:
    """Returns options for our sessions, and whether they have the native library."""
    options = ort.SessionOptions()
    options.log_severity_level = settings.log_severity
    options.enable_mem_pattern = False  # shapes change from step to step
    options.inter_op_num_threads = 1
    loaded = settings.use_native and native.load(options)
    if settings.groups is not None and not loaded:
        raise PopTransformerError(
            "A model of several replicas or stages needs the native library, by which they talk to each other. "
            "Run `make` in the project's folder, or set num_replicas=1 and layer_per_ipu=null."
        )
    if loaded:
        # Our kernels have one thread pool for the process; a second, spinning one would take its cores.
        native.set_threads(settings.num_threads)
        options.intra_op_num_threads = 1
    else:
        options.intra_op_num_threads = settings.num_threads
    if settings.profile_prefix:
        options.enable_profiling = True
        options.profile_file_prefix = settings.profile_prefix
    return options, loaded
