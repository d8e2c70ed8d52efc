# SPDX-License-Identifier: Apache-2.0
"""Models that others measured on IPUs, as work: for the validation."""

from __future__ import annotations

from collections.abc import Iterable

from poptransformer.ipu.cost import cost
from poptransformer.ipu.cycles import Cycles, total
from poptransformer.ipu.device import Device
from poptransformer.ipu.work import Attention, Collective, Numbers, Product, Vector, Work

FP16 = Numbers()
# ResNet-50's convolutions as products: pixels of the result, depth (inputs x kernel), channels, how often.
# Source: He et al. 2015, https://arxiv.org/abs/1512.03385, table 1.
RESNET50 = (
    (112 * 112, 147, 64, 1),
    *((56 * 56, 64, 64, 1), (56 * 56, 256, 64, 2), (56 * 56, 576, 64, 3), (56 * 56, 64, 256, 4)),
    *((56 * 56, 256, 128, 1), (28 * 28, 512, 128, 3), (28 * 28, 1152, 128, 4), (28 * 28, 128, 512, 4)),
    *((28 * 28, 256, 512, 1), (28 * 28, 512, 256, 1), (14 * 14, 1024, 256, 5), (14 * 14, 2304, 256, 6)),
    *((14 * 14, 256, 1024, 6), (14 * 14, 512, 1024, 1), (14 * 14, 1024, 512, 1), (7 * 7, 2048, 512, 2)),
    *((7 * 7, 4608, 512, 3), (7 * 7, 512, 2048, 3), (7 * 7, 1024, 2048, 1), (1, 2048, 1000, 1)),
)


def run(device: Device, works: Iterable[Work], numbers: Numbers = FP16) -> Cycles:
    """Cycles of work done one after the other."""
    return total(cost(device, work, numbers) for work in works)


def flops(works: Iterable[Work]) -> int:
    """Multiplications and additions of the matrix products and attention."""
    return sum(work.flops for work in works if isinstance(work, Product | Attention))


def bert(layers: int, hidden: int, batch: int, length: int = 128, math: str = "fp16") -> list[Work]:
    """BERT's encoder (https://arxiv.org/abs/1810.04805): heads of 64, feed-forward of four times the hidden size."""
    rows, heads, bits = batch * length, hidden // 64, 8 if math == "fp8" else 16
    norm = Vector(rows * hidden, 1, 3, 2)
    layer: list[Work] = [
        Product(rows, hidden, 3 * hidden, bits, math),
        Vector(3 * rows * hidden),
        Attention(batch, length, length, heads, heads, 64),
        Product(rows, hidden, hidden, bits, math),
        Vector(rows * hidden, 2),
        norm,
        Product(rows, hidden, 4 * hidden, bits, math),
        Vector(4 * rows * hidden, 1, 4),
        Product(rows, 4 * hidden, hidden, bits, math),
        Vector(rows * hidden, 2),
        norm,
    ]
    return layer * layers


def resnet50(batch: int, math: str = "fp16") -> list[Work]:
    """ResNet-50 on images of 224x224, convolutions as products, each followed by an activation."""
    bits = 8 if math == "fp8" else 16
    works: list[Work] = []
    for pixels, depth, channels, count in RESNET50:
        layer: list[Work] = [Product(batch * pixels, depth, channels, bits, math), Vector(batch * pixels * channels)]
        works += layer * count
    return works


def llama_decode(layers: int, hidden: int, inner: int, heads: int, batch: int, slots: int, replicas: int) -> list[Work]:
    """A token of Llama on one of `replicas` replicas; every head has its own keys and values."""
    share = hidden // replicas
    layer: list[Work] = [
        Vector(batch * hidden, 1, 2, 1),
        *[Product(batch, hidden, share)] * 3,
        Attention(batch, 1, slots, heads // replicas, heads // replicas, hidden // heads),
        Product(batch, share, hidden),
        Collective("all_reduce", batch * hidden, replicas),
        Vector(batch * hidden, 2),
        Vector(batch * hidden, 1, 2, 1),
        *[Product(batch, hidden, inner // replicas)] * 2,
        Vector(batch * inner // replicas, 2, 3),
        Product(batch, inner // replicas, hidden),
        Collective("all_reduce", batch * hidden, replicas),
        Vector(batch * hidden, 2),
    ]
    return layer * layers


def streamed_bytes(works: Iterable[Work], numbers: Numbers = FP16) -> float:
    """Bytes of weights, keys and values that come from memory outside of the IPU."""
    nbytes = 0.0
    for work in works:
        if isinstance(work, Product):
            nbytes += work.depth * work.columns * work.weight_bits / 8
        elif isinstance(work, Attention):
            nbytes += 2 * work.batch * work.kv_heads * work.slots * work.head_dim * numbers.cache_bytes
    return nbytes
