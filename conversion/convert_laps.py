"""Convert a LAPS or TokShift checkpoint, or an image checkpoint to start from, to a folder that Transformers loads.

LAPS and TokShift: any network of the release's model zoo; images: Visformer, or ViT as timm has it:

    python conversion/convert_laps.py model_best.pth --output_dir laps-visformer-s-k400 \\
        --original_config visformer_LAPS_8x8.yaml
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the clone, wherever this file is run from

from conversion.common import (
    HEADS_FLAG,
    KNOWN_LABELS,
    ConversionError,
    Converted,
    argument_parser,
    check_complete,
    check_layout,
    check_num_labels,
    model_shapes,
    new_head_labels,
    num_classes,
    processor_settings,
    run,
    strip_prefix,
)
from conversion.settings import (
    INPUT_SETTINGS,
    Check,
    known_settings,
    list_of,
    read_yaml_file,
    section_of,
    text,
    whole_number,
)
from hf_tps import LAPSConfig, LAPSForVideoClassification
from hf_tps.checkpoint_reading import Checkpoint, unwrap_state_dict
from hf_tps.configuration_base import RANGES
from hf_tps.image_weights import (
    is_visformer,
    original_visformer_name,
    resize_visformer_positions,
    resize_vit_positions,
    timm_vit_name,
    visformer_image_fields,
    vit_image_fields,
)
from hf_tps.modeling_laps import laps_names_of_vit_fields
from hf_tps.torch_files import read_torch_file
from hf_tps.training.published import data_sets_of

# The release numbers the classes of Kinetics-400 in an order of its own
LABELS = {**KNOWN_LABELS, "kinetics400": "kinetics400_laps_order.txt", "k400": "kinetics400_laps_order.txt"}

# attention_scope and shift of the networks of the release (MODEL.NET)
NETWORKS = {
    "Visformer_LAPS": ("leap", "periodic"),
    "Visformer_PS": ("frame", "periodic"),
    "Visformer_plain_shift": ("frame", "plain"),
    "Visformer_base3D": ("joint", None),
    "Visformer": ("frame", None),
    "ViT_LAPS": ("leap", "periodic"),
    "TokShift": ("frame", "token"),
}


def leap_level(value: Any) -> int | None:
    """The release writes "None" where a block has no level."""
    if value in (None, "None", "none", "null"):
        return None
    return whole_number(1, 12)(value)


SECTIONS = ("DATA", "MODEL")
# The entries of the release's configs that are read
SETTINGS: dict[str, Check] = {
    **INPUT_SETTINGS,
    "NET": text,
    "FOLD_DIV": whole_number(*RANGES["shift_div"]),
    "S2_SKIP_LEVEL": list_of(leap_level),
    "S3_SKIP_LEVEL": list_of(leap_level),
}
# Tests of the release (configs/custom/k400) by backbone and data set, and the one data set
PUBLISHED, DEFAULT = {"visformer": data_sets_of("laps"), "vit": data_sets_of("laps-vit")}, "k400"
TOKSHIFT = data_sets_of("tokshift")


def convert(arguments: argparse.Namespace) -> Converted:
    """Recognise the file, and put its config and weights into the terms of this package.

    Raises:
        ConversionError: for a file of another kind, and for keys that are missing, unknown or of a wrong shape.
    """
    source = arguments.checkpoint
    loaded = read_torch_file(source)
    state_dict = unwrap_state_dict(loaded, ("state_dict", "model"), source)
    check_layout(list(state_dict), ("laps", "vit"), source)
    bare = strip_prefix(state_dict, "module.")
    if any(key.startswith("base_model.") for key in bare):
        unknown = [key for key in bare if not key.startswith("base_model.")]
        if unknown:
            raise ConversionError(f"{source}: " + "; ".join(f"unknown key {key}" for key in unknown[:20]) + ".")
        bare = strip_prefix(bare, "base_model.")
    # Video checkpoints carry a prefix, or stand under `state_dict`; a bare file with a config is one too.
    wrapped = isinstance(loaded.get("state_dict"), dict)
    is_video = wrapped or bare is not state_dict or ("model" not in loaded and arguments.original_config is not None)

    settings = {}
    if arguments.original_config is not None:
        settings = flat_settings(read_yaml_file(arguments.original_config), arguments.original_config)
    elif is_video:
        raise ConversionError(
            f"{source}: the weights do not tell the network, its leap levels and its shift; give the release's YAML "
            "(sections DATA and MODEL) with --original_config."
        )
    prefix = next(iter(state_dict)).removesuffix(next(iter(bare)))
    return convert_weights(bare, prefix, settings, is_video, arguments)


def convert_weights(
    bare: dict[str, torch.Tensor], original_prefix: str, settings: dict, is_video: bool, arguments: argparse.Namespace
) -> Converted:
    source = arguments.checkpoint
    checkpoint = Checkpoint(bare, None, str(source))
    backbone = "visformer" if is_visformer(bare) else "vit"
    if backbone == "visformer":
        fields, weights = visformer_image_fields(checkpoint, arguments.num_attention_heads, HEADS_FLAG)
    else:
        fields, weights = vit_image_fields(checkpoint, arguments.num_attention_heads, HEADS_FLAG)
        fields = laps_names_of_vit_fields(fields)
    image_size = fields.pop("image_size")

    head = {name: bare[f"head.{name}"] for name in ("weight", "bias") if f"head.{name}" in bare} if is_video else {}
    if is_video:
        lacking = [name for name in ("weight", "bias") if name not in head]
        if lacking:
            raise ConversionError(
                f"{source}: " + "; ".join(f"missing key {original_prefix}head.{name}" for name in lacking)
            )
        num_labels = num_classes(head["weight"], source)
        check_num_labels(arguments, num_labels)
    else:
        num_labels = new_head_labels(arguments, LABELS)

    config = LAPSConfig(
        **{
            **fields,
            **network(settings, backbone, source),
            "backbone": backbone,
            "num_frames": arguments.num_frames or settings.get("NUM_FRAMES") or PUBLISHED[backbone][DEFAULT].num_frames,
            "image_size": arguments.image_size or settings.get("TEST_CROP_SIZE") or image_size,
            "num_labels": num_labels,
        }
    )
    names = original_visformer_name if backbone == "visformer" else timm_vit_name
    prefix = "laps.backbone."
    wanted = model_shapes(LAPSForVideoClassification, config, source)
    wanted = {name.removeprefix(prefix): shape for name, shape in wanted.items() if name.startswith(prefix)}
    positions = [name for name in wanted if name.endswith("position_embeddings") and name in weights]
    wanted.update({name: weights[name].shape for name in positions})  # resized below
    check_complete(weights, wanted, lambda name: original_prefix + names(name), source)
    notes = []
    if config.image_size != image_size:
        notes.append(f"position embeddings resized from {image_size} to {config.image_size} pixels (bicubic)")
    if backbone == "visformer":
        weights = resize_visformer_positions(weights, config.image_size)
    else:
        weights = resize_vit_positions(weights, config.image_size // config.patch_size)
    if not is_video:
        notes.append("from an image model: the classifier is new, initialised with seed 0; its own head was left out")

    converted = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    converted.update({f"classifier.{name}": tensor for name, tensor in head.items()})
    published = TOKSHIFT if config.shift == "token" else PUBLISHED[backbone]
    processor = processor_settings(config, published, arguments.data_set, DEFAULT)
    for field, name in (("image_mean", "MEAN"), ("image_std", "STD"), ("frame_interval", "SAMPLING_RATE")):
        processor[field] = settings.get(name) or processor[field]
    kind = settings.get("NET", "LAPS") if is_video else f"{backbone} image checkpoint"
    return Converted(config, converted, LAPSForVideoClassification, processor, kind, known_labels=LABELS, notes=notes)


def flat_settings(config: dict, source: Path) -> dict:
    """The known entries of all sections of the release's config.

    Raises:
        ConversionError: for a section that is none, and for an entry that is not what it must be.
    """
    flat = dict(config)
    for name in config:
        flat.update(section_of(config, name, source) if name in SECTIONS or isinstance(config[name], dict) else {})
    return known_settings(flat, SETTINGS, "", source)


def network(settings: dict, backbone: str, source: Path) -> dict:
    """Attention and shift of the network that a config names; LAPS itself without one.

    Raises:
        ConversionError: for a network that the release has not, or that is not of these weights.
    """
    if not settings:
        return {}
    name = settings.get("NET")
    if name not in NETWORKS:
        raise ConversionError(f"The config for {source} names MODEL.NET {name!r}; known are {sorted(NETWORKS)}.")
    if name.startswith("Visformer") != (backbone == "visformer"):
        raise ConversionError(
            f"The config for {source} names MODEL.NET {name!r}, but the weights are those of a {backbone}."
        )
    scope, shift = NETWORKS[name]
    fold_div = settings.get("FOLD_DIV")
    if shift is not None and fold_div is None:
        raise ConversionError(f"The config for {source} has no MODEL.FOLD_DIV, which tells how many channels shift.")
    found = {"attention_scope": scope, "shift": shift if fold_div else None}
    if found["shift"]:
        found["shift_div"] = fold_div
    if scope == "leap":
        needed = ("S2_SKIP_LEVEL", "S3_SKIP_LEVEL") if backbone == "visformer" else ("S2_SKIP_LEVEL",)
        lacking = [entry for entry in needed if entry not in settings]
        if lacking:
            raise ConversionError(
                f"The config for {source} has no list of leap levels under MODEL.{', MODEL.'.join(lacking)}."
            )
        levels = tuple(tuple(settings[entry]) for entry in needed)
        found["leap_levels"] = levels if backbone == "visformer" else levels[0]
    return found


def main(argv: list[str] | None = None) -> int:
    return run(convert, argument_parser("LAPS", PUBLISHED["visformer"]).parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
