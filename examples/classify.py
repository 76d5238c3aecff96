"""Classify videos with a model of hf_tps (or any video classifier of Transformers):

python examples/classify.py clip.mp4 --model tps-t-k400 --plot answer.png
python examples/classify.py holidays/ "cats/*.mp4" --model tps-t-k400 --output answers.csv
"""

import argparse
import csv
import glob
import json
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm
from transformers import AutoModelForVideoClassification, PreTrainedModel

# not the one at the top level of transformers, which is a placeholder wherever torchvision is missing
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.video_processing_utils import VideoProcessorMixin

import hf_tps  # noqa: F401  (registers its models with the Auto classes)
from hf_tps.training import pictures
from hf_tps.training.console import exit_code, print_error
from hf_tps.training.evaluation import predict_views
from hf_tps.training.files import whole_file
from hf_tps.training.text import first_line
from hf_tps.training.video_lists import VIDEO_SUFFIXES, video_files
from hf_tps.video_sources import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRAMES_IN_PICTURE = 8
VIDEOS_ON_A_PAGE = 6
# of a page, inches
PAGE_WIDTH, MARGIN, BAR_HEIGHT, HEADING = 10.0, 0.25, 0.27, 0.35


@dataclass
class Answer:
    """What the model says of a video.

    Attributes:
        video: as it was given.
        classes: names and probabilities, the likeliest first; empty where the video could not be read.
        error: why not.
        frames: what the model saw, (frames, height, width, 3), values 0 to 1.
        seconds: when each of these frames is shown in the video; None where the file does not tell.
    """

    video: str
    classes: list[tuple[str, float]]
    error: str = ""
    frames: torch.Tensor | None = None
    seconds: list[float] | None = None


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Classify videos.")
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEO", help="files, folders, patterns such as 'clips/*.mp4', http(s) links"
    )
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="folder or Hub id of the model")
    parser.add_argument("--top_k", type=int, default=5, help="classes to show for each video (default 5)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="table of all answers, .csv or .json")
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", help=f"pictures with frames and top classes, {VIDEOS_ON_A_PAGE} videos each"
    )
    parser.add_argument("--num_clips", type=int, help="clips of a video (default: as saved with the model)")
    parser.add_argument(
        "--num_crops", type=int, choices=(1, 3), help="crops of a clip (default: as saved with the model)"
    )
    parser.add_argument("--start_sec", type=float, help="look at the video from here on, in seconds")
    parser.add_argument("--end_sec", type=float, help="and up to here")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    if arguments.top_k < 1:
        parser.error(f"--top_k must be at least 1, got {arguments.top_k}")
    for flag in ("plot", "output"):
        path = getattr(arguments, flag)
        if path is not None and not path.parent.is_dir():
            parser.error(f"--{flag} {path}: there is no folder {path.parent}")
    if arguments.output is not None and arguments.output.suffix not in (".csv", ".json"):
        parser.error(f"--output {arguments.output}: its name must end in .csv or .json")
    return arguments


def find_videos(given: list[str]) -> list[str]:
    """The files of folders (at any depth) and of patterns; everything else as it was given.

    Raises:
        ValueError: for a folder or a pattern without videos.
    """
    videos: list[str] = []
    for name in given:
        if Path(name).is_dir():
            found = sorted(map(str, video_files(Path(name))))
            if not found:
                raise ValueError(f"{name_of(name)} has no videos ({', '.join(VIDEO_SUFFIXES)}).")
        elif glob.has_magic(name) and not Path(name).exists() and "://" not in name:
            found = sorted(glob.glob(name, recursive=True))
            if not found:
                raise ValueError(f"No file fits the pattern {name_of(name)}.")
        else:
            found = [name]
        videos += found
    return list(dict.fromkeys(videos))


