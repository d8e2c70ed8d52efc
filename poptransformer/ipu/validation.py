# SPDX-License-Identifier: Apache-2.0
"""Predicted against measured: `python -m poptransformer.ipu.validation` prints the table, and writes it into the docs.

Four constants are calibrated, each on one row; all other rows are held out, and nothing is tuned to them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from poptransformer.ipu import workloads
from poptransformer.ipu.attention import by_queries
from poptransformer.ipu.cost import host_cost, with_amp_factor
from poptransformer.ipu.cycles import Cycles
from poptransformer.ipu.device import Device, load_device
from poptransformer.ipu.product import Grid, exchange_cycles, grid_cost
from poptransformer.ipu.work import Attention, Numbers, Product
from poptransformer.ipu.workloads import FP16

# ipu-stack's early matrix kernels take this many times the cycles of the model; calibrated on its 4096^3 product.
IPU_STACK_AMP_FACTOR = 1.875
IPU_STACK = "ipu-stack, early kernels"
POPRT = "PopRT; the card is not named, C600 assumed"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "ipu.md"
BEGIN, END = "<!-- validation: begin -->", "<!-- validation: end -->"


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        name: what was measured.
        unit: of both values.
        measured: what others measured.
        predicted: what the emulation says.
        band: the largest relative error that passes.
        source: who measured it.
        is_calibrated: whether a constant was chosen by it.
        bound: for rows that must name a bottleneck, what was predicted and what was measured.
        limits: for rows that must lie in a range, its ends.
    """

    name: str
    unit: str
    measured: float
    predicted: float
    band: float
    source: str
    is_calibrated: bool = False
    bound: tuple[str, str] | None = None
    limits: tuple[float, float] | None = None

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted / self.measured - 1

    @property
    def passes(self) -> bool:
        """Whether the prediction is as close as it must be."""
        if self.bound is not None:
            return self.bound[0] == self.bound[1]
        if self.limits is not None:
            return self.limits[0] <= self.predicted <= self.limits[1]
        return abs(self.error) <= self.band

    @property
    def demand(self) -> str:
        """What makes it pass, in words."""
        if self.bound is not None:
            return f"says {self.bound[1]}-bound"
        if self.limits is not None:
            return f"{self.limits[0]} to {self.limits[1]}"
        return f"±{self.band:.0%}"


@functools.cache
def rows() -> tuple[Row, ...]:
    """Returns all rows, calibrated ones first."""
    device = load_device("c600")
    early = with_amp_factor(device, IPU_STACK_AMP_FACTOR)
    found = [
        *_ipu_stack(early),
        _upload(device),
        *_bert(device),
        *_fp8(device),
        _elk(load_device("gc200")),
    ]
    return tuple(sorted(found, key=lambda row: not row.is_calibrated))


