# SPDX-License-Identifier: Apache-2.0
"""From `torch.nn.Transformer*` to these layers: names of weights, and layers with the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from poptransformer.checkpoint import StateDict
from poptransformer.checkpoint.torch_bin import lazy_tensors
from poptransformer.errors import ConfigError
from poptransformer.nn.attention import MultiheadAttention
from poptransformer.nn.decoder import TransformerDecoder, TransformerDecoderLayer
from poptransformer.nn.encoder import TransformerEncoder, TransformerEncoderLayer
from poptransformer.nn.transformer import Transformer

_PROJECTIONS = ("proj_q_dense_layer", "proj_k_dense_layer", "proj_v_dense_layer")
_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
_FEED_FORWARD = {"linear1": "ffn.ffn.0.linear_layer", "linear2": "ffn.ffn.1.linear_layer"}
_ACTIVATIONS = {nn.functional.relu: "relu", nn.functional.gelu: "gelu"}


def from_torch_nn(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of `torch.nn.Transformer*` and `torch.nn.MultiheadAttention`, wherever they are in a model.

    One weight for queries, keys and values becomes three; all else, and the weights of other layers, stays.

    Args:
        state_dict: of a model with such layers in it.

    Returns:
        The state dict of the same model with the layers of `poptransformer.nn` (with biases where it had them).

    Raises:
        ConfigError: an attention layer has rows of its own for keys and values (`add_bias_kv`).
    """
    attentions = {_parent(key) for key in state_dict if key.endswith(("in_proj_weight", "q_proj_weight"))}
    blocks = {_parent(name) for name in attentions if name.endswith("self_attn")}
    converted: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        parent, _, name = key.rpartition(".")
        layer, _, part = parent.rpartition(".")
        if parent in attentions and name in ("bias_k", "bias_v"):
            raise ConfigError(f"{key}: these attention layers have no add_bias_kv; train the model without it.")
        if parent in attentions and name in ("in_proj_weight", "in_proj_bias"):
            suffix = name.removeprefix("in_proj_")
            for projection, rows in zip(_PROJECTIONS, value.chunk(3), strict=True):
                converted[_join(parent, projection, suffix)] = rows.clone()
        elif parent in attentions and name in _SEPARATE:
            converted[_join(parent, _PROJECTIONS[_SEPARATE.index(name)], "weight")] = value
        elif layer in attentions and part == "out_proj":
            converted[_join(layer, "proj_output_dense_layer", name)] = value
        elif layer in blocks and part in _FEED_FORWARD:
            converted[_join(layer, _FEED_FORWARD[part], name)] = value
        else:
            converted[key] = value
    return converted


def as_state_dict(module: nn.Module) -> StateDict:
    """Returns a module's weights as graph layers read them; those on the CPU share the module's memory."""
    tensors = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    return StateDict(lazy_tensors(tensors, type(module).__name__), f"the weights of {type(module).__name__}")


def _parent(key: str) -> str:
    return key.rpartition(".")[0]


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def layers_from_torch_nn(module: nn.Module) -> nn.Module:
    """Returns a layer of `poptransformer.nn` that computes what a layer of `torch.nn` does, with a copy of its weights.

    Args:
        module: `MultiheadAttention`, `TransformerEncoderLayer`, `TransformerEncoder`, `TransformerDecoderLayer`,
            `TransformerDecoder` or `Transformer` of `torch.nn`. What it is called with must be batch first from now on.

    Raises:
        ConfigError: another layer, or one with options that these layers lack.
    """
    layer = _equivalent(module)
    layer.load_state_dict(from_torch_nn(module.state_dict()))
    return layer.train(module.training)


def layer_arguments(layer: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) -> dict[str, Any]:
    """Returns the arguments by which layers here, and graph layers of the same name, equal a layer of `torch.nn`.

    Args:
        layer: `torch.nn.TransformerEncoderLayer` or `TransformerDecoderLayer`.
    """
    has_biases = layer.linear1.bias is not None
    activation = _ACTIVATIONS.get(layer.activation)
    if activation is None and isinstance(layer.activation, (nn.ReLU, nn.GELU)):
        tanh = getattr(layer.activation, "approximate", "none") == "tanh"
        activation = "relu" if isinstance(layer.activation, nn.ReLU) else "gelu_new" if tanh else "gelu"
    if activation is None:
        raise ConfigError(f"The activation {layer.activation} has no name here; use relu or gelu.")
    return {
        "d_model": layer.self_attn.embed_dim,
        "nhead": layer.self_attn.num_heads,
        "dim_feedforward": layer.linear1.out_features,
        "dropout": layer.dropout.p,
        "activation": activation,
        "layer_norm_eps": layer.norm1.eps,
        "norm_first": layer.norm_first,
        "use_projection_bias_in_attention": has_biases,
        "use_ffn_bias_in_attention": has_biases,
        "use_ffn_bias": has_biases,
    }


def _equivalent(module: nn.Module) -> nn.Module:
    """A layer of the same sizes, with other weights."""
    if isinstance(module, nn.MultiheadAttention):
        if module.bias_k is not None or module.add_zero_attn:
            raise ConfigError("These attention layers have no add_bias_kv and no add_zero_attn.")
        return MultiheadAttention(
            module.embed_dim,
            module.num_heads,
            dropout=module.dropout,
            kdim=module.kdim,
            vdim=module.vdim,
            use_projection_bias=module.in_proj_bias is not None,
            use_ffn_bias=module.out_proj.bias is not None,
        )
    if isinstance(module, nn.TransformerEncoderLayer):
        return _without_norm_bias(TransformerEncoderLayer(**layer_arguments(module)), module)
    if isinstance(module, nn.TransformerDecoderLayer):
        return _without_norm_bias(TransformerDecoderLayer(**layer_arguments(module)), module)
    if isinstance(module, nn.TransformerEncoder):
        return TransformerEncoder(_equivalent(module.layers[0]), module.num_layers, _norm(module.norm))
    if isinstance(module, nn.TransformerDecoder):
        return TransformerDecoder(_equivalent(module.layers[0]), module.num_layers, _norm(module.norm))
    if isinstance(module, nn.Transformer):
        encoder, decoder = _equivalent(module.encoder), _equivalent(module.decoder)
        return Transformer(module.d_model, module.nhead, custom_encoder=encoder, custom_decoder=decoder)
    raise ConfigError(f"{type(module).__name__} is none of torch.nn's transformer layers.")


def _norm(norm: nn.Module | None) -> nn.Module | None:
    if norm is None:
        return None
    return nn.LayerNorm(norm.normalized_shape, norm.eps, bias=norm.bias is not None)  # type: ignore[arg-type]


def _without_norm_bias(layer: nn.Module, original: nn.Module) -> nn.Module:
    """Torch's layers without biases have none in their norms either."""
    for name, child in original.named_children():
        if isinstance(child, nn.LayerNorm) and "bias" not in dict(child.named_parameters()):
            getattr(layer, name).register_parameter("bias", None)
    return layer
