"""Show which parts of a video STTM merges, as a picture (and as a film, if asked for):

    python examples/show_merging.py clip.mp4 --model MCG-NJU/videomae-base-finetuned-kinetics --output merging.png
    python examples/show_merging.py clip.mp4 --model sttm-videomae --output merging.png --film merging.mp4

The model is a folder or Hub id of STTM, or of a plain video transformer, which then merges without training. Rows of
the picture: the frames; after each stage the mean colour of every merged region, outlined; arrows from where a token's
first members lie to its centroid, for tokens that hold several frames.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import AutoConfig

from hf_tps import STTMForVideoClassification, STTMModel, TPSVideoProcessor
from hf_tps.token_merging import MergeState
from hf_tps.training import pictures
from hf_tps.training.console import exit_code, print_error
from hf_tps.training.files import reading, whole_file
from hf_tps.video_sources import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 8
FILM_SUFFIXES = (".mp4", ".gif")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Show which parts of a video merge.")
    parser.add_argument("video", metavar="VIDEO", help="file or http(s) link")
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="STTM, or a plain video transformer")
    parser.add_argument("--output", type=Path, default=Path("merging.png"), metavar="PNG", help="default merging.png")
    parser.add_argument("--film", type=Path, metavar="MP4_OR_GIF", help="also a film: the video beside each stage")
    parser.add_argument("--fps", type=int, default=4, help="of the film, in tokens over time per second (default 4)")
    parser.add_argument(
        "--keep_ratio", type=float, help="share of the tokens that each stage keeps (default: the model's)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    for path in (arguments.output, arguments.film):
        if path is not None and not path.parent.is_dir():
            parser.error(f"{path}: there is no folder {path.parent}")
    if arguments.film is not None and arguments.film.suffix not in FILM_SUFFIXES:
        parser.error(f"--film {arguments.film}: give a name that ends in {' or '.join(FILM_SUFFIXES)}")
    if arguments.fps < 1:
        parser.error(f"--fps must be at least 1, got {arguments.fps}")
    return arguments


def load(name: str, keep_ratio: float | None) -> tuple[STTMModel, TPSVideoProcessor]:
    """The bare model that merges, and the processor of its checkpoint for clips of its size."""
    overrides = {} if keep_ratio is None else {"keep_ratio": keep_ratio}
    if AutoConfig.from_pretrained(name).model_type == "sttm":
        model = STTMForVideoClassification.from_pretrained(name, **overrides).base_model
    else:
        model = STTMModel.from_video_pretrained(name, **overrides)
    side = model.config.image_size
    sizes = {
        "num_frames": model.config.num_frames,
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
    }
    try:
        processor = TPSVideoProcessor.from_pretrained(name, **sizes)
    except OSError:
        print(f"{name} has no settings of a processor: colours are normalised as on ImageNet", file=sys.stderr)
        processor = TPSVideoProcessor(**sizes)
    return model.eval(), processor


@torch.no_grad()
def merge(
    video: str, model: STTMModel, processor: TPSVideoProcessor
) -> tuple[np.ndarray, tuple[MergeState, ...], list[float] | None]:
    """A frame for each token over time, (T, height, width, 3) in 0 to 1, the states before and after merging, and when
    these frames are shown in the video, in seconds (None where the file does not tell).
    """
    with reading(video):
        batch = processor(video, num_clips=1, num_crops=1, return_tensors="pt", return_metadata=True)
    clip, metadata = batch.pixel_values, batch["video_metadata"][0]
    states = model(clip.to(model.device), output_merge_states=True).merge_states
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    frames = (clip[0] * std + mean).clamp(0, 1).permute(0, 2, 3, 1)
    step = len(frames) // states[0].grid[0]
    seconds = [index / metadata.fps for index in metadata.frames_indices[::step]] if metadata.fps else None
    return frames[::step].numpy(), states, seconds


def regions(state: MergeState) -> np.ndarray:
    """The number of the token at each place, (T, rows, columns); -1 where it was dropped."""
    return state.source[0].reshape(state.grid).cpu().numpy()


def paint(frames: np.ndarray, state: MergeState) -> np.ndarray:
    """Frames whose merged regions have one colour and an outline; a token that nothing joined keeps its pixels."""
    numbers = regions(state)
    time, rows, columns = numbers.shape
    patch_height, patch_width = frames.shape[1] // rows, frames.shape[2] // columns
    cropped = frames[:, : rows * patch_height, : columns * patch_width]
    colours = cropped.reshape(time, rows, patch_height, columns, patch_width, 3).mean((2, 4))
    painted = cropped.copy()
    for axis, patch in ((1, patch_height), (2, patch_width)):
        numbers = numbers.repeat(patch, axis)
    tokens = int(regions(state).max()) + 1
    flat = regions(state).reshape(-1)
    count = np.bincount(flat[flat >= 0], minlength=tokens)
    total = np.stack([np.bincount(flat[flat >= 0], colours.reshape(-1, 3)[flat >= 0, c], tokens) for c in range(3)], -1)
    mean = total / np.maximum(count, 1)[:, None]
    merged = (numbers >= 0) & (count[numbers] > 1)
    painted[merged] = mean[numbers[merged]]
    painted[numbers < 0] = 0.0
    border = np.zeros_like(merged)
    border[:, 1:] |= numbers[:, 1:] != numbers[:, :-1]
    border[:, :, 1:] |= numbers[:, :, 1:] != numbers[:, :, :-1]
    painted[border & (merged | np.roll(merged, 1, 1) | np.roll(merged, 1, 2))] *= 0.45
    return painted


def tracks(state: MergeState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Anchors and centroids (time, row, column) of tokens with members in several frames, and the members' number."""
    positions, anchors, sizes = (
        part[0].float().cpu().numpy() for part in (state.positions, state.anchors, state.sizes)
    )
    moving = positions[:, 0] > anchors[:, 0]
    return anchors[moving], positions[moving], sizes[moving]


