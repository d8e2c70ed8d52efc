# SPDX-License-Identifier: Apache-2.0
"""Chooses the tokens that get logits as early as may be: what only they need is not computed for the others.

A prompt's logits are wanted for its last token. Behind the last attention every row stands alone, so its output product
and its MLP need that row only: a thirtieth of SmolLM2's work, a sixteenth of GPT-2's.
"""

from __future__ import annotations

import onnx_ir as ir

from poptransformer.graph import DOMAIN
from poptransformer.passes.match import PLACEMENT, is_op, placement

# Ops whose result's rows hang on the same rows of these inputs, and on weights.
_ROW_INPUTS = {"FusedLinear": (0, 3), "Linear": (0,), "QuantizedLinear": (0,)}
_NOWHERE = (None,) * len(PLACEMENT)


def choose_early(model: ir.Model) -> None:
    """Moves each choice of tokens in the main graph up; run it after `fuse`."""
    for node in [node for node in model.graph if chooses_tokens(node)]:
        _Move(model.graph, node).run()


def chooses_tokens(node: ir.Node) -> bool:
    """Whether the node takes rows `[B, M, K]` of fp32 data `[B, L, K]`, by one index each."""
    if not is_op(node, "GatherND") or node.attributes.get_int("batch_dims", 0) != 1:
        return False
    data, indices = node.inputs
    if data is None or indices is None or data.dtype != ir.DataType.FLOAT:
        return False
    return _rank(data) == _rank(indices) == 3 and indices.shape[2] == 1  # type: ignore[index]


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


class _Move:
    """One choice, and the nodes that it moves in front of.

    Attributes:
        behind: nodes that will see the chosen rows alone.
    """

    def __init__(self, graph: ir.Graph, choice: ir.Node) -> None:
        self.graph = graph
        self.choice = choice
        self.behind: set[ir.Node] = set()

    def run(self) -> None:
        """Finds the nodes and rewrites them, where there are any."""
        values = [self._data]
        while values:
            node = values.pop().producer()
            if node is not None and self._can_be_behind(node):
                self.behind.add(node)
                values += _row_inputs(node)
                values += [value for other in self.behind for value in _row_inputs(other)]
        if self.behind:
            self._rewrite()

    @property
    def _data(self) -> ir.Value:
        assert self.choice.inputs[0] is not None  # chooses_tokens
        return self.choice.inputs[0]

    def _can_be_behind(self, node: ir.Node) -> bool:
        """Whether nobody needs the other rows of what the node makes."""
        if node in self.behind or node.domain != DOMAIN or node.op_type not in _ROW_INPUTS:
            return False
        if not self._is_near(node) or any(_rank(value) != 3 for value in _row_inputs(node)):
            return False
        users = [use.node for value in node.outputs for use in value.uses()]
        is_seen = any(value.is_graph_output() for value in node.outputs)
        return not is_seen and all(user is self.choice or user in self.behind for user in users)

    def _is_near(self, node: ir.Node) -> bool:
        """Whether the node runs where the choice runs; one without a place of its own goes along."""
        places = {placement(other) for other in (self.choice, *self.behind)} - {_NOWHERE}
        return not places or placement(node) in places

    def _rewrite(self) -> None:
        chosen: dict[ir.Value, ir.Value] = {}
        for node in [node for node in self.graph if node in self.behind]:
            for index in _ROW_INPUTS[node.op_type]:
                value = node.inputs[index] if index < len(node.inputs) else None
                if value is not None and value.producer() not in self.behind:
                    if value not in chosen:
                        chosen[value] = self._choose(value, node, len(chosen))
                    node.replace_input_with(index, chosen[value])
            for value in node.outputs:
                value.shape = self._shape_of(value)
        (result,), data = self.choice.outputs, self._data
        data.name = result.name  # it may be an output of the graph
        result.replace_all_uses_with(data, replace_graph_outputs=True)
        self.graph.remove(self.choice, safe=True)
        self.graph.sort()

    def _choose(self, value: ir.Value, reader: ir.Node, number: int) -> ir.Value:
        """The chosen rows of a value that is needed as a whole; made where they are read."""
        place = {key: reader.metadata_props[key] for key in PLACEMENT if key in reader.metadata_props}
        node = ir.Node(
            "",
            "GatherND",
            [value, self.choice.inputs[1]],
            list(self.choice.attributes.values()),
            name=f"{self.choice.name}_{number}",
            metadata_props={**self.choice.metadata_props, **place},
        )
        (rows,) = node.outputs
        rows.name = f"{self.choice.outputs[0].name}_{number}"
        rows.type, rows.shape = value.type, self._shape_of(value)
        self.graph.append(node)
        return rows

    def _shape_of(self, value: ir.Value) -> ir.Shape | None:
        chosen = self.choice.outputs[0].shape
        if value.shape is None or chosen is None:
            return None
        return ir.Shape([*list(chosen)[:2], value.shape[2]])


def _row_inputs(node: ir.Node) -> list[ir.Value]:
    return [v for i in _ROW_INPUTS[node.op_type] if i < len(node.inputs) and (v := node.inputs[i]) is not None]
