# SPDX-License-Identifier: Apache-2.0
"""Memory against what is known of real models: shares of an IPU that must fit, and one that must not."""

from __future__ import annotations

import pytest

from poptransformer.ipu.device import load_device
from poptransformer.ipu.divide import Division
from poptransformer.ipu.memory import footprint, liveness
from poptransformer.ipu.plan import evaluate
from poptransformer.ipu.segments import Segment
from poptransformer.ipu.stage import Workload, make_replica
from poptransformer.ipu.work import Cache, Op, Product, Vector, Weight
from poptransformer.planning import build_model, find_config
from poptransformer.recipe import Recipe
from tests.unit.ipu import works

C600 = load_device("c600")
BOW = load_device("bow")
NOTHING = Segment("nothing", ())


def share(segments: list[Segment], cache_copies: int = 1) -> float:
    """Weights and caches of segments as a share of an IPU."""
    weights = sum(weight.nbytes for segment in segments for op in segment.ops for weight in op.weights)
    caches = sum(cache.nbytes for segment in segments for op in segment.ops for cache in op.caches)
    return (weights + cache_copies * caches) / C600.ipu_bytes


LLAMA_13B = works.llama_block(5120, 13824, 4096)
# name, blocks on the IPU, share that is known, copies of the cache
ACCEPTED = {
    "llama2-13b, 1 layer": ([works.layer("0", LLAMA_13B, 5120, 4096)], 0.76, 1),
    "llama2-13b, 1 layer, cloned cache": ([works.layer("0", LLAMA_13B, 5120, 4096)], 0.85, 2),
    "llama2-13b, 5 layers of 8 replicas": (
        [works.layer(str(i), works.llama_block(5120, 13824, 4096, 8), 640, 4096) for i in range(5)],
        0.48,
        1,
    ),
    "chatglm2, 2 layers": ([works.layer(str(i), works.CHATGLM2_BLOCK) for i in range(2)], 0.87, 1),
    "chatglm, 1 layer": ([works.layer("0", works.CHATGLM_BLOCK)], 0.43, 1),
    "rwkv-1b5, 3 layers": ([works.layer(str(i), works.RWKV_1B5_BLOCK) for i in range(3)], 0.35, 1),
    "gpt2-xl, 6 layers": ([works.layer(str(i), works.GPT2_XL_BLOCK, 1600, 264) for i in range(6)], 0.40, 1),
    "gpt2-xl, 7 layers": ([works.layer(str(i), works.GPT2_XL_BLOCK, 1600, 264) for i in range(7)], 0.47, 1),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_known_to_fit_fits(name: str) -> None:
    blocks, known, copies = ACCEPTED[name]
    assert share(blocks, copies) == pytest.approx(known, abs=0.006)
    replica = works.replica_of(C600, NOTHING, blocks, NOTHING)
    plan = evaluate(replica, [len(blocks)], is_pipelined=False)
    spare = (copies - 1) * plan.worst.memory["KV cache"]
    assert plan.worst.bytes + spare <= C600.tile_bytes, plan.worst.memory
    assert Division(replica).divide(1) is not None


def test_chatglm2_on_4_replicas_does_not_fit_in_fp16() -> None:
    """14 layers on 4 replicas: 1361 MiB, 152% of an IPU."""
    quarter = [(columns // 4, depth) for columns, depth in works.CHATGLM2_BLOCK]
    blocks = [works.layer(str(index), quarter) for index in range(14)]
    assert sum(w.nbytes for b in blocks for op in b.ops for w in op.weights) / 2**20 == pytest.approx(1361, abs=1)
    assert share(blocks) == pytest.approx(1.52, abs=0.01)
    replica = works.replica_of(C600, NOTHING, blocks, NOTHING)
    assert not evaluate(replica, [14]).fits
    assert Division(replica).divide(1) is None
    assert Division(replica).divide(2) is not None


@pytest.mark.parametrize(("model", "layers", "length", "shares"), [
    ("gpt2-xl", [0, 6, 7, 7, 7, 7, 7, 7], 264, {0: 0.17, 1: 0.40, 2: 0.47}),
    ("meta-llama/Llama-2-13b-hf", [0, *[1] * 40, 0], 4096, {1: 0.76}),
])  # fmt: skip
def test_built_models_need_the_same(model: str, layers: list[int], length: int, shares: dict[int, float]) -> None:
    graph = build_model(find_config(model), Recipe.of("fp16"), max_length=None).graph
    plan = evaluate(make_replica(graph, BOW, Workload(1, 1, length)), layers)
    for stage, known in shares.items():
        memory = plan.stages[stage].memory
        assert (memory["weights"] + memory["KV cache"]) / BOW.tile_bytes == pytest.approx(known, abs=0.01)
    assert plan.fits


def test_llama_13b_on_8_replicas() -> None:
    graph = build_model(find_config("meta-llama/Llama-2-13b-hf"), Recipe.of("fp16")).sharded(8)
    plan = evaluate(make_replica(graph, BOW, Workload(1, 1, 4096)), [5] * 8)
    memory = plan.stages[3].memory
    assert (memory["weights"] + memory["KV cache"]) / BOW.tile_bytes == pytest.approx(0.48, abs=0.01)
    assert plan.fits
    assert plan.reserved == 64


def test_pieces_are_dealt_out_evenly() -> None:
    """1473 blocks on 1472 tiles: two on the fullest."""
    segment = works.layer("0", [(16 * 1473, 16)])
    memory = footprint(C600, segment, works.HALF).bytes_per_tile(C600)
    assert memory["weights"] == 2 * 16 * 16 * 2


def test_caches_of_all_batches_in_flight() -> None:
    segment = Segment("x", (Op("n", Vector(10), caches=(Cache(1472, 64, 2),)),))
    needs = footprint(C600, segment, works.HALF)
    assert needs.bytes_per_tile(C600)["KV cache"] == 128
    assert needs.bytes_per_tile(C600, batches=8)["KV cache"] == 8 * 128


def test_a_tied_table_is_stored_once() -> None:
    table = Weight("table", 1024, 64, 16)
    segment = Segment("x", (Op("a", Vector(1), weights=(table,)), Op("b", Vector(1), weights=(table,))))
    assert footprint(C600, segment, works.HALF).blocks.total() == 1024 // 16 * 64 // 16
    assert footprint(C600, segment, works.HALF, without=["table"]).blocks.total() == 0


def test_values_live_until_their_last_reader() -> None:
    tiles = C600.tiles
    ops = (
        Op("make", Vector(8 * tiles), ("in",), (("a", 8 * tiles),)),
        Op("use", Vector(4 * tiles), ("a",), (("b", 4 * tiles),)),
        Op("last", Vector(2 * tiles), ("b",), (("c", 2 * tiles),)),
    )
    moments = liveness(C600, Segment("x", ops, (("in", tiles),)), works.HALF)
    assert [moment.activations for moment in moments] == [2 * (1 + 8), 2 * (8 + 4), 2 * (4 + 2)]


def test_temporaries_stay_below_their_part_of_a_tile() -> None:
    work = Product(4096, 8192, 28672)
    segment = Segment("x", (Op("n", work, outputs=(("y", 1),)),))
    moment = liveness(C600, segment, works.HALF)[0]
    assert moment.partials <= C600.memory_proportion * C600.tile_bytes + 1
