"""Command-line flags that the scripts share, named as in Transformers' own examples.

The one file here that speaks of flags: the others name what they are given, and `about` puts the flag before it.
"""

import argparse
import difflib
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from transformers import PreTrainedConfig, PreTrainedModel

from ..configuration_sttm import STTMConfig
from ..frame_geometry import ROUNDINGS
from ..video_processing_tps import TPSVideoProcessor
from .augmentation import CROPS, AugmentationSettings, ClipAugmentation
from .batch_norm import check_batch_norms
from .class_names import names_of_directions, never_flipped
from .data import BrokenVideos, ClipReader
from .frame_cache import FrameCache
from .hub_datasets import StreamedVideos, read_hub_dataset
from .optimization import NO_DECAY_RULES, WARMUP_RULES
from .policies import AUTO_AUGMENT_POLICIES, RAND_AUGMENT_SPACES
from .published import short_side
from .recipes import RECIPES, recipe_named
from .starting_points import (
    FROM_IMAGE,
    check_fits_recipe,
    check_model,
    differences_from_recipe,
    freeze_backbone,
    image_size_of,
    load_config,
    load_model,
    load_processor,
    parse_overrides,
)
from .text import some
from .video_lists import (
    LabelledVideos,
    check_files,
    first_videos,
    read_class_folders,
    read_list,
    split_off_validation,
)

if TYPE_CHECKING:  # imported where it is used: it takes seconds
    import datasets

logger = logging.getLogger(__name__)

PROCESSOR_FLAGS = (
    *("sampling", "frame_interval", "index_rule", "past_end", "clip_placement"),
    *("image_mean", "image_std", "antialias", "rounding"),
)


