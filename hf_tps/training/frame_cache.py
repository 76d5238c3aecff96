"""Decoded frames on disk: small videos are decoded once, not in every epoch of every run."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..video_reading import read_video
from .text import first_line
from .video_lists import LabelledVideos


class FrameCache:
    """All frames of a list of videos as one memory-mapped file of bytes.

    `cache[index]` is the video as uint8 (frames, 3, height, width), without copying; a video that could not be decoded
    raises the `ValueError` of its decoding. Meant for small videos: a minute of 340 x 256 takes 400 MB.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.entries = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        self._bytes: np.memmap | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> torch.Tensor:
        entry = self.entries[index]
        if "error" in entry:
            raise ValueError(entry["error"])
        if self._bytes is None:
            # copy-on-write: torch wants memory that it may write to, the file stays as it is
            self._bytes = np.memmap(self.folder / "frames.bin", np.uint8, mode="c")
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
        """
        key = hashlib.sha256()
        for source in videos.sources:
            if not isinstance(source, str | os.PathLike):
                raise ValueError("Decoded frames can be kept for video files only, not for videos inside a data set.")
            state = os.stat(source) if os.path.isfile(source) else None
            key.update(repr((os.path.abspath(source), state and (state.st_size, state.st_mtime_ns))).encode())
        complete = Path(folder) / f"frames-{key.hexdigest()[:16]}"
        if not complete.is_dir():
            begun = complete.with_name(f".{complete.name}.{os.getpid()}")
            begun.mkdir(parents=True)
            try:
                _decode_all(videos, begun, num_workers)
                if not complete.is_dir():  # another process may have been faster
                    begun.rename(complete)
            finally:
                shutil.rmtree(begun, ignore_errors=True)
        return cls(complete)


class _WholeVideos(Dataset):
    def __init__(self, videos: LabelledVideos) -> None:
        self.videos = videos

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> torch.Tensor | str:
        try:
            return read_video(self.videos.sources[index])[0]
        except (ValueError, OSError) as error:
            return first_line(error)


def _decode_all(videos: LabelledVideos, folder: Path, num_workers: int) -> None:
    entries: list[dict[str, Any]] = []
    position = 0
    loader = DataLoader(_WholeVideos(videos), batch_size=None, num_workers=num_workers, generator=torch.Generator())
    with open(folder / "frames.bin", "wb") as file:
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
    (folder / "index.json").write_text(json.dumps(entries), encoding="utf-8")
