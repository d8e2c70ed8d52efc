# SPDX-License-Identifier: Apache-2.0
"""The projection from hidden states to logits."""

from __future__ import annotations

import contextlib
import logging
from contextlib import AbstractContextManager

import numpy as np
import onnx_ir as ir

from poptransformer import ops
from poptransformer.graph import Graph
from poptransformer.layers.base_layer import BaseLayer
from poptransformer.layers.embedding import Embedding
from poptransformer.parallel import Share, Strategy, Vocabulary, strategy_of, take

logger = logging.getLogger(__name__)


class LMHead(BaseLayer):
    """Logits from hidden states, with a weight of its own or the token embedding's (tied).

    Args:
        context: dotted path of the parent.
        name: attribute name in the Hugging Face module, usually `lm_head`.
        vocab_size: V.
        embedding_size: D.
        tie_weight: the embedding whose table serves as the weight; None loads `<context>.weight`.
        use_bias: whether the checkpoint holds a bias.
        strategy: `vocabulary`: each replica computes the logits of some tokens, and all of them get all; or
            `identity`. A tied head follows its embedding.
    """

    def __init__(
        self,
        context: str | None,
        name: str | None,
        vocab_size: int,
        embedding_size: int,
        tie_weight: Embedding | None = None,
        use_bias: bool = False,
        strategy: Strategy | str = "vocabulary",
    ) -> None:
        super().__init__(context, name)
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.tie_weight = tie_weight
        self.use_bias = use_bias
        self.strategy = strategy_of(strategy)

    def collect_bind_layer_weights(self) -> None:
        is_tied = self.tie_weight is not None and not self._has_its_own_weight(self.tie_weight)
        if self.tie_weight is not None and is_tied:
            self.weight_id, self.strategy = self.tie_weight.weight_id, self.tie_weight.strategy
        rows = self.strategy.outputs(self.build, self.vocab_size)
        self.is_divided = isinstance(self.strategy, Vocabulary) and self.num_replicas > 1
        if not is_tied:
            weight = self.get_param_from_state_dict(self.key("weight"), [self.vocab_size, self.embedding_size])
            weight = take(weight, rows, Share.whole(self.embedding_size))
            self.weight_id = self.add_initialized_input_tensor(weight, self.key("weight"))
        if self.use_bias:
            bias = take(self.get_param_from_state_dict(self.key("bias"), [self.vocab_size]), rows)
            self.bias_id = self.add_initialized_input_tensor(bias, self.key("bias"))

    def _has_its_own_weight(self, embedding: Embedding) -> bool:
        """Whether a head said to be tied is stored all the same, and differs: then it counts, as in transformers 5."""
        key, embedding_key = self.key("weight"), embedding.key("weight")
        # The names themselves are asked, as a state dict of random weights says yes to any `in`.
        if key not in list(self.state_dict) or np.array_equal(self.state_dict[key], self.state_dict[embedding_key]):
            return False
        logger.warning(
            "The config ties %s to %s, but the checkpoint holds both and they differ; using %s as it is stored.",
            *(key, embedding_key, key),
        )
        return True

    def __call__(self, graph: Graph, x: ir.Value) -> ir.Value:
        """Maps `[B, M, D]` to `[B, M, V]`."""
        with graph.nameScope(self.context), self._placed(graph):
            # One table serves lookup and product when tied, so the transpose stays in the graph.
            logits = ops.matmul(graph, x, ops.transpose(graph, self.weight_id, [1, 0]))
            if self.use_bias:
                logits = ops.add(graph, logits, self.bias_id)
            return self._gathered(graph, logits) if self.is_divided else logits

    def _placed(self, graph: Graph) -> AbstractContextManager[None]:
        """On the IPU of the table: the embedding's, or the last one."""
        if len(self.build.layer_per_ipu or ()) < 2:
            return contextlib.nullcontext()
        is_tied = self.tie_weight is not None and self.weight_id is self.tie_weight.weight_id
        ipu = 0 if is_tied else self.build.last_ipu
        return self.device_scope(graph, ipu, ipu)

    def _gathered(self, graph: Graph, logits: ir.Value) -> ir.Value:
        """All replicas' logits, without those of the rows that fill up the last shares."""
        every = ops.all_gather(graph, logits, self.num_replicas)
        if every.shape is not None and every.shape[-1] == self.vocab_size:
            return every
        return ops.slice(graph, every, [0], [self.vocab_size], [-1], [1])
