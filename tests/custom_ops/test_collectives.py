# SPDX-License-Identifier: Apache-2.0
"""AllReduce, AllGather, Send and Recv: kernels on threads, bodies of a rank that is alone, errors where both fail."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from poptransformer import ops
from poptransformer.graph import DOMAIN, IR_VERSION, Graph
from poptransformer.parallel.communicator import Groups, ThreadGroup
from poptransformer.passes import attach_functions
from poptransformer.runtime import SessionSettings
from poptransformer.runtime.ort_session import make_session

pytestmark = pytest.mark.custom_ops


def collective(op: str, replicas: int, ranks: str = "many", rank: int = 3) -> ir.Model:
    graph = Graph()
    x = graph.input("x", ir.DataType.FLOAT, [None] * rank)
    with graph.nameScope("h.0/attn"):
        y = graph.op(op, x, domain=DOMAIN, replicas=replicas, ranks=ranks)
    y.dtype = ir.DataType.FLOAT
    graph.output(y, "y")
    return finished(graph)


def finished(graph: Graph) -> ir.Model:
    model = ir.Model(graph.ir_graph, ir_version=IR_VERSION)
    attach_functions(model)
    return model


def run_all(model: ir.Model, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    group = ThreadGroup(len(inputs), 20.0)

    def session(rank: int) -> ort.InferenceSession:
        return make_session(model, SessionSettings(threads=1, groups=Groups(replicas=group.join(rank))))

    sessions = [session(rank) for rank in range(len(inputs))]
    with ThreadPoolExecutor(len(inputs)) as pool:
        runs = [pool.submit(s.run, None, {"x": x}) for s, x in zip(sessions, inputs, strict=True)]
        return [run.result()[0] for run in runs]


@pytest.mark.parametrize("shape", [(1, 1, 576), (2, 3, 5), (1, 200, 100), (2, 0, 4)])
@pytest.mark.parametrize("replicas", [2, 3, 4])
def test_all_reduce(shape: tuple[int, ...], replicas: int) -> None:
    inputs = [np.random.default_rng(rank).standard_normal(shape, np.float32) for rank in range(replicas)]
    expected = inputs[0]
    for x in inputs[1:]:
        expected = expected + x
    for y in run_all(collective("AllReduce", replicas), inputs):
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("shape", [(1, 1, 7), (2, 3, 5), (3, 1, 64)])
def test_all_gather(shape: tuple[int, ...]) -> None:
    inputs = [np.random.default_rng(rank).standard_normal(shape, np.float32) for rank in range(3)]
    for y in run_all(collective("AllGather", 3), inputs):
        np.testing.assert_array_equal(y, np.concatenate(inputs, -1))


def transfer(make: Any, stage: int, group: ThreadGroup) -> ort.InferenceSession:
    graph = Graph()
    make(graph)
    return make_session(finished(graph), SessionSettings(threads=1, groups=Groups(stages=group.join(stage))))


def test_send_and_recv() -> None:
    def sending(graph: Graph) -> None:
        x = graph.input("x", ir.DataType.FLOAT, [None, None])
        sent = graph.op("Send", x, domain=DOMAIN, to=1, tag=4)
        sent.dtype, sent.shape = ir.DataType.INT64, ir.Shape([])
        graph.output(sent, "sent")

    def receiving(graph: Graph) -> None:
        like = graph.input("like", ir.DataType.INT64, [None])
        y = graph.op("Recv", like, domain=DOMAIN, source=0, tag=4)
        y.dtype = ir.DataType.FLOAT
        graph.output(y, "y")

    group = ThreadGroup(2, 0.3)
    source, target = transfer(sending, 0, group), transfer(receiving, 1, group)
    arrays = [np.random.default_rng(n).standard_normal((n, 3), np.float32) for n in (1, 5, 0)]
    for array in arrays:
        assert source.run(None, {"x": array})[0] == array.size
    for array in arrays:
        np.testing.assert_array_equal(target.run(None, {"like": np.zeros(2, np.int64)})[0], array)
    with pytest.raises(Exception, match=r"rank 1 waited 0.3 s in Recv for rank 0, which was last in Send"):
        target.run(None, {"like": np.zeros(2, np.int64)})


def test_one_rank_is_the_identity() -> None:
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    for op in ("AllReduce", "AllGather"):
        for use_native in (True, False):
            session = make_session(collective(op, 1, ranks="one"), SessionSettings(use_native=use_native))
            np.testing.assert_array_equal(session.run(None, {"x": x})[0], x)


def test_no_node_is_added_for_one_replica() -> None:
    graph = Graph()
    x = graph.input("x", ir.DataType.FLOAT, [2, 3])
    assert ops.all_reduce(graph, x, 1) is x and ops.all_gather(graph, x, 1) is x


@pytest.mark.parametrize("op", ["AllReduce", "AllGather"])
def test_without_the_library_a_model_of_several_ranks_says_what_it_needs(op: str) -> None:
    session = make_session(collective(op, 2), SessionSettings(use_native=False))
    with pytest.raises(Exception, match="this_model_has_several_ranks_and_needs_the_native_library_of_poptransformer"):
        session.run(None, {"x": np.ones((1, 2, 3), np.float32)})


def test_a_rank_on_its_own_is_refused() -> None:
    with pytest.raises(Exception, match=r"'replicas' must be the number of ranks that run the model, 1, found 2"):
        make_session(collective("AllReduce", 2), SessionSettings())


def single(op: str, type_: ir.DataType, **attributes: int) -> ir.Model:
    """A node that reads `x` of any type."""
    graph = Graph()
    y = graph.op(op, graph.input("x", type_, [None]), domain=DOMAIN, **attributes)
    y.dtype = ir.DataType.INT64 if op == "Send" else ir.DataType.FLOAT
    graph.output(y, "y")
    return ir.Model(graph.ir_graph, ir_version=IR_VERSION)  # without a body: its types are the kernel's


def two_stages() -> SessionSettings:
    return SessionSettings(threads=1, groups=Groups(stages=ThreadGroup(2, 0.3).join(0)))


@pytest.mark.parametrize("type_", [ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.INT64, ir.DataType.BOOL])
@pytest.mark.parametrize(("op", "attributes"), [("AllReduce", {"replicas": 1}), ("Send", {"to": 1, "tag": 0})])
def test_wrong_types(op: str, attributes: dict[str, int], type_: ir.DataType) -> None:
    session = make_session(single(op, type_, **attributes), two_stages())
    with pytest.raises(Exception, match=rf"poptransformer\.{op}: input 'x' must be float32, found {type_.numpy()}"):
        session.run(None, {"x": np.zeros(3, type_.numpy())})


@pytest.mark.parametrize(("op", "peer"), [("Send", "to"), ("Recv", "source")])
@pytest.mark.parametrize("stage", [-1, 2, 10**6])
def test_stages_that_are_not_there(op: str, peer: str, stage: int) -> None:
    message = (
        f"poptransformer.{op}: attribute '{peer}' must be one of the stages that run the model, 0 to 1, found {stage}"
    )
    with pytest.raises(Exception, match=message):
        make_session(single(op, ir.DataType.FLOAT, **{peer: stage, "tag": 0}), two_stages())


@pytest.mark.parametrize(
    ("op", "missing"), [("Send", "to"), ("Send", "tag"), ("Recv", "source"), ("AllReduce", "replicas")]
)
def test_missing_attributes(op: str, missing: str) -> None:
    every = {"Send": {"to": 1, "tag": 0}, "Recv": {"source": 1, "tag": 0}, "AllReduce": {"replicas": 1}}[op]
    given = {name: value for name, value in every.items() if name != missing}
    with pytest.raises(Exception, match=rf"poptransformer\.{op}: attribute '{missing}'"):
        make_session(single(op, ir.DataType.FLOAT, **given), two_stages())
