"""Proof that the models see time: each learns the motion benchmark, once with time and once without.

    python examples/experiments/evidence.py [--only tps xvit] [--output_dir evidence_output]

Opposite classes differ in the order of the frames alone (make_motion_dataset.py), so a network without time gets one of
two right. Writes results.json after every model, and at the end evidence.md (the table) and evidence.png.
"""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import ViTConfig

# not the one at the top level of transformers, which is a placeholder wherever torchvision is missing
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, wherever this file is run from

from examples.experiments.image_start import inflate_to_vivit, train_image_start
from examples.experiments.make_motion_dataset import MotionSettings
from examples.experiments.motion_experiments import (
    SMALL_TPS,
    Benchmark,
    Row,
    TrainingError,
    TrainingSettings,
    add_arguments,
    chosen,
    count_macs,
    model_folder,
    motion_figures,
    open_benchmark,
    run_rows,
)
from hf_tps import STTMForVideoClassification
from hf_tps.token_merging_backbones import backbone_of_config
from hf_tps.training import pictures

SETTINGS = MotionSettings()
# The targets of the table, per cent
SEES_TIME, BLIND, BACKWARDS = 95, 55, 90

# The image model that the ViTs start from: 3 blocks of width 64 on patches of 4 pixels
IMAGE_MODEL = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    # for narrow layers: 0.02 suits a width of 768
    "initializer_range": 0.1,
}

TUBELET = 2  # frames in a token of ViViT

ROWS = (
    Row(
        "tps",
        "TPS",
        "tps",
        SMALL_TPS,
        TrainingSettings(epochs=1, learning_rate=2e-3),
        off={"shift_order": None},
    ),
    Row(
        "laps",
        "LAPS (Visformer)",
        "laps",
        {
            "backbone": "visformer",
            "image_size": 64,
            "embed_dim": 96,
            "depths": (2, 2, 2),
            "num_heads": 4,
            "stem_channels": 16,
            "conv_groups": 4,
            "leap_levels": ((3, 2), (3, 1)),
            "initializer_range": 0.1,
        },
        TrainingSettings(epochs=1, learning_rate=1e-3, image_std=0.25),
        off={"attention_scope": "frame", "shift": None},
        image_size=64,
    ),
    Row(
        "tokshift",
        "TokShift",
        "laps",
        {"attention_scope": "frame", "shift": "token", "shift_div": 4},
        # at 4e-3 the direction that the image model sees is forgotten, and with it the turns
        TrainingSettings(epochs=1, learning_rate=5e-4),
        off={"shift": None},
        start="image",
    ),
    Row(
        "xvit",
        "XViT",
        "xvit",
        {"shift_div": 4, "classifier_dropout": 0.0, "temporal_head_layers": 1},
        TrainingSettings(epochs=2, learning_rate=5e-4),
        # a head over the frames' tokens that has no positions does not see their order; it stays
        off={"shift_div": 0, "num_temporal_embeddings": 1},
        start="image",
    ),
    Row(
        "shift",
        "ViT with a channel shift plugged in",
        "video_shift",
        {"shift": "channel", "shift_div": 4},
        TrainingSettings(epochs=1, learning_rate=2e-3),
        off={"shift": None, "shift_div": None},
        start="image",
    ),
    Row(
        "vivit",
        "ViViT (attention over all frames)",
        "vivit",
        {},
        TrainingSettings(epochs=3, learning_rate=5e-4),
        start="vivit",
    ),
)
# Whose tokens merge, without training, for the second table, and how: at the 38 % of the paper, and until it hurts
MERGING = {
    "xvit": (
        ("STTM", {}),
        ("random pairs", {"method": "tube-random"}),
        ("random drop", {"method": "tube-drop"}),
    ),
    "vivit": (
        ("STTM", {}),
        ("STTM, in space alone", {"temporal_share": 0.0}),
        ("most similar pairs, blind for frames and places (ToMe's way)", {"method": "tome"}),
        ("random pairs", {"method": "random"}),
        ("random drop", {"method": "drop"}),
    ),
}
RANDOM = ("random", "drop", "tube-random", "tube-drop")  # methods
RANDOM_SEEDS = 3


def prepare_starts(starts: dict[str, Path], data_seed: int, train_clips: int) -> None:
    """The image model and the ViViT made of it, where they are not there yet."""
    if not starts["image"].is_dir():
        train_image_start(starts["image"], ViTConfig(**IMAGE_MODEL), SETTINGS, data_seed, train_clips)
    if not starts["vivit"].is_dir():
        inflate_to_vivit(starts["image"], starts["vivit"], SETTINGS.num_frames, TUBELET)


def mean_of(results: Sequence[dict], row: str, time_off: bool, name: str) -> float | None:
    """Mean over the seeds; None where nothing was run."""
    values = [figures[name] for figures in results if (figures["row"], figures["time_off"]) == (row, time_off)]
    return float(np.mean(values)) if values else None


