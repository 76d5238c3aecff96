"""The ablations of TPS (paper, tables 2 to 4) in small: which patches move, which of the two shifts, which bias.

    python examples/experiments/ablations.py [--only pattern-A pattern-C] [--output_dir ablations_output]

On the motion benchmark with clips of 16 frames, since patterns C and D reach 4 and 8 frames away. Writes results.json
after every model, and at the end ablations.md, next to what the paper found on Something-Something v1 (Swin-T, top-1).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, wherever this file is run from

from examples.experiments.make_motion_dataset import MotionSettings
from examples.experiments.motion_experiments import (
    SMALL_TPS,
    Row,
    TrainingError,
    TrainingSettings,
    add_arguments,
    chosen,
    open_benchmark,
    run_rows,
)

# one epoch: nine models on clips of 16 frames within the hour
TRAINING = TrainingSettings(epochs=1, learning_rate=2e-3)
PATCH_ONLY = (None, "patch")

# name, title, the paper's top-1 (None: not in the paper), fields
ABLATIONS = (
    ("none", "no shift", 40.6, {"shift_order": None}),
    ("pattern-A", "patch shift alone, pattern A", 48.6, {"shift_order": PATCH_ONLY, "shift_pattern": "A"}),
    ("pattern-B", "patch shift alone, pattern B", 50.7, {"shift_order": PATCH_ONLY, "shift_pattern": "B"}),
    ("pattern-C", "patch shift alone, pattern C", 51.8, {"shift_order": PATCH_ONLY, "shift_pattern": "C"}),
    ("pattern-D", "patch shift alone, pattern D", 50.0, {"shift_order": PATCH_ONLY, "shift_pattern": "D"}),
    ("every-block", "patch shift alone, in every block", 46.4, {"shift_order": ("patch",)}),
    ("channel", "channel shift alone", 51.2, {"shift_order": ("channel", None)}),
    ("both", "patch and channel shift, the release's bias", None, {}),
    (
        "both-paper",
        "patch and channel shift, the paper's order and bias",
        52.2,
        {"shift_order": ("patch", "channel"), "relative_position_bias": "same_frame"},
    ),
)
ROWS = tuple(Row(name, title, "tps", {**SMALL_TPS, **fields}, TRAINING) for name, title, _, fields in ABLATIONS)


def table(results: Sequence[dict]) -> str:
    """The table in Markdown: mean and, with several seeds, spread of the top-1 accuracy."""
    lines = ["| TPS | top-1 here | frames shuffled | top-1 in the paper (SSv1) |", "|---|---|---|---|"]
    for name, title, published, _ in ABLATIONS:
        top1 = [figures["top1"] for figures in results if figures["row"] == name]
        mixed = [figures["shuffled"] for figures in results if figures["row"] == name]
        if not top1:
            continue
        spread = f" ± {np.std(top1):.1f}" if len(top1) > 1 else ""
        lines.append(f"| {title} | {np.mean(top1):.1f}{spread} | {np.mean(mixed):.1f} | {published or ''} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train small TPS models that differ in one choice.")
    add_arguments(parser, ROWS, "ablations_output")
    arguments = parser.parse_args(argv)
    # over 16 frames at half the speed: the same ways as in 8
    settings = MotionSettings(num_frames=16, speed=(0.04, 0.07), turn=(12.5, 20.0))
    jobs = [(row, False) for row in chosen(ROWS, arguments.only)]
    try:
        benchmark = open_benchmark(arguments, settings)
        results = run_rows(jobs, benchmark, arguments.output_dir, arguments.seeds, arguments.at_once)
    except (ValueError, OSError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = table(results)
    (arguments.output_dir / "ablations.md").write_text(text)
    print(f"\n{text}\nwritten: {arguments.output_dir}/results.json, ablations.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
