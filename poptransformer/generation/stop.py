# SPDX-License-Identifier: Apache-2.0
"""Stop strings in a stream of text."""

from __future__ import annotations

from collections.abc import Sequence


class StopStringFilter:
    """Passes text on up to the first stop string.

    Text is held back while it may be the beginning of a stop string, so a stop string may come in any number
    of pieces. The first stop string to be complete wins, so the result does not depend on how the text is cut
    into pieces.

    Args:
        stops: the stop strings, none of them empty.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Adds text.

        Returns:
            What may be shown now, and whether a stop string was found. Nothing comes after that.
        """
        if self.stopped or not self._stops:
            return ("" if self.stopped else text), self.stopped
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]], True
        keep = len(text) - self._beginning(text)
        self._held = text[keep:]
        return text[:keep], False

    def flush(self) -> str:
        """Returns the text held back; there is nothing more to come that could complete a stop string."""
        text, self._held = self._held, ""
        return text

    def _beginning(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max(len(stop) for stop in self._stops) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
