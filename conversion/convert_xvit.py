"""Convert an XViT checkpoint, or a ViT image checkpoint to start from, to a folder that Transformers loads.

ViT's are those of timm:

    python conversion/convert_xvit.py xvit_b16_16_ss2.pth --output_dir xvit-b16-ssv2
"""

import argparse
import re
import sys
from pathlib import Path

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
    data_set_with,
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
    number,
    read_yaml,
    read_yaml_file,
    section_of,
    text,
    whole_number,
    yes_or_no,
)
from hf_tps import XViTConfig, XViTForVideoClassification
from hf_tps.checkpoint_reading import Checkpoint, unwrap_state_dict
from hf_tps.configuration_base import RANGES
from hf_tps.image_weights import (
    count_layers,
    resize_vit_positions,
    timm_vit_name,
    vit_image_fields,
)
from hf_tps.torch_files import read_torch_file
from hf_tps.training.published import data_sets_of

# Tests of the release (configs/Kinetics, configs/SSv2) by data set, and that of an unknown one
PUBLISHED, DEFAULT = data_sets_of("xvit"), "ssv2"
# The entries of the release's configs that are read
SETTINGS: dict[str, dict[str, Check]] = {
    "DATA": INPUT_SETTINGS,
    "TEST": {"DATASET": text},
    "MODEL": {"DROPOUT_RATE": number(0, 1)},
    "TEMPORAL_HEAD": {"NUM_ATTENTION_HEADS": whole_number(*RANGES["temporal_head_heads"])},
    "XVIT": {
        "USE_XVIT": yes_or_no,
        "SHIFT_DIV": whole_number(*RANGES["shift_div"]),
        "NUM_SEGMENTS": whole_number(*RANGES["segment_length"]),
        "LOCATIONS_LIST": list_of(whole_number(0, 1023)),
    },
}
# What the release's configs say of the mixing, for a file without a config
MIXING = {
    data_set: {name: published.network[name] for name in ("shift_div", "segment_length")}
    for data_set, published in PUBLISHED.items()
}


def convert(arguments: argparse.Namespace) -> Converted:
    """Recognise the file, and put its config and weights into the terms of this package.

    Raises:
        ConversionError: for a file of another kind, and for keys that are missing, unknown or of a wrong shape.
    """
    source = arguments.checkpoint
    loaded = read_torch_file(source)
    state_dict = unwrap_state_dict(loaded, ("model_state", "state_dict_ema", "state_dict", "model"), source)
    state_dict = strip_prefix(state_dict, "module.")
    if check_layout(list(state_dict), ("xvit", "vit"), source) == "vit":
        return convert_image_checkpoint(state_dict, arguments)
    config, origin = {}, source
    if arguments.original_config is not None:
        config, origin = read_yaml_file(arguments.original_config), arguments.original_config
    elif isinstance(loaded.get("cfg"), str):
        config = read_yaml(loaded["cfg"], f"the cfg in {source}")
    elif isinstance(loaded.get("cfg"), dict):
        config = loaded["cfg"]
    settings = {
        name: known_settings(section_of(config, name, origin), checks, f"{name}.", origin)
        for name, checks in SETTINGS.items()
    }
    return convert_video_checkpoint(state_dict, settings, arguments)


