# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Text and JSON from files that others wrote: of a bounded size, every failure one sentence that names the file."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from .plain_text import printable

MEGABYTE = 2**20
# Lists of videos are the longest text: a million lines of 200 characters.
LARGEST_TEXT = 256 * MEGABYTE
# Configs and class names. What json makes of a file can take twenty times its size.
LARGEST_CONFIG = 16 * MEGABYTE


def read_text(path: str | Path, largest: int = LARGEST_TEXT) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Args:
        path: the file.
        largest: bytes that it may have.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no text, or larger.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {printable(path)}.")
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"{printable(path)} has more than {largest:,} bytes, the most that is read of such a file.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{printable(path)} is no text in UTF-8: {error}. Save it in that encoding.") from None


def read_json(path: str | Path, largest: int = LARGEST_TEXT) -> Any:
    """What a JSON file holds. NaN and Infinity, which are no JSON, and names that stand twice are refused.

    Args:
        path: the file.
        largest: bytes that it may have.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON, or larger.
    """
    text = read_text(path, largest)
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"{printable(path)} is no JSON that can be read: it is nested too deep.") from None
    except ValueError as error:
        raise ValueError(f"{printable(path)} is no JSON: {printable(error)}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the name {printable(repr(twice), 80)} stands twice in one object")
    return content
