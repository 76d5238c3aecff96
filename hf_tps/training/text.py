"""Text files that a user gives, and parts of messages."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..plain_text import printable


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no text.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}. Save it in that encoding.") from None


def read_json(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


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
