# SPDX-License-Identifier: Apache-2.0
"""Losses of language models."""

from __future__ import annotations

from torch import Tensor, nn

from poptransformer.build import check_choice
from poptransformer.errors import ConfigError


class GPTLMHeadModelLoss(nn.Module):
    """Cross entropy of next tokens, scaled by the number of tokens or of rows.

    Args:
        vocab_size: V.
        loss_scaling: `num_tokens` divides by the tokens that count, `batch_size` by the rows.
        loss_weight: factor on the loss; 1.0 with `num_tokens`.

    Raises:
        ConfigError: another scaling, or a weight beside `num_tokens`.
    """

    def __init__(self, vocab_size: int, loss_scaling: str, loss_weight: float) -> None:
        super().__init__()
        check_choice("loss_scaling", loss_scaling, ("num_tokens", "batch_size"))
        if loss_scaling == "num_tokens" and loss_weight != 1.0:
            raise ConfigError(f"loss_scaling num_tokens needs loss_weight 1.0, found {loss_weight}.")
        self.vocab_size = vocab_size
        self.loss_scaling = loss_scaling
        self.loss_weight = loss_weight

    def forward(
        self,
        lm_logits: Tensor,
        labels: Tensor,
        attention_mask: Tensor,
        reduce_batch: bool = True,
        average_logps: bool = False,
    ) -> Tensor:
        """Returns the loss in nats, a scalar; `[B]` without `reduce_batch`.

        Args:
            lm_logits: `[B, L, V]`.
            labels: `[B, L]`, integers.
            attention_mask: `[B, L]`, 1 for tokens that count.
            reduce_batch: one number for the batch.
            average_logps: without `reduce_batch`, the mean over a row's tokens in place of the sum.

        Raises:
            ConfigError: `average_logps` with `reduce_batch`.
        """
        if reduce_batch and average_logps:
            raise ConfigError("average_logps needs reduce_batch=False.")
        weights = attention_mask.to(lm_logits.dtype)
        losses = nn.functional.cross_entropy(
            lm_logits.reshape(-1, self.vocab_size), labels.reshape(-1).long(), reduction="none"
        )
        losses = losses.view(weights.shape) * weights
        if not reduce_batch:
            return losses.sum(-1) / weights.sum(-1) if average_logps else losses.sum(-1)
        if self.loss_scaling == "num_tokens":
            return losses.sum() / weights.sum()
        return losses.sum() / labels.shape[0] * self.loss_weight
