"""The whole story on a small scale, for `make demo`: videos, training, test, answers, a picture.

    python examples/demo.py [VIDEO]

Writes short videos whose classes differ in the order of the frames alone (make_motion_dataset.py), trains a small TPS
on them from random weights (finetune.py), tests it (evaluate.py), and lets Transformers' pipeline name the motion in
videos that it has not seen, and in VIDEO, if one is given.
"""

import argparse
import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the clone, wherever this file is run from

from examples.experiments.make_motion_dataset import CLASSES
from examples.experiments.motion_experiments import ALLOCATOR, SMALL_TPS, TrainingSettings, training_flags
from hf_tps import TPSConfig, read_video
from hf_tps.training import pictures
from hf_tps.training.metrics import show_confusion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "demo_output"
TRAIN_CLIPS, VALIDATION_CLIPS = 4800, 480
TRAINING = TrainingSettings(epochs=4, learning_rate=2e-3)
UNSEEN_IN_PICTURE = 6


def step(title: str, *command: str, launch: bool = False) -> None:
    """Run a script of this folder as a user does, and show the command."""
    print(f"\n== {title}\n$ {'accelerate launch' if launch else 'python'} {shlex.join(command)}", flush=True)
    start = time.perf_counter()
    launcher = ("-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1") if launch else ()
    options = ("--mixed_precision", "no", "--dynamo_backend", "no") if launch else ()
    subprocess.run(
        [sys.executable, *launcher, *options, *command], cwd=ROOT, check=True, env={**os.environ, **ALLOCATOR}
    )
    print(f"({time.perf_counter() - start:.0f} s)", flush=True)


def write_videos(folder: str) -> None:
    step(
        "write videos whose classes differ in the order of the frames alone",
        *("examples/experiments/make_motion_dataset.py", folder, "--overwrite"),
        *("--train_clips", str(TRAIN_CLIPS), "--validation_clips", str(VALIDATION_CLIPS)),
    )


def train(config: str, videos: str, model: str) -> None:
    TPSConfig(num_frames=8, num_labels=len(CLASSES), **SMALL_TPS).save_pretrained(ROOT / config)
    step(
        "train a small TPS from random weights",
        *("examples/finetune.py", "--config_name", config, "--output_dir", model, "--overwrite_output_dir"),
        *("--seed", "0", *training_flags(TRAINING, videos, f"{videos}/cache", SMALL_TPS["image_size"], TRAIN_CLIPS)),
        launch=True,
    )


def evaluate(model: str, videos: str, test: str) -> None:
    step(
        "test it: one view of every validation video",
        *("examples/evaluate.py", "--model_name_or_path", model, "--validation_dir", f"{videos}/validation"),
        *("--protocol", "1x1", "--output_dir", test),
        launch=True,
    )


def classify(model: Path, paths: list[Path]) -> list[tuple[Path, list[dict]]]:
    """Each video with the answers of Transformers' own pipeline, the most likely first."""
    print("\n== name the motion in videos that it has not seen, by Transformers' pipeline", flush=True)
    classifier = pipeline("video-classification", model=str(model), device="cpu")
    processor = classifier.video_processor
    found = []
    for path in paths:
        # of a longer video frames from all over it, as in the picture, instead of consecutive ones from its middle
        longer = read_video(path, [0])[1].total_num_frames > processor.num_frames
        processor.sampling = "uniform" if longer else "dense"
        answers = classifier(str(path), top_k=3)
        found.append((path, answers))
        said = ", ".join(f"{answer['label']} {answer['score']:.0%}" for answer in answers)
        print(f"  {path.parent.name + '/' + path.name:<40} {said}")
    return found


def unseen_videos(videos: Path) -> list[Path]:
    """One validation video of each of the first classes, from both sides of their pairs."""
    return [sorted((videos / "validation" / name).glob("*.mp4"))[0] for name in CLASSES[-UNSEEN_IN_PICTURE:]]


def confusion(scores: Path) -> np.ndarray:
    """Counts; rows are the true classes, columns the answers."""
    counts = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    with scores.open(newline="") as file:
        for line in csv.DictReader(file):
            answer = max(CLASSES, key=lambda name: float(line[name]))
            counts[CLASSES.index(line["label"]), CLASSES.index(answer)] += 1
    return counts


