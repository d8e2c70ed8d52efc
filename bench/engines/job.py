# SPDX-License-Identifier: Apache-2.0
"""What a worker is asked to do."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Job:
    """One measurement, run in a process of its own.

    Attributes:
        engine: module of `bench.engines`.
        path: the model in the engine's own format.
        variant: its precision, by the engine's own name.
        kind: `decode`, `prefill` or `first_token`.
        threads: CPU threads.
        batch: rows of a prompt.
        ids: the rows of the warm-up's prompt, then those of each repetition's: token ids, equally many in each row.
            No prompt comes twice, since some engines keep the caches of earlier ones.
        texts: the same rows as text, or None where no tokenizer gives back the ids.
        count: tokens to generate for each row.
        started: `time.monotonic()` when the process was started.
    """

    engine: str
    path: str
    variant: str
    kind: str
    threads: int
    batch: int
    ids: list[list[int]]
    texts: list[str] | None = None
    count: int = 1
    started: float = 0.0

    @property
    def warm_up(self) -> list[list[int]]:
        """The rows of the warm-up's prompt."""
        return self.ids[: self.batch]

    @property
    def prompts(self) -> list[tuple[list[list[int]], list[str] | None]]:
        """For each repetition, the rows of its prompt as ids and as text."""
        starts = range(self.batch, len(self.ids), self.batch)
        parts = [slice(start, start + self.batch) for start in starts]
        return [(self.ids[part], self.texts[part] if self.texts else None) for part in parts]

    @property
    def length(self) -> int:
        """Tokens of each prompt."""
        return len(self.ids[0])

    @property
    def slots(self) -> int:
        """Cache slots that each row needs."""
        return self.length + max(self.count, WARM_UP_TOKENS)


WARM_UP_TOKENS = 24
