# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Weights of image models, read as data from their checkpoints, under the names of this package.

The image models themselves are never imported: their inner classes move between versions of Transformers, their
checkpoints do not.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from .checkpoint_reading import Checkpoint
from .vit_layers import resize_positions

# --- names that the image models share -------------------------------------------------------------------------------

# Blocks as Transformers writes them from 5.10 on and before, and as Microsoft, timm and the video releases do
_BLOCK_NAMES = [
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attn\.", ".attention."),
    (r"\.attention\.(?:self|relative_position_bias)\.relative_position", ".attention.relative_position"),
    (r"\.attention\.(?:(?:self|attention)\.query|q_proj)\.", ".attention.query."),
    (r"\.attention\.(?:(?:self|attention)\.key|k_proj)\.", ".attention.key."),
    (r"\.attention\.(?:(?:self|attention)\.value|v_proj)\.", ".attention.value."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attention.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
]


def _rename(key: str, names: list[tuple[str, str]]) -> str:
    for pattern, replacement in names:
        key = re.sub(pattern, replacement, key)
    return key


def _join_query_key_value(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Transformers keeps three projections where this package (as the original releases) has one."""
    for key in [key for key in weights if ".attention.query." in key]:
        parts = [weights.pop(key.replace(".query.", f".{part}."), None) for part in ("query", "key", "value")]
        if any(part is None for part in parts):
            raise ValueError(f"The checkpoint has {key} but not the key and value projections beside it.")
        if len({part.shape for part in parts}) > 1 or parts[0].ndim == 0:
            raise ValueError(f"The query, key and value projections at {key} have shapes that differ.")
        weights[key.replace(".query.", ".qkv.")] = torch.cat(parts)
    return weights


def _put(renamed: dict[str, torch.Tensor], name: str, tensor: torch.Tensor, key: str) -> None:
    """Add a weight under its new name; two keys of a file for one weight would leave one of them out unseen."""
    if name in renamed:
        raise ValueError(f"The checkpoint has two keys for one weight, {name}; one of them is {key}.")
    renamed[name] = tensor


def _shape(
    weights: dict[str, torch.Tensor], name: str, axes: tuple[int, ...], source: str, name_in_file: Callable[[str], str]
) -> torch.Size:
    """The shape of a weight that sizes are read from.

    Raises:
        ValueError: if it has another number of axes than `axes` allow, or an empty one.
    """
    shape = weights[name].shape
    if len(shape) not in axes or 0 in shape:
        raise ValueError(
            f"{source}: {name_in_file(name)} has shape {tuple(shape)}; {' or '.join(map(str, axes))} axes are needed, "
            "none of them empty."
        )
    return shape


def count_layers(weights: Iterable[str], beginning: str, source: str) -> int:
    """How many layers the names of weights number.

    Args:
        weights: names.
        beginning: of the names of a layer's weights, with N for its number: "blocks.N.".
        source: the file, for the message.

    Raises:
        ValueError: if the numbers are not 0, 1, 2, ... without a hole: the largest alone could ask for any memory.
    """
    pattern = re.compile(re.escape(beginning).replace("N", r"(\d{1,9})"))
    numbers = {int(match[1]) for name in weights if (match := pattern.match(name))}
    if numbers != set(range(len(numbers))):
        raise ValueError(
            f"{source}: layers {beginning}* must be numbered from 0 on without a hole; there are {len(numbers)}, and "
            f"the largest number is {max(numbers)}."
        )
    return len(numbers)


def check_given_sizes(source: str, fields: dict, overrides: dict, free: tuple[str, ...]) -> None:
    """Refuse sizes that are not those of the weights.

    Raises:
        ValueError: for a size in `overrides` that contradicts what the weights say (`fields`), but for those in `free`.
    """
    for name, value in fields.items():
        if name in overrides and name not in free and _comparable(overrides[name]) != _comparable(value):
            raise ValueError(
                f"{source} has {name}={value}, which comes with its weights; got {name}={overrides[name]}."
            )


def _comparable(value: Any) -> Any:
    """JSON knows no tuples, so (2, 2) and [2, 2] mean the same in a config."""
    return tuple(value) if isinstance(value, list | tuple) else value


# --- Swin ------------------------------------------------------------------------------------------------------------

# Transformers, Microsoft, timm, TPS: all to the names of `modeling_tps.py`
_SWIN_NAMES = [
    (r"^(?:swin\.)?embeddings\.patch_embeddings\.projection\.|^patch_embed\.proj\.", "embeddings.projection."),
    (r"^(?:swin\.)?embeddings\.norm\.|^patch_embed\.norm\.", "embeddings.norm."),
    (r"^(?:swin\.)?encoder\.layers\.|^layers\.", "stages."),
    (r"^(?:swin\.)?layernorm\.", "norm."),
    *_BLOCK_NAMES,
]
# What a video model has no use for: the image model's own head, and buffers that are rebuilt from the sizes
_SWIN_DROPPED = re.compile(
    r"^(?:head|classifier|decoder)\.|\.mask_token$|\.relative_position_index(?:_old)?$|\.attn_mask$"
)


# Settings of an image model that come along, unless a keyword says otherwise; all others are fixed by its weights
SWIN_FREE_FIELDS = (
    "image_size",
    "window_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "drop_path_rate",
    "layer_norm_eps",
    "initializer_range",
)


def rename_swin_weights(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a Swin (or of an original TPS backbone) under the names of this package.

    Query, key and value are joined into one tensor, heads and index buffers left out. Unknown names stay as they are.
    """
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in state_dict.items():
        if _SWIN_DROPPED.search(key):
            continue
        _put(renamed, _rename(key, _SWIN_NAMES), tensor, key)
    stages = [int(match[1]) for key in renamed if (match := re.match(r"stages\.(\d{1,9})\.", key))]
    if any(key.startswith(f"stages.{max(stages, default=0)}.downsample.") for key in renamed):
        # timm merges patches at the start of a stage, all others at the end of the one before
        renamed = {
            re.sub(r"^stages\.(\d{1,9})\.downsample\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.", key): tensor
            for key, tensor in renamed.items()
        }
    return _join_query_key_value(renamed)


def microsoft_swin_name(name: str) -> str:
    """The name that a weight of this package has in a Swin file of Microsoft's (and in TPS's, after `backbone.`)."""
    for ours, theirs in (("embeddings.projection.", "patch_embed.proj."), ("embeddings.norm.", "patch_embed.norm.")):
        name = name.replace(ours, theirs)
    return re.sub(r"^stages\.", "layers.", name).replace(".attention.", ".attn.")


def infer_swin_sizes(weights: dict[str, torch.Tensor], source: str) -> dict:
    """Sizes that the shapes of a Swin's (or TPS's) weights tell, as fields of a config.

    Returns:
        `embed_dim`, `patch_size`, `num_channels`, `depths`, `num_heads`, `mlp_ratio`, `qkv_bias`, and `tubelet_size`
        where the embedding has a time axis.

    Raises:
        ValueError: if a weight that every Swin has is not there or not of its kind, or a layer is left out.
    """
    stages = range(count_layers(weights, "stages.N.blocks.", source) or 1)
    tables = [f"stages.{stage}.blocks.0.attention.relative_position_bias_table" for stage in stages]
    hidden = "stages.0.blocks.0.mlp.fc1.weight"
    lacking = [microsoft_swin_name(n) for n in ("embeddings.projection.weight", hidden, *tables) if n not in weights]
    if lacking:
        raise ValueError(f"{source} holds no complete Swin transformer: it lacks {lacking} (Microsoft's names).")
    projection = _shape(weights, "embeddings.projection.weight", (4, 5), source, microsoft_swin_name)
    if projection[-1] != projection[-2]:
        raise ValueError(f"{source}: the patch embedding has shape {tuple(projection)}; patches must be square.")
    sizes = {
        "embed_dim": projection[0],
        "num_channels": projection[1],
        "patch_size": projection[-1],
        "depths": tuple(count_layers(weights, f"stages.{stage}.blocks.N.", source) for stage in stages),
        "num_heads": tuple(_shape(weights, table, (2,), source, microsoft_swin_name)[1] for table in tables),
        "mlp_ratio": _shape(weights, hidden, (2,), source, microsoft_swin_name)[0] / projection[0],
        "qkv_bias": "stages.0.blocks.0.attention.qkv.bias" in weights,
    }
    if len(projection) == 5:
        sizes["tubelet_size"] = projection[2]
    return sizes


def swin_image_fields(checkpoint: Checkpoint) -> tuple[dict, dict[str, torch.Tensor]]:
    """Config fields and weights (still those of the image model, renamed) of a Swin image checkpoint.

    Raises:
        ValueError: for another architecture, and for absolute position embeddings, which TPS has not.
    """
    config = checkpoint.config or {}
    if config.get("model_type", "swin") != "swin":
        raise ValueError(
            f"{checkpoint.source} is a {config['model_type']!r} checkpoint; TPS starts from 'swin' (such as "
            "microsoft/swin-tiny-patch4-window7-224)."
        )
    weights = rename_swin_weights(checkpoint.state_dict)
    if any("position_embeddings" in key or "absolute_pos_embed" in key for key in weights):
        raise ValueError(f"{checkpoint.source} has absolute position embeddings, which TPS has no place for.")
    fields = infer_swin_sizes(weights, checkpoint.source)
    rows = weights["stages.0.blocks.0.attention.relative_position_bias_table"].shape[0]
    fields["window_size"] = (math.isqrt(rows) + 1) // 2
    if math.isqrt(rows) ** 2 != rows or math.isqrt(rows) % 2 == 0:
        raise ValueError(f"{checkpoint.source}: a bias table of {rows} rows belongs to no square window.")

    mask = next(
        (checkpoint.state_dict[key] for key in checkpoint.state_dict if key.endswith(".0.blocks.1.attn_mask")), None
    )
    windows_per_side = (
        math.isqrt(mask.shape[0]) if mask is not None and mask.ndim else 8
    )  # 8 in all of Microsoft's releases
    fields["image_size"] = fields["patch_size"] * fields["window_size"] * windows_per_side
    fields.update({name: config[name] for name in SWIN_FREE_FIELDS[2:] if name in config})
    if isinstance(config.get("image_size"), int):
        fields["image_size"] = config["image_size"]
    return fields, weights


def resize_bias_table(table: torch.Tensor, window_size: int) -> torch.Tensor:
    """A 2D relative position bias table for another window: bicubic, as TPS's `inflate_weights` does it.

    Args:
        table: ((2w - 1)^2, heads).

    Returns:
        ((2 * window_size - 1)^2, heads).

    Raises:
        ValueError: for a table of another shape.
    """
    source, target = math.isqrt(table.shape[0] if table.ndim == 2 else 0), 2 * window_size - 1
    if source < 1 or source**2 != table.shape[0]:
        raise ValueError(f"A bias table of shape {tuple(table.shape)} belongs to no square window.")
    if source == target:
        return table
    picture = table.t().reshape(1, -1, source, source).float()
    picture = nn.functional.interpolate(picture, size=(target, target), mode="bicubic", align_corners=False)
    return picture.reshape(table.shape[1], -1).t().to(table.dtype).contiguous()


def inflate_swin(
    weights: dict[str, torch.Tensor], tubelet_size: int, temporal_size: int, window_size: int
) -> dict[str, torch.Tensor]:
    """Weights of TPS from those of its image model, such that a static clip gives the features of its frame.

    The patch embedding is repeated over the frames of a tubelet and divided by their number; each bias table is
    repeated for all 2 * temporal_size - 1 temporal offsets (released `inflate_weights`).
    """
    inflated = {}
    for key, tensor in weights.items():
        if key.endswith(".relative_position_bias_table"):
            tensor = resize_bias_table(tensor, window_size).repeat(2 * temporal_size - 1, 1)
        elif key == "embeddings.projection.weight":
            tensor = flatten_projection(tensor.unsqueeze(2).repeat(1, 1, tubelet_size, 1, 1) / tubelet_size)
        inflated[key] = tensor
    return inflated


def flatten_projection(weight: torch.Tensor) -> torch.Tensor:
    """The kernel of a convolution over tubelets, (out, channels, frames, rows, columns), as that of a linear layer."""
    return weight.flatten(1)


# --- ViT -------------------------------------------------------------------------------------------------------------

# Transformers' ViT and DeiT, timm (and the files of XViT and LAPS): all to the names of `vit_layers.py`
_VIT_NAMES = [
    (r"^(?:vit|deit)\.", ""),
    (r"^(?:embeddings\.)?cls_token$", "embeddings.class_token"),
    (r"^embeddings\.position_embeddings$|^pos_embed$", "embeddings.position_embeddings"),
    (r"^embeddings\.patch_embeddings\.projection\.|^patch_embed\.proj\.", "embeddings.projection."),
    (r"^(?:encoder\.layer|layers)\.", "blocks."),
    (r"^layernorm\.", "norm."),
    *_BLOCK_NAMES,
]
_VIT_DROPPED = re.compile(
    r"^(?:head|head_dist|pre_logits|classifier|cls_classifier|distillation_classifier|pooler)\.|(?:^|\.)pooler\."
    r"|(?:mask_token|distillation_token|dist_token)$"
)
# Settings of an image model that come along, unless a keyword says otherwise; all others are fixed by its weights
VIT_FREE_FIELDS = (
    "image_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "layer_norm_eps",
    "initializer_range",
)
# Published ViTs, by their width; a file does not tell its heads
_VIT_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}


def rename_vit_weights(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a ViT or DeiT under the names of this package, query, key and value joined.

    Heads, pooler, and a distillation token with its position, are left out. Unknown names stay as they are.
    """
    distilled = any(key.endswith(("distillation_token", "dist_token")) for key in state_dict)
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in state_dict.items():
        if _VIT_DROPPED.search(key):
            continue
        name = _rename(key, _VIT_NAMES)
        if name == "embeddings.position_embeddings" and distilled and tensor.ndim == 3:
            tensor = torch.cat((tensor[:, :1], tensor[:, 2:]), dim=1)
        _put(renamed, name, tensor, key)
    return _join_query_key_value(renamed)


def timm_vit_name(name: str) -> str:
    """The name that a weight of this package's ViT has in a file of timm's (and in those of XViT and LAPS)."""
    for ours, theirs in (
        ("embeddings.projection.", "patch_embed.proj."),
        ("embeddings.class_token", "cls_token"),
        ("embeddings.position_embeddings", "pos_embed"),
    ):
        name = name.replace(ours, theirs)
    return re.sub(r"^(blocks\.\d+)\.attention\.", r"\1.attn.", name)


def infer_vit_sizes(
    weights: dict[str, torch.Tensor], source: str, num_heads: int | None, heads_name: str = "num_attention_heads"
) -> dict:
    """Sizes that the shapes of a ViT's weights tell, as fields of a config.

    Args:
        num_heads: attention heads; None: those of the published ViT of this width.
        heads_name: what the caller calls them, for the message.

    Returns:
        `hidden_size`, `num_hidden_layers`, `num_attention_heads`, `intermediate_size`, `patch_size`, `num_channels`,
        `image_size`, `qkv_bias`.

    Raises:
        ValueError: if a weight that every ViT has is not there or not of its kind, a layer is left out, or nothing
            tells the heads.
    """
    needed = ["embeddings.projection.weight", "embeddings.position_embeddings", "embeddings.class_token"]
    needed += ["blocks.0.mlp.fc1.weight"]
    lacking = [timm_vit_name(name) for name in needed if name not in weights]
    if lacking:
        raise ValueError(f"{source} holds no complete vision transformer: it lacks {lacking} (timm's names).")
    width, channels, _, patch = _shape(weights, "embeddings.projection.weight", (4,), source, timm_vit_name)
    heads = num_heads or _VIT_HEADS.get(width)
    if heads is None:
        raise ValueError(
            f"{source} has {width} channels, which is no published ViT, and weights do not tell the number of "
            f"attention heads: give {heads_name}."
        )
    positions = _shape(weights, "embeddings.position_embeddings", (3,), source, timm_vit_name)
    patches = positions[1] - 1
    if patches < 1 or math.isqrt(patches) ** 2 != patches or (positions[0], positions[2]) != (1, width):
        raise ValueError(
            f"{source}: position embeddings of shape {tuple(positions)} belong to no square image in {width} channels."
        )
    return {
        "hidden_size": width,
        "num_hidden_layers": count_layers(weights, "blocks.N.", source),
        "num_attention_heads": heads,
        "intermediate_size": _shape(weights, "blocks.0.mlp.fc1.weight", (2,), source, timm_vit_name)[0],
        "num_channels": channels,
        "patch_size": patch,
        "image_size": patch * math.isqrt(patches),
        "qkv_bias": "blocks.0.attention.qkv.bias" in weights,
    }


def vit_image_fields(
    checkpoint: Checkpoint, num_heads: int | None = None, heads_name: str = "num_attention_heads"
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Config fields and weights (renamed) of a ViT or DeiT image checkpoint; see `infer_vit_sizes`.

    Raises:
        ValueError: for another architecture, or if nothing tells the heads.
    """
    config = checkpoint.config or {}
    if config.get("model_type", "vit") not in ("vit", "deit"):
        raise ValueError(
            f"{checkpoint.source} is a {config['model_type']!r} checkpoint; this model starts from 'vit' or 'deit' "
            "(such as google/vit-base-patch16-224-in21k)."
        )
    weights = rename_vit_weights(checkpoint.state_dict)
    num_heads = config.get("num_attention_heads") or num_heads
    fields = infer_vit_sizes(weights, checkpoint.source, num_heads, heads_name)
    fields.update({name: config[name] for name in VIT_FREE_FIELDS[1:] if name in config})
    weights["embeddings.projection.weight"] = flatten_projection(weights["embeddings.projection.weight"])
    return fields, weights


def resize_vit_positions(weights: dict[str, torch.Tensor], side: int) -> dict[str, torch.Tensor]:
    """The weights with position embeddings for side x side patches (bicubic; the class token's stays)."""
    positions = weights["embeddings.position_embeddings"]
    grid = resize_positions(positions[:, 1:], side, side)
    return {**weights, "embeddings.position_embeddings": torch.cat((positions[:, :1], grid), dim=1)}


# --- Visformer -------------------------------------------------------------------------------------------------------

VISFORMER_FREE_FIELDS = ("image_size",)
# The release's Visformers (tiny, small) by the channels of their second stage; a file does not tell its heads
_VISFORMER_HEADS = {192: 3, 384: 6}


def visformer_map_side(image_size: int, stage: int) -> int:
    """Places along a side of a stage's map.

    The stem halves an image, rounded up; the patch embeddings divide by 4, 2 and 2, rounded down: 360 pixels give 45,
    22 and 11.
    """
    return -(-image_size // 2) // (4 * 2**stage)


def is_visformer(state_dict: dict[str, torch.Tensor]) -> bool:
    return "patch_embed1.proj.weight" in state_dict


def rename_visformer_weights(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a Visformer (or of an original LAPS network) under the names of `modeling_laps.py`, without the head.

    1 x 1 convolutions of attention and later MLPs become linear layers; a counter of batches that the file lacks is 0.
    """
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in state_dict.items():
        if key.startswith("head."):
            continue
        name = re.sub(r"^(patch_embed|pos_embed|stage)(\d)", lambda m: f"stages.{int(m[2]) - 1}.{m[1]}", key)
        for pattern, replacement in (
            (r"^stem\.0\.", "stem.conv."),
            (r"^stem\.1\.(?:bn\.)?", "stem.norm."),
            (r"\.patch_embed\.proj\.", ".embedding.projection."),
            (r"\.patch_embed\.norm\.(?:bn\.)?", ".embedding.norm."),
            (r"\.pos_embed$", ".position_embeddings"),
            (r"\.stage\.", ".blocks."),
            (r"(^|\.)(norm[12]?)\.bn\.", r"\1\2."),
            (r"\.attn\.", ".attention."),
            (r"^(stages\.[12]\..*)\.mlp\.conv1\.", r"\1.mlp.fc1."),
            (r"^(stages\.[12]\..*)\.mlp\.conv3\.", r"\1.mlp.fc2."),
        ):
            name = re.sub(pattern, replacement, name)
        if re.search(r"\.(?:qkv|proj|fc1|fc2)\.weight$", name) and tensor.shape[2:] == (1, 1):
            tensor = tensor.flatten(1)
        _put(renamed, name, tensor, key)
    for name in [name for name in renamed if name.endswith(".running_mean")]:
        renamed.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return renamed


def original_visformer_name(name: str) -> str:
    """The name that a weight of this package's Visformer has in the release's files."""
    name = re.sub(r"^stages\.(\d)\.embedding\.", lambda m: f"patch_embed{int(m[1]) + 1}.", name)
    name = re.sub(r"^stages\.(\d)\.position_embeddings$", lambda m: f"pos_embed{int(m[1]) + 1}", name)
    name = re.sub(r"^stages\.(\d)\.blocks\.", lambda m: f"stage{int(m[1]) + 1}.", name)
    for ours, theirs in (
        (r"^stem\.conv\.", "stem.0."),
        (r"^stem\.norm\.", "stem.1."),
        (r"\.projection\.", ".proj."),
        (r"\.attention\.", ".attn."),
        (r"\.fc1\.", ".conv1."),
        (r"\.fc2\.", ".conv3."),
        (r"^(stem\.1|.*norm[12]?)\.(?=\w+$)", r"\1.bn."),
    ):
        name = re.sub(ours, theirs, name)
    return name


def infer_visformer_sizes(
    weights: dict[str, torch.Tensor], source: str, num_heads: int | None, heads_name: str = "num_heads"
) -> dict:
    """Sizes that the shapes of a Visformer's weights tell, as fields of a `LAPSConfig`.

    Args:
        num_heads: attention heads; None: those of the release's Visformer of this width.
        heads_name: what the caller calls them, for the message.

    Raises:
        ValueError: if a weight that every Visformer has is not there or not of its kind, a layer is left out, or
            nothing tells the heads.
    """
    in_file = original_visformer_name
    needed = ["stem.conv.weight", "stages.1.embedding.projection.weight"]
    needed += [f"stages.{stage}.position_embeddings" for stage in range(3)]
    needed += [
        "stages.0.blocks.0.mlp.conv2.weight",
        "stages.1.blocks.0.mlp.fc1.weight",
        "stages.2.blocks.0.mlp.fc1.weight",
    ]
    lacking = [in_file(name) for name in needed if name not in weights]
    if lacking:
        raise ValueError(f"{source} holds no complete Visformer: it lacks {lacking}.")
    shape = {
        name: _shape(weights, name, (2,) if name.endswith(("fc1.weight", "fc2.weight")) else (4,), source, in_file)
        for name in needed
    }
    width = shape["stages.1.embedding.projection.weight"][0]
    heads = num_heads or _VISFORMER_HEADS.get(width)
    if heads is None:
        raise ValueError(
            f"{source} has {width} channels in its second stage, which is no Visformer of the release, and weights do "
            f"not tell the number of attention heads: give {heads_name}."
        )
    stem, grouped = shape["stem.conv.weight"], shape["stages.0.blocks.0.mlp.conv2.weight"]
    image_size = 8 * shape["stages.0.position_embeddings"][-1]
    for stage in range(3):
        side = visformer_map_side(image_size, stage)
        expected = (1, width * 2**stage // 2, side, side)
        if shape[f"stages.{stage}.position_embeddings"] != expected:
            raise ValueError(
                f"{source}: {in_file(f'stages.{stage}.position_embeddings')} has shape "
                f"{tuple(shape[f'stages.{stage}.position_embeddings'])}; beside the others {expected} is needed."
            )
    return {
        "embed_dim": width,
        "depths": tuple(count_layers(weights, f"stages.{n}.blocks.N.", source) for n in range(3)),
        "num_heads": heads,
        "mlp_ratio": shape["stages.1.blocks.0.mlp.fc1.weight"][0] / width,
        "num_channels": stem[1],
        "stem_channels": stem[0],
        "conv_groups": grouped[0] // grouped[1],
        "image_size": image_size,
    }


def visformer_image_fields(
    checkpoint: Checkpoint, num_heads: int | None = None, heads_name: str = "num_heads"
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Config fields and weights (renamed) of a Visformer file; arguments and errors of `infer_visformer_sizes`."""
    weights = rename_visformer_weights(checkpoint.state_dict)
    return infer_visformer_sizes(weights, checkpoint.source, num_heads, heads_name), weights


def resize_visformer_positions(weights: dict[str, torch.Tensor], image_size: int) -> dict[str, torch.Tensor]:
    """The weights with position embeddings for another image size (bicubic)."""
    resized = dict(weights)
    for stage in range(3):
        name = f"stages.{stage}.position_embeddings"
        side = visformer_map_side(image_size, stage)
        if weights[name].shape[2:] != (side, side):
            resized[name] = nn.functional.interpolate(weights[name].float(), size=(side, side), mode="bicubic")
    return resized
