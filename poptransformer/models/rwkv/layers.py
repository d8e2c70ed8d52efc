# SPDX-License-Identifier: Apache-2.0
"""Layers of RWKV-4; names and layouts are those of its checkpoint (transformers RwkvModel).

Instead of keys and values of all tokens each layer carries five vectors, whatever the length: its last input twice, for
attention and feed-forward, and the three states of the recurrence.

At inference transformers halves the hidden states after every `rescale_every` layers, and what later layers add to them
alike, so that fp16 does not overflow. In the fp32 arithmetic of this engine nothing overflows, and all that halving
changes is how a norm's epsilon compares with its input. So here the epsilon grows instead of the input shrinking:
scaled by powers of two, the numbers are the same to the last bit, and the weights stay as they are stored.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from poptransformer import ops
from poptransformer.checkpoint import HFConfig
from poptransformer.graph import Graph
from poptransformer.layers import BaseLayer, Embedding, LayerNorm, Linear
from poptransformer.parallel import Start, take
from poptransformer.step import Step

# Final norm's epsilon: torch's default, whatever layer_norm_epsilon says.
LN_OUT_EPSILON = 1e-5
# Logarithm of no weight at all, finite so that differences of two are defined.
EMPTY_MAXIMUM = -1e38


def epsilon_scale(config: HFConfig, num_layers: int) -> float:
    """What epsilon grows by behind that many layers: fourfold wherever the hidden states would be halved."""
    every = config.get("rescale_every", 6)
    return 4.0 ** (num_layers // every) if every > 0 else 1.0


class TokenMixLayer(BaseLayer):
    """A layer that sees each token together with the one before it.

    Args:
        context: dotted path of the parent.
        name: attribute name in the Hugging Face module.
        layer_index: number of the layer; names its states.
        config: the checkpoint's config.
    """

    MIXES: tuple[str, ...] = ()

    def __init__(self, context: str, name: str, layer_index: int, config: HFConfig) -> None:
        super().__init__(context, name)
        self.layer_index = layer_index
        self.hidden_size = config.hidden_size

    def collect_bind_layer_weights(self) -> None:
        keys = [self.key(f"time_mix_{mix}") for mix in self.MIXES]
        shape = [1, 1, self.hidden_size]
        self.mix_ids = [
            self.add_initialized_input_tensor(self.get_param_from_state_dict(key, shape), key) for key in keys
        ]

    def mixed(self, graph: Graph, x: ir.Value, step: Step) -> list[ir.Value]:
        """Blends `[B, L, D]` with the tokens before, once for each of `MIXES`: `x * mix + before * (1 - mix)`."""
        before = self._shifted(graph, x, step)
        change = ops.sub(graph, x, before)
        return [ops.add(graph, before, ops.mul(graph, change, mix_id)) for mix_id in self.mix_ids]

    def _shifted(self, graph: Graph, x: ir.Value, step: Step) -> ir.Value:
        """Returns the input of the token before each, `[B, L, D]`; zeros before a row's first."""
        last = step.layer_state(self.layer_index, f"{self.name}_input", self.hidden_size)
        inputs = ops.concat(graph, [ops.unsqueeze(graph, last.past, [1]), x], 1)
        # At `lengths` lies a row's last real token, and where it has none in this step, what it had before.
        last.update(ops.gather_nd(graph, inputs, ops.unsqueeze(graph, step.lengths, [1]), batch_dims=1))
        shifted = ops.slice(graph, inputs, [0], [-1], [1], [1])
        shifted.shape = x.shape  # inference gives L + 1 - 1 a name of its own
        return shifted


class RWKVAttention(TokenMixLayer):
    """Time mixing: means of the values so far, gated (transformers RwkvSelfAttention).

    Channels never meet here, so with several replicas each has some of them, however many there are.
    """

    MIXES = ("key", "value", "receptance")

    def __init__(self, context: str, name: str, layer_index: int, config: HFConfig) -> None:
        super().__init__(context, name, layer_index, config)
        self.attention_size = config.get("attention_hidden_size") or config.hidden_size
        self.channels = Start().outputs(self.build, self.attention_size)
        sizes = self.hidden_size, self.attention_size
        self.projections = [Linear(self.context, mix, *sizes, use_bias=False, strategy="start") for mix in self.MIXES]
        self.output = Linear(self.context, "output", *sizes[::-1], use_bias=False, strategy="end")

    def collect_bind_layer_weights(self) -> None:
        super().collect_bind_layer_weights()
        shape = [self.attention_size]
        speed = self.get_param_from_state_dict(self.key("time_decay"), shape).astype(np.float32)
        bonus = self.get_param_from_state_dict(self.key("time_first"), shape)
        decay = take(-np.exp(speed), self.channels)
        self.decay_id = self.add_initialized_input_tensor(decay, self.key("decay"))
        self.bonus_id = self.add_initialized_input_tensor(take(bonus, self.channels), self.key("time_first"))

    def __call__(self, graph: Graph, x: ir.Value, step: Step) -> ir.Value:
        """Maps `[B, L, D]` to the same shape."""
        with graph.nameScope(self.context):
            inputs = self.mixed(graph, x, step)
            key, value, receptance = (layer(graph, y) for layer, y in zip(self.projections, inputs, strict=True))
            means = self._recurrence(graph, key, value, step)
            return self.output(graph, ops.mul(graph, ops.sigmoid(graph, receptance), means))

    def _recurrence(self, graph: Graph, key: ir.Value, value: ir.Value, step: Step) -> ir.Value:
        """Means of the values so far, `[B, L, A]` of the replica's channels."""
        starts = {"numerator": 0.0, "denominator": 0.0, "maximum": EMPTY_MAXIMUM}
        states = [step.layer_state(self.layer_index, part, self.channels.size, start) for part, start in starts.items()]
        pasts = [state.past for state in states]
        means, *presents = ops.wkv(graph, self.decay_id, self.bonus_id, key, value, step.lengths, *pasts)
        for state, present in zip(states, presents, strict=True):
            state.update(present)
        return means