@contextmanager
def about(flag: str) -> Iterator[None]:
    """Errors of what is done with the value of a flag name it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error


# What people type who know other programs
_OTHER_NAMES = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "workers": "dataloader_num_workers",
    "num_workers": "dataloader_num_workers",
    "wd": "weight_decay",
    "warmup_steps": "num_warmup_steps",
    "model": "model_name_or_path",
    "data": "train_dir",
    "out": "output_dir",
    "output": "output_dir",
    "resume": "resume_from_checkpoint",
}


class FlagParser(argparse.ArgumentParser):
    """A parser that proposes the flag that may have been meant.

    Attributes:
        further_flags: that something else parses, without dashes.
    """

    further_flags: tuple[str, ...] = ()

    def error(self, message: str) -> NoReturn:
        unknown = re.findall(r"--([\w-]+)", message) if message.startswith("unrecognized arguments") else []
        known = [option.removeprefix("--") for option in self._option_string_actions] + [*self.further_flags]
        for name in unknown:
            name = name.replace("-", "_")
            close = difflib.get_close_matches(name, known, n=1)
            meant = _OTHER_NAMES.get(name) if _OTHER_NAMES.get(name) in known else (close or [None])[0]
            if meant is not None:
                message += f"\ndid you mean --{meant} for --{name}?"
        super().error(message)


def add_data_arguments(parser: argparse.ArgumentParser, training: bool) -> None:
    group = parser.add_argument_group("data (one of: folder, list, data set)")
    if training:
        group.add_argument("--train_dir", type=Path, help="folder with one folder of videos for each class")
        group.add_argument("--train_file", type=Path, help="list of videos: CSV, TXT or JSON")
    group.add_argument("--validation_dir", type=Path, help="as --train_dir" if training else "folder of class folders")
    group.add_argument("--validation_file", type=Path, help="list of videos: CSV, TXT or JSON")
    group.add_argument("--video_dir", type=Path, help="where the paths of a list begin (default: beside the list)")
    group.add_argument("--label_names", type=Path, help="class names by id: a line each, or JSON {name: id}")
    group.add_argument("--dataset_name", help="data set of the Hub, or a local folder that `datasets` reads")
    group.add_argument("--dataset_config_name")
    group.add_argument(
        "--validation_split", default="validation", help="its split for validation (default %(default)s)"
    )
    group.add_argument("--video_column_name", help="default: found by its type")
    group.add_argument("--label_column_name", help="default: found by its type")
    group.add_argument("--cache_dir", help="where `datasets` keeps what it downloads")
    if training:
        group.add_argument("--train_split", default="train")
        group.add_argument(
            "--streaming", action="store_true", help="do not download the data set; needs --max_train_steps"
        )
        group.add_argument("--shuffle_buffer", type=int, default=256, help="videos in the buffer of --streaming")
        group.add_argument(
            "--train_val_split",
            type=float,
            default=0.15,
            help="share of the training videos for validation where none are given (default %(default)s; 0: none)",
        )
        group.add_argument("--max_train_samples", type=int)
    group.add_argument("--max_eval_samples", type=int)
    group.add_argument(
        "--cache_frames",
        type=Path,
        metavar="DIR",
        help="decode small videos once and keep their frames here, for this and later runs",
    )
    group.add_argument("--on_broken_video", choices=BrokenVideos.POLICIES, default="skip")
    group.add_argument("--dataloader_num_workers", type=int, default=2, help="processes that decode (default 2)")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model_name_or_path", help="video checkpoint, or an image checkpoint with --from_image")
    group.add_argument("--config_name", help="config (folder or file) to train from scratch")
    group.add_argument("--from_image", choices=tuple(FROM_IMAGE), help="family that starts from the image checkpoint")
    group.add_argument("--sttm_keep_ratio", type=float, help="merge tokens, keeping this share of them")
    group.add_argument("--config_overrides", help="fields of the config: name=value,name=value")
    group.add_argument("--drop_path_rate", type=float)
    group.add_argument("--classifier_dropout", type=float)
    group.add_argument("--attn_implementation", choices=("eager", "sdpa"))
    group.add_argument("--freeze_backbone", action="store_true", help="train the classifier only")
    group.add_argument(
        "--precise_bn_batches",
        type=int,
        default=0,
        help="before each test, make the statistics of batch norms anew from so many batches a process (0: do not)",
    )
    group.add_argument("--trust_remote_code", action="store_true")


def add_clip_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("clips (default: as saved with the model)")
    group.add_argument("--num_frames", type=int)
    group.add_argument("--sampling", choices=("uniform", "dense"))
    group.add_argument("--frame_interval", type=int)
    group.add_argument("--index_rule", choices=("stride", "linspace"))
    group.add_argument("--past_end", choices=("loop", "clamp"))
    group.add_argument("--clip_placement", choices=("centre", "start"))
    group.add_argument("--image_mean", type=float, nargs=3)
    group.add_argument("--image_std", type=float, nargs=3)
    group.add_argument("--antialias", action=argparse.BooleanOptionalAction, help="of resizing")
    group.add_argument("--rounding", choices=ROUNDINGS, help="of sizes, crops and resized pixels, as a library has it")
    group.add_argument("--crop_size", type=int)
    group.add_argument("--short_side", type=int, help="shorter side before the centre crop")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--recipe", choices=tuple(RECIPES), help="a paper's settings; any other flag overrides them")
    group.add_argument("--per_device_train_batch_size", type=int, default=8)
    group.add_argument("--per_device_eval_batch_size", type=int, default=8)
    group.add_argument("--gradient_accumulation_steps", type=int, help="default: the launcher's, else 1")
    group.add_argument("--num_train_epochs", type=int, default=10)
    group.add_argument("--max_train_steps", type=int, help="optimizer steps; overrides --num_train_epochs")
    group.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw")
    group.add_argument("--learning_rate", type=float, default=1e-4)
    group.add_argument(
        "--scale_learning_rate", action="store_true", help="scale the recipe's rate to this run's batch size"
    )
    group.add_argument("--adam_beta1", type=float, default=0.9)
    group.add_argument("--adam_beta2", type=float, default=0.999)
    group.add_argument("--momentum", type=float, default=0.9)
    group.add_argument("--nesterov", action=argparse.BooleanOptionalAction, default=False)
    group.add_argument("--weight_decay", type=float, default=0.05)
    group.add_argument("--no_decay", choices=NO_DECAY_RULES, default="standard", help="what weight decay spares")
    group.add_argument("--backbone_lr_multiplier", type=float, default=1.0)
    group.add_argument("--layer_decay", type=float, default=1.0, help="lr factor for each block away from the head")
    group.add_argument("--full_lr_names", nargs="*", default=[], help="parameters that keep the head's rate")
    group.add_argument("--lr_scheduler_type", default="cosine", help="a schedule of Transformers, or multistep")
    group.add_argument("--lr_milestones", type=float, nargs="*", default=[], help="epochs, for multistep")
    group.add_argument("--warmup_epochs", type=float, default=0.0)
    group.add_argument("--num_warmup_steps", type=int, help="overrides --warmup_epochs")
    group.add_argument(
        "--warmup_rule",
        choices=WARMUP_RULES,
        default="before",
        help="the schedule begins after the warm-up, or runs from the first step and is multiplied or joined by it",
    )
    group.add_argument("--warmup_start_factor", type=float, help="share of the rate that the warm-up begins at")
    group.add_argument(
        "--schedule_by_epoch",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="the schedule, but not the warm-up, changes the rate between epochs only",
    )
    group.add_argument("--max_grad_norm", type=float, help="clip the gradient to this norm (default: do not)")
    group.add_argument("--gradient_checkpointing", action="store_true")
    group.add_argument("--ema_decay", type=float, help="keep (and save) a moving average of the weights")
    group.add_argument("--seed", type=int, default=42)


def add_augmentation_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("augmentation")
    group.add_argument("--crop", choices=CROPS, default="random_resized")
    group.add_argument("--crop_scale", type=float, nargs=2, default=[0.08, 1.0], help="area of random_resized")
    group.add_argument("--crop_short_side", type=int, nargs=2, default=[256, 320], help="shorter side of jitter")
    group.add_argument("--flip", type=float, default=0.5, help="probability (default %(default)s)")
    group.add_argument(
        "--no_flip_classes", nargs="*", default=[], help="names or ids; left_right: found by their names"
    )
    group.add_argument("--rand_augment_ops", type=int, default=0)
    group.add_argument("--rand_augment_magnitude", type=float, default=9.0)
    group.add_argument(
        "--rand_augment_space", choices=RAND_AUGMENT_SPACES, default="torch", help="imgaug: that of TPS' release"
    )
    group.add_argument(
        "--auto_augment", choices=tuple(AUTO_AUGMENT_POLICIES), help="a policy, before the crop; v0: XViT's release"
    )
    group.add_argument("--color_jitter", type=float, default=0.0, help="probability")
    for name, (low, high) in AugmentationSettings().jitter_ranges().items():
        group.add_argument(f"--jitter_{name}", type=float, nargs=2, default=[low, high], help="range of --color_jitter")
    group.add_argument("--erasing", type=float, default=0.0, help="probability")
    group.add_argument("--label_smoothing", type=float, default=0.0)
    group.add_argument("--mixup", type=float, default=0.0, help="alpha; 0: off")
    group.add_argument("--cutmix", type=float, default=0.0, help="alpha; 0: off")
    group.add_argument("--no_augmentation", action="store_true", help="the test's crop, whatever the flags above say")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", type=Path, required=True)
    group.add_argument("--overwrite_output_dir", action="store_true", help="start anew in a folder with an older run")
    group.add_argument("--checkpointing_steps", default="epoch", help="a number of steps, epoch, or no (default epoch)")
    group.add_argument("--checkpoints_total_limit", type=int, default=2)
    group.add_argument("--keep_best", action="store_true", help="end with the weights of the epoch of the best top-1")
    group.add_argument(
        "--early_stopping_patience", type=int, metavar="N", help="stop after N epochs without a better top-1"
    )
    group.add_argument("--resume_from_checkpoint", help="a checkpoint folder, or latest")
    group.add_argument("--logging_steps", type=int, default=10)
    group.add_argument("--report_to", help="tracker of accelerate: tensorboard, wandb, ..., or all")
    group.add_argument("--push_to_hub", action="store_true")
    group.add_argument("--hub_model_id", help="default: the name of --output_dir")
    group.add_argument("--hub_private_repo", action="store_true")
    group.add_argument("--license", default="unknown", help="for the model card: that of the data and start weights")


def parse_with_recipe(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; a recipe's values stand where a flag was not given. `recipe_settings` of the result lists those."""
    argv = list(sys.argv[1:] if argv is None else argv)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--recipe", choices=tuple(RECIPES))
    name = early.parse_known_args(argv)[0].recipe
    settings = {} if name is None else recipe_named(name).settings
    parser.set_defaults(**settings)
    arguments = parser.parse_args(argv)
    arguments.recipe_settings = settings
    return arguments


