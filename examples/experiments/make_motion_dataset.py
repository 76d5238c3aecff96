"""Write a benchmark that only a model that sees time can solve: short videos of a moving sprite, in class folders.

    python examples/experiments/make_motion_dataset.py motion --train_clips 9600 --validation_clips 2400

The twelve classes are six pairs. The second class of a pair is the first one played backwards, down to the pixel, so no
unordered set of frames tells the two apart: a model that does not see the order of the frames gets one of two right.

    motion/train/move_right/00000.mp4, motion/validation/move_right/00000.mp4, ..., motion/dataset.json
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from tqdm import tqdm

# Each pair is a motion and the same one backwards. Rows grow downwards, as in an image.
CLASS_PAIRS = (
    ("move_right", "move_left"),
    ("move_down", "move_up"),
    ("move_down_right", "move_up_left"),
    ("move_down_left", "move_up_right"),
    ("rotate_clockwise", "rotate_counterclockwise"),
    ("grow", "shrink"),
)
CLASSES = tuple(name for pair in CLASS_PAIRS for name in pair)
DIRECTIONS = {"move_right": (0, 1), "move_down": (1, 0), "move_down_right": (1, 1), "move_down_left": (1, -1)}
SPLITS = ("train", "validation")
FRAMES_PER_SECOND = 8
DESCRIPTION = "dataset.json"


@dataclass(frozen=True)
class MotionSettings:
    """What all clips of a benchmark share. Lengths are shares of the frame's side: `size` changes the detail alone."""

    size: int = 32
    num_frames: int = 8
    # shares of the side per frame; at 32 pixels 2.6 to 4.5 pixels
    speed: tuple[float, float] = (0.08, 0.14)
    # degrees per frame
    turn: tuple[float, float] = (25.0, 40.0)
    # times as large after the whole clip
    growth: tuple[float, float] = (2.2, 3.2)
    # share of the side; of the largest frame where the sprite grows
    radius: tuple[float, float] = (0.18, 0.26)
    # standard deviation of the pixel noise, of 255
    noise: float = 4.0

    def __post_init__(self) -> None:
        if not 32 <= self.size <= 64 or self.size % 2:
            raise ValueError(f"size must be an even number of pixels from 32 to 64, got {self.size}.")
        if not 2 <= self.num_frames <= 32:
            raise ValueError(f"num_frames must be from 2 to 32, got {self.num_frames}.")
        if not 0 <= self.noise <= 64:
            raise ValueError(f"noise must be from 0 to 64 (of 255), got {self.noise}.")


def class_of_clip(index: int) -> str:
    """The classes take turns, so that any number of clips is balanced."""
    return CLASSES[index % len(CLASSES)]


def motion_clip(settings: MotionSettings, seed: int, split: str, index: int, label: str | None = None) -> np.ndarray:
    """The frames of one clip: (num_frames, size, size, 3) uint8.

    Every clip has its own sprite, background, start, speed and noise, all drawn from (`seed`, `split`, `index`); so the
    splits share none of them. `label` (by default `class_of_clip(index)`) is not part of what they are drawn from: the
    clip of the opposite class is the same clip backwards.
    """
    motion, backwards = forward_motion(class_of_clip(index) if label is None else label)
    frames = render(settings, draw_scene(settings, seed, split, index), motion)
    return np.ascontiguousarray(frames[::-1]) if backwards else frames


