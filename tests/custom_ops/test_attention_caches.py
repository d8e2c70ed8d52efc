# SPDX-License-Identifier: Apache-2.0
"""Attention over float32, float16 and E4M3FN caches, with and without rotary embedding, against NumPy and bodies."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper

from poptransformer import ops
from poptransformer.graph import DOMAIN, IR_VERSION, OPSET, function_spec, onnx_function
from tests.custom_ops.attention_case import CACHES, Case, read, stored

TOLERANCE = 3e-6
BODY_TOLERANCE = 1e-5

SIZES = [
    (1, 1, 1, 1, 1, 1, [0]),
    (1, 1, 9, 3, 64, 60, [50]),
    (3, 1, 9, 3, 64, 300, [0, 127, 299]),  # decode; slots are split in runs of 128
    (2, 4, 6, 2, 20, 515, [511, 100]),  # the last number of tokens whose slots are split
    (2, 5, 6, 2, 20, 515, [510, 100]),
    (1, 1, 71, 1, 34, 200, [150]),  # many queries share a key
    (2, 3, 5, 1, 128, 300, [125, 8]),
    (1, 2, 8, 2, 80, 40, [30]),
    (1, 70, 9, 3, 64, 70, [0]),  # prefill
    (2, 130, 4, 1, 80, 260, [0, 130]),  # the second part of one
    (1, 17, 6, 3, 26, 90, [50]),
    (0, 3, 2, 1, 8, 4, []),
    (2, 0, 2, 1, 8, 4, [4, 1]),
]
ROTARIES = [(64, False), (32, False), (64, True), (6, True)]
PREFIXES = [  # and tokens that all of a row see
    ((3, 1, 9, 3, 64, 300, [0, 127, 299]), [1, 60, 300]),
    ((2, 4, 6, 2, 20, 515, [511, 0]), [515, 2]),  # of few tokens, in the last of several runs of slots
    ((2, 4, 6, 2, 20, 300, [126, 0]), [130, 4]),
    ((1, 2, 71, 1, 34, 200, [150]), [152]),
    ((3, 70, 9, 3, 64, 70, [0, 0, 0]), [0, 69, 33]),  # prefill
    ((2, 230, 4, 1, 80, 360, [0, 130]), [230, 7]),
    ((1, 17, 6, 3, 26, 90, [50]), [40]),
]


def cases() -> list[Case]:
    """Every size with every cache, and with a rotary embedding of each kind that fits."""
    found = [Case(*size, cache) for cache in ("float16", "uint8") for size in SIZES]
    for cache, (index, size) in itertools.product(CACHES, enumerate(SIZES)):
        rotary_dim, interleaved = ROTARIES[index % len(ROTARIES)]
        if size[4] > 1:
            found.append(Case(*size, cache, min(rotary_dim, size[4]), interleaved))
    for cache, (size, prefix), rotary_dim in itertools.product(CACHES, PREFIXES, (0, 20)):
        found.append(Case(*size, cache, rotary_dim, prefix=prefix))
    return found


CASES = cases()
NOT_EMPTY = [case for case in CASES if case.B and case.L]


def run(kernels, case, inputs, bind=None):
    return kernels.run(case.op, inputs, case.output_types, bind, **case.attributes)


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many numbers of the caches' type lie between two."""
    bits, sign = {4: (np.int32, 31), 2: (np.int16, 15), 1: (np.int8, 7)}[a.dtype.itemsize]
    ordered = [x.view(bits).astype(np.int64) for x in (a, b)]
    first, second = (np.where(x < 0, -(x & ((1 << sign) - 1)), x) for x in ordered)
    return np.abs(first - second)


