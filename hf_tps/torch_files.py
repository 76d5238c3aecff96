# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Files of `torch.save`, read as data: no code of the file is ever run, and memory is bounded by its size."""

import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from .plain_text import printable

ZIP_START, ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
ZIP_END_BYTES = 22
# The older format is five pickles (magic number, version, sizes of types, content, names of storages), then numbers.
PICKLES_OF_OLD_FORMAT = 5
# Elements of a tuple, those of tuples inside it included. Shapes have a handful.
LARGEST_TUPLE = 10_000


def _numpy_scalar(dtype: np.dtype, content: bytes | str) -> np.generic:
    """A numpy scalar from its bytes, in place of numpy's own function, which makes one of any size out of nothing."""
    if isinstance(content, str):  # as Python 2 wrote them
        content = content.encode("latin-1")
    if dtype.hasobject or not isinstance(content, bytes) or len(content) != dtype.itemsize:
        raise ValueError(f"a numpy scalar of {dtype} does not have the bytes that it needs")
    return np.frombuffer(content, dtype)[0]


# numpy scalars (a training loss, an accuracy) and dtypes: harmless, common, and refused by torch itself
_SAFE_GLOBALS = [
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
]


def read_torch_file(path: str | Path) -> dict:
    """What a `.pth` / `.pt` / `.bin` file holds, read with `weights_only=True`: no code of the file is ever run.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no torch file, is damaged or compressed, or holds more than tensors, plain Python values
            and numpy scalars.
    """
    path = Path(path)
    shown = printable(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {shown}.")
    try:
        _check_before_reading(path)
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.findall(r"GLOBAL ([\w.]+)", str(error))
        if not refused:
            raise ValueError(f"{shown} is no checkpoint that torch can read safely: {_first_line(error)}") from None
        raise ValueError(
            f"{shown} holds an object of type {printable(', '.join(dict.fromkeys(refused)))}; loading it could run "
            "code of the file, so only tensors, plain Python values and numpy scalars are read. If you trust the file, "
            "strip it where that library is installed: `checkpoint = torch.load(path, weights_only=False); "
            "torch.save({'state_dict': checkpoint['state_dict']}, 'stripped.pth')` (or 'model' for an image "
            "checkpoint)."
        ) from None
    except Exception as error:  # what torch and its unpickler raise over damaged bytes is of any type
        raise ValueError(f"{shown} is damaged or no torch checkpoint: {_first_line(error)}") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{shown} holds a {type(loaded).__name__}; a checkpoint is a dict of tensors.")
    return loaded


def _first_line(error: Exception) -> str:
    # torch puts its own reason behind the advice to read the file without any guard, which is not ours
    reason = str(error).rpartition("WeightsUnpickler error: ")[2]
    return printable((reason.splitlines() or [type(error).__name__])[0])


def _check_before_reading(path: Path) -> None:
    """Refuse what would take more memory than the file has bytes, or more time than its length explains."""
    with path.open("rb") as file:
        if file.read(len(ZIP_START)) == ZIP_START:
            _check_zip(file, path.stat().st_size)
            return
        file.seek(0)
        for _ in range(PICKLES_OF_OLD_FORMAT):
            _check_pickle(file)


def _check_zip(file: IO[bytes], file_bytes: int) -> None:
    """Compare what a zip file says of its members with its size, and its members with their checksums."""
    file.seek(max(file_bytes - ZIP_END_BYTES, 0))
    # A comment at the end could hold a second directory, so that torch reads other members than were checked here.
    if file.read(len(ZIP_END)) != ZIP_END:
        raise ValueError("the file is cut off, or something was added at its end")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > file_bytes or any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError(
                f"it is compressed ({unpacked:,} bytes in {file_bytes:,}), which torch.save never does; load it and "
                "save it again where you trust it"
            )
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of its part {printable(damaged)} is not that of its content")
        for member in members:
            if member.filename.endswith("/data.pkl"):
                with archive.open(member) as content:
                    _check_pickle(content)


def _check_pickle(file: IO[bytes]) -> None:
    """Walk through a pickle without building what it describes.

    A tuple that is a key of a dict is hashed element by element, and may hold the same tuple many times over: a few
    bytes of pickle can crash the interpreter or keep it busy for years. A `bytearray` has the size that a number says.
    """
    sizes: list[int] = []  # of what is on the stack of the unpickler; all but tuples count 1
    marks: list[int] = []
    memo: dict[Any, int] = {}
    for operation, argument, _ in pickletools.genops(file):
        name = operation.name
        if name == "GLOBAL" and str(argument).endswith(" bytearray"):
            raise pickle.UnpicklingError("GLOBAL builtins.bytearray")
        if name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = sizes[-1]
            continue
        if name in ("BINGET", "LONG_BINGET", "GET"):
            sizes.append(memo[argument])
            continue
        if name == "MARK":
            marks.append(len(sizes))
            continue
        taken = len(operation.stack_before)
        if pickletools.markobject in operation.stack_before:
            below = operation.stack_before.index(pickletools.markobject)
            taken = len(sizes) - marks.pop() + below
        contents = sizes[len(sizes) - taken :]
        del sizes[len(sizes) - taken :]
        if name.startswith("TUPLE"):
            sizes.append(1 + sum(contents))
            if sizes[-1] > LARGEST_TUPLE:
                raise ValueError(f"it has a tuple of more than {LARGEST_TUPLE:,} elements, nested ones included")
        else:
            sizes += [1] * len(operation.stack_after)