def load(name: str) -> tuple[PreTrainedModel, VideoProcessorMixin]:
    """A trained model and its processor.

    Raises:
        ValueError: if the checkpoint lacks weights, which would be random numbers.
    """
    model, report = AutoModelForVideoClassification.from_pretrained(name, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(
            f"These weights are missing: {sorted(report['missing_keys'])[:10]}. Give a trained classifier."
        )
    return model.eval(), AutoVideoProcessor.from_pretrained(name)


@torch.no_grad()
def classify(video: str, model: PreTrainedModel, processor: VideoProcessorMixin, top_k: int, **views: float) -> Answer:
    """The top classes, and what the model saw."""
    batch = processor(video, num_frames=model.config.num_frames, return_tensors="pt", return_metadata=True, **views)
    clips = batch.pixel_values if batch.pixel_values.ndim == 6 else batch.pixel_values[:, None]
    num_views, config = clips.shape[1], model.config
    # One by one, so that there is something to see meanwhile.
    bar = partial(tqdm, desc=Path(video).name[:40], unit="view", leave=False, disable=num_views == 1 or None)
    (logits,) = predict_views(model, clips.to(model.device), view_batch_size=1, progress=bar)
    multi_label = config.problem_type == "multi_label_classification"
    probabilities = logits.sigmoid() if multi_label else logits.softmax(-1)
    scores, ids = probabilities.topk(min(top_k, len(probabilities)))
    classes = [(config.id2label[index], score) for index, score in zip(ids.tolist(), scores.tolist(), strict=True)]

    clip = clips[0, num_views // 2]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    frames = (clip * std + mean).clamp(0, 1).permute(0, 2, 3, 1)
    metadata = batch["video_metadata"][0]
    seconds = None
    if metadata.fps and metadata.frames_indices is not None:
        first = num_views // 2 // (views.get("num_crops") or getattr(processor, "num_crops", 1)) * len(frames)
        seconds = [index / metadata.fps for index in metadata.frames_indices[first : first + len(frames)]]
    return Answer(video, classes, frames=frames, seconds=seconds)


def print_answer(answer: Answer) -> None:
    width = max(len(label) for label, _ in answer.classes)
    tqdm.write(name_of(answer.video))
    for rank, (label, score) in enumerate(answer.classes, start=1):
        tqdm.write(f"  {rank:>2}  {label:<{width}}  {score:7.2%}")


def show_warning(message: Warning | str, *place: object) -> None:
    """A warning about a video as one line, without the line of code that it comes from."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


def write_answers(answers: list[Answer], path: Path) -> None:
    """A row for each video: its name, its top classes with their probabilities, or why there are none."""
    with whole_file(path) as begun, begun.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".json":
            rows = [
                {
                    "video": name_of(answer.video),
                    "classes": [{"label": label, "score": score} for label, score in answer.classes],
                    "error": answer.error or None,
                }
                for answer in answers
            ]
            json.dump(rows, file, indent=2, ensure_ascii=False)
        else:
            ranks = range(1, 1 + max(len(answer.classes) for answer in answers))
            table = csv.writer(file)
            table.writerow(["video", *(f"{name}{rank}" for rank in ranks for name in ("class_", "score_")), "error"])
            for answer in answers:
                cells = [cell for label, score in answer.classes for cell in (label, f"{score:.6f}")]
                cells += [""] * (2 * len(ranks) - len(cells))
                table.writerow([name_of(answer.video), *cells, answer.error])
    print(f"{len(answers)} answers: {path}")


def plot(answers: list[Answer], path: Path) -> None:
    """Frames of each video above a bar for each of its top classes; several pages where there are many videos."""
    pages = [answers[start : start + VIDEOS_ON_A_PAGE] for start in range(0, len(answers), VIDEOS_ON_A_PAGE)]
    for number, page in enumerate(pages, start=1):
        target = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        draw_page(page, target)
        print(f"picture: {target}")


def draw_page(answers: list[Answer], path: Path) -> None:
    inner = PAGE_WIDTH - 2 * MARGIN
    strips = [filmstrip(answer.frames) for answer in answers]
    strip_heights = [inner * strip.shape[0] / strip.shape[1] for strip in strips]
    heights = [
        HEADING + strip + BAR_HEIGHT * (1 + len(answer.classes)) + MARGIN
        for strip, answer in zip(strip_heights, answers, strict=True)
    ]
    total = sum(heights) + MARGIN
    figure = pictures.new_figure(PAGE_WIDTH, total, layout=None)
    left, width, top = MARGIN / PAGE_WIDTH, inner / PAGE_WIDTH, total - MARGIN
    for answer, strip, strip_height in zip(answers, strips, strip_heights, strict=True):
        figure.text(
            left,
            (top - HEADING / 2) / total,
            name_of(answer.video),
            fontsize=pictures.TITLE,
            va="center",
            weight="bold",
        )
        top -= HEADING + strip_height
        axes = figure.add_axes((left, top / total, width, strip_height / total))
        axes.imshow(strip.numpy(), aspect="auto")
        pictures.without_frame(axes)
        label_frames(axes, answer, strip.shape[1])
        bars = BAR_HEIGHT * len(answer.classes)
        top -= BAR_HEIGHT + bars
        draw_bars(figure.add_axes((left, top / total, width, bars / total)), answer.classes)
        top -= MARGIN
    pictures.save_figure(figure, path)


def shown_frames(count: int) -> list[int]:
    return torch.linspace(0, count - 1, min(FRAMES_IN_PICTURE, count)).round().long().tolist()


def filmstrip(frames: torch.Tensor) -> torch.Tensor:
    """Some of the frames (frames, height, width, 3) side by side, with white lines between them."""
    shown = frames[shown_frames(len(frames))]
    line = torch.ones(shown.shape[1], max(1, shown.shape[2] // 50), 3)
    return torch.cat([part for frame in shown for part in (frame, line)][:-1], dim=1)


def label_frames(axes: "Axes", answer: Answer, width: int) -> None:
    shown = shown_frames(len(answer.frames))
    for place, index in enumerate(shown):
        axes.annotate(
            pictures.frame_label(index, answer.seconds),
            ((place + 0.5) * width / len(shown), 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -3),
            textcoords="offset points",
            annotation_clip=False,
            ha="center",
            va="top",
            fontsize=pictures.SMALL,
            color=pictures.GREY,
        )


def draw_bars(axes: "Axes", classes: list[tuple[str, float]]) -> None:
    """Scores from 0 to 100 %: a guess looks like one."""
    places = range(len(classes))[::-1]
    axes.barh(places, [1] * len(classes), color=pictures.FAINT, height=0.86)
    axes.barh(places, [score for _, score in classes], color=pictures.BLUE, height=0.86, alpha=0.55)
    for place, (label, score) in zip(places, classes, strict=True):
        axes.text(0.006, place, label, va="center", fontsize=pictures.TEXT)
        axes.text(0.994, place, f"{score:.1%}", va="center", ha="right", fontsize=pictures.TEXT)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.5, len(classes) - 0.5)
    pictures.without_frame(axes)


def classify_all(
    videos: list[str],
    model: PreTrainedModel,
    processor: VideoProcessorMixin,
    arguments: argparse.Namespace,
    views: dict[str, float],
) -> list[Answer]:
    """An answer for each video; a broken one does not end the others."""
    answers = []
    for video in tqdm(videos, desc="classifying", unit="video", disable=None):
        try:
            answers.append(classify(video, model, processor, arguments.top_k, **views))
        except Exception as error:
            print_error(error, video)
            answers.append(Answer(video, [], error=first_line(error)))
            continue
        print_answer(answers[-1])
        if arguments.plot is None:
            answers[-1].frames = None  # a folder of videos need not fit into memory
    return answers


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        videos = find_videos(arguments.videos)
    except ValueError as error:
        print_error(error)
        return 1
    try:
        model, processor = load(arguments.model)
        model.to(arguments.device)
    except Exception as error:  # whatever a damaged folder makes a library raise
        print_error(error, arguments.model)
        return 1
    names = ("num_clips", "num_crops", "start_sec", "end_sec")
    views = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}

    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        answers = classify_all(videos, model, processor, arguments, views)
    answered = [answer for answer in answers if answer.classes]
    failed = len(answered) < len(answers)
    if arguments.output is not None:
        failed |= bool(exit_code(write_answers, answers, arguments.output))
    if arguments.plot is not None and answered:
        failed |= bool(exit_code(plot, answered, arguments.plot))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
