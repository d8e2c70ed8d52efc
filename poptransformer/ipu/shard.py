# SPDX-License-Identifier: Apache-2.0
"""Divides the work of a step among tensor-parallel replicas.

Activations are followed through the graph: a product with a whole input cuts its columns, one with a divided input cuts
its depth and sums the results up over all replicas. That is how the strategies `start`, `end`, `fused_qkv` and
`multi_query_qkv` shard a model, found from the graph alone. A graph that already holds collectives is one replica's and
stays as it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from poptransformer.errors import ConfigError
from poptransformer.ipu.work import Attention, Cache, Collective, Lookup, Move, Op, Product, Recurrence, Vector, Weight


def is_sharded(ops: Iterable[Op]) -> bool:
    """Whether the graph is one replica's of several."""
    return any(isinstance(op.work, Collective) for op in ops)


def attention_heads(ops: Iterable[Op]) -> tuple[int, int] | None:
    """Query heads and key/value heads of the first attention; None where there is none."""
    found = (op.work for op in ops if isinstance(op.work, Attention))
    first = next(found, None)
    return None if first is None else (first.heads, first.kv_heads)


def check_replicas(ops: Sequence[Op], replicas: int) -> None:
    """Raises unless the heads can be divided among the replicas.

    Raises:
        ConfigError: names the numbers that can.
    """
    found = attention_heads(ops)
    if found is None:
        return
    heads, kv_heads = found
    if heads % replicas:
        valid = [count for count in range(1, heads + 1) if heads % count == 0]
        powers = [count for count in valid if count & (count - 1) == 0]
        raise ConfigError(
            f"num_replicas={replicas} does not divide {heads} heads; valid: {', '.join(map(str, valid))}; "
            f"power of two: {', '.join(map(str, powers))}"
        )
    if kv_heads % replicas and replicas % kv_heads:
        raise ConfigError(
            f"num_replicas={replicas} neither divides {kv_heads} key/value heads nor is a multiple of them, so they "
            f"can be neither divided nor repeated; try num_replicas={kv_heads}"
        )


def shard(ops: Sequence[Op], replicas: int) -> list[Op]:
    """Returns what one of `replicas` replicas does.

    Args:
        ops: the work of the whole model, in order.
        replicas: how many share it.

    Raises:
        ConfigError: the heads cannot be divided.
    """
    if replicas == 1 or is_sharded(ops):
        return list(ops)
    check_replicas(ops, replicas)
    sharder = _Sharder(replicas)
    return [part for op in ops for part in sharder.parts(op)]


class _Sharder:
    def __init__(self, replicas: int) -> None:
        self.replicas = replicas
        self.divided: set[str] = set()  # activations of which each replica has a part

    def parts(self, op: Op) -> list[Op]:
        """What a node becomes: itself or its part, with the collectives around it."""
        has_part = any(name in self.divided for name in op.inputs)
        match op.work:
            case Product(weight_bits=bits) if bits:
                return self._end(op, op.work) if has_part else self._start(op, op.work)
            case Lookup() if op.weights:
                return [self._with(op, op.work, divide_weights=True), self._collective(op, "all_reduce")]
            case _ if not has_part:
                return [op]
            case Attention():
                return [self._attention(op, op.work)]
            case Vector(reductions=reductions) if reductions or self._is_mixed(op):
                return [*self._gathered(op), op]
            case _:
                return [self._elementwise(op)]

    def _cut(self, size: int) -> int:
        return math.ceil(size / self.replicas)

    def _start(self, op: Op, work: Product) -> list[Op]:
        """Columns are cut; what leaves is divided."""
        self.divided |= {name for name, _ in op.outputs}
        part = dataclasses.replace(work, columns=self._cut(work.columns))
        return [self._with(op, part, divide_weights=True, divide_outputs=True)]

    def _end(self, op: Op, work: Product) -> list[Op]:
        """The depth is cut; replicas sum up their results."""
        part = dataclasses.replace(work, depth=self._cut(work.depth))
        return [self._with(op, part, divide_weights=True), self._collective(op, "all_reduce")]

    def _attention(self, op: Op, work: Attention) -> Op:
        self.divided |= {name for name, _ in op.outputs}
        kv_heads = max(1, work.kv_heads // self.replicas)
        part = dataclasses.replace(work, heads=work.heads // self.replicas, kv_heads=kv_heads)
        caches = tuple(dataclasses.replace(c, rows=c.rows // work.kv_heads * kv_heads) for c in op.caches)
        cut = self._with(op, part, divide_outputs=True)
        return dataclasses.replace(cut, caches=caches)

    def _elementwise(self, op: Op) -> Op:
        """Works on the replica's own elements; parameters are cut alike."""
        self.divided |= {name for name, _ in op.outputs}
        work = op.work
        if isinstance(work, Vector | Move | Recurrence):
            work = dataclasses.replace(work, elements=self._cut(work.elements))
        elif isinstance(work, Product):
            work = dataclasses.replace(work, groups=self._cut(work.groups))
        caches = tuple(Cache(c.rows, self._cut(c.columns), c.itemsize) for c in op.caches)
        return dataclasses.replace(
            self._with(op, work, divide_weights=True, divide_outputs=True), caches=caches or op.caches
        )

    def _is_mixed(self, op: Op) -> bool:
        """Whether a sum or product has one divided and one whole operand of the same size."""
        return isinstance(op.work, Vector) and op.work.operands > sum(name in self.divided for name in op.inputs)

    def _gathered(self, op: Op) -> list[Op]:
        """Collectives that make the divided inputs of a node whole."""
        divided = [name for name in op.inputs if name in self.divided]
        self.divided -= set(divided)
        elements = op.outputs[0][1] if op.outputs else 0
        return [Op(f"{op.name}/all_gather", Collective("all_gather", elements, self.replicas)) for _ in divided]

    def _collective(self, op: Op, kind: str) -> Op:
        return Op(f"{op.name}/{kind}", Collective(kind, op.outputs[0][1], self.replicas))

    def _with(self, op: Op, work: object, divide_weights: bool = False, divide_outputs: bool = False) -> Op:
        weights = tuple(self._cut_weight(weight) for weight in op.weights) if divide_weights else op.weights
        outputs = op.outputs
        if divide_outputs:
            outputs = tuple((name, self._cut(elements)) for name, elements in outputs)
        return dataclasses.replace(op, work=work, weights=weights, outputs=outputs)  # type: ignore[arg-type]

    def _cut_weight(self, weight: Weight) -> Weight:
        """A part of a matrix's elements, or of a vector's; which side is cut makes no difference to the bytes."""
        scales = self._cut(weight.scale_bytes)
        if weight.rows == 1:
            return dataclasses.replace(weight, columns=self._cut(weight.columns), scale_bytes=scales)
        return dataclasses.replace(weight, rows=self._cut(weight.rows), scale_bytes=scales)
