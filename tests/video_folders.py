"""Small labelled data sets for the tests of training: three colours, easy to tell apart, a few frames each."""

from pathlib import Path

import numpy as np

from tests.video_files import write_video

COLOURS = {"blue": (30, 30, 220), "green": (30, 200, 30), "red": (220, 30, 30)}


def write_colour(path: Path, name: str, seed: int, frames: int = 9, height: int = 32, width: int = 40) -> None:
    """A video of one colour with noise, which differs from file to file."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(-25, 25, (frames, height // 4, width // 4, 3)).repeat(4, 1).repeat(4, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, list((np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8)))


def write_colour_folders(folder: Path, counts: tuple[int, int, int], seed: int = 0) -> None:
    """`folder/<colour>/<number>.mp4`, so many of each colour (in alphabetical order)."""
    for place, (name, count) in enumerate(zip(sorted(COLOURS), counts, strict=True)):
        for number in range(count):
            write_colour(folder / name / f"{number}.mp4", name, seed + 100 * place + number)
