"""Settings of a release's own config: YAML of a bounded size, of which known entries alone are read, each checked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from conversion.common import ConversionError
from hf_tps.configuration_base import RANGES
from hf_tps.plain_text import one_line, printable
from hf_tps.text_files import MEGABYTE, read_text

# The releases' files have 10 KB, 4 levels and 300 entries. Aliases can make any number of entries of a few.
LARGEST_YAML, DEEPEST_YAML, MOST_ENTRIES = MEGABYTE, 20, 20_000

# Takes what a file has, gives what is used; raises a ValueError that says what is needed.
Check = Callable[[Any], Any]


def read_yaml_file(path: Path) -> dict:
    """`read_yaml` of a file."""
    return read_yaml(read_text(path, LARGEST_YAML), path)


def read_yaml(text: str, source: str | Path) -> dict:
    """The release's own config; nothing in it is run.

    Raises:
        ConversionError: if it is no YAML, or no mapping, or larger or deeper than a config is.
    """
    shown = printable(source)
    try:
        _check_size(text)
        config = yaml.safe_load(text)
    except Exception as error:  # dates and numbers that are none raise what Python's own types raise
        raise ConversionError(f"{shown} is no plain YAML: {one_line(error, 200)}") from None
    if not isinstance(config, dict):
        raise ConversionError(f"{shown} holds no settings (sections with names and values).")
    return config


def _check_size(text: str) -> None:
    """Count what the text stands for, aliases written out, before anything is made of it."""
    if len(text) > LARGEST_YAML:
        raise ValueError(f"it has more than {LARGEST_YAML:,} characters")
    entries = 0
    anchors: dict[str, int] = {}
    collections: list[tuple[str | None, int]] = []  # those that are open: anchor, entries before them
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            collections.append((event.anchor, entries))
            entries += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = collections.pop()
            if anchor is not None:
                anchors[anchor] = entries - before
        elif isinstance(event, yaml.AliasEvent):
            entries += anchors.get(event.anchor, MOST_ENTRIES)  # an anchor that is still open: it contains itself
        elif isinstance(event, yaml.ScalarEvent):
            entries += 1
            if event.anchor is not None:
                anchors[event.anchor] = 1
        if entries > MOST_ENTRIES or len(collections) > DEEPEST_YAML:
            raise ValueError(f"it has more than {MOST_ENTRIES:,} entries or {DEEPEST_YAML} levels, aliases included")


def known_settings(section: dict, checks: dict[str, Check], name: str, source: str | Path) -> dict:
    """The known entries of a section that are given.

    Args:
        section: names with values, as the file has them. What is empty counts as not given.
        checks: the entries that are read, with what each must be.
        name: of the section with a dot behind it, for messages; "" where entries of all sections stand together.
        source: the file.

    Raises:
        ConversionError: naming the entry, its value and what is needed.
    """
    found = {}
    for entry, check in checks.items():
        if section.get(entry) is None:
            continue
        try:
            found[entry] = check(section[entry])
        except ValueError as error:
            value = printable(repr(section[entry]), 80)
            raise ConversionError(f"{printable(source)}: {name}{entry} is {value}; {error}.") from None
    return found


def section_of(config: dict, name: str, source: str | Path) -> dict:
    """A section of a config, empty where there is none.

    Raises:
        ConversionError: if what has this name is no section.
    """
    section = config.get(name)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise ConversionError(f"{printable(source)}: {name} must be a section with names and values.")
    return section


# --- what an entry may be --------------------------------------------------------------------------------------------


def whole_number(smallest: float, largest: float) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
            raise ValueError(f"a whole number from {smallest:,} to {largest:,} is needed")
        return value

    return check


def list_of(one: Check) -> Check:
    """A list with something in it, all of one kind."""

    def check(value: Any) -> list:
        if not isinstance(value, list | tuple) or not value:
            raise ValueError("a list is needed, and not an empty one")
        return [one(entry) for entry in value]

    return check


def number(smallest: float, largest: float) -> Check:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not smallest <= value <= largest:
            raise ValueError(f"a number from {smallest} to {largest} is needed")
        return float(value)

    return check


def for_each_colour(one: Check) -> Check:
    def check(value: Any) -> list:
        if not isinstance(value, list | tuple) or len(value) != 3:
            raise ValueError("three numbers are needed, one for each colour")
        return [one(entry) for entry in value]

    return check


def yes_or_no(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is needed")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a name is needed")
    return value


# What the processor is told
INPUT_SETTINGS: dict[str, Check] = {
    "NUM_FRAMES": whole_number(*RANGES["num_frames"]),
    "TEST_CROP_SIZE": whole_number(*RANGES["image_size"]),
    "SAMPLING_RATE": whole_number(1, 4096),
    "MEAN": for_each_colour(number(0, 1)),  # of pixels between 0 and 1
    "STD": for_each_colour(number(1e-3, 1e3)),
}
