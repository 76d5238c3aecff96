"""What the scripts share of their talk with the terminal."""

import logging
import sys
from collections.abc import Callable
from typing import Any

from .files import is_file_error
from .text import first_line


def start_logging(main_process: bool) -> None:
    """Messages as plain lines; the other processes, and libraries that tell each of their steps, warn only."""
    logging.basicConfig(level=logging.INFO if main_process else logging.WARNING, format="%(message)s")
    for library in ("accelerate", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)


def print_error(error: Exception, about: str = "") -> None:
    """Say in one line what went wrong, and with what."""
    reason = str(error) if isinstance(error, ValueError | OSError) else first_line(error)
    print(f"error: {about}: {reason}" if about else f"error: {reason}", file=sys.stderr)


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
