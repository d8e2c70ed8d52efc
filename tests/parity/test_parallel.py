# SPDX-License-Identifier: Apache-2.0
"""Models divided among replicas and cut into stages, against PyTorch and against the model in one piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import poptransformer
from poptransformer.engine import Engine
from poptransformer.errors import ConfigError
from poptransformer.parallel import valid_replicas
from tests.parity.conftest import Pair, scaled
from tests.parity.test_models import ATOL, padded
from tests.parity.variants import VARIANTS

pytestmark = pytest.mark.parity

PLANS: dict[str, dict[str, Any]] = {
    "few replicas": {"model_type": "tp", "num_replicas": "few"},
    "many replicas": {"model_type": "tp", "num_replicas": "many"},
    "stages in turn": {"layer_per_ipu": "one each"},
    "replicas in a pipeline": {
        "model_type": "tp",
        "num_replicas": "few",
        "layer_per_ipu": "one each, and the head",
        "enable_pipeline": True,
        "batch_size": 3,
    },
}


NAMES = (
    *("gpt2", "gpt2-untied", "gpt2-relu-wide-mlp", "llama-gqa", "llama-mqa-odd-head-dim", "llama-biases-tied"),
    *("rwkv", "rwkv-odd-sizes", "rwkv-tied-sharded-fp16", "chatglm", "chatglm-mask-in-context", "chatglm-tied"),
    *("glm", "glm-mqa-tied", "chatglm2", "chatglm2-no-groups", "chatglm2-unusual", "chatglm2-no-final-norm"),
)


@pytest.fixture(scope="session", params=NAMES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    (variant,) = (variant for variant in VARIANTS if variant.name == request.param)
    return Pair.make(variant, tmp_path_factory)


@pytest.fixture(scope="session")
def engine(pair: Pair) -> Engine:
    """Of this file's `pair`: conftest's fixture of this name would keep that of the other tests'."""
    return poptransformer.load(pair.folder, max_length=64)


def plan_of(pair: Pair, name: str) -> dict[str, Any]:
    config = pair.make_reference().config
    if config.model_type == "rwkv":
        counts = [1, 2, 4]  # channels can be divided among any number
    else:
        counts = valid_replicas(config.num_attention_heads, getattr(config, "num_key_value_heads", None))
    layers = [1] * config.num_hidden_layers
    values = {"few": counts[1], "many": counts[-1], "one each": layers, "one each, and the head": [*layers, 0]}
    return {key: values.get(value, value) if isinstance(value, str) else value for key, value in PLANS[name].items()}


@pytest.fixture(scope="session", params=PLANS)
def parallel(pair: Pair, request: pytest.FixtureRequest) -> Engine:
    return poptransformer.load(pair.folder, max_length=64, **plan_of(pair, request.param))


def test_prefill(pair: Pair, parallel: Engine, rows: list[np.ndarray]) -> None:
    for row, result in zip(rows, parallel.logits(*padded(rows)), strict=True):
        np.testing.assert_allclose(result[: len(row)], pair.logits(row), atol=ATOL, rtol=0)


def test_greedy_ids(pair: Pair, parallel: Engine, rows: list[np.ndarray]) -> None:
    ours = parallel.generate([row.tolist() for row in rows], max_new_tokens=12)
    assert ours == [pair.generate(row, max_new_tokens=12) for row in rows]


def test_the_whole_generation_in_one_call(pair: Pair, parallel: Engine, rows: list[np.ndarray]) -> None:
    prompts = [row.tolist() for row in rows]
    params = parallel.params(prompts, max_new_tokens=12)
    ours = parallel.runtime.generate(prompts, params, parallel.stop_token_ids)
    assert ours == [pair.generate(row, max_new_tokens=12) for row in rows]


SAMPLING: list[dict[str, Any]] = [
    {"temperature": 1.3, "top_k": 9, "seed": [1, 2, 3, 2**40]},
    {"temperature": 0.9, "top_p": 0.8, "repetition_penalty": 1.2, "seed": 7},
    {"temperature": 1.1, "top_k": 0, "min_p": 0.05, "seed": 5},
    {"num_beams": 3, "length_penalty": 0.7},
]