def _ipu_stack(early: Device) -> list[Row]:
    """ipu-stack cuts rows and columns into as many parts as give 1472 tiles, and the depth into steps of 64."""
    gemm = grid_cost(early, Product(4096, 4096, 4096), FP16, Grid(23, 64, 1, 64))
    layer, grid = Product(512, 2048, 2048), Grid(46, 32, 1, 32)
    mlp = grid_cost(early, layer, FP16, grid).times(8)
    found = [
        Row("4096^3 GEMM, fp16", "cycles", 2_262_696, gemm.total, 0.25, IPU_STACK, is_calibrated=True),
        Row("512x2048 MLP of 8 layers, fp16", "cycles", 2_740_434, mlp.total, 0.30, IPU_STACK),
    ]
    for hidden, cycles in ((768, 348_378), (1024, 426_132), (1152, 524_616)):
        work = Attention(1, 1024, 1024, 16, 16, hidden // 16)
        predicted = by_queries(early, work, FP16).total
        name = f"flash attention, sequence 1024, hidden size {hidden}"
        found.append(Row(name, "cycles", cycles, predicted, 0.30, IPU_STACK, is_calibrated=hidden == 768))
    for order, cycles in (("columns", 484_530), ("rows", 741_414)):
        predicted = 8 * exchange_cycles(early, layer, FP16, grid, order)
        found.append(Row(f"exchange of that MLP, {order}-fast", "cycles", cycles, predicted, 0.10, IPU_STACK))
    return found


def _upload(device: Device) -> Row:
    seconds = device.seconds(host_cost(device, 453.75e6).total)
    return Row("upload of 453.75 MB", "ms", 116, 1e3 * seconds, 0.10, "ipu-stack", is_calibrated=True)


def _bert(device: Device) -> list[Row]:
    found = []
    for name, layers, hidden, batch, measured in (
        ("BERT-base, 128 tokens, batch 16", 12, 768, 16, 4817),
        ("BERT-base, 128 tokens, batch 128", 12, 768, 128, 5672),
        ("BERT-large, 128 tokens, batch 18", 24, 1024, 18, 1473),
    ):
        cycles = workloads.run(device, workloads.bert(layers, hidden, batch))
        rate = batch / device.seconds(cycles.total)
        found.append(Row(name, "sequences/s", measured, rate, 0.30, POPRT, is_calibrated=batch == 16))
    return found


def _fp8(device: Device) -> list[Row]:
    numbers = Numbers(activation_bytes=2)
    pairs = {
        "BERT-base": (1.42, workloads.bert(12, 768, 16), workloads.bert(12, 768, 16, math="fp8")),
        "ResNet-50": (1.40, workloads.resnet50(16), workloads.resnet50(16, "fp8")),
    }
    found = []
    for name, (measured, half, quarter) in pairs.items():
        ratio = workloads.run(device, half, numbers).total / workloads.run(device, quarter, numbers).total
        found.append(Row(f"fp8 over fp16, {name}", "x", measured, ratio, 0.0, "ByteMLPerf", limits=(1.3, 1.6)))
    return found


def _elk(device: Device) -> Row:
    """Llama-2-13B on 4 IPUs, 32 rows, 2048 slots; weights and caches come over the exchange from outside memory."""
    works = workloads.llama_decode(40, 5120, 13824, 40, 32, 2048, 4)
    cycles = workloads.run(device, works)
    streamed = workloads.streamed_bytes(works) / device.tiles / device.exchange_bytes
    cycles += Cycles(exchange=streamed)
    rate = 4 * workloads.flops(works) / device.seconds(cycles.total) / 1e12
    source = "Elk (MICRO'25) on GC200, memory emulated; model and sizes assumed"
    busy = (cycles.exchange + cycles.link) / cycles.total
    name = f"decoding on 4 IPUs; interconnect busy {busy:.0%}, measured about 90%"
    return Row(name, "TFLOP/s", 81, rate, 0.0, source, bound=(cycles.bound, "exchange"))


# -- the table ----------------------------------------------------------------------------------------------------


def markdown(found: Sequence[Row]) -> str:
    """Returns the table as Markdown."""
    lines = ["| measured on a C600 unless said | unit | measured | predicted | error | must be | |", "|" + " --- |" * 7]
    for title, is_calibrated in (("calibrated", True), ("held out", False)):
        lines.append(f"| **{title}** | | | | | | |")
        lines += [_line(row) for row in found if row.is_calibrated == is_calibrated]
    return "\n".join(lines)


def _line(row: Row) -> str:
    digits = 0 if row.measured >= 100 else 2
    verdict = "ok" if row.passes else "**missed**"
    said = f"{row.bound[0]}-bound, " if row.bound else ""
    return (
        f"| {row.name} ({row.source}) | {row.unit} | {row.measured:,.{digits}f} | {said}{row.predicted:,.{digits}f} | "
        f"{row.error:+.1%} | {row.demand} | {verdict} |"
    )


def error_range(found: Sequence[Row] | None = None) -> str:
    """Returns the errors of the held-out rows that measure time, in words, for the footers of reports."""
    held = [row.error for row in found or rows() if not row.is_calibrated and row.bound is None]
    return f"{min(held):+.0%} to {max(held):+.0%} on {len(held)} measurements that nothing was tuned to"


def write(page: Path, table: str) -> bool:
    """Puts the table between the page's marks; returns whether that changed it."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    new = f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"
    if new != text:
        page.write_text(new, encoding="utf-8")
    return new != text


def main() -> None:
    """Prints the table and writes it into the docs."""
    found = rows()
    table = markdown(found)
    print(table)
    print(f"\nHeld-out errors: {error_range(found)}.")
    missed = [row.name for row in found if not row.passes]
    if missed:
        print(f"Missed: {', '.join(missed)}.")
    if PAGE.is_file() and write(PAGE, table):
        print(f"{PAGE} is updated.")


if __name__ == "__main__":
    main()
