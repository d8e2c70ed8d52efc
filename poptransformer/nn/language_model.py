# SPDX-License-Identifier: Apache-2.0
"""A language model of the layers API: trained here or converted from `torch.nn`, run by the engine."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from poptransformer.checkpoint.files import write_text
from poptransformer.errors import ConfigError, PopTransformerError
from poptransformer.nn.convert import from_torch_nn, layer_arguments
from poptransformer.nn.embedding import EmbeddingLayer
from poptransformer.nn.encoder import TransformerEncoder, TransformerEncoderLayer
from poptransformer.nn.masks import create_2D_autoregressive_mask

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODEL_TYPE = "layers_lm"


class LanguageModel(nn.Module):
    """Embeddings, layers that attend causally, and a linear layer that gives logits.

    Args:
        vocab_size: V.
        hidden_size: D.
        num_hidden_layers: layers.
        num_attention_heads: N.
        intermediate_size: columns inside of the feed-forward networks.
        max_position_embeddings: positions.
        position_embedding_type: learned, fixed, rotary, relative, alibi or None.
        rotary_dim: `rotary`: columns of a head that are rotated.
        rope_theta: `rotary`: base of the wavelengths.
        hidden_act: activation of the feed-forward networks.
        layer_norm_eps: added to variances.
        norm_first: norms before attention and feed-forward network, not after the sums.
        attention_type: see `MultiheadAttention`.
        use_projection_bias_in_attention: see `TransformerEncoderLayer`.
        use_ffn_bias_in_attention: see `TransformerEncoderLayer`.
        use_ffn_bias: see `TransformerEncoderLayer`.
        final_norm: normalise the last layer's output.
        head_bias: bias of the logits.
        dropout: in training.

    Raises:
        ConfigError: the arguments contradict each other.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        intermediate_size: int,
        max_position_embeddings: int,
        *,
        position_embedding_type: str | None = "learned",
        rotary_dim: int | None = None,
        rope_theta: float = 10000,
        hidden_act: str = "gelu",
        layer_norm_eps: float = 1e-5,
        norm_first: bool = False,
        attention_type: str = "scaled_dot_product",
        use_projection_bias_in_attention: bool = False,
        use_ffn_bias_in_attention: bool = False,
        use_ffn_bias: bool = False,
        final_norm: bool = True,
        head_bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__", "dropout")}
        super().__init__()
        self.config: dict[str, Any] = {"model_type": MODEL_TYPE, **given}
        self.embedding = EmbeddingLayer(
            vocab_size,
            hidden_size,
            position_embedding_type=position_embedding_type,
            max_position_embeddings=max_position_embeddings,
            rotary_dim=rotary_dim,
            rope_theta=rope_theta,
            num_heads=num_attention_heads,
        )
        layer = TransformerEncoderLayer(
            hidden_size,
            num_attention_heads,
            intermediate_size,
            dropout,
            hidden_act,
            layer_norm_eps,
            norm_first=norm_first,
            attention_type=attention_type,
            use_projection_bias_in_attention=use_projection_bias_in_attention,
            use_ffn_bias_in_attention=use_ffn_bias_in_attention,
            use_ffn_bias=use_ffn_bias,
        )
        norm = nn.LayerNorm(hidden_size, layer_norm_eps) if final_norm else None
        self.encoder = TransformerEncoder(layer, num_hidden_layers, norm)
        self.head = nn.Linear(hidden_size, vocab_size, head_bias)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Returns logits `[B, L, V]` for ids `[B, L]`."""
        length = input_ids.shape[1]
        mask = create_2D_autoregressive_mask(length, length, device=input_ids.device)
        rotary = self.embedding.get_rope_helper()
        bias = self.embedding.compute_position_bias(length, length)
        x = self.embedding(input_ids)
        x = self.encoder(x, mask.bool(), rotary_position_embedding_helper=rotary, self_attn_position_bias=bias)
        return self.head(x)

    @classmethod
    def from_torch_nn(
        cls,
        *,
        embedding: nn.Embedding,
        encoder: nn.TransformerEncoder,
        head: nn.Linear,
        positions: nn.Embedding | Tensor | None = None,
        scale: float = 1.0,
    ) -> Self:
        """Returns the language model that computes `head(encoder(scale * embedding(ids) + positions, causal mask))`.

        Args:
            embedding: vectors of tokens.
            encoder: of `torch.nn`; it was trained with a causal mask.
            head: gives the logits.
            positions: what is added to the tokens' vectors: `[P, D]`, with any axes of one element beside.
            scale: factor on the tokens' vectors.

        Raises:
            ConfigError: the sizes do not fit, or the layers have options that these layers lack.
        """
        if not isinstance(encoder, nn.TransformerEncoder):
            raise ConfigError(f"encoder is a {type(encoder).__name__}; expected a torch.nn.TransformerEncoder.")
        arguments = layer_arguments(encoder.layers[0])
        size, table = embedding.embedding_dim, positions.weight if isinstance(positions, nn.Embedding) else positions
        if table is not None and (table.shape[-1] != size or table.numel() != size * max(table.shape[:-1], default=0)):
            raise ConfigError(
                f"positions has shape {list(table.shape)}; expected [P, {size}] for {size} columns of tokens."
            )
        if (head.in_features, head.out_features) != (size, embedding.num_embeddings):
            raise ConfigError(
                f"The head maps {head.in_features} columns to {head.out_features} logits; expected {size} to "
                f"{embedding.num_embeddings}, as the embedding has."
            )
        _check_norm(encoder.norm, arguments["layer_norm_eps"])
        model = cls(
            embedding.num_embeddings,
            size,
            encoder.num_layers,
            arguments["nhead"],
            arguments["dim_feedforward"],
            2048 if table is None else table.numel() // size,
            position_embedding_type=None if table is None else "fixed",
            hidden_act=arguments["activation"],
            final_norm=encoder.norm is not None,
            head_bias=head.bias is not None,
            dropout=arguments["dropout"],
            **{name: arguments[name] for name in ("layer_norm_eps", "norm_first", *_BIASES)},
        )
        weights = {f"encoder.{name}": weight for name, weight in from_torch_nn(encoder.state_dict()).items()}
        weights |= {f"head.{name}": weight for name, weight in head.state_dict().items()}
        weights["embedding.word_embeddings.weight"] = embedding.weight.detach() * scale
        if table is not None:
            weights["embedding.position_embeddings.fpe"] = table.detach().reshape(-1, size)
        # Norms without biases get some of zeros.
        missing = {name: torch.zeros_like(value) for name, value in model.state_dict().items() if name not in weights}
        model.load_state_dict(missing | weights)
        return model.train(encoder.training)

    def save(self, folder: str | Path, tokenizer: Tokenizer | None = None, eos_token_id: int | None = None) -> Path:
        """Writes a checkpoint that `poptransformer.load` and the examples open.

        Args:
            folder: target; it is made where it is missing.
            tokenizer: writes `tokenizer.json`; without one the engine takes and gives ids.
            eos_token_id: the token that ends an answer.

        Raises:
            PopTransformerError: the target holds something else.
        """
        folder = Path(folder).expanduser()
        if folder.exists() and not _is_saved(folder) and (not folder.is_dir() or any(folder.iterdir())):
            raise PopTransformerError(
                f"{folder} is not empty and no saved language model; choose another folder or empty it."
            )
        folder.mkdir(parents=True, exist_ok=True)
        ending = {} if eos_token_id is None else {"eos_token_id": eos_token_id}
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, str(folder / "model.safetensors"))
        if tokenizer is not None:
            tokenizer.save(str(folder / "tokenizer.json"))
        write_text(folder / "config.json", json.dumps({**self.config, **ending}, indent=2) + "\n")
        return folder


_BIASES = ("use_projection_bias_in_attention", "use_ffn_bias_in_attention", "use_ffn_bias")


def _is_saved(folder: Path) -> bool:
    """Whether `save` wrote that folder."""
    config = folder / "config.json"
    return config.is_file() and f'"model_type": "{MODEL_TYPE}"' in config.read_text(encoding="utf-8", errors="replace")


def _check_norm(norm: nn.Module | None, eps: float) -> None:
    if norm is None:
        return
    if not isinstance(norm, nn.LayerNorm) or not math.isclose(norm.eps, eps):
        raise ConfigError(f"The encoder's norm is {norm}; expected a LayerNorm with the eps {eps} of the layers.")