def test_sampling_is_that_of_one_replica(engine: Engine, parallel: Engine, rows: list[np.ndarray]) -> None:
    prompts = [row.tolist() for row in rows]
    for settings in SAMPLING:
        expected = engine.generate(prompts, max_new_tokens=10, **settings)
        assert parallel.generate(prompts, max_new_tokens=10, **settings) == expected, settings


def test_rows_without_a_seed_are_drawn_alike_on_all_ranks(parallel: Engine, rows: list[np.ndarray]) -> None:
    """Ranks that chose different tokens would differ in their caches, and the logits would be those of no text."""
    prompts = [row.tolist() for row in rows]
    params = parallel.params(prompts, max_new_tokens=8, temperature=1.5, top_k=0)
    first, second = (parallel.runtime.generate(prompts, params, frozenset()) for _ in range(2))
    assert first != second and {len(ids) for ids in first} == {8}


GREEDY = {
    "llama": ("Llama", "ForCausalLM", {"intermediate_size": 256, "num_key_value_heads": 2}),
    "gpt2": ("GPT2", "LMHeadModel", {"n_inner": 256}),
    "rwkv": ("Rwkv", "ForCausalLM", {"context_length": 128}),
    "glm": ("Glm", "ForCausalLM", {"intermediate_size": 256, "num_key_value_heads": 2, "head_dim": 32}),
    "chatglm": ("ChatGLMReference", "", {"inner_hidden_size": 256, "max_sequence_length": 128, "bos_token_id": 6}),
}


