"""Decoded frames on disk: small videos are decoded once, not in every epoch of every run."""

import hashlib
import json
import logging
import math
import os
import shutil
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..text_files import read_json
from ..video_reading import read_video
from .files import writing
from .staging import staging_folder
from .text import first_line
from .video_lists import LabelledVideos

logger = logging.getLogger(__name__)

INDEX, FRAMES = "index.json", "frames.bin"


class FrameCache:
    """All frames of a list of videos as one memory-mapped file of bytes.

    `cache[index]` is the video as uint8 (frames, 3, height, width), without copying; a video that could not be decoded
    raises the `ValueError` of its decoding. Meant for small videos: a minute of 340 x 256 takes 400 MB.

    Raises:
        ValueError: if index and bytes do not belong together. Bytes that changed in place are not noticed: reading all
            of them at each start is what a cache is to save.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.entries = _read_index(self.folder)
        self._bytes: np.memmap | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> torch.Tensor:
        entry = self.entries[index]
        if "error" in entry:
            raise ValueError(entry["error"])
        if self._bytes is None:
            # copy-on-write: torch wants memory that it may write to, the file stays as it is
            self._bytes = np.memmap(self.folder / FRAMES, np.uint8, mode="c")
        size = int(np.prod(entry["shape"]))
        return torch.from_numpy(self._bytes[entry["start"] : entry["start"] + size]).view(entry["shape"])

    def __getstate__(self) -> dict:
        # Pickling a memory map would send all its bytes to a worker process.
        return {**self.__dict__, "_bytes": None}

    @classmethod
    def of(cls, videos: LabelledVideos, folder: str | Path, num_workers: int = 0) -> "FrameCache":
        """The cache of these videos under `folder`, made if it is not there. It is known by paths, sizes and times.

        Raises:
            ValueError: if videos come as bytes rather than files, or the disk has no room for their frames.
            OSError: if the cache cannot be written; nothing of it is left then.
        """
        key = hashlib.sha256()
        for source in videos.sources:
            if not isinstance(source, str | os.PathLike):
                raise ValueError("Decoded frames can be kept for video files only, not for videos inside a data set.")
            state = os.stat(source) if os.path.isfile(source) else None
            key.update(repr((os.path.abspath(source), state and (state.st_size, state.st_mtime_ns))).encode())
        complete = Path(folder) / f"frames-{key.hexdigest()[:16]}"
        if complete.is_dir():
            try:
                return cls._of_as_many(videos, complete)
            except (ValueError, OSError) as error:
                logger.warning("%s The videos are decoded anew.", error)
                shutil.rmtree(complete, ignore_errors=True)
        with writing(complete), staging_folder(complete) as begun:
            _decode_all(videos, begun, num_workers)
            try:
                begun.rename(complete)
            except OSError:
                if not complete.is_dir():  # else another process was faster
                    raise
        return cls._of_as_many(videos, complete)

    @classmethod
    def _of_as_many(cls, videos: LabelledVideos, folder: Path) -> "FrameCache":
        cache = cls(folder)
        if len(cache) != len(videos):
            raise ValueError(f"{folder} is damaged: it holds {len(cache)} of {len(videos)} videos.")
        return cache


def _read_index(folder: Path) -> list[dict]:
    entries = read_json(folder / INDEX)
    try:
        sizes = [math.prod(entry["shape"]) for entry in entries if "error" not in entry]
        starts = [entry["start"] for entry in entries if "error" not in entry]
        fits = starts == [0, *accumulate(sizes)][:-1] and sum(sizes) == (folder / FRAMES).stat().st_size
    except (TypeError, KeyError, FileNotFoundError):
        fits = False
    if not fits:
        raise ValueError(f"{folder} is damaged: its {INDEX} does not fit its {FRAMES}.")
    return entries


class _WholeVideos(Dataset):
    def __init__(self, videos: LabelledVideos) -> None:
        self.videos = videos

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> torch.Tensor | str:
        try:
            return read_video(self.videos.sources[index])[0]
        except Exception as error:  # see `data`: whatever one video makes a library raise
            return first_line(error)


def _decode_all(videos: LabelledVideos, folder: Path, num_workers: int) -> None:
    entries: list[dict[str, Any]] = []
    position = 0
    loader = DataLoader(_WholeVideos(videos), batch_size=None, num_workers=num_workers, generator=torch.Generator())
    with open(folder / FRAMES, "wb") as file:
        for done, frames in enumerate(tqdm(loader, desc="decoding", unit="video", disable=None), start=1):
            if isinstance(frames, str):
                entries.append({"error": frames})
                continue
            data = frames.contiguous().numpy()
            entries.append({"start": position, "shape": list(data.shape)})
            position += data.nbytes
            if done in (1, 10, 100) or done % 1000 == 0:
                expected, free = position / done * (len(videos) - done), shutil.disk_usage(folder).free
                if expected > free:
                    raise ValueError(
                        f"The decoded frames need about {expected / 2**30:.1f} GiB more, {folder.parent} has "
                        f"{free / 2**30:.1f} GiB: keep them on a larger disk, or do without a cache of frames."
                    )
            file.write(data)
    (folder / INDEX).write_text(json.dumps(entries), encoding="utf-8")
