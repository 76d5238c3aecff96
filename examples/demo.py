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

import numpy as np
import torch
from transformers import pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the clone, wherever this file is run from

from examples.experiments.make_motion_dataset import CLASSES
from examples.experiments.motion_experiments import ALLOCATOR, SMALL_TPS, TrainingSettings, training_flags
from hf_tps import TPSConfig, read_video

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
    """Rows are the true classes, columns the answers; shares of each row."""
    counts = np.zeros((len(CLASSES), len(CLASSES)))
    with scores.open(newline="") as file:
        for line in csv.DictReader(file):
            answer = max(CLASSES, key=lambda name: float(line[name]))
            counts[CLASSES.index(line["label"]), CLASSES.index(answer)] += 1
    return counts / counts.sum(1, keepdims=True)


def plot(results: dict, matrix: np.ndarray, found: list[tuple[Path, list[dict]]], path: Path) -> None:
    """Training curve, confusion matrix, and the frames of some videos with what the model says."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(13, 4.6 + 1.15 * len(found)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(4.6, 1.15 * len(found)))
    curve, picture = top.subplots(1, 2, width_ratios=(1, 1.25))
    history = results["history"]
    epochs = [entry["epoch"] for entry in history]
    curve.plot(epochs, [100 * entry["eval_top1"] for entry in history], "o-", color="#3b75af")
    curve.axhline(50, color="grey", linestyle=":")
    curve.text(epochs[-1], 51, "best without seeing time", ha="right", va="bottom", fontsize=8, color="grey")
    curve.set(xlabel="epoch", ylabel="validation top-1, %", ylim=(0, 101), title="training", xticks=epochs)
    loss = curve.twinx()
    loss.plot(epochs, [entry["train_loss"] for entry in history], "s--", color="#c8553d")
    loss.set_ylabel("training loss", color="#c8553d")
    loss.set_ylim(0)

    image = picture.imshow(100 * matrix, cmap="Blues", vmin=0, vmax=100)
    picture.set_xticks(range(len(CLASSES)), CLASSES, rotation=60, ha="right", fontsize=7)
    picture.set_yticks(range(len(CLASSES)), CLASSES, fontsize=7)
    picture.set(title=f"top-1 {results['top1']:.1%}; rows: true class")
    top.colorbar(image, ax=picture, label="% of the class")

    clips = [read_video(video)[0].permute(0, 2, 3, 1).numpy() for video, _ in found]
    columns = 8
    grid = bottom.subplots(len(found), columns, squeeze=False)
    for axes_row, clip, (video, answers) in zip(grid, clips, found, strict=True):
        for axes, index in zip(axes_row, np.linspace(0, len(clip) - 1, columns).round().astype(int), strict=True):
            axes.imshow(clip[index])
            axes.axis("off")
        right = answers[0]["label"] == video.parent.name
        known = video.parent.name in CLASSES
        colour = "black" if not known else "#2e7d32" if right else "#c62828"
        axes_row[0].text(
            -0.15,
            0.5,
            f"{answers[0]['label']}\n{answers[0]['score']:.0%}",
            transform=axes_row[0].transAxes,
            ha="right",
            va="center",
            fontsize=9,
            color=colour,
        )
    bottom.suptitle("unseen videos, frame by frame, and what the pipeline says", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


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
