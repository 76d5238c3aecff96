"""Folders that are written under another name first: whole in the end, or gone, also after a kill."""

import glob
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def staging_folder(complete: Path) -> Iterator[Path]:
    """An empty folder beside `complete`, to be filled and renamed to it; whatever is left of it is removed in the end.

    Folders of processes that were killed are removed as well: while a process lives it holds the lock of its folder.

    Raises:
        OSError: if it cannot be written there.
    """
    parent, prefix = complete.parent, f".{complete.name}-hf_tps-"
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{glob.escape(prefix)}*.lock"):
        _remove_if_abandoned(left)
    name = f"{prefix}{secrets.token_hex(4)}"
    staging, lock_file = parent / name, parent / f"{name}.lock"
    try:
        with FileLock(lock_file):
            staging.mkdir()
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        lock_file.unlink(missing_ok=True)


def _remove_if_abandoned(lock_file: Path) -> None:
    try:
        with FileLock(lock_file, timeout=0):
            shutil.rmtree(lock_file.with_name(lock_file.name.removesuffix(".lock")), ignore_errors=True)
    except (Timeout, OSError):  # its process lives, or it is somebody else's
        return
    lock_file.unlink(missing_ok=True)