def describe_recipe(arguments: argparse.Namespace, total_batch_size: int) -> str:
    """What a recipe set, what was overridden, and what the paper did otherwise."""
    recipe = recipe_named(arguments.recipe)
    lines = [f"recipe {arguments.recipe}: {recipe.source}"]
    used = vars(arguments)
    if begins_with_trained_video_weights(arguments):
        lines.append("  the network is that of the checkpoint")
    else:
        lines += _lines(recipe.network, config_overrides(arguments), f"{recipe.model_type} ")
    lines += _lines(recipe.settings, used)
    lines += [f"  note: {note}" for note in recipe.deviations]
    if recipe.total_batch_size not in (None, total_batch_size):
        remedy = " (scaled)." if arguments.scale_learning_rate else "; --scale_learning_rate scales it."
        batches = f"batches of {recipe.total_batch_size} clips, these have {total_batch_size}"
        lines.append(f"  note: its learning rate is for {batches}{remedy}")
    return "\n".join(lines)


def _lines(wanted: Mapping[str, Any], used: Mapping[str, Any], beginning: str = "") -> list[str]:
    """One line for each value of a recipe that names the one in use, if that is another."""
    return [
        f"  {beginning}{name} = {used[name]}" + ("" if used[name] == value else f"  (the recipe: {value})")
        for name, value in wanted.items()
    ]


