# SPDX-License-Identifier: Apache-2.0
"""Graphs of layers that are no language model's step: any inputs, any outputs, one call.

def build(graph):
    src = graph.input("src", onnx_ir.DataType.FLOAT, ["batch", "tokens", 64])
    encoder = TransformerEncoder(None, "encoder", functools.partial(TransformerEncoderLayer, d_model=64, nhead=2), 2)
    return {"output": encoder(graph, src)}

program = Program.compile(build, state_dict, precision="int8")
output = program.run({"src": x})["output"]
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import poptransformer
from poptransformer.build import Build, use_build
from poptransformer.checkpoint import StateDict
from poptransformer.errors import ConfigError, GraphError, PopTransformerError, did_you_mean
from poptransformer.graph import IR_VERSION, Graph
from poptransformer.quantization_report import QuantizationReport
from poptransformer.recipe import QuantizationConfig
from poptransformer.runtime.ort_session import WEIGHTS, SessionSettings, make_session, replaced_weights

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime as ort

GraphFunction = Callable[[Graph], Mapping[str, "ir.Value"]]
MANIFEST = "manifest.json"


def build_program(make: GraphFunction, build: Build, name: str = "model") -> ir.Model:
    """Builds a graph of layers, as they wrote it.

    Args:
        make: adds inputs and layers to a graph; returns the outputs by name.
        build: what the layers may ask; its `graph` is set here.
        name: of the graph.

    Raises:
        GraphError: `make` returned no outputs.
    """
    import onnx_ir as ir

    graph = Graph(name)
    with use_build(dataclasses.replace(build, graph=graph)):
        outputs = make(graph)
        if not isinstance(outputs, Mapping) or not outputs:
            raise GraphError(f"The function that builds {name} returned {outputs!r}; expected outputs by name.")
        for output, value in outputs.items():
            graph.output(value, output)
    return ir.Model(
        graph.ir_graph,
        ir_version=IR_VERSION,
        producer_name="poptransformer",
        producer_version=poptransformer.__version__,
    )


def run_passes(model: ir.Model, build: Build, fuse: bool = True) -> QuantizationReport:
    """Runs over a program what every model of this package goes through: products, precision, fusion, bodies."""
    from poptransformer import passes

    if build.recipe.is_calibrated:
        raise ConfigError(
            "A program of layers has no tokenizer to calibrate with; use a precision without calibration."
        )
    passes.matmul_to_linear(model)
    report = passes.quantize(model, build.recipe)
    if fuse:
        passes.fuse(model)
    passes.attach_functions(model)
    passes.name_nested_functions(model)
    return report


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled graph of layers: arrays in, arrays out.

    Attributes:
        model: the graph after all passes.
        report: what became of each weight matrix.
        settings: how it runs.
    """

    model: ir.Model
    report: QuantizationReport
    settings: SessionSettings = SessionSettings()

    @classmethod
    def compile(
        cls,
        make: GraphFunction,
        state_dict: Mapping[str, np.ndarray] | StateDict,
        *,
        precision: str | Mapping[str, Any] = "fp32",
        quantization: Mapping[str, Any] | None = None,
        model_type: str = "shard",
        fuse: bool = True,
        threads: int | None = None,
    ) -> Program:
        """Builds, quantizes and fuses a graph of layers.

        Args:
            make: adds inputs and layers to a graph; returns the outputs by name.
            state_dict: weights by name.
            precision: as in `poptransformer.load`.
            quantization: as in `poptransformer.load`.
            model_type: `shard` or `tp`.
            fuse: compute several nodes by one kernel.
            threads: CPU threads; None is one for each core that this process may use.
        """
        build = Build(
            state_dict=StateDict.wrap(state_dict),
            precision=precision,
            quantization=QuantizationConfig.from_mapping(quantization or {}),
            model_type=model_type,
        )
        model = build_program(make, build)
        report = run_passes(model, build, fuse)
        return cls(model, report, SessionSettings(threads=threads))

    @functools.cached_property
    def session(self) -> ort.InferenceSession:
        """The onnxruntime session, made when it is first used."""
        return make_session(self.model, self.settings)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(str(value.name) for value in self.model.graph.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(str(value.name) for value in self.model.graph.outputs)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the outputs by name.

        Args:
            inputs: an array for each input.

        Raises:
            ConfigError: an input is missing or unknown.
        """
        for name in inputs:
            if name not in self.inputs:
                raise ConfigError(f"The program has no input {name}. {did_you_mean(name, self.inputs)}")
        missing = [name for name in self.inputs if name not in inputs]
        if missing:
            raise ConfigError(f"The program needs the inputs {list(self.inputs)}; {', '.join(missing)} is missing.")
        return dict(zip(self.outputs, self.session.run(list(self.outputs), dict(inputs)), strict=True))

    def save(self, folder: str | Path, **about: Any) -> Path:
        """Writes `model.onnx`, `weights.bin` and `manifest.json`, which is written last; nothing runs.

        Args:
            folder: target; a program that lies there is replaced.
            **about: more for the manifest.

        Raises:
            PopTransformerError: the target holds something else.
        """
        folder = Path(folder).expanduser()
        if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise PopTransformerError(f"{folder} is not empty and no saved program; choose another folder or empty it.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            self._write(temporary, about)
            temporary.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder

    def _write(self, folder: Path, about: Mapping[str, Any]) -> None:
        import onnx_ir as ir

        from poptransformer.runtime.ort_session import large_weights
        from poptransformer.runtime.weight_file import write_weights

        references = write_weights(large_weights(self.model), folder / WEIGHTS)
        with replaced_weights(self.model.graph, references):
            (folder / "model.onnx").write_bytes(ir.serde.serialize_model(self.model).SerializeToString())
        manifest = {
            **about,
            "poptransformer": poptransformer.__version__,
            "inputs": _signature(self.model.graph.inputs),
            "outputs": _signature(self.model.graph.outputs),
            "nodes": len(self.model.graph),
            "weights": [dataclasses.asdict(weight) for weight in self.report.weights],
            "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _signature(values: Any) -> dict[str, str]:
    """Type and shape of each value, by name."""
    return {str(value.name): f"{value.dtype}{'' if value.shape is None else value.shape}" for value in values}