def check_caches(case: Case, found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """What is not rotated is the same to the last bit; a rotation's last bit may change how its result is rounded."""
    np.testing.assert_array_equal(found[1], expected[1])
    if not case.rotary_dim:
        np.testing.assert_array_equal(found[0], expected[0])
    elif case.cache == "float32":
        np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-6)
    else:
        far = distance(found[0], expected[0])
        # A sum that nearly cancels has a large error relative to itself, so that very small numbers may differ more.
        assert (far[np.abs(read(expected[0])) > 1e-3] <= 1).all()
        assert (far > 0).sum() <= 0.01 * far.size
        np.testing.assert_allclose(read(found[0]), read(expected[0]), rtol=0.13, atol=1e-3)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_numpy(kernels, case):
    inputs = case.inputs()
    kept = [array.copy() for array in inputs]
    output, *presents = run(kernels, case, inputs)
    check_caches(case, presents, case.presents(inputs))
    expected = case.output(inputs, *presents)
    np.testing.assert_allclose(output, expected, rtol=0, atol=TOLERANCE * max(1, np.abs(expected).max(initial=0)))
    for array, copy in zip(inputs, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def body(case: Case, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """What the function body gives, in plain onnxruntime."""
    spec = function_spec(case.op)
    names = spec.inputs[: len(inputs)]
    attributes = {a.name: a for a in ir.convenience.convert_attributes(case.attributes)}
    function = onnx_function(case.op, spec.variant(inputs, attributes))
    node = helper.make_node(
        case.op, names, ["o", "k", "v"], domain=DOMAIN, overload=function.overload, **case.attributes
    )
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, inputs, strict=True)
    ]
    outputs = [helper.make_tensor_value_info(n, t, None) for n, t in zip("okv", case.output_types, strict=True)]
    model = helper.make_model(
        helper.make_graph([node], "test", infos, outputs),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        functions=[ir.serde.serialize_function(function)],
        ir_version=IR_VERSION,
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3  # TensorScatter warns that it copies the caches
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, inputs, strict=True)))


@functools.cache
def body_of(number: int) -> list[np.ndarray]:
    """What onnxruntime makes of a case, for all kernels that are compared with it."""
    return body(NOT_EMPTY[number], NOT_EMPTY[number].inputs())


# onnxruntime's Attention takes nothing empty
@pytest.mark.parametrize("number", range(len(NOT_EMPTY)), ids=[str(case) for case in NOT_EMPTY])
def test_kernel_equals_body(kernels, number):
    case = NOT_EMPTY[number]
    inputs = case.inputs()
    expected, *expected_presents = body_of(number)
    output, *presents = run(kernels, case, inputs)
    check_caches(case, presents, expected_presents)
    if (presents[0] == expected_presents[0]).all() or case.cache == "float32":
        atol = BODY_TOLERANCE * np.abs(expected).max(initial=0)
        np.testing.assert_allclose(output, expected, rtol=0, atol=atol)


def test_both_ops_have_bodies_for_codes_and_prefixes():
    names = ["", "prefix_lengths", "e4m3fn", "e4m3fn_prefix_lengths"]
    for op in ops.attention.CACHED_ATTENTIONS:
        assert [variant.overload for variant in function_spec(op).variants()] == names


@pytest.mark.parametrize("L", [1, 3, 4, 5, 30])
def test_a_prefix_of_nothing_is_causal_to_the_last_bit(kernels, L):
    causal = Case(2, L, 6, 2, 24, 300, [7, 250])
    prefixed = dataclasses.replace(causal, prefix=[7 + 1, 0])
    found = [run(kernels, case, case.inputs()) for case in (causal, prefixed)]
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("L", [3, 30])
def test_tokens_of_a_prefix_see_later_ones_of_it_and_no_others(kernels, L):
    case = Case(1, L, 4, 2, 20, 200, [100], prefix=[100 + L - 1])
    inputs = case.inputs()
    before = run(kernels, case, inputs)[0]
    for position, seen in ((L - 1, False), (L - 2, True)):
        changed = [array.copy() for array in inputs]
        for array in changed[1:3]:
            array[:, position] += 1
        after = run(kernels, case, changed)[0]
        assert (after[:, 0] != before[:, 0]).any() == seen
        assert (after[:, -1] != before[:, -1]).any()


def test_prefixes_that_reach_beyond_the_row(kernels):
    for op_case, prefix, message in (
        (Case(2, 3, 4, 2, 8, 16, [0, 5], prefix=[0, 0]), [0, 9], r"prefix_lengths\[1\] must be from 0 to the 8 tokens"),
        (Case(2, 3, 4, 2, 8, 16, [0, 5], rotary_dim=6, prefix=[0, 0]), [-1, 0], r"prefix_lengths\[0\].* found -1"),
        (Case(2, 3, 4, 2, 8, 16, [0, 5], prefix=[0, 0]), [0], r"input 'prefix_lengths' must be \[2\], found \[1\]"),
    ):
        inputs = [*op_case.inputs()[:-1], np.array(prefix)]
        with pytest.raises(Exception, match=message):
            run(kernels, op_case, inputs)


