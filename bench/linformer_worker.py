# SPDX-License-Identifier: Apache-2.0
"""One measured run of `bench.linformer`, in a process of its own.

    python -m bench.linformer_worker JSON

The last line that it prints is the result.
"""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from bench.phases import memory
from bench.quiet import raise_priority
from poptransformer import layers, nn
from poptransformer.graph import Graph
from poptransformer.program import Program

LEAST, MOST, SECONDS = 3, 9, 2.0  # repetitions, and when there have been enough
STYLE = "linformer-shared-kv"
Ways = dict[str, Callable[[], object]]
Outputs = dict[str, np.ndarray]


def encoder(job: Mapping[str, Any]) -> Any:
    """Linformer, or full attention where `projected_dims` is None; random weights."""
    torch.manual_seed(0)
    if job["projected_dims"] is None:
        extra = {"attention_kernel": job.get("kernel")}
        layer: Any = nn.TransformerEncoderLayer(**job["sizes"], dropout=0.0, extra_attention_params=extra)
        return nn.TransformerEncoder(layer, job["layers"])
    layer = nn.LinformerEncoderLayer(**job["sizes"], **_linformer(job), dropout=0.0)
    return nn.LinformerEncoder(layer, job["layers"])


def graph_encoder(job: Mapping[str, Any]) -> Any:
    """The same as graph layers."""
    if job["projected_dims"] is None:
        layer: Any = functools.partial(layers.TransformerEncoderLayer, **job["sizes"])
        return layers.TransformerEncoder(None, None, layer, job["layers"])
    layer = functools.partial(layers.LinformerEncoderLayer, **job["sizes"], **_linformer(job))
    return layers.LinformerEncoder(None, None, layer, job["layers"])


def _linformer(job: Mapping[str, Any]) -> dict[str, Any]:
    return {"max_sequence_length": job["n"], "projected_dims": job["projected_dims"], "attention_style": STYLE}


def compiled(job: Mapping[str, Any], model: Any, inputs: Mapping[str, tuple[str, list[Any]]]) -> Program:
    """The graph of a model; inputs by name, each a type and a shape, the others passed on by their name."""

    def make(graph: Graph) -> dict[str, ir.Value]:
        values = {name: graph.input(name, ir.DataType[kind], shape) for name, (kind, shape) in inputs.items()}
        return {"y": graph_encoder(job)(graph, **values)}

    return Program.compile(make, nn.as_state_dict(model), threads=job["threads"])


def training_step(model: Any, compute: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        compute().square().mean().backward()
        optimizer.step()

    return step


def seconds_of(ways: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each way; they take turns, after one turn that does not count."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    began = time.perf_counter()
    for turn in range(MOST + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - start)
        if turn >= LEAST and time.perf_counter() - began > SECONDS * len(ways):
            break
    return {name: statistics.median(values[1:]) for name, values in found.items()}


def attention(job: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of a step, and bytes of memory that the first one needs beyond the model and its input."""
    model = encoder(job)
    x = torch.randn(job["batch"], job["n"], job["sizes"]["d_model"])
    if job["kind"] == "training":
        run: Callable[[], object] = training_step(model.train(), lambda: model(x))
    else:
        program = compiled(job, model, {"src": ("FLOAT", ["batch", "tokens", x.shape[-1]])})
        program.make_ready()
        given = {"src": x.numpy()}
        run = functools.partial(program.run, given)
    with contextlib.suppress(OSError):  # where it must not, the peak is one since the start
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = memory()["rss_bytes"]
    run()
    return {"peak_bytes": memory()["peak_bytes"] - before, "seconds": seconds_of({"step": run})["step"]}


def rows(job: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of padded, trimmed and packed rows, and the largest difference of their outputs."""
    lengths = job["lengths"]
    x = torch.randn(len(lengths), job["n"], job["sizes"]["d_model"])
    padding = torch.arange(job["n"])[None] >= torch.tensor(lengths)[:, None]
    ways, outputs = (_training_ways if job["kind"] == "training" else _graph_ways)(job, encoder(job), x, padding)
    differences = [float(np.abs(found - outputs["padded"]).max()) for found in outputs.values()]
    return {"difference": max(differences), "seconds": seconds_of(ways)}


def _training_ways(job: Mapping[str, Any], model: Any, x: torch.Tensor, padding: torch.Tensor) -> tuple[Ways, Outputs]:
    model.train()
    longest, valid = max(job["lengths"]), ~padding
    packed = x[valid][None]
    compute = {
        "padded": lambda: model(x, padding)[valid],
        "trimmed": lambda: model(x[:, :longest], padding[:, :longest])[valid[:, :longest]],
        "packed": lambda: model(packed, lengths=job["lengths"])[0],
    }
    outputs = {name: one().detach().numpy() for name, one in compute.items()}
    return {name: training_step(model, one) for name, one in compute.items()}, outputs


def _graph_ways(job: Mapping[str, Any], model: Any, x: torch.Tensor, padding: torch.Tensor) -> tuple[Ways, Outputs]:
    columns, longest, valid = x.shape[-1], max(job["lengths"]), ~padding.numpy()
    masked = {"src": ("FLOAT", ["batch", "tokens", columns]), "src_key_padding_mask": ("BOOL", ["batch", "tokens"])}
    in_rows = compiled(job, model, masked)
    in_one = compiled(job, model, {"src": ("FLOAT", [1, "tokens", columns]), "lengths": ("INT64", ["batch"])})
    given = {"src": x.numpy(), "src_key_padding_mask": padding.numpy()}
    cut = {name: np.ascontiguousarray(array[:, :longest]) for name, array in given.items()}
    packed = {"src": x.numpy()[valid][None], "lengths": np.array(job["lengths"])}
    outputs = {
        "padded": in_rows.run(given)["y"][valid],
        "trimmed": in_rows.run(cut)["y"][valid[:, :longest]],
        "packed": in_one.run(packed)["y"][0],
    }
    ways: Ways = {
        "padded": functools.partial(in_rows.run, given),
        "trimmed": functools.partial(in_rows.run, cut),
        "packed": functools.partial(in_one.run, packed),
    }
    return ways, outputs


def main() -> None:
    raise_priority()
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    print(json.dumps({"attention": attention, "rows": rows}[job["what"]](job)))


if __name__ == "__main__":
    main()
