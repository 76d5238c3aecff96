"""Parts of messages."""

from collections.abc import Sequence
from typing import Any

from ..plain_text import printable


def first_line(error: Exception) -> str:
    """What went wrong, in one line; with the type, where it is not one that says bad input."""
    line = printable((str(error).splitlines() or [""])[0], limit=1000)
    if line and isinstance(error, ValueError | OSError):
        return line
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def some(items: Sequence[Any], limit: int = 5) -> str:
    """The first few of the items, for a message."""
    shown = ", ".join(map(repr, list(items)[:limit]))
    return shown + (f" and {len(items) - limit} more" if len(items) > limit else "")
