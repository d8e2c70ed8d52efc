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

from poptransformer import ops  # registers the bodies
from poptransformer.graph import DOMAIN, IR_VERSION, OPSET, function_names, function_spec, onnx_function

TOLERANCE = 1e-5
# test_sample.py, test_quantized_linear.py, test_attention_caches.py, test_collectives.py
OWN_FILES = {"Sample", "SampleToken", "QuantizedLinear", "RotaryCachedAttention"}
OWN_FILES |= {"AllReduce", "AllGather", "Send", "Recv"}


@dataclasses.dataclass
class Case:
    op: str
    name: str
    inputs: list[np.ndarray | None]  # None for an optional one that is left out
    attributes: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


def draw(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    random = np.random.default_rng(len(shape) + sum(shape))
    return random.standard_normal(shape, np.float32).astype(dtype)


def linear(dtype: Any, *leading: int, K: int, N: int) -> Case:
    name = f"{np.dtype(dtype).name}{[*leading, K, N]}"
    return Case("Linear", name, [draw(*leading, K), draw(N, K, dtype=dtype)], {})


def cached_attention(
    B: int,
    L: int,
    N: int,
    K: int,
    H: int,
    S: int,
    past: list[int],
    dtype: Any = np.float32,
    rotary: tuple[int, int] | None = None,
    prefix: list[int] | None = None,
) -> Case:
    heads = [draw(B, L, N * H), draw(B, L, K * H), draw(B, L, K * H)[::-1].copy()]
    caches = [draw(B, K, S, H), draw(B, K, S, H)[..., ::-1].copy()]
    attributes = {"num_heads": N, "num_kv_heads": K, "scale": H**-0.5}
    caches = [stored(cache, dtype) for cache in caches]
    attributes |= {"cache_format": "e4m3fn"} if dtype == np.uint8 else {}
    name = f"{np.dtype(dtype).name}{[B, L, N, K, H, S]}{prefix or ''}"
    lengths = [np.array(past), None if prefix is None else np.array(prefix)]
    if rotary is None:
        return Case("CachedAttention", name, [*heads, *caches, *lengths], attributes)
    R, interleaved = rotary
    angles = draw(B, L, R // 2)
    attributes |= {"rotary_dim": R, "interleaved": interleaved}
    cos, sin = np.cos(angles), np.sin(angles)
    if dtype != np.float32:
        # By quarter turns, which are exact: the last bit of another angle can tip the rounding of what is cached.
        cos, sin = np.round(cos), np.round(sin) * (np.round(cos) == 0)
    inputs = [*heads, cos, sin, *caches, *lengths]
    return Case("RotaryCachedAttention", f"{name}{list(rotary)}", inputs, attributes)


def stored(cache: np.ndarray, dtype: Any) -> np.ndarray:
    return cache.astype(ml_dtypes.float8_e4m3fn).view(np.uint8) if dtype == np.uint8 else cache.astype(dtype)


def wkv(B: int, L: int, D: int, lengths: list[int]) -> Case:
    decay = -np.exp(draw(D))
    states = [draw(B, D), 1 + np.abs(draw(B, D)), np.full((B, D), -1e38, np.float32)]
    inputs = [decay, draw(D)[::-1].copy(), draw(B, L, D), draw(B, L, D)[:, :, ::-1].copy(), np.array(lengths), *states]
    return Case("WKV", f"{[B, L, D]}", inputs, {})


def packed(format: str, N: int, K: int, block: int | None, with_offsets: bool) -> list[np.ndarray | None]:
    """Random codes, scales and offsets in the layout of `ops/quantized.py`; without a block, one for each row."""
    random = np.random.default_rng(N * K)
    tiles, padded = -(-N // 16), -(-K // (block or 32)) * (block or 32)
    groups = 4 if format == "int4" else 8
    codes = random.integers(0, 256, (tiles, padded // 32, groups, 16, 4)).astype(np.uint8)
    is_float = format in ops.quantized.FLOAT8
    if is_float:
        values = codes.view(ops.quantized.FLOAT8[format].numpy()).astype(np.float32)
        codes[~np.isfinite(values)] = 1
    shape = (tiles, padded // (block or padded), 16)
    scales = random.uniform(0.01, 0.1, shape).astype(np.float32 if is_float else np.float16)
    offsets = random.standard_normal(shape).astype(np.float16) if with_offsets else None
    return [codes, scales, offsets]


def quantized_embedding(format: str, N: int, K: int, block: int | None, *ids: int, offsets: bool = False) -> Case:
    name = f"{format}{[N, K, block]}{' offsets' * offsets}"
    table = packed(format, N, K, block, offsets)
    rows = np.random.default_rng(0).integers(0, N, ids)
    return Case("QuantizedEmbedding", name, [rows, *table], {"format": format, "columns": N, "depth": K})


def round_to_float8(format: str, scaling: str, *shape: int, scale: float | None = None) -> Case:
    given = None if scale is None else np.array(scale, np.float32)
    x = draw(*shape) * np.exp(draw(*shape[:-1], 1) * 9)
    return Case("RoundToFloat8", f"{format}-{scaling}-{scale}", [x, given], {"format": format, "scaling": scaling})


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
    *(
        cached_attention(*sizes, past, dtype, rotary)
        for sizes, past in (((1, 1, 9, 3, 64, 300), [200]), ((2, 30, 4, 2, 20, 60), [0, 30]))
        for dtype in (np.float32, np.float16, np.uint8)
        for rotary in (None, (20, 0), (16, 1))
        if (dtype, rotary) != (np.float32, None)
    ),
    cached_attention(3, 4, 6, 2, 20, 150, [0, 146, 33], prefix=[4, 0, 35]),
    cached_attention(2, 50, 4, 1, 24, 80, [0, 30], rotary=(16, 0), prefix=[49, 12]),
    wkv(1, 1, 768, [1]),
    wkv(2, 40, 100, [40, 7]),
    quantized_embedding("int4", 49, 75, 32, 2, 3),
    quantized_embedding("int4", 48, 576, 64, 1, 300, offsets=True),
    quantized_embedding("int4", 33, 100, None, 4),
    quantized_embedding("int8", 33, 130, 128, 5, 1),
    quantized_embedding("int8", 16, 64, None, 3, 0),
    *(quantized_embedding(format, 20, 70, block, 2, 40) for format in ops.quantized.FLOAT8 for block in (32, None)),
    *(
        round_to_float8(format, scaling, 3, 40, 75, scale=scale)
        for format in ops.quantized.FLOAT8
        for scaling, scale in (("amax", None), ("power_of_two", None), ("amax", 0.37))
    ),
]


def session(case: Case, library: str | None) -> ort.InferenceSession:
    """A session of one node with its body; with the library its kernel runs, else the body."""
    spec = function_spec(case.op)
    given = {name: array for name, array in zip(spec.inputs, case.inputs, strict=True) if array is not None}
    attributes = {a.name: a for a in ir.convenience.convert_attributes(case.attributes)}
    function = onnx_function(case.op, spec.variant(case.inputs, attributes))
    outputs = [f"out{i}" for i in range(len(function.outputs))]
    names = [name if name in given else "" for name in spec.inputs]
    node = helper.make_node(case.op, names, outputs, domain=DOMAIN, overload=function.overload, **case.attributes)
    graph = helper.make_graph(
        [node],
        "test",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in given.items()
        ],
        [
            helper.make_tensor_value_info(name, dtype, None)
            for name, dtype in zip(outputs, output_types(case), strict=True)
        ],
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


def output_types(case: Case) -> list[int]:
    """An attention's caches keep their type; everything else is fp32."""
    count = len(onnx_function(case.op, next(iter(function_spec(case.op).variants()))).outputs)
    named = dict(zip(function_spec(case.op).inputs, case.inputs, strict=True))
    cache = helper.np_dtype_to_tensor_dtype(named["past_key"].dtype) if "past_key" in named else onnx.TensorProto.FLOAT
    return [onnx.TensorProto.FLOAT, *[cache] * (count - 1)]


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
    named = zip(function_spec(case.op).inputs, case.inputs, strict=True)
    values = {name: as_ort_value(array) for name, array in named if array is not None}
    expected = run(case, values, None)
    actual = run(case, values, str(kernels.path))
    for kernel, body in zip(actual, expected, strict=True):
        assert kernel.shape == body.shape and kernel.dtype == body.dtype
        np.testing.assert_allclose(kernel, body, rtol=0, atol=TOLERANCE * np.abs(body).max(initial=0))


def test_every_op_is_compared():
    assert {case.op for case in CASES} | OWN_FILES == set(function_names())
