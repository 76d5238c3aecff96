"""Accuracy of class scores, and how it looks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .data import IGNORED_LABEL

MAX_NAMED_CLASSES = 60


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


def draw_confusion_matrix(confusion: np.ndarray, class_names: Sequence[str], path: str | Path, title: str = "") -> None:
    """A picture of the confusion matrix, each row as shares of its class. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(class_names)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.28 * count, 18)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(title)
    if count <= MAX_NAMED_CLASSES:
        shown = [name if len(name) <= 28 else name[:27] + "…" for name in class_names]
        axes.set_xticks(range(count), shown, rotation=90, fontsize=8)
        axes.set_yticks(range(count), shown, fontsize=8)
    if count <= 20:
        for row, column in np.ndindex(count, count):
            if confusion[row, column]:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour, fontsize=7)
    figure.savefig(path, dpi=120)


def _readable(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keep = labels != IGNORED_LABEL
    return scores[keep], labels[keep]