def _load_split(
    arguments: argparse.Namespace, split: str, streaming: bool = False
) -> "datasets.Dataset | datasets.IterableDataset | None":
    """One split of the data set that the flags name; None if it has no such split."""
    from datasets import load_dataset

    try:
        return load_dataset(
            arguments.dataset_name,
            arguments.dataset_config_name,
            split=split,
            cache_dir=arguments.cache_dir,
            streaming=streaming,
        )
    except ValueError as error:
        if "Unknown split" in str(error) or "Bad split" in str(error):
            return None
        raise


def read_videos(arguments: argparse.Namespace, part: str) -> LabelledVideos | None:
    """The videos of one part ("train" or "validation"), or None if no flag names any.

    Raises:
        FileNotFoundError, ValueError: if what is named cannot be read, or more than one source is named.
    """
    folder, file = getattr(arguments, f"{part}_dir"), getattr(arguments, f"{part}_file")
    given = [source for source in (folder, file, arguments.dataset_name) if source is not None]
    if len(given) > 1:
        raise ValueError(f"--{part}_dir, --{part}_file and --dataset_name exclude each other; given are {given}.")
    if folder is not None:
        return read_class_folders(folder)
    if file is not None:
        return read_list(file, arguments.video_dir, arguments.label_names)
    if arguments.dataset_name is None:
        return None
    split = getattr(arguments, f"{part}_split")
    dataset = _load_split(arguments, split)
    if dataset is None and part == "validation":
        return None
    if dataset is None:
        raise ValueError(f"{arguments.dataset_name} has no split {split!r}.")
    return read_hub_dataset(dataset, arguments.dataset_name, arguments.video_column_name, arguments.label_column_name)


