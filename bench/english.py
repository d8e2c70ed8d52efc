# SPDX-License-Identifier: Apache-2.0
"""Real English text that every Python has: its own language reference, as `help()` shows it."""

from __future__ import annotations

import sys

SOURCE = f"pydoc_data.topics of Python {sys.version.split()[0]}"


def english() -> str:
    """The topics, sorted by name, without the lines that underline headings."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name].strip() for name in sorted(topics))
    return "\n".join(line for line in text.splitlines() if not line.strip() or set(line.strip()) - set("*=-~\"'^"))