def plot(results: dict, matrix: np.ndarray, found: list[tuple[Path, list[dict]]], path: Path) -> None:
    """Training curve, confusion matrix, and the frames of some videos with what the model says."""
    figure = pictures.new_figure(13, 5 + 1.2 * len(found) + 0.7)
    top, bottom = figure.subfigures(2, 1, height_ratios=(5, 1.2 * len(found) + 0.7))
    curve, counts = top.subplots(1, 2, width_ratios=(1, 1.25))
    draw_training(curve, results["history"])
    image = show_confusion(counts, matrix, CLASSES)
    counts.set_title(f"top-1 {results['top1']:.1%} of {matrix.sum()} unseen videos", fontsize=pictures.TITLE)
    top.colorbar(image, ax=counts, label="% of the true class")
    draw_answers(bottom, found)
    pictures.save_figure(figure, path)


def draw_training(axes: "Axes", history: list[dict]) -> None:
    epochs = [entry["epoch"] for entry in history]
    top1 = [100 * entry["eval_top1"] for entry in history]
    (accuracy,) = axes.plot(epochs, top1, "o-", color=pictures.BLUE, label="top-1 of unseen videos")
    blind = axes.axhline(50, color=pictures.GREY, linestyle=":", label="best without seeing time")
    axes.set(xlabel="epoch", ylabel="top-1, %", ylim=(0, 101), xticks=epochs)
    loss_axes = axes.twinx()
    loss = [entry["train_loss"] for entry in history]
    (line,) = loss_axes.plot(epochs, loss, "s--", color=pictures.RED, label="training loss")
    loss_axes.set_ylabel("loss")
    loss_axes.set_ylim(0)
    axes.legend(handles=[accuracy, blind, line], loc="center right", fontsize=pictures.TEXT)
    axes.set_title("training", fontsize=pictures.TITLE)


def draw_answers(figure: "FigureBase", found: list[tuple[Path, list[dict]]]) -> None:
    columns = 8
    grid = figure.subplots(len(found), columns, squeeze=False)
    for axes_row, (video, answers) in zip(grid, found, strict=True):
        clip = read_video(video)[0].permute(0, 2, 3, 1).numpy()
        for axes, index in zip(axes_row, np.linspace(0, len(clip) - 1, columns).round().astype(int), strict=True):
            axes.imshow(clip[index])
            axes.axis("off")
        said, truth = answers[0]["label"], video.parent.name
        text, colour = f"{said}\n{answers[0]['score']:.0%}", "black"
        if truth in CLASSES:
            colour = pictures.GREEN if said == truth else pictures.RED
            text += "" if said == truth else f"\n(it is {truth})"
        axes_row[0].text(
            -0.15,
            0.5,
            text,
            transform=axes_row[0].transAxes,
            ha="right",
            va="center",
            fontsize=pictures.TEXT,
            color=colour,
        )
    arrow = grid[0][0].annotate(
        "",
        xy=(1, 1.07),
        xycoords=grid[0][-1].transAxes,
        xytext=(0, 1.07),
        textcoords=grid[0][0].transAxes,
        annotation_clip=False,
        arrowprops={"arrowstyle": "->", "color": pictures.GREY},
    )
    arrow.set_in_layout(False)
    figure.suptitle(
        "unseen videos and what the pipeline says; what leaves on one side comes in on the other",
        fontsize=pictures.TITLE,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("video", nargs="?", type=Path, help="a video of yours to classify as well")
    video = parser.parse_args().video
    if video is not None and not video.is_file():
        parser.error(f"there is no file {video}")
    begun = time.perf_counter()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    videos, model, test = (f"{OUTPUT.name}/{name}" for name in ("videos", "tps-motion", "test"))
    write_videos(videos)
    train(f"{OUTPUT.name}/config", videos, model)
    evaluate(model, videos, test)
    paths = [*unseen_videos(ROOT / videos), *([] if video is None else [video.resolve()])]
    with torch.inference_mode():
        found = classify(ROOT / model, paths)

    results = json.loads((ROOT / model / "all_results.json").read_text())
    tested = json.loads((ROOT / test / "results.json").read_text())
    picture = OUTPUT / "demo.png"
    plot({**results, "top1": tested["top1"]}, confusion(ROOT / test / "scores.csv"), found, picture)
    print(f"\ntop-1 of {VALIDATION_CLIPS} unseen videos: {tested['top1']:.1%} (50 % is the best without seeing time)")
    print(f"picture: {picture.relative_to(ROOT)}\n({time.perf_counter() - begun:.0f} s in all)")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