def read_training_data(arguments: argparse.Namespace) -> tuple[LabelledVideos, LabelledVideos | None]:
    """Videos to train on and to validate with; where no validation is named, a part of the former.

    Raises:
        FileNotFoundError, ValueError: if there are none, files are missing, or validation has classes of its own.
    """
    train = read_videos(arguments, "train")
    if train is None:
        raise ValueError("There is nothing to train on: give --train_dir, --train_file or --dataset_name.")
    validation = read_videos(arguments, "validation")
    if validation is None and arguments.train_val_split > 0:
        with about("--train_val_split"):
            train, validation = split_off_validation(train, arguments.train_val_split, arguments.seed)
    train = first_videos(train, arguments.max_train_samples, arguments.seed)
    check_files(train, arguments.on_broken_video)
    return train, None if validation is None else _checked_validation(arguments, validation, train.class_names)


def _checked_validation(
    arguments: argparse.Namespace, validation: LabelledVideos, class_names: Sequence[str]
) -> LabelledVideos:
    validation = first_videos(validation, arguments.max_eval_samples, arguments.seed)
    check_files(validation, arguments.on_broken_video)
    validation.label_ids(class_names)  # now, before a model is loaded
    return validation


def read_training_stream(
    arguments: argparse.Namespace, rank: int, world_size: int
) -> tuple[StreamedVideos, LabelledVideos | None]:
    """This process's share of a streamed data set, and its validation split, which is not streamed.

    Raises:
        ValueError: without --dataset_name and --max_train_steps, or for a split that does not exist.
    """
    from datasets.distributed import split_dataset_by_node

    if arguments.dataset_name is None or arguments.max_train_steps is None:
        raise ValueError(
            "--streaming needs --dataset_name and --max_train_steps: a stream does not say how long it is."
        )
    dataset = _load_split(arguments, arguments.train_split, streaming=True)
    if dataset is None:
        raise ValueError(f"{arguments.dataset_name} has no split {arguments.train_split!r}.")
    stream = StreamedVideos(
        split_dataset_by_node(dataset, rank=rank, world_size=world_size),
        arguments.dataset_name,
        arguments.video_column_name,
        arguments.label_column_name,
        arguments.seed,
        arguments.shuffle_buffer,
    )
    validation = read_videos(arguments, "validation")
    return stream, None if validation is None else _checked_validation(arguments, validation, stream.class_names)


def begins_with_trained_video_weights(arguments: argparse.Namespace) -> bool:
    """Whether the start is a finished video model, which keeps the network that its weights were trained in."""
    return arguments.model_name_or_path is not None and arguments.from_image is None


def config_overrides(arguments: argparse.Namespace) -> dict:
    """Fields of the model's config that flags set, above those of a recipe's network where the start is none yet."""
    recipe_name = getattr(arguments, "recipe", None)
    overrides: dict[str, Any] = {}
    if recipe_name is not None and not begins_with_trained_video_weights(arguments):
        overrides |= recipe_named(recipe_name).network
    with about("--config_overrides"):
        overrides |= parse_overrides(arguments.config_overrides)
    for name in ("num_frames", "drop_path_rate", "classifier_dropout"):
        if getattr(arguments, name, None) is not None:
            overrides[name] = getattr(arguments, name)
    return overrides


def processor_overrides(arguments: argparse.Namespace) -> dict:
    """Settings of the processor that flags set. Training keeps one view; the test's views are a protocol's matter."""
    overrides = {name: getattr(arguments, name) for name in PROCESSOR_FLAGS if getattr(arguments, name) is not None}
    if arguments.crop_size is not None:
        overrides["crop_size"] = {"height": arguments.crop_size, "width": arguments.crop_size}
        overrides["size"] = {"shortest_edge": short_side(arguments.crop_size)}
    if arguments.short_side is not None:
        overrides["size"] = {"shortest_edge": arguments.short_side}
    return overrides


