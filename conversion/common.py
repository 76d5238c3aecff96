"""What every converter shares: the command line, class names, and writing a checked folder in one step."""

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForVideoClassification, PreTrainedConfig, PreTrainedModel

import hf_tps
from hf_tps.configuration_base import check_num_labels as check_number_of_classes
from hf_tps.plain_text import one_line, printable
from hf_tps.training.class_names import read_class_names
from hf_tps.training.published import NUM_CLASSES, PublishedSettings
from hf_tps.training.staging import staging_folder

HEADS_FLAG = "--num_attention_heads"
# A model may need so many times the bytes of its file: another number of frames or pixels, a new head of many classes.
LARGEST_GROWTH, SMALL_MODEL_BYTES = 16, 64 * 2**20
LONGEST_MESSAGE = 4000
LABELS_FOLDER = Path(__file__).parent / "labels"
# Names of data sets whose class lists are in conversion/labels/, with the short names that --recipe knows
KNOWN_LABELS = {
    "kinetics400": "kinetics400.txt",
    "k400": "kinetics400.txt",
    "something-something-v2": "something-something-v2.txt",
    "ssv2": "something-something-v2.txt",
}


class ConversionError(ValueError):
    """The checkpoint, or what was asked for it, does not allow a conversion. The message says what to do."""


@dataclass
class Converted:
    """A checkpoint in the terms of this package, ready to be written."""

    config: PreTrainedConfig
    # of the `ForVideoClassification` class; without classifier.*: a new one is made
    state_dict: dict[str, torch.Tensor]
    model_class: type[PreTrainedModel]
    processor_settings: dict
    kind: str  # what the file was recognised as, for people
    data_set: str | None = None  # that the file speaks of; else what --recipe or the number of classes says
    known_labels: dict[str, str] = field(default_factory=lambda: KNOWN_LABELS)
    notes: list[str] = field(default_factory=list)  # what was left out or assumed, for people and the model card


# --- command line ----------------------------------------------------------------------------------------------------


def argument_parser(method: str, data_sets: Collection[str]) -> argparse.ArgumentParser:
    """The command line that all converters have in common."""
    parser = argparse.ArgumentParser(
        description=f"Convert an original {method} checkpoint to a folder that Transformers loads.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="the original file")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write")
    parser.add_argument("--original_config", type=Path, metavar="YAML", help="the release's own config, if needed")
    parser.add_argument(
        "--labels", metavar="NAME_OR_FILE", help=f"class names: one of {sorted(KNOWN_LABELS)}, or a .txt / .json file"
    )
    parser.add_argument(
        "--recipe",
        dest="data_set",
        choices=tuple(data_sets),
        help="data set whose sampling and views the processor gets",
    )
    parser.add_argument("--num_frames", type=positive_int, metavar="N", help="frames per clip")
    parser.add_argument("--image_size", type=positive_int, metavar="N", help="height and width in pixels")
    parser.add_argument(
        "--num_labels", type=positive_int, metavar="N", help="classes of a new head (image checkpoints)"
    )
    parser.add_argument(HEADS_FLAG, type=positive_int, metavar="N", help="heads, where shapes cannot tell")
    parser.add_argument("--license", metavar="ID", default="unknown", help="licence of the weights, for the model card")
    parser.add_argument("--overwrite", action="store_true", help="replace files in a folder that is not empty")
    parser.add_argument("--push_to_hub", metavar="ID", help="upload the folder to this repository")
    return parser