def plot(
    frames: np.ndarray, states: tuple[MergeState, ...], seconds: list[float] | None, title: str, path: Path
) -> None:
    """The frames, each stage's tokens, and, where tokens of several frames were merged, how these moved."""
    shown = np.unique(np.linspace(0, len(frames) - 1, min(COLUMNS, len(frames))).round().astype(int))
    stages = states[1:]
    rows = [("frames", frames)]
    rows += [(f"stage {n}\n{state.sizes.shape[1]} tokens", paint(frames, state)) for n, state in enumerate(stages, 1)]
    moving = len(tracks(states[-1])[0]) > 0
    if moving:
        rows.append(("motion", frames))
    figure = pictures.new_figure(1.5 * len(shown), 1.55 * len(rows) + 0.6)
    grid = figure.subplots(len(rows), len(shown), squeeze=False)
    for axes_row, (name, images) in zip(grid, rows, strict=True):
        for axes, index in zip(axes_row, shown, strict=True):
            axes.imshow(images[index])
            pictures.without_frame(axes)
        axes_row[0].set_ylabel(name, fontsize=pictures.TEXT)
    for axes, index in zip(grid[0], shown, strict=True):
        axes.set_title(pictures.frame_label(index, seconds), fontsize=pictures.SMALL)
    if moving:
        draw_tracks(grid[-1], frames, states, shown)
    figure.suptitle(title, fontsize=pictures.TITLE)
    pictures.save_figure(figure, path)


def draw_tracks(
    axes_row: "Sequence[Axes]", frames: np.ndarray, states: tuple[MergeState, ...], shown: np.ndarray
) -> None:
    """An arrow from the first place of each token that lasts to the mean of its places."""
    height, width = frames.shape[1:3]
    _, map_rows, map_columns = states[0].grid
    anchors, centroids, sizes = tracks(states[-1])
    for axes, index in zip(axes_row, shown, strict=True):
        # each token once, at the frame where its track begins
        here = np.abs(anchors[:, 0] - index) < 0.5
        start, end = anchors[here, 1:], centroids[here, 1:]
        scale = np.array([height / map_rows, width / map_columns])
        (y, x), (to_y, to_x) = ((start + 0.5) * scale).T, ((end + 0.5) * scale).T
        axes.quiver(
            x, y, to_x - x, to_y - y, sizes[here], angles="xy", scale_units="xy", scale=1, width=0.012, cmap="autumn"
        )
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)


def write_film(frames: np.ndarray, states: tuple[MergeState, ...], fps: int, path: Path) -> None:
    """The video and each stage side by side, one picture for each token over time."""
    panels = np.concatenate([frames] + [paint(frames, state)[:, : frames.shape[1]] for state in states[1:]], axis=2)
    panels = (panels * 255).round().astype(np.uint8)
    panels = panels[:, : panels.shape[1] // 2 * 2, : panels.shape[2] // 2 * 2]  # even sizes for H.264
    with whole_file(path) as begun:
        encode(panels, fps, begun)


def encode(panels: np.ndarray, fps: int, path: Path) -> None:
    if path.suffix == ".gif":
        from PIL import Image

        images = [Image.fromarray(panel) for panel in panels]
        images[0].save(path, format="GIF", save_all=True, append_images=images[1:], duration=1000 // fps, loop=0)
        return
    import av

    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = *panels.shape[1:3], "yuv420p"
        for panel in panels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(panel, format="rgb24")))
        container.mux(stream.encode())


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    source = arguments.model
    try:
        with reading(source):
            model, processor = load(arguments.model, arguments.keep_ratio)
        source = arguments.video
        merged = merge(arguments.video, model.to(arguments.device), processor)
    except (ValueError, OSError) as error:
        print_error(error, source)
        return 1
    return exit_code(show, *merged, arguments)


def show(
    frames: np.ndarray, states: tuple[MergeState, ...], seconds: list[float] | None, arguments: argparse.Namespace
) -> None:
    """The picture, and the film where one is wanted."""
    lengths = [state.sizes.shape[1] for state in states]
    left = f"{lengths[-1] / lengths[0]:.0%}"
    print(f"tokens: {' -> '.join(map(str, lengths))} ({left} are left)")
    plot(frames, states, seconds, f"{name_of(arguments.video)}: {left} of the tokens left", arguments.output)
    print(f"picture: {arguments.output}")
    if arguments.film is not None:
        write_film(frames, states, arguments.fps, arguments.film)
        print(f"film: {arguments.film}")


if __name__ == "__main__":
    sys.exit(main())
