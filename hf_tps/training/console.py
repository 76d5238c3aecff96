"""What the scripts share of their talk with the terminal."""

import logging
import sys
from collections.abc import Callable
from typing import Any

from ..plain_text import printable
from ..video_sources import name_of
from .files import is_file_error
from .text import first_line


def start_logging(main_process: bool) -> None:
    """Messages as plain lines; the other processes, and libraries that tell each of their steps, warn only."""
    logging.basicConfig(level=logging.INFO if main_process else logging.WARNING, format="%(message)s")
    for library in ("accelerate", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)


def print_error(error: Exception, about: str = "") -> None:
    """Say what went wrong, and with what (a path or an address) unless the error begins with it.

    A library's advice on the lines after the first one is kept.
    """
    lines = [first_line(error), *(printable(line) for line in str(error).splitlines()[1:])]
    if not isinstance(error, ValueError | OSError):
        lines = lines[:1]  # the rest is a trace of C++ functions
    reason = "\n".join(lines)
    name = name_of(about)
    print(f"error: {reason}" if reason.startswith(name) else f"error: {name}: {reason}", file=sys.stderr)


def exit_code(work: Callable[..., None], *arguments: Any) -> int:
    """Do a script's work and return its exit code: 1 for bad input, a bad file or a full disk, in one line."""
    try:
        work(*arguments)
    except Exception as error:
        if not is_file_error(error):
            raise
        print_error(error)
        return 1
    return 0