def augmentation_settings(arguments: argparse.Namespace, class_names: Sequence[str]) -> AugmentationSettings | None:
    """What the flags say about augmentation; None with --no_augmentation."""
    if arguments.no_augmentation:
        return None
    with about("--no_flip_classes"):
        no_flip = never_flipped(class_names, arguments.no_flip_classes)
    mirrored = names_of_directions(name for number, name in enumerate(class_names) if number not in no_flip)
    if mirrored and arguments.flip > 0:
        logger.warning(
            "%d classes name a direction, and --flip %g mirrors their clips without changing the class: %s. --flip 0 "
            "mirrors none, --no_flip_classes with their names spares them.",
            *(len(mirrored), arguments.flip, some(mirrored)),
        )
    return AugmentationSettings(
        crop=arguments.crop,
        scale=tuple(arguments.crop_scale),
        short_side=tuple(arguments.crop_short_side),
        flip=arguments.flip,
        no_flip=no_flip,
        rand_augment_ops=arguments.rand_augment_ops,
        rand_augment_magnitude=arguments.rand_augment_magnitude,
        rand_augment_space=arguments.rand_augment_space,
        auto_augment=arguments.auto_augment,
        color_jitter=arguments.color_jitter,
        jitter_brightness=tuple(arguments.jitter_brightness),
        jitter_saturation=tuple(arguments.jitter_saturation),
        jitter_gamma=tuple(arguments.jitter_gamma),
        jitter_hue=tuple(arguments.jitter_hue),
        erasing=arguments.erasing,
    )


def clip_reader(
    arguments: argparse.Namespace, class_names: Sequence[str], processor: TPSVideoProcessor, views: dict
) -> ClipReader:
    """From a video to pixels: augmented for training as the flags say, seen by these `views` in a test."""
    settings = augmentation_settings(arguments, class_names)
    if settings is None:
        return ClipReader(processor, views=views)
    crop_size = (processor.crop_size["height"], processor.crop_size["width"])
    augmentation = ClipAugmentation(settings, crop_size, processor.antialias, processor.rounding)
    return ClipReader(processor, augmentation, views)


def frame_cache(arguments: argparse.Namespace, videos: LabelledVideos) -> FrameCache | None:
    """The decoded frames of these videos where `--cache_frames` keeps them, else None."""
    if arguments.cache_frames is None:
        return None
    return FrameCache.of(videos, arguments.cache_frames, arguments.dataloader_num_workers)


def check_training_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with a message for values that no run can use."""
    for name in (
        *("per_device_train_batch_size", "per_device_eval_batch_size", "num_train_epochs", "logging_steps"),
        *("max_train_steps", "gradient_accumulation_steps", "checkpoints_total_limit", "shuffle_buffer"),
        "early_stopping_patience",
    ):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if arguments.dataloader_num_workers < 0:
        parser.error(f"--dataloader_num_workers must be 0 or more, got {arguments.dataloader_num_workers}")
    if not 0 <= arguments.label_smoothing < 1:
        parser.error(f"--label_smoothing must lie in [0, 1), got {arguments.label_smoothing}")
    if not 0 <= arguments.train_val_split < 1:
        parser.error(f"--train_val_split must lie in [0, 1), got {arguments.train_val_split}")
    if arguments.warmup_start_factor is not None and not 0 <= arguments.warmup_start_factor <= 1:
        parser.error(f"--warmup_start_factor must lie in [0, 1], got {arguments.warmup_start_factor}")
    for name in ("mixup", "cutmix"):
        if getattr(arguments, name) < 0:
            parser.error(f"--{name} must be 0 or more, got {getattr(arguments, name)}")
    if arguments.checkpointing_steps not in ("epoch", "no") and not (
        arguments.checkpointing_steps.isdecimal() and int(arguments.checkpointing_steps) > 0
    ):
        parser.error(
            f"--checkpointing_steps must be a number of steps, epoch or no, got {arguments.checkpointing_steps}"
        )
    if arguments.streaming and arguments.precise_bn_batches:
        parser.error("--precise_bn_batches needs clips by number, which --streaming has not: give 0")
    if arguments.scale_learning_rate and arguments.recipe is None:
        parser.error("--scale_learning_rate needs --recipe, whose batch size it scales from")
    if arguments.scale_learning_rate and recipe_named(arguments.recipe).total_batch_size is None:
        parser.error(
            f"--scale_learning_rate: on how many GPUs the release trained {arguments.recipe} is not known, so neither "
            "is the batch that its rate is for; set --learning_rate"
        )


def checkpoint_is_due(when: str, step: int, epoch_ends: bool, last: bool) -> bool:
    """Whether a checkpoint is due after this step: `--checkpointing_steps`, and the last step unless it says "no"."""
    if when == "no":
        return False
    return last or (epoch_ends if when == "epoch" else step % int(when) == 0)


def data_name(arguments: argparse.Namespace) -> str:
    """What the model card calls the data."""
    if arguments.dataset_name:
        return Path(arguments.dataset_name).name if Path(arguments.dataset_name).exists() else arguments.dataset_name
    return (arguments.train_dir or arguments.train_file).resolve().name


def check_start_fits_recipe(arguments: argparse.Namespace) -> None:
    """Refuse a start of another family than the recipe's, before anything is loaded.

    Raises:
        ValueError: naming both; also if a file cannot be read.
    """
    if arguments.from_image is not None:
        source = f"--from_image {arguments.from_image}"
        check_fits_recipe(arguments.recipe, FROM_IMAGE[arguments.from_image].config_class, source)
        return
    source = arguments.model_name_or_path or arguments.config_name
    if source is None:
        return  # refused, with the flags to give, where the model is loaded
    if arguments.sttm_keep_ratio is not None:
        check_fits_recipe(arguments.recipe, STTMConfig, "--sttm_keep_ratio")
    check_fits_recipe(arguments.recipe, load_config(source, arguments.trust_remote_code), source)


def warn_of_another_network(arguments: argparse.Namespace, config: PreTrainedConfig) -> None:
    """Say where trained video weights have another network than the recipe's; it stays as it is."""
    asked_for = config_overrides(arguments)
    for name, (wanted, found) in differences_from_recipe(arguments.recipe, config).items():
        if name not in asked_for:
            logger.warning(
                "%s has %s=%s where the recipe %s has %s; the checkpoint keeps it (--config_overrides changes it)",
                *(arguments.model_name_or_path, name, found, arguments.recipe, wanted),
            )


