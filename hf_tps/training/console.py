"""What the scripts share of their talk with the terminal."""

import logging
import sys
from collections.abc import Callable
from typing import Any


def start_logging(main_process: bool) -> None:
    """Messages as plain lines; the other processes, and libraries that tell each of their steps, warn only."""
    logging.basicConfig(level=logging.INFO if main_process else logging.WARNING, format="%(message)s")
    for library in ("accelerate", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)


def exit_code(work: Callable[..., None], *arguments: Any) -> int:
    """Do a script's work and return its exit code: 1 for bad input, whose reason becomes one line."""
    try:
        work(*arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
