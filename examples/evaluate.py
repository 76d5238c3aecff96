"""Test a video classifier by a paper's protocol, on one process or many:

    accelerate launch examples/evaluate.py --model_name_or_path tps-t-k400 --protocol k400-4x3 \
        --validation_file val.csv --video_dir videos --output_dir test-results

Leaves `scores.csv` (every class's score for every video), `results.json` and `confusion_matrix.png`.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

from accelerate import Accelerator

from hf_tps.plain_text import printable
from hf_tps.training import arguments as flags
from hf_tps.training import results as outcome
from hf_tps.training.console import exit_code, start_logging
from hf_tps.training.data import ClipReader, VideoDataset
from hf_tps.training.evaluation import predict
from hf_tps.training.metrics import summarize
from hf_tps.training.protocols import PROTOCOLS, protocol_views
from hf_tps.training.starting_points import (
    check_model,
    checkpoint_class_names,
    load_config,
    load_model,
    load_processor,
)
from hf_tps.training.video_lists import check_files, first_videos

logger = logging.getLogger("evaluate")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    listed = "\n".join(f"  {name:14} {source}" for name, (*_, source) in PROTOCOLS.items())
    parser = flags.FlagParser(
        description="Test a video classifier.",
        epilog=f"protocols (clips x crops):\n{listed}\n  saved          the views that the processor was saved with\n"
        "  2x3, ...       any number of clips, one crop or three",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model_name_or_path", required=True, help="video checkpoint: folder or Hub id")
    parser.add_argument("--protocol", default="saved", help="see below (default: saved)")
    parser.add_argument("--num_clips", type=int, help="instead of the protocol's")
    parser.add_argument("--num_crops", type=int, choices=(1, 3), help="instead of the protocol's")
    parser.add_argument("--batch_size", type=int, default=4, help="videos in a batch (default 4)")
    parser.add_argument("--view_batch_size", type=int, help="the most views in one forward pass (default: all)")
    parser.add_argument("--sttm_keep_ratio", type=float, help="merge tokens, keeping this share of them")
    parser.add_argument("--config_overrides", help="fields of the config: name=value,name=value")
    parser.add_argument("--attn_implementation", choices=("eager", "sdpa"))
    parser.add_argument("--trust_remote_code", action="store_true")
    parser.add_argument("--output_dir", type=Path, required=True)
    flags.add_data_arguments(parser, training=False)
    flags.add_clip_arguments(parser)
    arguments = parser.parse_args(argv)
    for name in ("num_clips", "batch_size", "view_batch_size", "max_eval_samples"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    return exit_code(evaluate, parse_arguments(argv))


def evaluate(arguments: argparse.Namespace) -> None:
    accelerator = Accelerator()
    start_logging(accelerator.is_main_process)
    source, trusted = arguments.model_name_or_path, arguments.trust_remote_code
    with accelerator.main_process_first():
        videos = flags.read_videos(arguments, "validation")
        if videos is None:
            raise ValueError("There is nothing to test: give --validation_dir, --validation_file or --dataset_name.")
        videos = first_videos(videos, arguments.max_eval_samples, seed=0)
        check_files(videos, arguments.on_broken_video)
        class_names = checkpoint_class_names(load_config(source, trusted))
        videos.label_ids(class_names)  # before the weights are loaded
        model = load_model(
            class_names,
            model_name_or_path=source,
            sttm_keep_ratio=arguments.sttm_keep_ratio,
            config_overrides=flags.config_overrides(arguments),
            attn_implementation=arguments.attn_implementation,
            trust_remote_code=trusted,
        )
        check_model(model)
        processor = load_processor(source, model.config, flags.processor_overrides(arguments))
        frames = flags.frame_cache(arguments, videos)
    views = protocol_views(arguments.protocol, processor)
    views |= {name: getattr(arguments, name) for name in ("num_clips", "num_crops") if getattr(arguments, name)}
    if arguments.short_side is not None:
        views["size"] = {"shortest_edge": arguments.short_side}
    dataset = VideoDataset(videos, class_names, ClipReader(processor, views=views), frames=frames)
    model.to(accelerator.device)

    begun = time.perf_counter()
    predictions = predict(
        accelerator.prepare_model(model, evaluation_mode=True),
        dataset,
        accelerator,
        batch_size=arguments.batch_size,
        view_batch_size=arguments.view_batch_size,
        num_workers=arguments.dataloader_num_workers,
        on_broken_video=arguments.on_broken_video,
    )
    seconds = time.perf_counter() - begun
    if not accelerator.is_main_process:
        return
    if (predictions.labels < 0).all():
        name, reason = next(iter(predictions.broken.items()))
        raise ValueError(f"None of {len(videos)} videos can be read; one of them: {printable(name)}: {reason}")
    summary = summarize(predictions.scores, predictions.labels, class_names)
    num_clips = views.get("num_clips", processor.num_clips)
    num_crops = views.get("num_crops", processor.num_crops)
    results = {
        **summary,
        "protocol": arguments.protocol,
        "num_clips": num_clips,
        "num_crops": num_crops,
        "num_frames": processor.num_frames,
        "view_aggregation": getattr(model.config, "view_aggregation", "probabilities"),
        "broken_videos": predictions.broken,
        "videos_per_second": len(videos) / seconds,
        "model": Path(source).name if Path(source).exists() else source,
    }
    folder = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    outcome.write_scores(folder / "scores.csv", videos.names, predictions.labels, predictions.scores, class_names)
    outcome.write_confusion_matrix(folder, predictions.scores, predictions.labels, class_names)
    outcome.write_json(folder / "results.json", results)
    logger.info(
        "%s: top1 %.4f, top5 %.4f on %d videos, %d clips x %d crops",
        *(folder, summary["top1"], summary["top5"], summary["videos"], num_clips, num_crops),
    )


if __name__ == "__main__":
    sys.exit(main())