@pytest.mark.parametrize("case", NOT_EMPTY, ids=str)
def test_bound_caches_are_updated_in_place(kernels, case):
    inputs = case.inputs()
    expected = run(kernels, case, inputs)
    caches = inputs[case.first_cache :][:2]
    output = run(kernels, case, inputs, {1: caches[0], 2: caches[1]})[0]
    for found, wanted in zip((output, *caches), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_threads_do_not_change_a_bit(kernels):
    for case in NOT_EMPTY[::3]:
        inputs = case.inputs()
        first = run(kernels, case, inputs)
        for threads in (2, 3, 6):
            kernels.threads(threads)
            for found, wanted in zip(run(kernels, case, inputs), first, strict=True):
                np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("rotary_dim", [0, 24])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("L", [1, 4, 30])
def test_a_row_does_not_depend_on_its_neighbours(kernels, L, cache, rotary_dim):
    case = Case(3, L, 6, 2, 24, 300, [7, 250, 128], cache, rotary_dim)
    inputs = case.inputs()
    together = run(kernels, case, inputs)
    for row in range(case.B):
        one = dataclasses.replace(case, B=1, past=[case.past[row]])
        alone = run(kernels, one, [array[row : row + 1] for array in inputs])
        for found, wanted in zip(alone, together, strict=True):
            np.testing.assert_array_equal(found[0], wanted[row])


@pytest.mark.parametrize("cache", ["float16", "uint8"])
@pytest.mark.parametrize("L", [1, 4, 30])
def test_slots_behind_the_last_token_are_not_read(kernels, L, cache):
    case = Case(2, L, 4, 2, 20, 200, [5, 130], cache)
    inputs = case.inputs()
    clean = run(kernels, case, inputs)[0]
    for row, past in enumerate(case.past):
        for array in inputs[3:5]:
            array[row, :, past:] = 0x7F if cache == "uint8" else np.nan
    np.testing.assert_array_equal(run(kernels, case, inputs)[0], clean)


@pytest.mark.parametrize("rotary_dim", [0, 32])
@pytest.mark.parametrize("cache", CACHES)
def test_steps_continue_a_prefill(kernels, cache, rotary_dim):
    whole = Case(2, 140, 6, 2, 32, 150, [0, 0], cache, rotary_dim)
    *tokens, cache_key, cache_value, _ = whole.inputs()
    once = run(kernels, whole, whole.inputs())
    done = 0
    for count in (100, 1, 1, 4, 34):
        step = dataclasses.replace(whole, L=count)
        parts = [np.ascontiguousarray(x[:, done : done + count]) for x in tokens]
        inputs = [*parts, cache_key, cache_value, np.full(2, done, np.int64)]
        output = run(kernels, step, inputs, {1: cache_key, 2: cache_value})[0]
        np.testing.assert_allclose(output, once[0][:, done : done + count], rtol=0, atol=1e-5)
        done += count
    np.testing.assert_array_equal(cache_key, once[1])
    np.testing.assert_array_equal(cache_value, once[2])


# -- formats --------------------------------------------------------------------------------------------------------


def interesting_floats() -> np.ndarray:
    """Numbers of each binade and sign: exact ones, ties, the neighbours of both; infinities and NaNs."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    eighths = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    exact = np.concatenate([halves, eighths])
    exact = np.unique(exact[np.isfinite(exact)])
    ties = (exact[1:].astype(np.float64) + exact[:-1]) / 2
    chosen = np.concatenate([exact, ties.astype(np.float32), [-0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-45, 464, 480]])
    chosen = np.concatenate([chosen, [65519.99, 65520, 3.4e38]]).astype(np.float32)
    return np.concatenate([chosen, np.nextafter(chosen, np.inf), np.nextafter(chosen, -np.inf)]).astype(np.float32)


def same_numbers(found: np.ndarray, expected: np.ndarray) -> None:
    """Fails unless both are the same to the last bit; all NaNs are one."""
    nan = np.isnan(read(expected))
    np.testing.assert_array_equal(np.isnan(read(found)), nan)
    bits = np.dtype(f"u{found.dtype.itemsize}")
    np.testing.assert_array_equal(found.view(bits)[~nan], expected.view(bits)[~nan])


@pytest.mark.parametrize("H", [64, 7])
@pytest.mark.parametrize("cache", ["float16", "uint8"])
def test_every_number_is_rounded_to_nearest_even(kernels, cache, H):
    values, B = interesting_floats(), 64  # rows, so that none has many tokens to attend to
    values = np.resize(values, -(-len(values) // (B * H)) * B * H).reshape(B, -1, H)
    L = values.shape[1]
    case = Case(B, L, 1, 1, H, L, [0] * B, cache)
    empty = stored(np.zeros((B, 1, L, H)), cache)
    found = kernels.run(
        case.op,
        [np.zeros_like(values), values, -values, empty, empty, np.zeros(B, np.int64)],
        case.output_types,
        **case.attributes,
    )
    same_numbers(found[1][:, 0], stored(values, cache))
    same_numbers(found[2][:, 0], stored(-values, cache))


@pytest.mark.parametrize("cache", ["float16", "uint8"])
def test_bodies_round_every_number_to_nearest_even(cache):
    values = interesting_floats()
    values = values[None, : len(values) // 64 * 64].reshape(64, -1, 64)
    L = values.shape[1]
    case = Case(64, L, 1, 1, 64, L, [0] * 64, cache)
    empty = stored(np.zeros((64, 1, L, 64)), cache)
    inputs = [np.zeros_like(values), values, -values, empty, empty, np.zeros(64, np.int64)]
    expected = stored(values, cache)
    same_numbers(body(case, inputs)[1][:, 0], expected)


@pytest.mark.parametrize("L", [1, 30])
@pytest.mark.parametrize("cache", ["float16", "uint8"])
def test_every_number_is_read(kernels, L, cache):
    """The first slot gets all of the attention, and its value holds every number there is."""
    numbers = (
        np.arange(256, dtype=np.uint8) if cache == "uint8" else np.arange(0, 1 << 16, 13, np.uint16).view(np.float16)
    )
    H = len(numbers)
    case = Case(1, L, 1, 1, H, L + 1, [1], cache, scale=1.0)
    query = np.zeros((1, L, H), np.float32)
    query[..., 0] = 100
    key = stored(np.zeros((1, 1, L + 1, H)), cache)
    key[0, 0, 0, 0] = stored(np.full(1, 2.0), cache)[0]
    value = stored(np.zeros((1, 1, L + 1, H)), cache)
    value[0, 0, 0] = numbers
    zeros = np.zeros((1, L, H), np.float32)
    output = kernels.run(
        case.op, [query, zeros, zeros, key, value, np.ones(1, np.int64)], case.output_types, **case.attributes
    )[0]
    finite = np.isfinite(read(numbers))
    for row in output[0]:
        np.testing.assert_array_equal(row[finite], read(numbers)[finite])
        assert not np.isfinite(row[~finite]).any()


@pytest.mark.parametrize("L", [1, 30])
def test_nan_codes_stay_in_their_heads(kernels, L):
    case = Case(1, L, 4, 2, 20, 300, [200], "uint8")
    inputs = case.inputs()
    inputs[3][0, 1, 7, 19] = 0xFF  # kv head 1, heads 2 and 3
    output = run(kernels, case, inputs)[0].reshape(L, 4, 20)
    assert np.isnan(output[:, 2:]).all() and np.isfinite(output[:, :2]).all()


@pytest.mark.parametrize("cache", CACHES)
def test_a_large_head_and_a_long_past(kernels, cache):
    case = Case(1, 2, 3, 1, 300, 1500, [1300], cache, 256)
    inputs = case.inputs()
    output, *presents = run(kernels, case, inputs)
    expected = case.output(inputs, *presents)
    np.testing.assert_allclose(output, expected, rtol=0, atol=TOLERANCE * max(1, np.abs(expected).max()))


# -- errors ---------------------------------------------------------------------------------------------------------

GOOD = Case(2, 3, 4, 2, 8, 16, [0, 13], "uint8", 6)


def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


# Number of the input to replace, what by, what the error says.
WRONG_INPUTS = [
    (3, zeros(2, 3, 4), r"RotaryCachedAttention: input 'cos' must be \[2, 3, 3\], found \[2, 3, 4\]"),
    (3, zeros(1, 3, 3), r"input 'cos' must be \[2, 3, 3\], found \[1, 3, 3\]"),
    (4, zeros(2, 3), r"input 'sin' must be \[2, 3, 3\], found \[2, 3\]"),
    (0, zeros(2, 3, 33), r"input 'query' must be \[2, L, 32\], found \[2, 3, 33\]"),
    (0, zeros(2, 96), r"input 'query' must be \[B, L, N\*H\], found \[2, 96\]"),
    (1, zeros(2, 3, 8), r"input 'key' must be \[2, 3, 16\], found \[2, 3, 8\]"),
    (5, zeros(2, 2, 16, 8), r"input 'past_key' must be uint8, found float32"),
    (5, zeros(2, 2, 16, 8, dtype=np.int8), r"input 'past_key' must be uint8, found int8"),
    (6, zeros(2, 2, 16, 8, dtype=np.float16), r"input 'past_value' must be uint8, found float16"),
    (6, zeros(2, 2, 15, 8, dtype=np.uint8), r"input 'past_value' must be \[2, 2, 16, 8\], found \[2, 2, 15, 8\]"),
    (
        5,
        zeros(2, 2, 16, 4, dtype=np.uint8),
        r"input 'past_key' must be \[B, K, S, H\] with H of rotary_dim = 6 or more",
    ),
    (7, np.array([0, 14]), r"past_lengths\[1\] = 14 plus 3 new tokens must fit the cache of 16 slots"),
]


@pytest.mark.parametrize(("number", "array", "message"), WRONG_INPUTS, ids=[w[2][:50] for w in WRONG_INPUTS])
def test_wrong_inputs_are_errors_and_change_nothing(kernels, number, array, message):
    inputs = GOOD.inputs()
    good = [inputs[5], inputs[6]]
    kept = [cache.copy() for cache in good]
    inputs[number] = array
    outputs = [inputs[5], inputs[6]]
    types = [helper.np_dtype_to_tensor_dtype(x.dtype) for x in (np.zeros(0, np.float32), inputs[6], inputs[6])]
    with pytest.raises(Exception, match=message):
        kernels.run(
            GOOD.op, inputs, types, None if number in (5, 6) else {1: outputs[0], 2: outputs[1]}, **GOOD.attributes
        )
    for cache, copy in zip(good, kept, strict=True):
        np.testing.assert_array_equal(cache, copy)


def test_codes_need_a_format(kernels):
    case = Case(1, 1, 1, 1, 8, 4, [0], "uint8")
    attributes = {name: x for name, x in case.attributes.items() if name != "cache_format"}
    with pytest.raises(Exception, match="input 'past_key' must be float32 or float16, found uint8"):
        kernels.run(case.op, case.inputs(), case.output_types, **attributes)


WRONG_ATTRIBUTES = [
    ({"rotary_dim": 5}, "attribute 'rotary_dim' must be even and 2 or more, found 5"),
    ({"rotary_dim": 0}, "attribute 'rotary_dim' must be even and 2 or more, found 0"),
    ({"interleaved": 2}, "attribute 'interleaved' must be 0 or 1, found 2"),
    ({"interleaved": None}, r"attribute 'interleaved' \(int\) is required"),
    ({"cache_format": "e5m2"}, "attribute 'cache_format' must be '' or 'e4m3fn', found 'e5m2'"),
    ({"num_heads": 3}, "attribute 'num_heads' must be a multiple of num_kv_heads = 2, found 3"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_ATTRIBUTES, ids=[m[:40] for _, m in WRONG_ATTRIBUTES])
def test_wrong_attributes_are_errors_when_the_session_is_made(kernels, change, message):
    attributes = {name: x for name, x in (GOOD.attributes | change).items() if x is not None}
    with pytest.raises(Exception, match=message):
        kernels.run(GOOD.op, GOOD.inputs(), GOOD.output_types, **attributes)
