"""Convert a TPS checkpoint, or a Swin image checkpoint to start from, to a folder that Transformers loads.

TPS's are those of the GitHub release and of ModelScope, Swin's those of Microsoft:

    python conversion/convert_tps.py pytorch_model.pt --output_dir tps-t-k400
"""

import argparse
import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the clone, wherever this file is run from

from conversion.common import (
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
    positive_int,
    processor_settings,
    run,
    strip_prefix,
)
from hf_tps import TPSConfig, TPSForVideoClassification
from hf_tps.checkpoint_reading import Checkpoint, unwrap_state_dict
from hf_tps.image_weights import (
    flatten_projection,
    infer_swin_sizes,
    inflate_swin,
    microsoft_swin_name,
    rename_swin_weights,
    swin_image_fields,
)
from hf_tps.temporal_shift import PATCH_SHIFT_PATTERNS
from hf_tps.torch_files import read_torch_file
from hf_tps.training.published import data_sets_of
from hf_tps.window_layout import relative_position_index

RELEASED_WINDOW = 7
# Tests of the GitHub release (configs/recognition/tps) by data set, and that of an unknown one
PUBLISHED, DEFAULT = data_sets_of("tps"), "ssv2"


def convert(arguments: argparse.Namespace) -> Converted:
    """Recognise the file, and put its config and weights into the terms of this package.

    Raises:
        ConversionError: for a file of another kind, and for keys that are missing, unknown or of a wrong shape.
    """
    source = arguments.checkpoint
    loaded = read_torch_file(source)
    state_dict = strip_prefix(unwrap_state_dict(loaded, ("state_dict", "model"), source), "module.")
    check_layout(list(state_dict), ("tps",), source)

    embedding = state_dict.get("backbone.patch_embed.proj.weight", state_dict.get("patch_embed.proj.weight"))
    if embedding is not None and embedding.ndim == 4 and "backbone.patch_embed.proj.weight" not in state_dict:
        converted = convert_image_checkpoint(state_dict, arguments)
    else:
        converted = convert_video_checkpoint(state_dict, arguments)
        # Same network and keys in both releases; ModelScope's file has weights alone and its pipeline averages logits.
        if source.name == "pytorch_model.pt" and "meta" not in loaded:
            converted.kind = "TPS (ModelScope release)"
            converted.config.view_aggregation = "logits"
    if arguments.num_attention_heads is not None:
        converted.notes.append("--num_attention_heads is not needed: the shapes of the bias tables tell the heads")
    if arguments.original_config is not None:
        converted.notes.append("--original_config is not needed: a TPS checkpoint tells all sizes by its shapes")
    return converted


def convert_video_checkpoint(state_dict: dict[str, torch.Tensor], arguments: argparse.Namespace) -> Converted:
    source = arguments.checkpoint
    backbone = {k.removeprefix("backbone."): v for k, v in state_dict.items() if k.startswith("backbone.")}
    head = {k: v for k, v in state_dict.items() if k.startswith("cls_head.fc_cls.")}
    unknown = [key for key in state_dict if key.removeprefix("backbone.") not in backbone and key not in head]
    lacking = [f"cls_head.fc_cls.{part}" for part in ("weight", "bias") if f"cls_head.fc_cls.{part}" not in head]
    if unknown or lacking:
        raise ConversionError(
            f"{source} is no TPS video checkpoint (keys backbone.* and cls_head.fc_cls.*): "
            + "; ".join([f"missing key {key}" for key in lacking] + [f"unknown key {key}" for key in unknown[:20]])
            + "."
        )
    weights = rename_swin_weights(backbone)
    sizes = infer_swin_sizes(weights, str(source))
    if "tubelet_size" not in sizes:
        raise ConversionError(f"{source}: backbone.patch_embed.proj.weight has no time axis; TPS's has 5 axes.")
    temporal_size, window_size = table_sizes(backbone, source)
    check_index_buffers(backbone, temporal_size, window_size, source)

    num_labels = num_classes(head["cls_head.fc_cls.weight"], source)
    check_num_labels(arguments, num_labels)
    config = TPSConfig(
        **sizes,
        window_size=window_size,
        num_frames=arguments.num_frames or temporal_size * sizes["tubelet_size"],
        temporal_bias_size=temporal_size,
        image_size=arguments.image_size or PUBLISHED[DEFAULT].image_size,
        num_labels=num_labels,
    )
    weights["embeddings.projection.weight"] = flatten_projection(weights["embeddings.projection.weight"])
    converted = {f"tps.{name}": tensor for name, tensor in weights.items()}
    converted.update({name.replace("cls_head.fc_cls.", "classifier."): tensor for name, tensor in head.items()})
    check_complete(converted, model_shapes(TPSForVideoClassification, config, source), original_video_name, source)
    notes = []
    if config.num_temporal_positions != temporal_size:
        notes.append(f"trained for {temporal_size} temporal positions; the bias rows are interpolated for num_frames")
    settings = processor_settings(config, PUBLISHED, arguments.data_set, DEFAULT)
    return Converted(config, converted, TPSForVideoClassification, settings, "TPS (GitHub release)", notes=notes)


