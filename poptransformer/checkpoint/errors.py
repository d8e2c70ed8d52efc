# SPDX-License-Identifier: Apache-2.0
"""Errors raised while a checkpoint is opened and read.

Every message says what was expected, what was found and what to do next. All of them derive from
`CheckpointError`; the second base is the built-in exception a caller would expect.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from poptransformer.errors import PopTransformerError, nearest


def _nearest_text(name: str, candidates: Iterable[str], what: str) -> str:
    names = list(candidates)
    # The same name below another prefix says more than any likeness of letters.
    tail = [other for other in names if other.endswith("." + name) or name.endswith("." + other)][:3]
    found = list(dict.fromkeys([*tail, *nearest(name, names)]))[:3]
    return f"nearest {what}: {', '.join(map(repr, found))}" if found else f"no {what} resemble it"


class CheckpointError(PopTransformerError):
    """Something is wrong with a checkpoint, or with the way it was asked for."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument; a sentence must print as a sentence.
        return str(self.args[0]) if self.args else ""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """The folder, file, package resource or hub repository does not exist or cannot be reached."""


class CorruptCheckpointError(CheckpointError, ValueError):
    """A file of the checkpoint is truncated, damaged or inconsistent."""


class UnsupportedCheckpointError(CheckpointError, ValueError):
    """The checkpoint is sound but uses something unsupported, or needs a package that is not installed."""


class TokenizerError(CheckpointError, ValueError):
    """The checkpoint has no usable tokenizer, or its chat template failed."""


class MissingConfigKeyError(CheckpointError, AttributeError, KeyError):
    """A configuration value was asked for that the config file does not define."""

    def __init__(self, key: str, source: str, keys: Iterable[str]) -> None:
        """Name the key, the file and the nearest keys the file has.

        Args:
            key: The missing key.
            source: The config file, or what stands for it.
            keys: The keys that exist.
        """
        super().__init__(f"{source} has no {key!r}; {_nearest_text(key, keys, 'keys')}")


class MissingWeightError(CheckpointError, KeyError):
    """A weight was asked for that the checkpoint does not hold."""

    def __init__(self, key: str, source: str, keys: Iterable[str]) -> None:
        """Name the weight, the checkpoint and the nearest weights it holds.

        Args:
            key: The missing weight.
            source: The checkpoint.
            keys: The weights that exist.
        """
        names = list(keys)
        super().__init__(
            f"weight {key!r} is not in {source} ({len(names)} tensors); {_nearest_text(key, names, 'weights')}"
        )


class ShapeMismatchError(CheckpointError, ValueError):
    """A weight has another shape than the model expects."""

    def __init__(self, key: str, source: str, expected: Sequence[int], found: Sequence[int]) -> None:
        """Name the weight and both shapes.

        Args:
            key: The weight.
            source: The checkpoint.
            expected: The shape the model asked for.
            found: The shape the checkpoint holds.
        """
        super().__init__(
            f"weight {key!r} of {source} has shape {list(found)}, but the model expects {list(expected)}; "
            "check that the configuration belongs to this checkpoint"
        )
