"""Class names: read from a file, matched with the labels of a list, searched for directions."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..text_files import LARGEST_CONFIG, read_json, read_text
from .text import some

NO_FLIP_PRESETS = {
    # Exactly Something-Something-v2's six classes that a mirror turns into another one (86, 87, 93, 94, 166, 167).
    "left_right": re.compile(r"\b(?:from|to|camera)\s+(?:the\s+)?(?:left|right)\b", re.IGNORECASE),
}


_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_DIRECTIONS = frozenset(("left", "right", "leftward", "rightward", "leftwards", "rightwards", "cw", "ccw"))
_TURNS = frozenset(("clockwise", "counterclockwise", "anticlockwise"))


def names_of_directions(class_names: Iterable[str]) -> list[str]:
    """The classes of which a word says a direction that a mirror turns round: `pan_left`, `rotate-CCW`, `TurnRight`."""
    return [name for name in class_names if {word.lower() for word in _WORDS.findall(name)} & (_DIRECTIONS | _TURNS)]


def read_class_names(path: str | Path) -> list[str]:
    """Class names in the order of their ids.

    Args:
        path: a text file with one name in a line; or a `.json` file with a list of names, or with an object between
            names and ids, either way round (Something-Something's labels.json has the ids as text).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not give one name to each id from 0 on, or gives a name twice.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        names = _names_from_json(read_json(path, LARGEST_CONFIG), path)
    else:
        names = [line.strip() for line in read_text(path, LARGEST_CONFIG).rstrip().splitlines()]
    if not all(names):
        raise ValueError(
            f"{path}: every class needs a name, and id {names.index('')} has an empty one (ids count from 0)."
        )
    repeated = sorted(name for name, times in Counter(names).items() if times > 1)
    if repeated:
        raise ValueError(f"{path}: names stand there more than once: {some(repeated)}.")
    if not names:
        raise ValueError(f"{path} is empty; it must hold the names of the classes.")
    return names


def _names_from_json(content: Any, path: Path) -> list[str]:
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return [name.strip() for name in content]
    if not isinstance(content, dict) or not all(type(value) in (str, int) for value in content.values()):
        raise ValueError(f"{path} must be a JSON list of class names, or a JSON object between names and ids.")
    by_key = _by_id(list(content.items())) if all(isinstance(value, str) for value in content.values()) else None
    by_value = _by_id([(str(value), key) for key, value in content.items()])
    found = [names for names in (by_key, by_value) if names is not None]
    if not found:
        raise ValueError(f"{path}: the ids must be 0 to {len(content) - 1}, each once.")
    if found[0] != found[-1]:
        raise ValueError(
            f"{path}: keys and values could both be the ids of the classes; write a list of names instead."
        )
    return found[0]


def _by_id(pairs: list[tuple[str, str]]) -> list[str] | None:
    """The names of pairs (id, name) in the order of the ids; None if those are not 0, 1, 2, ..."""
    if not all(number.isdecimal() and len(number) < 10 for number, _ in pairs):
        return None
    names = {int(number): name.strip() for number, name in pairs}
    return [names[number] for number in range(len(pairs))] if sorted(names) == list(range(len(pairs))) else None


def default_class_names(labels: Iterable[str]) -> list[str]:
    """The sorted labels; where all of them are numbers, every number from 0 to the largest."""
    distinct = set(labels)
    if all(label.isdecimal() for label in distinct):
        return [str(number) for number in range(max(map(int, distinct)) + 1)]
    return sorted(distinct)


def match_labels(labels: Sequence[str], class_names: Sequence[str], source: str | Path) -> list[str]:
    """Labels as class names: numbers are ids, and brackets around a template's place-holders do not count.

    Raises:
        ValueError: naming `source` and the labels that belong to no class.
    """
    plain = {without_brackets(name): name for name in class_names}
    if all(label.isdecimal() for label in set(labels)) and not set(labels) <= set(class_names):
        too_large = sorted({int(label) for label in labels if int(label) >= len(class_names)})
        if too_large:
            raise ValueError(
                f"{source} has the labels {some(too_large)}, but there are {len(class_names)} class names."
            )
        return [class_names[int(label)] for label in labels]
    unknown = sorted({label for label in labels if without_brackets(label) not in plain})
    if unknown:
        raise ValueError(f"{source} has {len(unknown)} labels that are no class names: {some(unknown)}.")
    return [plain[without_brackets(label)] for label in labels]


def without_brackets(name: str) -> str:
    """Something-Something's "Holding [something]" as its class is called, "Holding something"."""
    return name.replace("[", "").replace("]", "")


def never_flipped(class_names: Sequence[str], wanted: Iterable[str]) -> frozenset[int]:
    """Ids of the classes that must not be mirrored.

    Args:
        class_names: all classes.
        wanted: class names, ids, or "left_right" for all whose name says a direction ("... from left to right").

    Raises:
        ValueError: for what is neither.
    """
    ids: set[int] = set()
    for entry in wanted:
        if entry in NO_FLIP_PRESETS:
            ids |= {number for number, name in enumerate(class_names) if NO_FLIP_PRESETS[entry].search(name)}
        elif entry in class_names:
            ids.add(list(class_names).index(entry))
        elif entry.isdecimal() and int(entry) < len(class_names):
            ids.add(int(entry))
        else:
            raise ValueError(f"{entry!r} is no class name, no id below {len(class_names)}, and not left_right.")
    return frozenset(ids)