@pytest.fixture(scope="module", params=GREEDY)
def aligned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model whose shares end where blocks of 32 columns do, with a vocabulary that no number of replicas divides."""
    import transformers

    from tests.parity import chatglm_reference

    prefix, suffix, own = GREEDY[request.param]
    library = chatglm_reference if request.param == "chatglm" else transformers
    config, model = getattr(library, f"{prefix}Config"), getattr(library, f"{prefix}{suffix}")
    sizes = {"vocab_size": 131, "hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 4}
    sizes |= {"max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 130, "pad_token_id": 0}
    sizes |= {"mask_token_id": 129, "gmask_token_id": 2, **own}
    folder = tmp_path_factory.mktemp(request.param)
    reference = scaled(model(config(**sizes)))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(0.5) if parameter.ndim > 1 else None
    reference.save_pretrained(folder)
    return reference, folder


IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("layers", [None, [2, 2]])
def test_64_greedy_tokens(aligned: tuple[Any, Path], replicas: int, layers: list[int] | None) -> None:
    reference, folder = aligned
    engine = poptransformer.load(folder, model_type="tp", num_replicas=replicas, layer_per_ipu=layers)
    row = torch.tensor([IDS])
    output = reference.generate(
        row, attention_mask=torch.ones_like(row), do_sample=False, pad_token_id=0, max_new_tokens=64
    )
    assert engine.generate(IDS, max_new_tokens=64) == output[0, len(IDS) :].tolist()
    with torch.no_grad():
        np.testing.assert_allclose(engine.logits(IDS)[0], reference(row).logits[0].numpy(), atol=ATOL, rtol=0)


@pytest.mark.parametrize("precision", ["int8", "int4", "fp16"])
def test_quantized_shares(aligned: tuple[Any, Path], precision: str) -> None:
    """Blocks of weights and of activations end where the shares do; only a last bit of x can tip its rounding.

    What is tipped changes the tokens behind it; in ChatGLM all of a context, which in the second row is one token.
    """
    _, folder = aligned
    ids = [IDS, [2, 6, 3, 1, 4, 1, 5, 9]]
    one = poptransformer.load(folder, precision=precision)
    four = poptransformer.load(folder, precision=precision, model_type="tp", num_replicas=4)
    differences = np.abs(four.logits(ids) - one.logits(ids))
    assert np.quantile(differences, 0.25) < ATOL and differences.max() < (ATOL if precision == "fp16" else 0.5)


def test_scales_of_whole_rows_are_finer_in_shares(aligned: tuple[Any, Path]) -> None:
    """fp8 has one scale for a row; a share that is cut along K has its own one."""
    _, folder = aligned
    exact = poptransformer.load(folder).logits(IDS)
    one = poptransformer.load(folder, precision="fp8_weight").logits(IDS)
    four = poptransformer.load(folder, precision="fp8_weight", model_type="tp", num_replicas=4).logits(IDS)
    assert np.abs(four - exact).mean() < 1.1 * np.abs(one - exact).mean()


DIVIDED = ("down_proj", "up_proj", "mlp.c_proj", "dense_4h_to_h", "feed_forward.key", "feed_forward.value")


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_shares_are_shares_of_the_quantized_weight(aligned: tuple[Any, Path], precision: str) -> None:
    """Codes of a share that is cut along K, and of one that is cut along N, are those of the whole weight there."""
    _, folder = aligned
    whole = poptransformer.load(folder, precision=precision).runtime.compiled
    first = poptransformer.load(folder, precision=precision, model_type="tp", num_replicas=4).runtime.compiled
    compared = 0
    for name, value in whole.model.graph.initializers.items():
        if not name.removesuffix(".weight.codes").endswith(DIVIDED):
            continue
        expected = value.const_value.numpy()
        for number, replica in enumerate((first, *first.peers)):
            own = replica.model.graph.initializers[name].const_value.numpy()
            tiles = own.shape[0]
            axis = 0 if tiles < expected.shape[0] else 1
            np.testing.assert_array_equal(own, np.split(expected, 4, axis)[number])
            compared += 1
    assert compared >= 16


def test_replicas_have_one_graph(aligned: tuple[Any, Path]) -> None:
    engine = poptransformer.load(aligned[1], model_type="tp", num_replicas=4, precision="int8")
    compiled = engine.runtime.compiled
    texts = set()
    for replica in (compiled, *compiled.peers):
        graph = replica.model.graph.clone()
        for value in graph.initializers.values():
            if not str(value.name).startswith("const_"):
                value.const_value = None
        texts.add(ir.serde.serialize_graph(graph).SerializeToString())
    assert len(compiled.peers) == 3 and len(texts) == 1


def test_saved_replicas_are_those_that_were_saved(aligned: tuple[Any, Path], tmp_path: Path) -> None:
    engine = poptransformer.load(aligned[1], model_type="tp", num_replicas=2, layer_per_ipu=[1, 3], precision="int4")
    saved = poptransformer.load(engine.save(tmp_path / "model"))
    np.testing.assert_array_equal(saved.logits(IDS), engine.logits(IDS))
    assert saved.generate(IDS, max_new_tokens=20) == engine.generate(IDS, max_new_tokens=20)
    sizes = [(tmp_path / "model" / f"replica-{replica}" / "weights.bin").stat().st_size for replica in range(2)]
    assert sizes[0] == sizes[1]


def test_each_stage_holds_its_own_weights_only(aligned: tuple[Any, Path]) -> None:
    engine = poptransformer.load(aligned[1], layer_per_ipu=[1, 2, 1])
    engine.generate(IDS, max_new_tokens=2)
    held = [set(rank._weights._held) for rank in engine.runtime.ranks]
    assert all(held) and len(set().union(*held)) == sum(map(len, held))
    for layer, stage in ((0, 0), (1, 1), (2, 1), (3, 2)):
        assert any(f".{layer}." in name for name in held[stage])
        assert not any(f".{layer}." in name for other in {0, 1, 2} - {stage} for name in held[other])


def test_replicas_that_heads_cannot_be_divided_among(aligned: tuple[Any, Path]) -> None:
    """Channels of RWKV can be divided among any number; heads cannot, and the error names the numbers that work."""
    reference, folder = aligned
    if reference.config.model_type == "rwkv":
        three = poptransformer.load(folder, model_type="tp", num_replicas=3)
        np.testing.assert_allclose(three.logits(IDS), poptransformer.load(folder).logits(IDS), atol=ATOL, rtol=0)
        return
    with pytest.raises(ConfigError, match="num_replicas=3 does not divide 4 heads; valid: 1, 2, 4; power"):
        poptransformer.load(folder, model_type="tp", num_replicas=3)
