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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from poptransformer.build import Build
from poptransformer.checkpoint import StateDict
from poptransformer.errors import ConfigError, did_you_mean
from poptransformer.program_graph import GraphFunction, build_program, run_passes
from poptransformer.quantization_report import QuantizationReport
from poptransformer.recipe import QuantizationConfig
from poptransformer.runtime.ort_session import SessionSettings, make_session

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime as ort

    from poptransformer.runtime.program_ranks import ProgramRanks


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled graph of layers: arrays in, arrays out.

    Attributes:
        model: the graph after all passes, with the weights of the first replica.
        report: what became of each weight matrix.
        settings: how it runs.
        peers: the graphs of the other replicas.
        layer_per_ipu: blocks of each pipeline stage; empty where there is one stage.
        divided: inputs and outputs of which replicas have different parts, and along which axis. `run` takes and
            returns whole ones.
    """

    model: ir.Model
    report: QuantizationReport
    settings: SessionSettings = SessionSettings()
    peers: tuple[ir.Model, ...] = ()
    layer_per_ipu: tuple[int, ...] = ()
    divided: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def compile(
        cls,
        make: GraphFunction,
        state_dict: Mapping[str, np.ndarray] | StateDict,
        *,
        precision: str | Mapping[str, Any] = "fp32",
        quantization: Mapping[str, Any] | None = None,
        model_type: str = "shard",
        num_replicas: int = 1,
        layer_per_ipu: Sequence[int] | None = None,
        fuse: bool = True,
        threads: int | None = None,
    ) -> Program:
        """Builds, quantizes and fuses a graph of layers.

        Args:
            make: adds inputs and layers to a graph; returns the outputs by name. It is called once for each replica.
            state_dict: weights by name.
            precision: as in `poptransformer.load`.
            quantization: as in `poptransformer.load`.
            model_type: `shard` or `tp`.
            num_replicas: tensor-parallel replicas, for `tp`.
            layer_per_ipu: encoder and decoder layers of each pipeline stage, in order; None is one stage.
            fuse: compute several nodes by one kernel.
            threads: CPU threads; None is one for each core that this process may use.

        Raises:
            ConfigError: the layers cannot be divided so; names what can be.
        """
        build = Build(
            state_dict=StateDict.wrap(state_dict),
            precision=precision,
            quantization=QuantizationConfig.from_mapping(quantization or {}),
            model_type=model_type,
            num_replicas=num_replicas,
            layer_per_ipu=None if layer_per_ipu is None else tuple(layer_per_ipu),
        )
        models, reports = [], []
        for replica in range(num_replicas):
            build = dataclasses.replace(build, replica=replica)
            built = build_program(make, build)
            reports.append(run_passes(built.model, build, fuse))
            models.append(built.model)
        stages = build.layer_per_ipu if len(build.layer_per_ipu or ()) > 1 else ()
        settings = SessionSettings(threads=threads)
        return cls(models[0], reports[0], settings, tuple(models[1:]), stages or (), built.divided)

    @property
    def num_replicas(self) -> int:
        """Tensor-parallel replicas."""
        return 1 + len(self.peers)

    @property
    def num_stages(self) -> int:
        """Pipeline stages."""
        return max(1, len(self.layer_per_ipu))

    @functools.cached_property
    def session(self) -> ort.InferenceSession:
        """The onnxruntime session of a program in one piece, made when it is first used."""
        return make_session(self.model, self.settings)

    @functools.cached_property
    def ranks(self) -> ProgramRanks:
        """What runs a program of several replicas or stages, made when it is first used."""
        from poptransformer.runtime.program_ranks import ProgramRanks

        return ProgramRanks((self.model, *self.peers), self.num_stages, self.divided, self.settings)

    @property
    def is_whole(self) -> bool:
        """Whether there is one replica and one stage."""
        return self.num_replicas == self.num_stages == 1

    def make_ready(self) -> None:
        """Makes the sessions: onnxruntime accepts every node. Nothing runs."""
        _ = self.session if self.is_whole else self.ranks

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(str(value.name) for value in self.model.graph.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(str(value.name) for value in self.model.graph.outputs)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the outputs by name, the same for any number of replicas and stages.

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
        if self.is_whole:
            return dict(zip(self.outputs, self.session.run(list(self.outputs), dict(inputs)), strict=True))
        found = self.ranks.run(inputs)
        return {name: found[name] for name in self.outputs}

    def save(self, folder: str | Path, **about: Any) -> Path:
        """Writes the program, see `poptransformer.program_files`; nothing runs.

        Args:
            folder: target; a program that lies there is replaced.
            **about: more for the manifest.

        Raises:
            PopTransformerError: the target holds something else.
        """
        from poptransformer.program_files import save

        return save(self, Path(folder).expanduser(), about)

    @classmethod
    def load(cls, folder: str | Path, threads: int | None = None) -> Program:
        """Opens what `save` wrote; weights stay in the mapped files.

        Args:
            folder: where it lies.
            threads: as for `compile`.

        Raises:
            PopTransformerError: a file is missing or was cut short.
        """
        from poptransformer.program_files import load

        return load(Path(folder).expanduser(), SessionSettings(threads=threads))
