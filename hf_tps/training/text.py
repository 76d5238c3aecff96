"""Parts of messages."""

from collections.abc import Sequence
from typing import Any


def first_line(error: Exception) -> str:
    """What went wrong, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def some(items: Sequence[Any], limit: int = 5) -> str:
    """The first few of the items, for a message."""
    shown = ", ".join(map(repr, list(items)[:limit]))
    return shown + (f" and {len(items) - limit} more" if len(items) > limit else "")
