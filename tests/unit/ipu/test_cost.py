# SPDX-License-Identifier: Apache-2.0
"""Cycles by hand, and what must hold for any work."""

from __future__ import annotations

import pytest

from poptransformer.ipu.cost import cost, hop_cost
from poptransformer.ipu.device import load_device
from poptransformer.ipu.product import Grid, grid_cost
from poptransformer.ipu.work import Attention, Collective, Move, Numbers, Product, Recurrence, Vector

C600 = load_device("c600")
HALF = Numbers()


def test_one_grid_by_hand() -> None:
    """16 rows, 32x16 of the weight on each of 2x1 tiles: two blocks of weights, 16 rows each."""
    cycles = grid_cost(C600, Product(16, 32, 32), HALF, Grid(1, 2))
    blocks = 2
    assert cycles.compute == pytest.approx(1.107 * (blocks * (4 * 16 + 266) + 294))
    assert cycles.exchange == pytest.approx(16 * 32 * 2 / 8 + 160)  # the pair of tiles shares the activations
    assert cycles.sync == 126


def test_dot_products_serve_single_rows() -> None:
    """At batch 1 the matrix unit reads about 2 bytes of weights a cycle, dot products 8."""
    row = grid_cost(C600, Product(1, 1600, 1600), HALF, Grid(1, 100))
    assert row.how.startswith("dot products")
    assert row.compute == pytest.approx(1600 * 16 * 2 / 8 + 11)
    assert grid_cost(C600, Product(64, 1600, 1600), HALF, Grid(1, 100)).how.startswith("AMP fp16")


def test_cut_depth_costs_a_reduction() -> None:
    whole = grid_cost(C600, Product(8, 256, 16), HALF, Grid(1, 1, 1))
    cut = grid_cost(C600, Product(8, 256, 16), HALF, Grid(1, 1, 4))
    assert cut.sync == 2 * whole.sync
    assert cut.exchange == pytest.approx(8 * 64 * 2 / 4 + 8 * 16 * 2 * 3 / 4 / 4 + 2 * 160)


@pytest.mark.parametrize("work", [Product(128, 4096, 4096), Product(1, 4096, 11008), Product(7, 33, 50257)])
def test_the_best_grid_beats_others(work: Product) -> None:
    best = cost(C600, work, HALF).total
    for grid in (Grid(1, 64), Grid(1, 64, 16), Grid(1, 16, 64), Grid(1, 1)):
        assert best <= grid_cost(C600, work, HALF, grid).total


def test_less_work_takes_no_longer() -> None:
    assert cost(C600, Product(64, 1024, 1024), HALF).total < cost(C600, Product(64, 2048, 2048), HALF).total
    short, long = (cost(C600, Attention(1, 1, slots, 32, 32, 128), HALF).total for slots in (128, 2048))
    assert short < long
    assert cost(C600, Vector(1000), HALF).total < cost(C600, Vector(10_000_000), HALF).total
    assert cost(C600, Recurrence(1, 2048), HALF).total < cost(C600, Recurrence(64, 2048), HALF).total


def test_fp8_is_faster_for_many_rows_and_packed_weights_must_be_unpacked() -> None:
    many = Product(2048, 4096, 4096)
    assert cost(C600, Product(2048, 4096, 4096, 8, "fp8"), HALF).total < cost(C600, many, HALF).total
    assert cost(C600, Product(1, 4096, 4096, 4), HALF).compute > cost(C600, Product(1, 4096, 4096), HALF).compute


def test_ring_all_reduce_by_its_formula() -> None:
    """2(R-1)/R * B / (0.85 * bandwidth) + 2(R-1) syncs."""
    replicas, elements = 4, 20_480
    cycles = cost(C600, Collective("all_reduce", elements, replicas), HALF).link
    data = 2 * (replicas - 1) / replicas * 2 * elements / (0.85 * 64e9) * 1.5e9
    assert cycles == pytest.approx(data + 2 * (replicas - 1) * C600.ipu_sync_cycles(replicas))
    gather = cost(C600, Collective("all_gather", elements, replicas), HALF).link
    assert gather == pytest.approx(cycles / 2)


def test_a_hop_takes_the_link() -> None:
    assert hop_cost(C600, 54.4e9).link == pytest.approx(1.5e9, rel=1e-6)


def test_views_are_free_and_moves_are_not() -> None:
    assert cost(C600, None, HALF).total == 0
    assert cost(C600, Move(4096), HALF).exchange > 0


def test_many_small_products_share_the_tiles() -> None:
    one, many = (cost(C600, Product(16, 64, 64, 0, "fp16", groups), HALF).total for groups in (1, 3000))
    assert one < many