def sprite_poses(
    settings: MotionSettings, seed: int, split: str, index: int, label: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Where the sprite of `motion_clip` is in each frame.

    Returns:
        Centres (num_frames, 2), row and column in pixels; angles (num_frames,) of its light end, clockwise from the
        right, radians.
    """
    motion, backwards = forward_motion(class_of_clip(index) if label is None else label)
    scene = draw_scene(settings, seed, split, index)
    poses = centres_of(settings, scene, motion), angles_of(settings, scene, motion)
    return tuple(pose[::-1] for pose in poses) if backwards else poses


def forward_motion(label: str) -> tuple[str, bool]:
    """The first class of a class's pair, and whether the class is that one backwards."""
    for first, second in CLASS_PAIRS:
        if label in (first, second):
            return first, label == second
    raise ValueError(f"label is one of {CLASSES}; got {label!r}.")


class Scene(NamedTuple):
    """All that is random in a clip, whatever its class."""

    background: np.ndarray  # (size, size, 3)
    colour_at: Callable[[np.ndarray, np.ndarray], np.ndarray]  # the sprite's colour at a place on it
    edge_at: Callable[[np.ndarray], np.ndarray]  # its outline: the radius, around 1, at an angle
    centre: np.ndarray  # row and column in the first frame, pixels
    radius: float  # pixels
    speed: float  # pixels per frame
    turn: float  # radians per frame
    growth: float  # times as large in the last frame
    angle: float  # in the first frame, radians
    noise: np.ndarray  # (num_frames, size, size, 3)


def draw_scene(settings: MotionSettings, seed: int, split: str, index: int) -> Scene:
    if split not in SPLITS:
        raise ValueError(f"split is one of {SPLITS}; got {split!r}.")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    size = settings.size
    return Scene(
        background=random_background(rng, size),
        colour_at=random_sprite_colour(rng),
        edge_at=random_outline(rng),
        centre=rng.uniform(0, size, 2),
        radius=rng.uniform(*settings.radius) * size,
        speed=rng.uniform(*settings.speed) * size,
        turn=np.deg2rad(rng.uniform(*settings.turn)),
        growth=rng.uniform(*settings.growth),
        angle=rng.uniform(0, 2 * np.pi),
        noise=rng.normal(0, settings.noise, (settings.num_frames, size, size, 3)),
    )


def centres_of(settings: MotionSettings, scene: Scene, motion: str) -> np.ndarray:
    """Row and column of the sprite in each frame, (num_frames, 2) pixels; past one side it comes in on the other."""
    direction = np.array(DIRECTIONS.get(motion, (0, 0)), float)
    step = scene.speed * direction / max(np.hypot(*direction), 1)
    return (scene.centre + np.arange(settings.num_frames)[:, None] * step) % settings.size


def angles_of(settings: MotionSettings, scene: Scene, motion: str) -> np.ndarray:
    """The angle of the sprite in each frame, (num_frames,) radians, clockwise."""
    return scene.angle + scene.turn * np.arange(settings.num_frames) * (motion == "rotate_clockwise")


def render(settings: MotionSettings, scene: Scene, motion: str) -> np.ndarray:
    """The clip of a pair's first class."""
    size, count = settings.size, settings.num_frames
    time = np.arange(count)[:, None, None]
    angle = angles_of(settings, scene, motion)[:, None, None]
    radius = scene.radius * scene.growth ** ((time / (count - 1) - 1) * (motion == "grow"))

    # places around the sprite, on a torus
    centres = centres_of(settings, scene, motion)[:, :, None, None]
    rows, columns = np.mgrid[:size, :size] + 0.5
    down = (rows - centres[:, 0] + size / 2) % size - size / 2
    right = (columns - centres[:, 1] + size / 2) % size - size / 2
    cosine, sine = np.cos(angle), np.sin(angle)
    along, across = (cosine * right + sine * down) / radius, (cosine * down - sine * right) / radius

    edge = scene.edge_at(np.arctan2(across, along))
    cover = np.clip((edge - np.hypot(along, across)) * radius + 0.5, 0, 1)[..., None]
    frames = scene.background * (1 - cover) + scene.colour_at(across, along) * cover + scene.noise
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def random_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A cloudy texture of middle tones, (size, size, 3)."""
    colour = rng.uniform(80, 175, 3)
    cells = int(rng.integers(4, 9))
    clouds = rng.normal(0, 22, (cells, cells, 3))
    rows, columns = np.mgrid[:size, :size] * (cells / size)
    return colour + interpolate(clouds, rows, columns)


def random_sprite_colour(rng: np.random.Generator) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The sprite's colour as a function of the place on it: one end is light, the other dark, both tinted and cloudy.

    Without two ends a turn is hard to see in 32 pixels, and some methods learnt all other classes but not this pair.
    """
    light, dark = rng.uniform(195, 255, 3), rng.uniform(0, 60, 3)
    clouds = rng.normal(0, 15, (4, 4, 3))

    def colour_at(across: np.ndarray, along: np.ndarray) -> np.ndarray:
        share = 1 / (1 + np.exp(-6 * np.clip(along, -3, 3)))[..., None]
        return dark + (light - dark) * share + interpolate(clouds, across * 2, along * 2)

    return colour_at


def random_outline(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """The sprite's radius as a function of the angle, around 1; no outline has a symmetry that hides a turn."""
    waves = np.arange(1, 5)
    heights, phases = np.array([0.25, 0.25, 0.12, 0.08]) * rng.uniform(0.6, 1, 4), rng.uniform(0, 2 * np.pi, 4)
    return lambda angle: (
        1
        + sum(height * np.cos(wave * angle + phase) for wave, height, phase in zip(waves, heights, phases, strict=True))
    )


def interpolate(texture: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`texture` (height, width, channels) at fractional places, bilinear; it repeats beyond its ends."""
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    height, width = texture.shape[:2]
    top, left, below, beside = top % height, left % width, (top + 1) % height, (left + 1) % width
    upper = texture[top, left] * (1 - right) + texture[top, beside] * right
    lower = texture[below, left] * (1 - right) + texture[below, beside] * right
    return upper * (1 - down) + lower * down


def opposite_class(label: str) -> str:
    """The class of the clip played backwards."""
    return CLASSES[CLASSES.index(label) ^ 1]


def write_clip(frames: np.ndarray, path: Path) -> None:
    """Frames (count, height, width, 3) uint8 as an H.264 mp4 without prediction between frames, at high quality.

    Prediction would leave a residue in one frame of what came before it, and so betray the motion to a single frame.
    """
    # one thread: the same bytes from the same frames
    options = {"preset": "veryfast", "crf": "8", "threads": "1"}
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, FRAMES_PER_SECOND)
        stream.codec_context.gop_size = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_one(folder: Path, settings: MotionSettings, seed: int, clip: tuple[str, int]) -> None:
    split, index = clip
    path = folder / split / class_of_clip(index) / f"{index // len(CLASSES):05d}.mp4"
    write_clip(motion_clip(settings, seed, split, index), path)


def write_dataset(
    output_dir: Path,
    settings: MotionSettings,
    clips: dict[str, int],
    seed: int = 0,
    num_workers: int = 1,
    overwrite: bool = False,
) -> None:
    """Write the benchmark: `output_dir`/SPLIT/CLASS/NUMBER.mp4, and dataset.json with what made it.

    The same arguments give the same bytes. The folder appears whole or not at all.

    Args:
        clips: number of clips of each split, multiples of the number of classes.
        num_workers: processes that draw and encode.
        overwrite: replace a benchmark that was written there before.

    Raises:
        ValueError: for numbers out of range, a folder that is not empty without `overwrite`, and one that holds
            something else with it.
    """
    check_arguments(output_dir, clips, seed, num_workers, overwrite)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    partial_dir = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.partial-", dir=output_dir.parent))
    try:
        for split in clips:
            for label in CLASSES:
                (partial_dir / split / label).mkdir(parents=True)
        work = [(split, index) for split, count in clips.items() for index in range(count)]
        write = partial(write_one, partial_dir, settings, seed)
        progress = tqdm(total=len(work), desc="writing clips", unit="clip", disable=None)
        with progress, ProcessPoolExecutor(num_workers) as pool:
            for _ in pool.map(write, work, chunksize=16):
                progress.update()
        description = {"seed": seed, "clips": clips, "classes": CLASSES, "settings": asdict(settings)}
        (partial_dir / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        partial_dir.chmod(0o755)  # mkdtemp makes it private
        put_in_place(partial_dir, output_dir)
    finally:
        shutil.rmtree(partial_dir, ignore_errors=True)


def check_arguments(output_dir: Path, clips: dict[str, int], seed: int, num_workers: int, overwrite: bool) -> None:
    for split, count in clips.items():
        if split not in SPLITS or count < 1 or count % len(CLASSES):
            raise ValueError(
                f"The number of {split} clips must be a multiple of the {len(CLASSES)} classes, got {count}."
            )
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}.")
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}.")
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"{output_dir} is a file: give the name of a folder.")
    if output_dir.is_dir() and any(output_dir.iterdir()):
        if not overwrite:
            raise ValueError(f"{output_dir} is not empty: give another folder, or --overwrite to replace it.")
        if not (output_dir / DESCRIPTION).is_file():
            raise ValueError(
                f"{output_dir} holds no {DESCRIPTION}, so it is no benchmark of this script: not replaced."
            )


def put_in_place(new: Path, target: Path) -> None:
    """Move a folder to `target`; what is there makes way, and comes back if that fails."""
    if not target.exists():
        os.replace(new, target)
        return
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.old-", dir=target.parent) as aside:
        old = Path(aside) / "old"
        os.replace(target, old)
        try:
            os.replace(new, target)
        except OSError:
            os.replace(old, target)
            raise


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the motion benchmark as a folder of mp4 files.")
    parser.add_argument("output_dir", type=Path, help="folder to write; it must be empty or absent")
    parser.add_argument("--train_clips", type=int, default=9600, help="a multiple of 12 (default 9600)")
    parser.add_argument("--validation_clips", type=int, default=2400, help="a multiple of 12 (default 2400)")
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels, 32 to 64 (default 32)")
    parser.add_argument("--num_frames", type=int, default=8, help="frames of a clip (default 8)")
    parser.add_argument("--noise", type=float, default=4.0, help="standard deviation of the noise, of 255 (default 4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--num_workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a benchmark that is there")
    arguments = parser.parse_args(argv)
    clips = {"train": arguments.train_clips, "validation": arguments.validation_clips}
    try:
        settings = MotionSettings(size=arguments.size, num_frames=arguments.num_frames, noise=arguments.noise)
        write_dataset(arguments.output_dir, settings, clips, arguments.seed, arguments.num_workers, arguments.overwrite)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {sum(clips.values())} clips of {len(CLASSES)} classes to {arguments.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