class RWKVFeedForward(TokenMixLayer):
    """Channel mixing: a gated feed-forward block with squared ReLU (transformers RwkvFeedForward).

    The gate is a ninth of the weights. Every replica computes all of it: it multiplies the sum of what the replicas
    have, and dividing it would take another collective for each layer.
    """

    MIXES = ("key", "receptance")

    def __init__(self, context: str, name: str, layer_index: int, config: HFConfig) -> None:
        super().__init__(context, name, layer_index, config)
        hidden_size = self.hidden_size
        inner_size = config.get("intermediate_size") or 4 * hidden_size
        sizes = hidden_size, inner_size
        self.key_projection = Linear(self.context, "key", *sizes, use_bias=False, strategy="start")
        self.receptance = Linear(self.context, "receptance", hidden_size, hidden_size, use_bias=False)
        self.value = Linear(self.context, "value", *sizes[::-1], use_bias=False, strategy="end")

    def __call__(self, graph: Graph, x: ir.Value, step: Step) -> ir.Value:
        """Maps `[B, L, D]` to the same shape."""
        with graph.nameScope(self.context):
            key, receptance = self.mixed(graph, x, step)
            inner = ops.relu(graph, self.key_projection(graph, key))
            value = self.value(graph, ops.mul(graph, inner, inner))
            return ops.mul(graph, ops.sigmoid(graph, self.receptance(graph, receptance)), value)


class RWKVBlock(BaseLayer):
    """Pre-norm block; the first one also normalises the embedding (transformers RwkvBlock)."""

    def __init__(self, context: str, name: str, layer_index: int, config: HFConfig) -> None:
        super().__init__(context, name)
        hidden_size, epsilon = config.hidden_size, config.get("layer_norm_epsilon", 1e-5)
        self.pre_ln = LayerNorm(self.context, "pre_ln", hidden_size, epsilon) if layer_index == 0 else None
        scaled = epsilon * epsilon_scale(config, layer_index)
        self.ln1 = LayerNorm(self.context, "ln1", hidden_size, scaled)
        self.ln2 = LayerNorm(self.context, "ln2", hidden_size, scaled)
        self.attention = RWKVAttention(self.context, "attention", layer_index, config)
        self.feed_forward = RWKVFeedForward(self.context, "feed_forward", layer_index, config)

    def __call__(self, graph: Graph, x: ir.Value, step: Step) -> ir.Value:
        """Maps `[B, L, D]` to the same shape."""
        with graph.nameScope(self.context):
            if self.pre_ln is not None:
                x = self.pre_ln(graph, x)
            x = ops.add(graph, x, self.attention(graph, self.ln1(graph, x), step))
            return ops.add(graph, x, self.feed_forward(graph, self.ln2(graph, x), step))


class RWKVTransformer(BaseLayer):
    """Embedding, blocks and final norm (transformers RwkvModel)."""

    def __init__(self, context: str | None, name: str, config: HFConfig) -> None:
        super().__init__(context, name)
        count = config.num_hidden_layers
        sizes = config.vocab_size, config.hidden_size
        self.embeddings = Embedding(self.context, "embeddings", *sizes, "vocabulary")
        self.blocks = [RWKVBlock(self.context, f"blocks.{i}", i, config) for i in range(count)]
        epsilon = LN_OUT_EPSILON * epsilon_scale(config, count)
        self.ln_out = LayerNorm(self.context, "ln_out", config.hidden_size, epsilon)

    def __call__(self, graph: Graph, step: Step) -> ir.Value:
        """Returns hidden states `[B, M, D]` of the tokens that get logits."""
        with graph.nameScope(self.context):
            x = self.embeddings(graph, step.input_ids)
            for index, block in enumerate(self.blocks):
                with self.block_scope(graph, index):
                    x = block(graph, x, step)
            return self.ln_out(graph, step.chosen(x))
