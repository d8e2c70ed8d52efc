# SPDX-License-Identifier: Apache-2.0
"""A program of layers on several ranks: replicas and stages are threads of this process."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from poptransformer.errors import GraphError
from poptransformer.parallel.communicator import Groups, ThreadGroup
from poptransformer.runtime.ort_session import SessionSettings, make_session
from poptransformer.runtime.workers import Workers

if TYPE_CHECKING:
    import onnx_ir as ir

    from poptransformer.passes.stages import Segment

_TIMEOUT = 300.0  # seconds that a rank waits for another one, as for models


class ProgramRanks:
    """Runs a graph whose replicas and stages are threads; rank `stage * replicas + replica` has that part.

    Args:
        models: the graph of each replica.
        stages: pipeline stages.
        divided: inputs and outputs of which replicas have different parts: name -> axis.
        settings: `threads` is what each rank may use, as stages run in turn; replicas share them.

    Raises:
        GraphError: a value that goes from one stage to another is no fp32 tensor.
    """

    def __init__(
        self, models: Sequence[ir.Model], stages: int, divided: Mapping[str, int], settings: SessionSettings
    ) -> None:
        self._replicas = len(models)
        self._divided = divided
        segments = [_segments(model, stages) for model in models]
        by_stage = [ThreadGroup(len(models), _TIMEOUT, first=stage * len(models)) for stage in range(stages)]
        by_replica = [ThreadGroup(stages, _TIMEOUT, first=n, stride=len(models)) for n in range(len(models))]
        self._workers = Workers(len(models) * stages, [*by_stage, *by_replica], _TIMEOUT)
        lock = threading.Lock()
        own = dataclasses.replace(settings, threads=max(1, settings.num_threads // len(models)))

        def make(rank: int) -> list[ort.InferenceSession]:
            stage, replica = divmod(rank, self._replicas)
            groups = Groups(
                replicas=by_stage[stage].join(replica) if self._replicas > 1 else None,
                stages=by_replica[replica].join(stage) if stages > 1 else None,
            )
            with lock:  # stages of a replica read the same weights
                return [
                    make_session(segment.model, dataclasses.replace(own, groups=groups))
                    for segment in segments[replica]
                    if segment.stage == stage
                ]

        self._sessions = self._workers.all(make)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the outputs by name, whole ones for whole inputs.

        Raises:
            GraphError: replicas disagree about an output.
            PopTransformerError: a rank failed.
        """
        found = self._workers.all(lambda rank: self._run_rank(rank, inputs))
        outputs: dict[str, np.ndarray] = {}
        for first in range(0, len(found), self._replicas):
            replicas = found[first : first + self._replicas]
            outputs |= {name: self._whole(name, [replica[name] for replica in replicas]) for name in replicas[0]}
        return outputs

    def _run_rank(self, rank: int, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        replica = rank % self._replicas
        found: dict[str, np.ndarray] = {}
        for session in self._sessions[rank]:
            feeds = {value.name: self._part(value.name, inputs[value.name], replica) for value in session.get_inputs()}
            names = [value.name for value in session.get_outputs()]
            found |= dict(zip(names, session.run(names, feeds), strict=True))
        return {name: array for name, array in found.items() if not name.startswith("sent.")}

    def _part(self, name: str, array: np.ndarray, replica: int) -> np.ndarray:
        axis = self._divided.get(name)
        if axis is None or array.ndim <= axis:
            return array
        return np.ascontiguousarray(np.array_split(array, self._replicas, axis)[replica])

    def _whole(self, name: str, parts: Sequence[np.ndarray]) -> np.ndarray:
        if name in self._divided and self._replicas > 1:
            return np.concatenate(parts, self._divided[name])
        # Sums have the same bits on all replicas, so that what depends on them alone has, too.
        if any(not np.array_equal(parts[0], part, equal_nan=part.dtype.kind == "f") for part in parts[1:]):
            raise GraphError(
                f"Replicas disagree about the output {name}: it is made of one replica's heads or columns. Give out "
                "the layers' results as they are, or put the parts together by ops.all_gather or ops.all_reduce."
            )
        return parts[0]


def _segments(model: ir.Model, stages: int) -> list[Segment]:
    from poptransformer.passes import split_stages
    from poptransformer.passes.stages import Segment

    if stages == 1:
        return [Segment(0, model)]
    return split_stages(model, {}, str(model.graph.inputs[0].name))