def table(results: Sequence[dict], rows: Sequence[Row]) -> str:
    """The table in Markdown. Accuracies in per cent, one entry that misses its target in bold."""

    def entry(row: Row, time_off: bool, name: str, wanted: float, at_least: bool) -> str:
        value = mean_of(results, row.name, time_off, name)
        if value is None:
            return ""
        met = value >= wanted if at_least else value <= wanted
        return f"{value:.1f}" if met else f"**{value:.1f}**"

    lines = [
        "| model | parameters | MACs | training clips | minutes | top-1 | time off | frames shuffled "
        "| backwards = opposite |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| target | | | | | >= {SEES_TIME} | <= {BLIND} | <= {BLIND} | >= {BACKWARDS} |",
    ]
    for row in rows:
        if mean_of(results, row.name, False, "top1") is None:
            continue
        parameters, macs, clips, seconds = (
            mean_of(results, row.name, False, name)
            for name in ("parameters", "macs", "training_clips", "training_seconds")
        )
        entries = (
            row.title,
            f"{parameters / 1e6:.2f} M",
            f"{macs / 1e6:.0f} M",
            f"{clips:.0f}",
            f"{seconds / 60:.1f}",
            entry(row, False, "top1", SEES_TIME, True),
            entry(row, True, "top1", BLIND, False),
            entry(row, False, "shuffled", BLIND, False),
            entry(row, False, "reversed", BACKWARDS, True),
        )
        lines.append(f"| {' | '.join(entries)} |")
    return "\n".join(lines) + "\n"


def test_merging(row: Row, folders: Sequence[Path], benchmark: Benchmark) -> list[dict]:
    """A trained model (one folder for each seed) with its tokens merged or dropped at equal cost."""
    processor = AutoVideoProcessor.from_pretrained(folders[0])
    ways = [
        ("untouched", {"keep_ratio": 1.0}),
        *MERGING[row.name],
        *((f"{title}, keep 0.5", {**settings, "keep_ratio": 0.5}) for title, settings in MERGING[row.name]),
    ]
    found = []
    for title, settings in tqdm(ways, desc=f"{row.title} merged", unit="way", disable=None):
        runs = []
        for folder in folders:
            model = STTMForVideoClassification.from_video_pretrained(folder, **settings)
            for seed in range(RANDOM_SEEDS if settings.get("method") in RANDOM else 1):
                torch.manual_seed(seed)
                runs.append(motion_figures(model, processor, benchmark, ("top1", "reversed")))
        figures = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
        backbone = model.config.backbone_config
        grid = backbone_of_config(backbone).own_grid(backbone)
        lengths = [budget.length_out for budget in model.config.merge_plan().budgets(grid)]
        macs = count_macs(model.config, model.config.image_size)
        found.append({"model": row.title, "title": title, "macs": macs, "tokens": lengths, **figures})
    return found


def merging_table(merging: Sequence[dict]) -> str:
    """The second table in Markdown; accuracies in per cent."""
    lines = [
        "| model | tokens | left after each stage | MACs | top-1 | backwards = opposite |",
        "|---|---|---|---|---|---|",
    ]
    for figures in merging:
        lengths = ", ".join(map(str, figures["tokens"]))
        lines.append(
            f"| {figures['model']} | {figures['title']} | {lengths} | {figures['macs'] / 1e6:.0f} M | "
            f"{figures['top1']:.1f} | {figures['reversed']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def plot(results: Sequence[dict], rows: Sequence[Row], path: Path) -> None:
    rows = [row for row in rows if mean_of(results, row.name, False, "top1") is not None]
    bars = (
        ("top-1", False, "top1", pictures.BLUE),
        ("backwards = opposite class", False, "reversed", pictures.GREEN),
        ("frames shuffled", False, "shuffled", pictures.GREY),
        ("time switched off", True, "top1", pictures.ORANGE),
    )
    figure = pictures.new_figure(2 + 1.5 * len(rows), 4)
    axes = figure.subplots()
    for number, (label, time_off, name, colour) in enumerate(bars):
        heights = [mean_of(results, row.name, time_off, name) or 0 for row in rows]
        axes.bar(np.arange(len(rows)) + (number - 1.5) * 0.2, heights, 0.2, label=label, color=colour)
    axes.axhline(50, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(rows)), [textwrap.fill(row.title, 20) for row in rows])
    axes.set_ylabel("validation clips, %")
    axes.set_ylim(0, 118)
    axes.set_yticks(range(0, 101, 25))
    axes.legend(ncols=4, loc="upper center", fontsize=pictures.TEXT, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    pictures.save_figure(figure, path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train small models with and without time on the motion benchmark.")
    add_arguments(parser, ROWS, "evidence_output")
    arguments = parser.parse_args(argv)
    rows = chosen(ROWS, arguments.only)
    # the longest first, so that no core is left alone with it at the end
    jobs = [(row, off) for row in reversed(rows) for off in (False, True) if not off or row.off is not None]
    starts = {name: arguments.output_dir / f"{name}_start" for name in ("image", "vivit")}
    try:
        benchmark = open_benchmark(arguments, SETTINGS)
        if any(row.start for row in rows):
            prepare_starts(starts, arguments.data_seed, arguments.train_clips)
        results = run_rows(jobs, benchmark, arguments.output_dir, arguments.seeds, arguments.at_once, starts)
        merging = []
        for row in rows:
            if row.name in MERGING:
                folders = [model_folder(arguments.output_dir, row.name, seed) for seed in arguments.seeds]
                merging += test_merging(row, folders, benchmark)
    except (ValueError, OSError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = table(results, ROWS) + ("\n" + merging_table(merging) if merging else "")
    (arguments.output_dir / "evidence.md").write_text(text)
    plot(results, ROWS, arguments.output_dir / "evidence.png")
    print(f"\n{text}\nwritten: {arguments.output_dir}/results.json, evidence.md, evidence.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
