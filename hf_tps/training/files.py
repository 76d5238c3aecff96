"""Files that are there whole or not at all, and what bad files and full disks make of reading and writing them."""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from .text import first_line

# What this package and libraries raise for input that is damaged and files that cannot be written.
_FILE_ERRORS = (
    ValueError,
    OSError,
    EOFError,
    BadZipFile,
    pickle.UnpicklingError,
    SafetensorError,
    StrictDataclassError,
)
# torch's reader and writer of zip files raise a plain RuntimeError.
_ZIP_ERRORS = ("PytorchStream", "inline_container", "iostream error")


def is_file_error(error: Exception) -> bool:
    """Whether an exception is about input or a file, rather than about the program."""
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in _ZIP_ERRORS)
    return isinstance(error, _FILE_ERRORS)


@contextmanager
def reading(source: str | os.PathLike) -> Iterator[None]:
    """Read a foreign file: whatever it makes a library raise becomes one sentence that names it.

    Raises:
        ValueError: in place of any exception that is neither a ValueError nor an OSError.
    """
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"{source} cannot be read: {first_line(error)}") from error


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Write to `path`: what a full disk makes a library raise becomes one sentence that names the path.

    Raises:
        OSError: in place of any exception about a file.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) or not is_file_error(error):
            raise
        raise OSError(f"{path} cannot be written: {first_line(error)}. Make room there, or write elsewhere.") from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The name under which to write a file that takes the name `path` at the end, or never.

    Raises:
        OSError: if it cannot be written; nothing is left then.
    """
    # Always the same name: what a killed process leaves is overwritten by the next.
    begun = path.with_name(f".begun-{path.name}")
    try:
        with writing(path):
            yield begun
            os.replace(begun, path)
    finally:
        begun.unlink(missing_ok=True)