def convert_image_checkpoint(state_dict: dict[str, torch.Tensor], arguments: argparse.Namespace) -> Converted:
    source = arguments.checkpoint
    fields, weights = swin_image_fields(Checkpoint(state_dict, None, str(source)))
    num_labels = new_head_labels(arguments, KNOWN_LABELS)
    fields["window_size"], image_window = arguments.window_size or fields["window_size"], fields["window_size"]
    config = TPSConfig(
        **{
            **fields,
            "image_size": arguments.image_size or fields["image_size"],
            "num_labels": num_labels,
            **({"num_frames": arguments.num_frames} if arguments.num_frames else {}),
        }
    )
    wanted = {
        name: shape
        for name, shape in model_shapes(TPSForVideoClassification, config, source).items()
        if not name.startswith("classifier.")
    }
    inflated = inflate_swin(weights, config.tubelet_size, config.temporal_bias_size, config.window_size)
    converted = {f"tps.{name}": tensor for name, tensor in inflated.items()}
    check_complete(converted, wanted, lambda name: microsoft_swin_name(name.removeprefix("tps.")), source)
    notes = ["inflated from an image model: the classifier is new, initialised with seed 0; its own head was left out"]
    if image_window != config.window_size:
        notes.append(f"bias tables resized from window {image_window} to {config.window_size} (bicubic)")
    settings = processor_settings(config, PUBLISHED, arguments.data_set, DEFAULT)
    return Converted(config, converted, TPSForVideoClassification, settings, "Swin image checkpoint", notes=notes)


def original_video_name(name: str) -> str:
    if name.startswith("classifier."):
        return name.replace("classifier.", "cls_head.fc_cls.")
    return "backbone." + microsoft_swin_name(name.removeprefix("tps."))


def table_sizes(backbone: dict[str, torch.Tensor], source: Path) -> tuple[int, int]:
    """Temporal positions and window of the bias tables: from the index buffers, else from the number of rows."""
    index = backbone.get("layers.0.blocks.0.attn.relative_position_index")
    if index is not None:
        if index.ndim != 3:
            raise ConversionError(
                f"{source} is a Video Swin checkpoint: its windows span {index.shape[0]} places over several frames. "
                "TPS attends inside frames; there is no converter for Video Swin here."
            )
        window_size = math.isqrt(index.shape[1])
        if index.shape != (index.shape[0], window_size**2, window_size**2) or 0 in index.shape:
            raise ConversionError(
                f"{source}: an index buffer of shape {tuple(index.shape)} belongs to no square window."
            )
        return index.shape[0], window_size
    rows = backbone["layers.0.blocks.0.attn.relative_position_bias_table"].shape[0]
    fits = []
    for window in range(2, 65):
        offsets, rest = divmod(rows, (2 * window - 1) ** 2)
        if rest == 0 and offsets % 2 == 1:
            fits.append(((offsets + 1) // 2, window))
    released = [fit for fit in fits if fit[1] == RELEASED_WINDOW]
    if len(released or fits) != 1:
        raise ConversionError(
            f"{source}: a bias table of {rows} rows fits no window, or several ((temporal positions, window) = "
            f"{fits}), and there is no index buffer to tell."
        )
    return (released or fits)[0]


def check_index_buffers(backbone: dict[str, torch.Tensor], temporal_size: int, window_size: int, source: Path) -> None:
    """Compare the index buffers with the sizes, from which they follow: they are not converted.

    Raises:
        ConversionError: for a buffer that is not the released code's (another pattern, or another pairing of frames).
    """
    expected = {
        suffix: relative_position_index(
            temporal_size, (window_size, window_size), window_size, pattern, "key_frame_0", torch.device("cpu")
        )
        for suffix, pattern in (("", PATCH_SHIFT_PATTERNS["C"]), ("_old", None))
    }
    for suffix, index in expected.items():
        for key, buffer in backbone.items():
            if key.endswith(f".relative_position_index{suffix}") and not (
                buffer.shape == index.shape and torch.equal(buffer.long(), index)
            ):
                raise ConversionError(
                    f"{source}: backbone.{key} is not the index of the released TPS (pattern C against key frame 0, "
                    f"{temporal_size} temporal positions, window {window_size}), so the model would compute something "
                    "else."
                )


def main(argv: list[str] | None = None) -> int:
    parser = argument_parser("TPS", PUBLISHED)
    parser.add_argument(
        "--window_size",
        type=positive_int,
        metavar="N",
        help="window of the video model (image checkpoints; else theirs)",
    )
    return run(convert, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
