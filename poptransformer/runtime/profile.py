# SPDX-License-Identifier: Apache-2.0
"""Where the time goes: onnxruntime's profile, summed up by layer."""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poptransformer.errors import PopTransformerError
from poptransformer.runtime.timeline import write_timeline

if TYPE_CHECKING:
    import onnx_ir as ir

    from poptransformer.runtime.open import AnyRuntime

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class LayerCost:
    """Cost of the nodes of one scope.

    Attributes:
        calls: node executions.
        microseconds: their time, summed; a fused node's is divided among its layers by the weights they read.
        weight_bytes: bytes of the weights they read.
    """

    calls: int = 0
    microseconds: float = 0
    weight_bytes: int = 0


def make_profile_folder(folder: Path) -> None:
    """Makes the folder, before a run whose profile would be lost.

    Raises:
        PopTransformerError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def write_table(path: Path, text: str) -> None:
    """Writes a table of a profile.

    Raises:
        PopTransformerError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> PopTransformerError:
    return PopTransformerError(
        f"Cannot write profiles to {path}: {error.strerror}. Choose another session.profile_name."
    )


def write_profile(runtime: AnyRuntime, folder: Path) -> Path | None:
    """Ends profiling and writes `layers.txt` beside onnxruntime's own JSON files.

    With pipeline stages also `timeline.json`: when each rank worked on which rows. MPI ranks, each of which knows its
    own part, put their number into the names.

    Returns:
        The path of the table; None where nothing was profiled since the last call.

    Raises:
        PopTransformerError: onnxruntime could not write its file, or the table cannot be written.
    """
    suffix = getattr(runtime, "name_suffix", "")
    if timeline := getattr(runtime, "timeline", None):
        write_timeline(timeline, folder / f"timeline{suffix}.json")
    files = runtime.end_profiling()
    if not files:
        return None
    costs: dict[str, LayerCost] = collections.defaultdict(LayerCost)
    layers = {str(node.name): weight_bytes(node) for node in runtime.compiled.model.graph}
    for path in files:
        _add_times(costs, _events(Path(path)), layers)
    _add_bytes(costs, layers)
    table = folder / f"layers{suffix}.txt"
    write_table(table, format_table(costs))
    logger.info("profile written to %s", folder)
    return table


def layer_of(node_name: str) -> str:
    """Returns the scope that a node belongs to: `model/layers.3/mlp/up_proj/Linear` to `model/layers.3/mlp/up_proj`."""
    if node_name.startswith("_inlfunc_"):  # onnxruntime's name for a node of a function body; it drops the scope
        return f"(body of {node_name.split('_')[2]})"
    return node_name.rsplit("/", 1)[0] if "/" in node_name else "(graph)"


def weight_bytes(node: ir.Node) -> dict[str, int]:
    """Returns the layers that a node belongs to, several if it is fused, and the bytes of the weights they read."""
    from poptransformer.passes.fuse_linear import SCOPES

    def size(value: ir.Value | None) -> int:
        return value.const_value.nbytes if value is not None and value.const_value is not None else 0

    if SCOPES not in node.metadata_props:
        return {layer_of(node.name or ""): sum(map(size, node.inputs))}
    scopes = json.loads(node.metadata_props[SCOPES])
    return {layer: sum(size(node.inputs[i]) for i in read if i < len(node.inputs)) for layer, read in scopes.items()}


def _events(path: Path) -> list[dict[str, Any]]:
    """What onnxruntime recorded; it says nothing where its file cannot be written."""
    try:
        events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PopTransformerError(
            f"onnxruntime's profile {path} is incomplete ({error}). Free some disk space, or choose another "
            "session.profile_name."
        ) from error
    return events


def _add_times(
    costs: dict[str, LayerCost], events: Iterable[dict[str, Any]], layers: Mapping[str, Mapping[str, int]]
) -> None:
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            if event.get("args", {}).get("op_name") in ("Loop", "If"):
                continue  # their time is that of the nodes inside, which have events of their own
            name = name.removesuffix("_kernel_time")
            parts = layers.get(name, {layer_of(name): 0})
            total = sum(parts.values())
            for layer, size in parts.items():
                costs[layer].calls += 1
                costs[layer].microseconds += event["dur"] * (size / total if total else 1 / len(parts))


def _add_bytes(costs: dict[str, LayerCost], layers: Mapping[str, Mapping[str, int]]) -> None:
    for parts in layers.values():
        for layer, size in parts.items():
            if layer in costs:
                costs[layer].weight_bytes += size


def format_table(costs: dict[str, LayerCost]) -> str:
    """Formats the costs, most expensive layer first."""
    total = sum(cost.microseconds for cost in costs.values()) or 1
    lines = [f"{'layer':<60} {'calls':>8} {'ms':>10} {'share':>7} {'weight MB':>10}"]
    for name, cost in sorted(costs.items(), key=lambda item: -item[1].microseconds):
        lines.append(
            f"{name:<60} {cost.calls:>8} {cost.microseconds / 1e3:>10.2f} {cost.microseconds / total:>7.1%} "
            f"{cost.weight_bytes / 1e6:>10.2f}"
        )
    lines.append(f"{'total':<60} {sum(c.calls for c in costs.values()):>8} {total / 1e3:>10.2f}")
    return "\n".join(lines) + "\n"
