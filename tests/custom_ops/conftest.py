# SPDX-License-Identifier: Apache-2.0
"""Runs single nodes of our domain on the native kernels, on each instruction set and number of threads."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from poptransformer import native

DOMAIN = "poptransformer"
OPSETS = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]


def element_type(array: np.ndarray) -> int:
    return helper.np_dtype_to_tensor_dtype(array.dtype)


def ort_value(array: np.ndarray) -> ort.OrtValue:
    """The array's own memory as a value of onnxruntime."""
    if array.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), onnx.TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


class Kernels:
    """One copy of the library, with the instruction set it was loaded for."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.library.poptransformer_simd.restype = ctypes.c_char_p
        self.threads(threads)
        self.kept: list[ort.OrtValue] = []

    @property
    def simd(self) -> str:
        return self.library.poptransformer_simd().decode()

    def threads(self, count: int) -> None:
        assert self.library.poptransformer_set_threads(count) == count

    def session(
        self, node: onnx.NodeProto, inputs: dict[str, np.ndarray], outputs: dict[str, int], **weights: np.ndarray
    ) -> ort.InferenceSession:
        """A session of one node; `weights` become initializers over the arrays' own memory."""
        ranks = {name: [None] * array.ndim for name, array in inputs.items()}
        graph = helper.make_graph(
            [node],
            "test",
            [helper.make_tensor_value_info(name, element_type(a), ranks[name]) for name, a in inputs.items()],
            [helper.make_tensor_value_info(name, dtype, None) for name, dtype in outputs.items()],
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # tests of errors are not worth a log
        for name, array in weights.items():
            # onnxruntime insists on a file behind the initializer, but does not read it.
            stand_in = self.path.with_name(f"{name}.bin")
            stand_in.touch()
            os.truncate(stand_in, array.nbytes)
            tensor = onnx.TensorProto(name=name, data_type=element_type(array), dims=array.shape)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=stand_in.name)
            graph.initializer.append(tensor)
            self.kept.append(ort_value(array))  # the session refers to it, but does not own it
            options.add_initializer(name, self.kept[-1])
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self.path.parent))
        options.register_custom_ops_library(str(self.path))
        model = helper.make_model(graph, opset_imports=OPSETS, ir_version=11)
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(
        self,
        op: str,
        inputs: Sequence[np.ndarray | None],
        outputs: Sequence[int] = (onnx.TensorProto.FLOAT,),
        bind: dict[int, np.ndarray] | None = None,
        constant: Container[int] = (),
        **attributes: Any,
    ) -> list[np.ndarray]:
        """Runs one node.

        Args:
            op: op type.
            inputs: the node's inputs, in order; None for an optional one that is left out.
            outputs: ONNX element types of the outputs.
            bind: arrays that take the outputs of these numbers; the others are allocated.
            constant: numbers of the inputs that are initializers.
            **attributes: of the node.

        Returns:
            The outputs.
        """
        given = {f"in{i}": array for i, array in enumerate(inputs) if array is not None}
        weights = {f"in{i}": given[f"in{i}"] for i in range(len(inputs)) if i in constant and f"in{i}" in given}
        feeds = {name: array for name, array in given.items() if name not in weights}
        slots = [f"in{i}" if f"in{i}" in given else "" for i in range(len(inputs))]
        names = [f"out{i}" for i in range(len(outputs))]
        node = helper.make_node(op, slots, names, domain=DOMAIN, **attributes)
        session = self.session(node, feeds, dict(zip(names, outputs, strict=True)), **weights)
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, ort_value(array))
        for i, name in enumerate(names):
            if bind and i in bind:
                binding.bind_ortvalue_output(name, ort_value(bind[i]))
            else:
                binding.bind_output(name)
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()


@pytest.fixture(scope="session")
def as_ort_value() -> Callable[[np.ndarray], ort.OrtValue]:
    """`ort_value`, for test modules, which cannot import from here."""
    return ort_value


@pytest.fixture(scope="session", params=["auto", "avx2", "portable"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the library: each copy reads POPTRANSFORMER_SIMD for itself, when it is loaded."""
    source = native.library_path()
    if source is None or not source.is_file():
        pytest.skip("the custom ops are not built: run `make`")
    path = shutil.copy(source, tmp_path_factory.mktemp("ops") / f"libops_{request.param}.so")
    before = os.environ.get("POPTRANSFORMER_SIMD")
    os.environ["POPTRANSFORMER_SIMD"] = request.param
    try:
        simd = Kernels(path, 1).simd
    finally:
        os.environ.pop("POPTRANSFORMER_SIMD")
        if before is not None:
            os.environ["POPTRANSFORMER_SIMD"] = before
    if request.param != "auto" and simd != request.param:
        pytest.skip(f"this processor has no {request.param}")
    return path


@pytest.fixture(params=[1, 2], ids=["1thread", "2threads"])
def kernels(library: Path, request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """The library on one instruction set, with one or two threads."""
    yield Kernels(library, request.param)


@pytest.fixture
def kernels_alone(library: Path) -> Kernels:
    """The library on one instruction set, with one thread, for what threads have no part in."""
    return Kernels(library, 1)
