# SPDX-License-Identifier: Apache-2.0
"""Small models as work, and the published shapes of models whose memory is known."""

from __future__ import annotations

from poptransformer.ipu.device import Device
from poptransformer.ipu.memory import footprint
from poptransformer.ipu.segments import Segment, Segments
from poptransformer.ipu.stage import Replica, Unit, Workload, cycles_of
from poptransformer.ipu.work import Cache, Numbers, Op, Product, Weight

HALF = Numbers()


def layer(name: str, matrices: list[tuple[int, int]], kv_columns: int = 0, slots: int = 0, bits: int = 16) -> Segment:
    """A block: products with these weights, one after the other, and a cache of keys and values."""
    ops = []
    for index, (columns, depth) in enumerate(matrices):
        weight = Weight(f"{name}.{index}", columns, depth, bits)
        caches = (Cache(slots, kv_columns, 2),) * 2 if kv_columns and not index else ()
        outputs = ((f"{name}.{index}.out", columns),)
        ops.append(Op(f"{name}/{index}", Product(1, depth, columns, bits), (), outputs, (weight,), caches))
    return Segment(name, tuple(ops))


def replica_of(
    device: Device,
    before: Segment,
    blocks: list[Segment],
    after: Segment,
    is_tied: bool = False,
    workload: Workload | None = None,
) -> Replica:
    """A costed model of given segments, the prompt's step like the token's."""

    def unit(segment: Segment, without: list[str] | None = None) -> Unit:
        cycles = cycles_of(device, HALF, segment)
        return Unit(segment.name, cycles, cycles, footprint(device, segment, HALF, without or ()))

    tables = [weight.name for op in before.ops for weight in op.weights]
    token = Segments(before, tuple(blocks), after, 1, is_tied, 1024)
    return Replica(
        device,
        HALF,
        workload or Workload(),
        token,
        token,
        unit(before),
        tuple(unit(block) for block in blocks),
        unit(after),
        unit(after, tables),
        (2048, 2048),
    )


def llama_block(hidden: int, inner: int, slots: int, replicas: int = 1) -> list[tuple[int, int]]:
    share = inner // replicas
    part = hidden // replicas
    return [(part, hidden)] * 3 + [(hidden, part), (share, hidden), (share, hidden), (hidden, share)]


# hidden size and matrices [columns, depth] of a block, from the published configurations
CHATGLM_BLOCK = [(3 * 4096, 4096), (4096, 4096), (16384, 4096), (4096, 16384)]
CHATGLM2_BLOCK = [(4096 + 512, 4096), (4096, 4096), (2 * 13696, 4096), (4096, 13696)]
RWKV_1B5_BLOCK = [(2048, 2048)] * 4 + [(8192, 2048), (2048, 8192), (2048, 2048)]
GPT2_XL_BLOCK = [(4800, 1600), (1600, 1600), (6400, 1600), (1600, 6400)]
