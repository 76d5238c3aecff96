"""Accuracy of class scores, and how it looks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import pictures
from .data import IGNORED_LABEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

MAX_NAMED_CLASSES, MAX_NUMBERED_CLASSES = 60, 20


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of videos whose class is among the `k` best; equal scores rank by class id. NaN without videos.

    Args:
        scores: (videos, classes).
        labels: (videos,); `IGNORED_LABEL` is left out.
    """
    scores, labels = _readable(scores, labels)
    if len(labels) == 0:
        return float("nan")
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((best == labels[:, None]).any(axis=1).mean())


def confusion_matrix(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts (true class, predicted class)."""
    num_classes = scores.shape[1]
    scores, labels = _readable(scores, labels)
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, np.argmax(scores, axis=1)), 1)
    return counts


def per_class_accuracy(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, dict]:
    """For each class the number of its videos and the share that was recognised (None without videos)."""
    result = {}
    for number, name in enumerate(class_names):
        videos = int(confusion[number].sum())
        result[name] = {"videos": videos, "top1": confusion[number, number] / videos if videos else None}
    return result


def summarize(scores: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict:
    """`top1`, `top5`, `mean_class_accuracy` (over classes with videos), `videos`, `per_class`."""
    classes = per_class_accuracy(confusion_matrix(scores, labels), class_names)
    shares = [entry["top1"] for entry in classes.values() if entry["top1"] is not None]
    return {
        "top1": top_k_accuracy(scores, labels, 1),
        "top5": top_k_accuracy(scores, labels, 5),
        "mean_class_accuracy": float(np.mean(shares)) if shares else float("nan"),
        "videos": int((labels != IGNORED_LABEL).sum()),
        "per_class": classes,
    }


def draw_confusion_matrix(confusion: np.ndarray, class_names: Sequence[str], path: str | Path) -> None:
    """A picture of the confusion matrix, each row as shares of its class. Needs matplotlib."""
    side = min(4 + 0.28 * len(class_names), 18)
    figure = pictures.new_figure(side + 1, side)
    axes = figure.subplots()
    image = show_confusion(axes, confusion, class_names)
    figure.colorbar(image, ax=axes, shrink=0.7, label="% of the true class")
    videos = int(confusion.sum())
    axes.set_title(f"top-1 {np.trace(confusion) / max(videos, 1):.1%} of {videos} videos", fontsize=pictures.TITLE)
    pictures.save_figure(figure, Path(path))


def show_confusion(axes: "Axes", confusion: np.ndarray, class_names: Sequence[str]) -> "AxesImage":
    """Rows are true classes, columns answers, colours percents of the row; counts where there are few classes."""
    count = len(class_names)
    percents = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(percents, vmin=0, vmax=100, cmap="Blues")
    axes.set_xlabel("predicted class", fontsize=pictures.TEXT)
    axes.set_ylabel("true class", fontsize=pictures.TEXT)
    if count <= MAX_NAMED_CLASSES:
        shown = [name if len(name) <= 28 else name[:27] + "…" for name in class_names]
        axes.set_xticks(range(count), shown, rotation=60, ha="right", rotation_mode="anchor", fontsize=pictures.SMALL)
        axes.set_yticks(range(count), shown, fontsize=pictures.SMALL)
    if count <= MAX_NUMBERED_CLASSES:
        for row, column in np.ndindex(count, count):
            number = int(confusion[row, column])
            colour = "white" if percents[row, column] > 50 else "black" if number else pictures.FAINT
            axes.text(column, row, str(number), ha="center", va="center", color=colour, fontsize=pictures.SMALL)
    return image


def _readable(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keep = labels != IGNORED_LABEL
    return scores[keep], labels[keep]
