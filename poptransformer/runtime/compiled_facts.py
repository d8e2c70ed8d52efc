# SPDX-License-Identifier: Apache-2.0
"""What every runtime knows from its compiled model."""

from __future__ import annotations

from poptransformer.runtime.compiled import CompiledModel


class CompiledFacts:
    """Base of the runtimes: what callers ask of the model that one runs.

    Attributes:
        compiled: the model.
    """

    compiled: CompiledModel

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self.compiled.info.max_length

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.compiled.info.vocab_size

    @property
    def prompt_marks(self) -> tuple[tuple[int, ...], ...]:
        """Ids that a prompt must hold, one of each group."""
        return self.compiled.info.prompt_marks