def build_model(arguments: argparse.Namespace, class_names: Sequence[str]) -> tuple[PreTrainedModel, TPSVideoProcessor]:
    """The model that the flags of a training ask for, for these classes, and its processor."""
    recipe_name = getattr(arguments, "recipe", None)
    if recipe_name is not None:
        check_start_fits_recipe(arguments)
    # What image weights refuse may be the recipe's: its network on a ViT where the file is a Visformer.
    with nullcontext() if recipe_name is None else about(f"--recipe {recipe_name}"):
        model = load_model(
            class_names,
            model_name_or_path=arguments.model_name_or_path,
            config_name=arguments.config_name,
            from_image=arguments.from_image,
            sttm_keep_ratio=arguments.sttm_keep_ratio,
            config_overrides=config_overrides(arguments),
            attn_implementation=arguments.attn_implementation,
            trust_remote_code=arguments.trust_remote_code,
        )
    check_model(model)
    with about("--precise_bn_batches"):
        check_batch_norms(model, arguments.precise_bn_batches)
    if recipe_name is not None and begins_with_trained_video_weights(arguments):
        warn_of_another_network(arguments, model.config)
    if arguments.freeze_backbone:
        freeze_backbone(model)
    source = arguments.model_name_or_path or arguments.config_name
    processor = load_processor(source, model.config, processor_overrides(arguments))
    warn_of_other_sizes(model.config, processor)
    return model, processor


def warn_of_other_sizes(config: PreTrainedConfig, processor: TPSVideoProcessor) -> None:
    """Say where clips are larger or smaller than what the model was made for: it may be slow, or see too little."""
    made_for, given = image_size_of(config), max(dict(processor.crop_size).values())
    if made_for is not None and made_for != given:
        logger.warning(
            "clips of %d x %d pixels go into a model made for %d x %d: about %.2g times the work of a step. "
            "--crop_size %d fits the model, --config_overrides image_size=%d another one.",
            *(given, given, made_for, made_for, (given / made_for) ** 2, made_for, given),
        )
