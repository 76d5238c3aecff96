"""What a run leaves behind: numbers as JSON, scores as CSV, the confusion matrix as a picture, the model card."""

import csv
import json
import logging
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import get_available_trackers
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from transformers import PreTrainedModel

from ..plain_text import printable
from ..video_processing_tps import TPSVideoProcessor
from .files import whole_file, writing
from .metrics import confusion_matrix, draw_confusion_matrix
from .text import first_line

logger = logging.getLogger(__name__)


def _plain(value: Any) -> Any:
    """Without NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, content: Any) -> None:
    """Write the whole file or none of it."""
    with whole_file(path) as begun:
        begun.write_text(json.dumps(_plain(content), indent=2) + "\n", encoding="utf-8")


def write_scores(
    path: Path, names: Sequence[str], labels: np.ndarray, scores: np.ndarray, class_names: Sequence[str]
) -> None:
    """One line for each video: name, true class, predicted class, then the score of every class. Empty: unreadable."""
    with whole_file(path) as begun, open(begun, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "label", "prediction", *class_names])
        for name, label, values in zip(names, labels, scores, strict=True):
            if label < 0:
                writer.writerow([name, "", "", *[""] * len(class_names)])
            else:
                rounded = [f"{value:.6g}" for value in values]
                writer.writerow([name, class_names[label], class_names[int(np.argmax(values))], *rounded])


def write_confusion_matrix(folder: Path, scores: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> bool:
    """`confusion_matrix.png`, if matplotlib is there; whether it was drawn."""
    try:
        draw_confusion_matrix(confusion_matrix(scores, labels), class_names, folder / "confusion_matrix.png")
    except ImportError:
        logger.warning("matplotlib is not installed: no picture of the confusion matrix.")
        return False
    return True


def write_broken_videos(folder: Path, broken: dict[str, str]) -> None:
    """`broken_videos.txt`, a line of name and reason for each; nothing where all could be read."""
    if not broken:
        return
    path = folder / "broken_videos.txt"
    lines = [f"{printable(name)}\t{reason}\n" for name, reason in sorted(broken.items())]
    with whole_file(path) as begun:
        begun.write_text("".join(lines), encoding="utf-8")
    logger.warning("%d broken videos, listed in %s", len(lines), path)


def headline(results: dict) -> str:
    """The figures of a run that are read first, in one line."""
    shown = [name for name in ("eval_top1", "eval_top5", "train_loss") if name in results]
    return ", ".join(f"{name} {results[name]:.4g}" for name in shown)


def guess(summary: dict) -> float:
    """What always naming the most frequent class gives, of what `metrics.summarize` found."""
    return max(entry["videos"] for entry in summary["per_class"].values()) / max(summary["videos"], 1)


def is_near_guess(top1: float, guessed: float) -> bool:
    """Whether a model does so little better than `guess` that it may have learned nothing."""
    return top1 < guessed + 0.2 * (1 - guessed)


def weak_result(top1: float, guessed: float, known: float | None) -> str:
    """What to try where a training ended near chance.

    Args:
        top1: of unseen videos.
        guessed: see `guess`.
        known: top-1 of some of the training videos; None where they cannot be looked at again.
    """
    lines = [f"top-1 {top1:.1%} of unseen videos is little more than always guessing one class ({guessed:.1%})."]
    if known is not None:
        lines.append(f"Of its own training videos it knows {known:.1%}:")
    if known is not None and not is_near_guess(known, guessed):
        lines += [
            "  it learned these by heart. Too few videos for random weights: begin with a trained model",
            "  (--model_name_or_path), or gather more; --rand_augment_ops 2 helps a little.",
        ]
    else:
        lines += [
            "  1. the learning rate: try a third and three times --learning_rate, and more --num_train_epochs;",
            "  2. the clip: what happens may be shorter or longer than --num_frames frames at --frame_interval",
            "     (--sampling uniform sees the whole video, dense with a small interval fast motion);",
            "  3. mirrored clips of classes that name a direction (--flip 0), or too few videos for random weights.",
        ]
    return "\n".join([*lines, "  docs/it_does_not_learn.md has more."])


def check_tracker(name: str | None) -> None:
    """Refuse a tracker whose package is not there: Accelerate would go on without a word.

    Raises:
        ValueError: naming the package, and the trackers that are there.
    """
    there = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    if name not in (None, "all", *there):
        raise ValueError(
            f"no tracker {name!r} is at hand (installed are {there or 'none'}): install its package, such as "
            f"pip install {name}, or leave the flag out."
        )


def save_model(folder: Path, model: PreTrainedModel, processor: TPSVideoProcessor) -> None:
    """Weights, config with class names, code and processor; no file is ever half-written under its own name."""
    begun = folder / ".saving"
    shutil.rmtree(begun, ignore_errors=True)
    try:
        with writing(folder):
            model.save_pretrained(begun)
            processor.save_pretrained(begun)
            # The config last: without it the folder is no model.
            for path in sorted(begun.iterdir(), key=lambda path: path.name == "config.json"):
                os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(begun, ignore_errors=True)


def push_to_hub(folder: Path, repo_id: str, private: bool) -> str:
    """Upload a finished run, without its checkpoints; the address of the repository."""
    api = HfApi()
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    ignore = ["checkpoints/*", ".*", "*/.*", "logs/*"]
    api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=ignore, commit_message="Fine-tuned model")
    return repo_id


def check_hub_access(repo_id: str, private: bool) -> None:
    """Make the repository before the training rather than after it.

    Raises:
        ValueError: if that is not possible, with the Hub's reason.
    """
    try:
        HfApi().create_repo(repo_id, private=private, exist_ok=True)
    except Exception as error:  # no network, no token, no permission, no such name: each has an exception of its own
        raise ValueError(f"The repository {repo_id} cannot be created on the Hub: {first_line(error)}") from error


def write_model_card(
    folder: Path, model: PreTrainedModel, results: dict, settings: dict, license_id: str, picture: bool
) -> None:
    """README.md with what was trained, how, and how well it does."""
    name, base = folder.resolve().name, settings.get("model_name_or_path")
    data = settings.get("data") or "local videos"
    metrics = [
        EvalResult("video-classification", "custom", data, metric, results[f"eval_{metric}"], metric_name=metric)
        for metric in ("top1", "top5")
        if results.get(f"eval_{metric}") is not None
    ]
    card_data = ModelCardData(
        license=license_id if license_id != "unknown" else None,
        library_name="transformers",
        pipeline_tag="video-classification",
        tags=["video-classification", "hf_tps", model.config.model_type],
        base_model=base if base and not Path(base).exists() else None,
        model_name=name,
        eval_results=metrics or None,
    )
    lines = [f"# {name}", "", f"`{type(model).__name__}` with {model.config.num_labels} classes, trained on {data}."]
    if base:
        lines.append(f"It began from `{Path(base).name if Path(base).exists() else base}`.")
    lines += ["", "| figure | value |", "|---|---|"]
    lines += [
        f"| {key} | {value:.4g} |" if isinstance(value, float) else f"| {key} | {value} |"
        for key, value in results.items()
        if isinstance(value, int | float)
    ]
    if picture:
        lines += ["", "![confusion matrix](confusion_matrix.png)"]
    classes = results.get("eval_per_class") or {}
    if classes:
        lines += ["", "## Classes", "", "| class | videos | top-1 |", "|---|---|---|"]
        lines += [
            f"| {label} | {entry['videos']} | {'' if entry['top1'] is None else format(entry['top1'], '.3f')} |"
            for label, entry in classes.items()
        ]
    lines += ["", "## Use", "", "```python", "import hf_tps  # registers the model with Transformers"]
    lines += [
        "from transformers import pipeline",
        "",
        f'print(pipeline("video-classification", model="{name}")("clip.mp4"))',
    ]
    lines += ["```", "", "## Training", "", "| flag | value |", "|---|---|"]
    lines += [f"| {key} | `{value}` |" for key, value in settings.items() if value not in (None, [], "", False)]
    lines += ["", f"Licence: {license_id}.", ""]
    with whole_file(folder / "README.md") as begun:
        ModelCard(f"---\n{card_data.to_yaml()}\n---\n\n" + "\n".join(lines)).save(begun)


def without_paths(arguments: dict) -> dict:
    """Settings for a card or a tracker: folders of this machine by their last name, nothing secret."""
    kept = {}
    for name, value in arguments.items():
        if name in ("recipe_settings", "output_dir", "cache_dir", "cache_frames", "resume_from_checkpoint"):
            continue
        if isinstance(value, Path) or (isinstance(value, str) and os.path.isabs(value)):
            value = Path(value).name
        kept[name] = value
    return kept