def positive_int(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def run(convert: Callable[[argparse.Namespace], Converted], arguments: argparse.Namespace) -> int:
    """Convert and write; what goes wrong becomes one line on stderr and exit code 1."""
    try:
        check_output_dir(arguments.output_dir, arguments.overwrite)
        converted = convert(arguments)
        apply_labels(converted, arguments.labels, arguments.data_set)
        write_folder(converted, arguments)
        if arguments.push_to_hub:
            push(arguments.output_dir, arguments.push_to_hub)
    except (ValueError, OSError, StrictDataclassError) as error:
        return refuse(arguments, str(error))
    except Exception as error:  # whatever a file can bring about, it is one sentence
        return refuse(
            arguments,
            f"{type(error).__name__}: {error} - this is a bug in hf_tps or a damaged file. Please report it, with the "
            "command and the file.",
        )
    return 0


def refuse(arguments: argparse.Namespace, message: str) -> int:
    """Print one line that names the file; the exit code."""
    message = one_line(message, LONGEST_MESSAGE)
    given = (arguments.checkpoint, arguments.original_config, arguments.labels, arguments.output_dir)
    if not any(printable(path) in message for path in given if path is not None):
        message = f"{printable(arguments.checkpoint)}: {message}"
    print(f"error: {message}", file=sys.stderr)
    return 1


def warn(message: str) -> None:
    print(f"warning: {printable(message, LONGEST_MESSAGE)}", file=sys.stderr)


def check_output_dir(output_dir: Path, overwrite: bool) -> None:
    try:
        output_dir.resolve()
    except (RuntimeError, OSError):
        raise ConversionError(f"--output_dir {output_dir} is a symbolic link that leads in a circle.") from None
    if output_dir.exists() and not output_dir.is_dir():
        raise ConversionError(f"--output_dir {output_dir} is a file; give a folder.")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not overwrite:
        raise ConversionError(f"--output_dir {output_dir} is not empty; give another folder, or --overwrite.")


# --- whose checkpoint it is ------------------------------------------------------------------------------------------


def strip_prefix(state_dict: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The state dict with `prefix` taken off every key, if every key has it (`module.` of distributed training)."""
    if state_dict and all(key.startswith(prefix) for key in state_dict):
        return {key.removeprefix(prefix): tensor for key, tensor in state_dict.items()}
    return state_dict


def recognise_layout(keys: list[str]) -> str | None:
    """Whose names a checkpoint's keys are: "tps", "xvit", "laps", "vit" (an image model), or None."""
    bare = {key.removeprefix("module.").removeprefix("backbone.").removeprefix("base_model.") for key in keys}
    if any(key.endswith("relative_position_bias_table") for key in bare):
        return "tps"
    if "temp_embed" in bare or any(key.startswith("consensus.") for key in bare):
        return "xvit"
    if any(key.startswith(("patch_embed1.", "pos_embed1", "stage1.")) for key in bare):
        return "laps"
    if "blocks.0.attn.qkv.weight" in bare:
        return "laps" if any("base_model." in key for key in keys) else "vit"
    return None


def check_layout(keys: list[str], wanted: tuple[str, ...], source: str | Path) -> str:
    """What `recognise_layout` makes of the keys, if it is one of `wanted`.

    Raises:
        ConversionError: for another one, naming the converter for it.
    """
    layout = recognise_layout(keys)
    if layout in wanted:
        return layout
    if layout is None:
        raise ConversionError(f"{source} is no checkpoint of a known family; its first keys are {keys[:5]}.")
    if layout == "vit":
        raise ConversionError(
            f"{source} is a ViT image checkpoint; XViT and LAPS start from those: conversion/convert_xvit.py, "
            "conversion/convert_laps.py."
        )
    raise ConversionError(f"{source} is a checkpoint of the family {layout!r}; use conversion/convert_{layout}.py.")


def model_shapes(model_class: type[PreTrainedModel], config: PreTrainedConfig, source: Path) -> dict[str, torch.Size]:
    """Names and shapes of all tensors that the model saves.

    Raises:
        ConversionError: if they need far more memory than the checkpoint has bytes.
    """
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in model_class(config).state_dict().items()}
    needed, held = 4 * sum(shape.numel() for shape in shapes.values()), source.stat().st_size
    if needed > LARGEST_GROWTH * held + SMALL_MODEL_BYTES:
        raise ConversionError(
            f"{source} has {held:,} bytes, but the model of these sizes would need {needed:,}: {config.num_frames} "
            f"frames of {config.image_size} pixels, {config.num_labels} classes. Ask for less, or look at the config."
        )
    return shapes


def num_classes(weight: torch.Tensor, source: Path) -> int:
    """Classes of the classifier that a video checkpoint has.

    Raises:
        ConversionError: if its weight is no matrix with a row for each class.
    """
    if weight.ndim != 2 or weight.numel() == 0:
        raise ConversionError(
            f"{source}: the weight of the classifier has shape {tuple(weight.shape)}; (classes, channels) is needed."
        )
    return weight.shape[0]


def check_num_labels(arguments: argparse.Namespace, num_labels: int) -> None:
    """Refuse another number of classes than the head of a video checkpoint has.

    Raises:
        ConversionError: if --num_labels contradicts it.
    """
    if arguments.num_labels not in (None, num_labels):
        raise ConversionError(
            f"{arguments.checkpoint} has a head for {num_labels} classes; --num_labels {arguments.num_labels} is for "
            "image checkpoints. To fine-tune on other classes, convert as it is and load with num_labels=... and "
            "ignore_mismatched_sizes=True."
        )


def new_head_labels(arguments: argparse.Namespace, known: dict[str, str]) -> int:
    """How many classes the new head of an image checkpoint gets.

    Args:
        known: as for `read_labels`.

    Raises:
        ConversionError: if neither --num_labels nor --recipe nor --labels tells.
    """
    if arguments.num_labels or arguments.data_set:
        num_labels = arguments.num_labels or NUM_CLASSES[arguments.data_set]
        check_number_of_classes(num_labels)
        return num_labels
    if arguments.labels:
        return len(read_labels(arguments.labels, known))
    raise ConversionError(
        f"{arguments.checkpoint} is an image checkpoint, whose head does not fit a video model: say how many classes "
        "the new head gets, with --num_labels, --labels or --recipe."
    )


def processor_settings(
    config: PreTrainedConfig, published: dict[str, PublishedSettings], data_set: str | None, default: str
) -> dict:
    """Settings of the processor: the release's test on the data set, or on the `default` one with a warning.

    Args:
        published: the release's settings by data set.
        data_set: None: what the number of classes tells.
    """
    data_set = data_set or data_set_with(config.num_labels)
    settings = published.get(data_set, published[default])
    if data_set not in published:
        warn(
            f"no --recipe, and {config.num_labels} classes tell no data set that it has: {settings.sampling} sampling, "
            f"{settings.num_clips} clip(s) x {settings.num_crops} crop(s)."
        )
    return {
        "num_frames": config.num_frames,
        "size": {"shortest_edge": config.image_size},
        "crop_size": {"height": config.image_size, "width": config.image_size},
        **settings.test_settings(),
    }


def check_complete(
    state_dict: dict[str, torch.Tensor],
    wanted: dict[str, torch.Size],
    original_name: Callable[[str], str],
    source: str | Path,
) -> None:
    """Compare a renamed state dict with the shapes that the model has.

    Raises:
        ConversionError: naming every key that is missing, unknown or of another shape, as the original file calls it.
    """
    problems = [f"missing key {original_name(name)}" for name in wanted if name not in state_dict]
    problems += [f"unknown key {original_name(name)}" for name in state_dict if name not in wanted]
    problems += [
        f"{original_name(name)} has shape {tuple(tensor.shape)} where {tuple(wanted[name])} is needed"
        for name, tensor in state_dict.items()
        if name in wanted and tensor.shape != wanted[name]
    ]
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise ConversionError(f"{source} does not fit the model: {shown}.")


# --- class names -----------------------------------------------------------------------------------------------------


def read_labels(name_or_file: str, known: dict[str, str] = KNOWN_LABELS) -> list[str]:
    """Class names in the order of their ids.

    Args:
        name_or_file: a name of `known`, or a file as `read_class_names` takes it.
        known: names of lists in conversion/labels/, with their files.

    Raises:
        ConversionError: if there is no such list, or if it is not one name for each id from 0 on.
    """
    path = LABELS_FOLDER / known[name_or_file] if name_or_file in known else Path(name_or_file)
    if not path.is_file():
        raise ConversionError(
            f"--labels {name_or_file}: neither a file nor one of {sorted(known)}. Other data sets' names come from "
            "a text file with one name a line, or a json file."
        )
    try:
        return read_class_names(path)
    except ValueError as error:
        raise ConversionError(f"--labels {error}") from None


def apply_labels(converted: Converted, labels: str | None, data_set: str | None) -> None:
    """Give the config its class names.

    Those asked for; else those of the data set, if its list is at hand and of the right length; else ids as names, with
    a warning.

    Raises:
        ConversionError: if there is no such list, or one of another length.
    """
    count, known = converted.config.num_labels, converted.known_labels
    if labels is not None:
        names = read_labels(labels, known)
        if len(names) != count:
            raise ConversionError(f"--labels {labels} has {len(names)} names, but the checkpoint has {count} classes.")
    else:
        data_set = data_set or converted.data_set or data_set_with(count)
        names = read_labels(data_set, known) if data_set in known else []
        if len(names) != count:
            warn(
                f"no class names are known for these {count} classes: ids stand as names. Give them with --labels FILE."
            )
            names = [str(index) for index in range(count)]
    converted.config.id2label = dict(enumerate(names))
    converted.config.label2id = {name: index for index, name in enumerate(names)}


def data_set_with(num_labels: int) -> str | None:
    """The data set that a number of classes speaks of: Kinetics-400 or -600, Something-Something v2."""
    return {400: "k400", 600: "k600", 174: "ssv2"}.get(num_labels)


# --- writing ---------------------------------------------------------------------------------------------------------


def write_folder(converted: Converted, arguments: argparse.Namespace) -> None:
    """Write model, processor, model card and code to a temporary folder, load it back, then move it into place.

    Raises:
        ConversionError: if what was loaded back is not what was converted, or if there is no room to write it.
    """
    output_dir = arguments.output_dir.resolve()  # where a symbolic link leads
    try:
        with staging_folder(output_dir) as staging:
            torch.manual_seed(0)  # for the classifier of an image checkpoint, the one part that may be new
            model = converted.model_class.from_pretrained(
                None, config=converted.config, state_dict=dict(converted.state_dict), dtype=torch.float32
            )
            model.save_pretrained(staging)
            hf_tps.TPSVideoProcessor(**converted.processor_settings).save_pretrained(staging)
            (staging / "README.md").write_text(model_card(converted, arguments), encoding="utf-8")
            check_written(staging, model, converted.state_dict)
            move_into_place(staging, output_dir)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{arguments.output_dir} could not be written: {error}") from error
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shown = printable(arguments.checkpoint)
    print(f"{shown}: {converted.kind}, {parameters:,} parameters, {converted.config.num_labels} classes")
    for note in converted.notes:
        print(f"  note: {note}")
    print(f"written to {printable(arguments.output_dir)}, loaded back without a missing, unexpected or changed tensor")


def check_written(folder: Path, model: PreTrainedModel, state_dict: dict[str, torch.Tensor]) -> None:
    """Load the folder back and compare it with what was to be written.

    Raises:
        ConversionError: for a tensor that is missing, left over or another one.
    """
    loaded, report = AutoModelForVideoClassification.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    problems = {name: sorted(map(str, entries)) for name, entries in report.items() if entries}
    if problems:
        raise ConversionError(f"The folder written does not load back cleanly: {problems}.")
    read_back, written = loaded.state_dict(), model.state_dict()
    changed = [name for name in written if not torch.equal(read_back[name], written[name])]
    changed += [name for name in state_dict if not torch.equal(read_back[name], state_dict[name].float())]
    if changed:
        raise ConversionError(f"The folder written loads back with other values: {sorted(set(changed))[:10]}.")


def move_into_place(staging: Path, output_dir: Path) -> None:
    """Rename the finished folder; into a folder that has files already, file by file, the config last."""
    umask = os.umask(0)  # temporary files and folders are for their owner alone; the result is not
    os.umask(umask)
    staging.chmod(0o777 & ~umask)
    for file in staging.iterdir():
        file.chmod(0o666 & ~umask)
    if not output_dir.exists() or not any(output_dir.iterdir()):
        os.replace(staging, output_dir)
        return
    for file in sorted(staging.iterdir(), key=lambda file: file.name == "config.json"):
        os.replace(file, output_dir / file.name)


def model_card(converted: Converted, arguments: argparse.Namespace) -> str:
    """README.md of the folder: what it is, where it comes from, how it is used. Says nothing that was not checked."""
    with arguments.checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config, settings = converted.config, converted.processor_settings
    views = settings["num_clips"] * settings["num_crops"]
    notes = "".join(f"- {note}\n" for note in converted.notes)
    original = printable(arguments.checkpoint.name)
    new_head = "classifier.weight" not in converted.state_dict
    return f"""---
license: {arguments.license}
library_name: transformers
pipeline_tag: video-classification
tags:
- video-classification
- {config.model_type}
- hf_tps
---

# {arguments.output_dir.name}

{converted.kind}, converted by hf_tps {hf_tps.__version__} from `{original}` (sha256 `{digest}`).
{config.num_frames} frames of {config.image_size} x {config.image_size} pixels, {config.num_labels} classes.
{"**The classifier is new (random): fine-tune before use.**" if new_head else ""}

```python
import hf_tps  # without the package: pipeline(..., trust_remote_code=True)
from transformers import pipeline

classify = pipeline("video-classification", model="{arguments.output_dir.name}")
print(classify("clip.mp4"))
```

The processor takes {settings["num_clips"]} clip(s) x {settings["num_crops"]} crop(s) of a video = {views} view(s), \
the protocol of the release's test; one view is {views} times cheaper:
`AutoVideoProcessor.from_pretrained(..., num_clips=1, num_crops=1)`.

{notes}
Accuracy was not measured by the conversion. The licence is what the person who converted stated ("unknown" if nothing).
"""


def push(folder: Path, repository: str) -> None:
    api = HfApi()
    api.create_repo(repository, exist_ok=True)
    print(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Converted by hf_tps"))