def convert_video_checkpoint(
    state_dict: dict[str, torch.Tensor], settings: dict, arguments: argparse.Namespace
) -> Converted:
    source = arguments.checkpoint
    part = {
        prefix: {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
        for prefix in ("base_model.", "consensus.", "new_fc.")
    }
    unknown = [key for key in state_dict if not key.startswith(tuple(part))]
    if unknown:
        raise ConversionError(f"{source} is no XViT checkpoint: " + "; ".join(f"unknown key {k}" for k in unknown[:20]))
    backbone = Checkpoint(part["base_model."], None, str(source))
    sizes, weights = vit_image_fields(backbone, arguments.num_attention_heads, HEADS_FLAG)
    temporal = weights.pop("temp_embed", None)
    if temporal is None or temporal.ndim != 4 or (temporal.shape[0], temporal.shape[2]) != (1, 1):
        raise ConversionError(f"{source}: missing key base_model.temp_embed of shape (1, frames, 1, channels).")
    weights["temporal_embeddings"] = temporal[0, :, 0]
    weights.update(rename_head(part["consensus."]))
    notes = []
    if part["consensus."]:
        if part["new_fc."]:
            notes.append("new_fc.*, which the released network never uses, was left out")
        classifier = {name: weights.pop(f"classifier.{name}", None) for name in ("weight", "bias")}
    else:  # frames averaged, then one linear layer
        classifier = {name: part["new_fc."].get(name) for name in ("weight", "bias")}
    lacking = [name for name, tensor in classifier.items() if tensor is None]
    if lacking:
        head = "consensus.mlp_head.4" if part["consensus."] else "new_fc"
        raise ConversionError(f"{source}: " + "; ".join(f"missing key {head}.{name}" for name in lacking))

    num_labels = num_classes(classifier["weight"], source)
    check_num_labels(arguments, num_labels)
    data, data_set = settings["DATA"], data_set_of(settings, arguments, num_labels)
    num_frames = arguments.num_frames or data.get("NUM_FRAMES") or PUBLISHED[DEFAULT].num_frames
    head_settings = settings["TEMPORAL_HEAD"]
    hidden = weights.get("temporal_head.dense.bias")
    config = XViTConfig(
        **{
            **sizes,
            "image_size": arguments.image_size or data.get("TEST_CROP_SIZE") or sizes["image_size"],
            "num_frames": num_frames,
            "num_temporal_embeddings": weights["temporal_embeddings"].shape[0],
            "temporal_head_layers": count_layers(weights, "temporal_head.layers.N.", str(source)),
            "temporal_head_heads": head_settings.get("NUM_ATTENTION_HEADS") or sizes["num_attention_heads"],
            "temporal_head_size": sizes["hidden_size"] if hidden is None else hidden.numel(),
            "classifier_dropout": settings["MODEL"].get("DROPOUT_RATE", 0.5),
            "num_labels": num_labels,
            **mixing(settings, data_set, sizes["num_hidden_layers"], source),
        }
    )
    if config.segment_length is not None and config.segment_length >= num_frames:
        config.segment_length = None
    side = config.image_size // config.patch_size
    if config.image_size != sizes["image_size"]:
        notes.append(f"position embeddings resized from {sizes['image_size']} to {config.image_size} pixels (bicubic)")
    converted = {f"xvit.{name}": tensor for name, tensor in weights.items()}
    converted.update({f"classifier.{name}": tensor for name, tensor in classifier.items()})
    wanted = model_shapes(XViTForVideoClassification, config, source)
    wanted["xvit.embeddings.position_embeddings"] = converted["xvit.embeddings.position_embeddings"].shape
    check_complete(converted, wanted, original_name, source)
    resized = resize_vit_positions(weights, side)["embeddings.position_embeddings"]
    converted["xvit.embeddings.position_embeddings"] = resized

    processor = processor_settings(config, PUBLISHED, data_set, DEFAULT)
    for field, name in (("image_mean", "MEAN"), ("image_std", "STD")):
        processor[field] = data.get(name) or processor[field]
    if processor["sampling"] == "dense":
        processor["frame_interval"] = data.get("SAMPLING_RATE") or processor["frame_interval"]
    return Converted(config, converted, XViTForVideoClassification, processor, "XViT", data_set, notes=notes)


def convert_image_checkpoint(state_dict: dict[str, torch.Tensor], arguments: argparse.Namespace) -> Converted:
    source = arguments.checkpoint
    checkpoint = Checkpoint(state_dict, None, str(source))
    fields, weights = vit_image_fields(checkpoint, arguments.num_attention_heads, HEADS_FLAG)
    num_labels = new_head_labels(arguments, KNOWN_LABELS)
    config = XViTConfig(
        **{
            **fields,
            "image_size": arguments.image_size or fields["image_size"],
            "num_frames": arguments.num_frames or PUBLISHED[DEFAULT].num_frames,
            "temporal_head_heads": fields["num_attention_heads"],
            "temporal_head_size": fields["hidden_size"],
            "num_labels": num_labels,
            **MIXING.get(arguments.data_set, {}),
        }
    )
    wanted = model_shapes(XViTForVideoClassification, config, source)
    # new in the video model: temporal embeddings (zero), the temporal head and the classifier
    wanted = {n: s for n, s in wanted.items() if n.startswith(("xvit.embeddings.", "xvit.blocks.", "xvit.norm."))}
    converted = {f"xvit.{name}": tensor for name, tensor in weights.items()}
    wanted["xvit.embeddings.position_embeddings"] = converted["xvit.embeddings.position_embeddings"].shape
    check_complete(converted, wanted, lambda name: timm_vit_name(name.removeprefix("xvit.")), source)
    resized = resize_vit_positions(weights, config.image_size // config.patch_size)
    converted["xvit.embeddings.position_embeddings"] = resized["embeddings.position_embeddings"]
    notes = ["from an image model: temporal head and classifier are new (seed 0); its own head was left out"]
    processor = processor_settings(config, PUBLISHED, arguments.data_set, DEFAULT)
    return Converted(config, converted, XViTForVideoClassification, processor, "ViT image checkpoint", notes=notes)


def rename_head(consensus: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The temporal head and the classifier behind it, under our names; unknown names stay as they are."""
    renamed = {}
    for key, tensor in consensus.items():
        name = f"temporal_head.{key}"
        for pattern, replacement in (
            (r"\.cls_token$", ".class_token"),
            (r"\.temporal_encoder\.", ".layers."),
            (r"\.attn\.", ".attention."),
            (r"\.mlp_head\.0\.", ".norm."),
            (r"\.mlp_head\.1\.", ".dense."),
            (r"^temporal_head\.mlp_head\.4\.", "classifier."),
        ):
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def original_name(name: str) -> str:
    name = name.removeprefix("xvit.")
    if name == "temporal_embeddings":
        return "base_model.temp_embed"
    if not name.startswith(("temporal_head.", "classifier.")):
        return "base_model." + timm_vit_name(name)
    for pattern, replacement in (
        (r"^classifier\.", "consensus.mlp_head.4."),
        (r"^temporal_head\.norm\.", "consensus.mlp_head.0."),
        (r"^temporal_head\.dense\.", "consensus.mlp_head.1."),
        (r"^temporal_head\.layers\.", "consensus.temporal_encoder."),
        (r"^temporal_head\.class_token$", "consensus.cls_token"),
        (r"^temporal_head\.", "consensus."),
        (r"\.attention\.", ".attn."),
    ):
        name = re.sub(pattern, replacement, name)
    return name


def data_set_of(settings: dict, arguments: argparse.Namespace, num_labels: int) -> str | None:
    """The data set: asked for; else that of the config's test section; else what the number of classes says."""
    tested_on = settings["TEST"].get("DATASET", "").lower()
    if arguments.data_set:
        return arguments.data_set
    if tested_on == "ssv2":
        return "ssv2"
    if tested_on.startswith("kinetics"):
        return "k600" if num_labels == 600 else "k400"
    return data_set_with(num_labels)


def mixing(settings: dict, data_set: str | None, num_layers: int, source: Path) -> dict:
    """How keys and values mix, which the weights do not tell: from the config, else from the data set.

    Raises:
        ConversionError: if there is neither.
    """
    section = settings["XVIT"]
    if not section:
        if data_set not in MIXING:
            raise ConversionError(
                f"{source} has no config, and its weights do not tell how keys and values mix: give the release's YAML "
                f"with --original_config, or --recipe ({', '.join(MIXING)})."
            )
        return MIXING[data_set]
    lacking = [name for name in ("SHIFT_DIV", "NUM_SEGMENTS", "LOCATIONS_LIST") if name not in section]
    if lacking:
        raise ConversionError(f"The config for {source} has no XVIT.{', XVIT.'.join(lacking)}.")
    layers = [layer for layer in section["LOCATIONS_LIST"] if layer < num_layers]
    return {
        "shift_div": section["SHIFT_DIV"] if section.get("USE_XVIT", True) else 0,
        "segment_length": section["NUM_SEGMENTS"],
        "mixing_layers": None if layers == list(range(num_layers)) else layers,
    }


def main(argv: list[str] | None = None) -> int:
    return run(convert, argument_parser("XViT", PUBLISHED).parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
