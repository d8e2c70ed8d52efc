# SPDX-License-Identifier: Apache-2.0
"""Every kernel against the function body that defines its op; ops with outputs that hang on rounding have own files."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper

import poptransformer.ops  # noqa: F401 - registers the bodies
from poptransformer.graph import DOMAIN, IR_VERSION, OPSET, function_names, function_spec, onnx_function

TOLERANCE = 1e-5
OWN_FILES = {"Sample", "SampleToken"}  # test_sample.py


@dataclasses.dataclass
class Case:
    op: str
    name: str
    inputs: list[np.ndarray]
    attributes: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


def draw(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    random = np.random.default_rng(len(shape) + sum(shape))
    return random.standard_normal(shape, np.float32).astype(dtype)


def linear(dtype: Any, *leading: int, K: int, N: int) -> Case:
    name = f"{np.dtype(dtype).name}{[*leading, K, N]}"
    return Case("Linear", name, [draw(*leading, K), draw(N, K, dtype=dtype)], {})


def cached_attention(B: int, L: int, N: int, K: int, H: int, S: int, past: list[int]) -> Case:
    heads = [draw(B, L, N * H), draw(B, L, K * H), draw(B, L, K * H)[::-1].copy()]
    caches = [draw(B, K, S, H), draw(B, K, S, H)[..., ::-1].copy()]
    attributes = {"num_heads": N, "num_kv_heads": K, "scale": H**-0.5}
    return Case("CachedAttention", f"{[B, L, N, K, H, S]}", [*heads, *caches, np.array(past)], attributes)


CASES = [
    linear(np.float32, 1, 1, K=576, N=192),
    linear(np.float16, 2, 3, K=75, N=33),
    linear(ml_dtypes.bfloat16, 4, K=64, N=50),
    linear(np.float32, 3, 40, K=300, N=70),
    linear(np.float16, 2, 0, K=16, N=16),
    cached_attention(1, 1, 4, 4, 16, 12, [11]),
    cached_attention(2, 1, 9, 3, 64, 300, [7, 299]),
    cached_attention(3, 4, 6, 2, 20, 150, [0, 146, 33]),
    cached_attention(2, 50, 4, 1, 24, 80, [0, 30]),
]


def session(case: Case, library: str | None) -> ort.InferenceSession:
    """A session of one node with its body; with the library its kernel runs, else the body."""
    spec = function_spec(case.op)
    function = onnx_function(case.op)
    outputs = [f"out{i}" for i in range(len(function.outputs))]
    graph = helper.make_graph(
        [helper.make_node(case.op, list(spec.inputs), outputs, domain=DOMAIN, **case.attributes)],
        "test",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(spec.inputs, case.inputs, strict=True)
        ],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(
        graph, opset_imports=opsets, functions=[ir.serde.serialize_function(function)], ir_version=IR_VERSION
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if library:
        options.register_custom_ops_library(library)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(case: Case, values: dict[str, ort.OrtValue], library: str | None) -> list[np.ndarray]:
    binding = (made := session(case, library)).io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for output in made.get_outputs():
        binding.bind_output(output.name)
    made.run_with_iobinding(binding)
    return binding.copy_outputs_to_cpu()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel_equals_body(kernels, as_ort_value, case):
    values = dict(zip(function_spec(case.op).inputs, map(as_ort_value, case.inputs), strict=True))
    expected = run(case, values, None)
    actual = run(case, values, str(kernels.path))
    for kernel, body in zip(actual, expected, strict=True):
        assert kernel.shape == body.shape and kernel.dtype == body.dtype
        np.testing.assert_allclose(kernel, body, rtol=0, atol=TOLERANCE * np.abs(body).max(initial=0))


def test_every_op_is_compared():
    assert {case.op for case in CASES} | OWN_FILES == set(function_names())
