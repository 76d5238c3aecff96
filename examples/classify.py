"""Classify videos with a model of hf_tps (or any video classifier of Transformers):

python examples/classify.py clip.mp4 --model tps-t-k400 --plot answer.png
"""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForVideoClassification, PreTrainedModel

# not the one at the top level of transformers, which is a placeholder wherever torchvision is missing
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.video_processing_utils import VideoProcessorMixin

import hf_tps  # noqa: F401  (registers its models with the Auto classes)
from hf_tps.training.console import exit_code, print_error
from hf_tps.training.files import whole_file
from hf_tps.video_sources import name_of

FRAMES_IN_PICTURE = 8


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Classify videos.")
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="files or http(s) links")
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="folder or Hub id of the model")
    parser.add_argument("--top_k", type=int, default=5, help="classes to show for each video (default 5)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="picture with frames and top classes")
    parser.add_argument("--num_clips", type=int, help="clips of a video (default: as saved with the model)")
    parser.add_argument(
        "--num_crops", type=int, choices=(1, 3), help="crops of a clip (default: as saved with the model)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    if arguments.top_k < 1:
        parser.error(f"--top_k must be at least 1, got {arguments.top_k}")
    if arguments.plot is not None and not arguments.plot.parent.is_dir():
        parser.error(f"--plot {arguments.plot}: there is no folder {arguments.plot.parent}")
    return arguments


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
def classify(
    video: str, model: PreTrainedModel, processor: VideoProcessorMixin, top_k: int, **views: int
) -> tuple[list[tuple[str, float]], torch.Tensor]:
    """The top classes with their probabilities, and the frames that the model saw: (frames, height, width, 3)."""
    pixel_values = processor(video, num_frames=model.config.num_frames, return_tensors="pt", **views).pixel_values
    logits = model(pixel_values=pixel_values.to(model.device)).logits[0]
    multi_label = model.config.problem_type == "multi_label_classification"
    probabilities = logits.sigmoid() if multi_label else logits.softmax(-1)
    scores, ids = probabilities.topk(min(top_k, len(probabilities)))
    classes = [
        (model.config.id2label[index], score) for index, score in zip(ids.tolist(), scores.tolist(), strict=True)
    ]

    clip = pixel_values[0] if pixel_values.ndim == 5 else pixel_values[0, pixel_values.shape[1] // 2]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return classes, (clip * std + mean).clamp(0, 1).permute(0, 2, 3, 1)


def print_table(video: str, classes: list[tuple[str, float]]) -> None:
    width = max(len(label) for label, _ in classes)
    print(name_of(video))
    for rank, (label, score) in enumerate(classes, start=1):
        print(f"  {rank:>2}  {label:<{width}}  {score:7.2%}")


def plot(results: list[tuple[str, list[tuple[str, float]], torch.Tensor]], path: Path) -> None:
    """Frames of each video above a bar chart of its top classes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = FRAMES_IN_PICTURE
    bars = max(len(classes) for _, classes, _ in results)
    heights = [1.45, 0.32 * bars + 0.5] * len(results)
    figure = plt.figure(figsize=(1.35 * columns, sum(heights) + 0.35 * len(results)), layout="constrained")
    for block, (video, classes, frames) in zip(
        figure.subfigures(len(results), 1, squeeze=False)[:, 0], results, strict=True
    ):
        block.suptitle(Path(video).name, fontsize=11)
        grid = block.add_gridspec(2, columns, height_ratios=heights[:2])
        shown = torch.linspace(0, len(frames) - 1, min(columns, len(frames))).round().long().tolist()
        for column, index in enumerate(shown):
            axes = block.add_subplot(grid[0, column])
            axes.imshow(frames[index].numpy())
            axes.set_title(f"frame {index + 1} of {len(frames)}" if column == 0 else f"{index + 1}", fontsize=7)
            axes.axis("off")
        axes = block.add_subplot(grid[1, :])
        labels, scores = zip(*reversed(classes), strict=True)
        drawn = axes.barh(range(len(labels)), scores, color="#3b75af")
        axes.bar_label(drawn, [f"{score:.1%}" for score in scores], padding=3, fontsize=8)
        axes.set_yticks(range(len(labels)), labels, fontsize=9)
        axes.set_xlim(0, max(scores) * 1.15)
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    with whole_file(path) as begun:
        figure.savefig(begun, dpi=150)
    plt.close(figure)
    print(f"picture: {path}")


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        model, processor = load(arguments.model)
        model.to(arguments.device)
    except Exception as error:  # whatever a damaged folder makes a library raise
        print_error(error, arguments.model)
        return 1
    views = {"num_clips": arguments.num_clips, "num_crops": arguments.num_crops}
    views = {name: value for name, value in views.items() if value is not None}

    results, failures = [], 0
    for video in tqdm(arguments.videos, desc="classifying", unit="video", disable=None):
        try:
            classes, frames = classify(video, model, processor, arguments.top_k, **views)
        except Exception as error:  # one video does not end the others
            print_error(error, video)
            failures += 1
            continue
        results.append((video, classes, frames))
        print_table(video, classes)
    if arguments.plot is not None and results:
        failures += exit_code(plot, results, arguments.plot)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
