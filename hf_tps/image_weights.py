# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Weights of image models, read as data from their checkpoints, under the names of this package.

The image models themselves are never imported: their inner classes move between versions of Transformers, their
checkpoints do not.
"""

import json
import math
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers.utils import cached_file

from .vit_layers import resize_positions


@dataclass
class ImageCheckpoint:
    """Tensors of an image model under their original names, with Transformers' config.json if there was one."""

    state_dict: dict[str, torch.Tensor]
    config: dict | None
    source: str


# --- reading files ---------------------------------------------------------------------------------------------------


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# numpy scalars (a training loss, an accuracy) and dtypes: harmless, common, and refused by torch itself
_SAFE_GLOBALS = [
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
]


def read_torch_file(path: str | Path) -> dict:
    """
    What a `.pth` / `.pt` / `.bin` file holds, read with `weights_only=True`: no code of the file is ever run.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no torch file, is damaged, or holds more than tensors, plain Python values and numpy scalars.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.findall(r"GLOBAL ([\w.]+)", str(error))
        if not refused:
            raise ValueError(f"{path} is no checkpoint that torch can read safely: {_first_line(error)}") from None
        raise ValueError(
            f"{path} holds an object of type {', '.join(dict.fromkeys(refused))}; loading it could run code of the file, so "
            "only tensors, plain Python values and numpy scalars are read. If you trust the file, strip it where that "
            "library is installed: `checkpoint = torch.load(path, weights_only=False); "
            "torch.save({'state_dict': checkpoint['state_dict']}, 'stripped.pth')` (or 'model' for an image checkpoint)."
        ) from None
    except (RuntimeError, EOFError, OSError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is damaged or no torch checkpoint: {_first_line(error)}") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}; a checkpoint is a dict of tensors.")
    return loaded


def _read_weight_file(path: str | Path) -> dict:
    if Path(path).suffix != ".safetensors":
        return read_torch_file(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from None


def unwrap_state_dict(loaded: dict, wrappers: tuple[str, ...], source: str) -> dict[str, torch.Tensor]:
    """
    The tensors of a checkpoint: under the first of `wrappers` that it has, else the dict itself.

    Raises:
        ValueError: if something in it is no tensor.
    """
    for name in wrappers:
        if isinstance(loaded.get(name), dict):
            loaded = loaded[name]
            break
    others = [str(key) for key, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if others or not loaded:
        raise ValueError(
            f"{source} has no state dict under {list(wrappers)} and is none itself: "
            + (f"the entries {others[:5]} are no tensors." if others else "it is empty.")
        )
    return loaded


def load_image_checkpoint(name_or_path: str | Path, **hub_kwargs) -> ImageCheckpoint:
    """
    Read an image checkpoint: a folder or Hub id with `config.json` and weights (safetensors or torch, whole or in
    shards), or a single `.safetensors` / `.pth` / `.pt` / `.bin` file.

    Args:
        hub_kwargs: `cache_dir`, `force_download`, `local_files_only`, `token`, `revision`, `subfolder`.

    Raises:
        OSError: if the folder, the file or the Hub id does not exist.
        ValueError: if the files are unreadable.
    """
    source = str(name_or_path)
    path = Path(name_or_path)
    if path.is_file() or (path.suffix in (".pth", ".pt", ".bin", ".safetensors") and not path.is_dir()):
        loaded = _read_weight_file(path)
        return ImageCheckpoint(unwrap_state_dict(loaded, ("model", "state_dict"), source), None, source)

    def find(filename: str) -> str | None:
        return cached_file(source, filename, _raise_exceptions_for_missing_entries=False, **hub_kwargs)

    if path.is_dir():
        config_file = find("config.json")
    else:
        try:
            config_file = cached_file(source, "config.json", **hub_kwargs)
        except OSError as error:
            raise OSError(f"{source} is neither a file nor a folder, and was not found on the Hub: {error}") from error
    config = json.loads(Path(config_file).read_text(encoding="utf-8")) if config_file else None
    for filename in ("model.safetensors", "pytorch_model.bin"):
        if whole := find(filename):
            return ImageCheckpoint(unwrap_state_dict(_read_weight_file(whole), (), source), config, source)
        if index := find(f"{filename}.index.json"):
            shards = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
            outside = sorted(shard for shard in shards if Path(shard).name != shard)
            if outside:
                raise ValueError(f"{index} names files outside its folder: {outside}.")
            state_dict = {}
            for shard in sorted(shards):
                file = find(shard)
                if file is None:
                    raise ValueError(f"{source} lacks the shard {shard} that its {filename}.index.json names.")
                state_dict.update(_read_weight_file(file))
            return ImageCheckpoint(state_dict, config, source)
    raise ValueError(f"{source} has neither model.safetensors nor pytorch_model.bin (nor their index files).")


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
        weights[key.replace(".query.", ".qkv.")] = torch.cat(parts)
    return weights


def check_given_sizes(source: str, fields: dict, overrides: dict, free: tuple[str, ...]) -> None:
    """
    Raises:
        ValueError: for a size in `overrides` that contradicts what the weights say (`fields`), but for those in `free`.
    """

    def comparable(value):  # JSON knows no tuples, so (2, 2) and [2, 2] mean the same in a config
        return tuple(value) if isinstance(value, list | tuple) else value

    for name, value in fields.items():
        if name in overrides and name not in free and comparable(overrides[name]) != comparable(value):
            raise ValueError(
                f"{source} has {name}={value}, which comes with its weights; got {name}={overrides[name]}."
            )


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
    """
    Weights of a Swin (or of an original TPS backbone) under the names of this package; query, key and value joined into
    one tensor. Heads and index buffers are left out. Names that are not known stay as they are.
    """
    renamed = {}
    for key, tensor in state_dict.items():
        if _SWIN_DROPPED.search(key):
            continue
        renamed[_rename(key, _SWIN_NAMES)] = tensor
    stages = [int(match[1]) for key in renamed if (match := re.match(r"stages\.(\d+)\.", key))]
    if any(key.startswith(f"stages.{max(stages, default=0)}.downsample.") for key in renamed):
        # timm merges patches at the start of a stage, all others at the end of the one before
        renamed = {
            re.sub(r"^stages\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.", key): tensor
            for key, tensor in renamed.items()
        }
    return _join_query_key_value(renamed)


def microsoft_swin_name(name: str) -> str:
    """The name that a weight of this package has in a Swin file of Microsoft's (and in TPS's, after `backbone.`)."""
    for ours, theirs in (("embeddings.projection.", "patch_embed.proj."), ("embeddings.norm.", "patch_embed.norm.")):
        name = name.replace(ours, theirs)
    return re.sub(r"^stages\.", "layers.", name).replace(".attention.", ".attn.")


def infer_swin_sizes(weights: dict[str, torch.Tensor], source: str) -> dict:
    """
    Sizes that the shapes of a Swin's (or TPS's) weights tell, as fields of a config: `embed_dim`, `patch_size`,
    `num_channels`, `depths`, `num_heads`, `mlp_ratio`, `qkv_bias`, and `tubelet_size` where the embedding has a time axis.

    Raises:
        ValueError: if a weight that every Swin has is not there.
    """
    blocks: dict[int, set[int]] = {}
    for key in weights:
        if match := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", key):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    stages = range(max(blocks, default=0) + 1)
    tables = [f"stages.{stage}.blocks.0.attention.relative_position_bias_table" for stage in stages]
    needed = ["embeddings.projection.weight", "stages.0.blocks.0.mlp.fc1.weight", *tables]
    lacking = [microsoft_swin_name(name) for name in needed if name not in weights]
    if lacking:
        raise ValueError(f"{source} holds no complete Swin transformer: it lacks {lacking} (Microsoft's names).")
    projection = weights["embeddings.projection.weight"]
    if projection.ndim not in (4, 5) or projection.shape[-1] != projection.shape[-2]:
        raise ValueError(f"{source}: the patch embedding has shape {tuple(projection.shape)}; patches must be square.")
    sizes = {
        "embed_dim": projection.shape[0],
        "num_channels": projection.shape[1],
        "patch_size": projection.shape[-1],
        "depths": tuple(max(blocks[stage]) + 1 for stage in stages),
        "num_heads": tuple(weights[table].shape[1] for table in tables),
        "mlp_ratio": weights["stages.0.blocks.0.mlp.fc1.weight"].shape[0] / projection.shape[0],
        "qkv_bias": "stages.0.blocks.0.attention.qkv.bias" in weights,
    }
    if projection.ndim == 5:
        sizes["tubelet_size"] = projection.shape[2]
    return sizes


def swin_image_fields(checkpoint: ImageCheckpoint) -> tuple[dict, dict[str, torch.Tensor]]:
    """
    Config fields and weights (still those of the image model, renamed) of a Swin image checkpoint.

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
    windows_per_side = math.isqrt(mask.shape[0]) if mask is not None else 8  # 8 in all of Microsoft's releases
    fields["image_size"] = fields["patch_size"] * fields["window_size"] * windows_per_side
    fields.update({name: config[name] for name in SWIN_FREE_FIELDS[2:] if name in config})
    if isinstance(config.get("image_size"), int):
        fields["image_size"] = config["image_size"]
    return fields, weights


def resize_bias_table(table: torch.Tensor, window_size: int) -> torch.Tensor:
    """
    A 2D relative position bias table for another window: bicubic, as TPS's `inflate_weights` does it.

    Args:
        table: ((2w - 1)^2, heads).

    Returns:
        ((2 * window_size - 1)^2, heads).
    """
    source, target = math.isqrt(table.shape[0]), 2 * window_size - 1
    if source == target:
        return table
    picture = table.t().reshape(1, -1, source, source).float()
    picture = nn.functional.interpolate(picture, size=(target, target), mode="bicubic", align_corners=False)
    return picture.reshape(table.shape[1], -1).t().to(table.dtype).contiguous()


def inflate_swin(
    weights: dict[str, torch.Tensor], tubelet_size: int, temporal_size: int, window_size: int
) -> dict[str, torch.Tensor]:
    """
    Weights of TPS from those of its image model, such that a static clip gives the features of its frame.

    The patch embedding is repeated over the frames of a tubelet and divided by their number; each bias table is repeated
    for all 2 * temporal_size - 1 temporal offsets (released `inflate_weights`).
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
    """
    Weights of a ViT or DeiT under the names of this package; query, key and value joined, the patch embedding flattened to
    a linear layer. Heads, pooler, and a distillation token with its position, are left out. Names that are not known stay.
    """
    distilled = any(key.endswith(("distillation_token", "dist_token")) for key in state_dict)
    renamed = {}
    for key, tensor in state_dict.items():
        if _VIT_DROPPED.search(key):
            continue
        name = _rename(key, _VIT_NAMES)
        if name == "embeddings.position_embeddings" and distilled:
            tensor = torch.cat((tensor[:, :1], tensor[:, 2:]), dim=1)
        renamed[name] = tensor
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


def infer_vit_sizes(weights: dict[str, torch.Tensor], source: str, num_attention_heads: int | None) -> dict:
    """
    Sizes that the shapes of a ViT's weights tell, as fields of a config: `hidden_size`, `num_hidden_layers`,
    `num_attention_heads` (given, or those of the published ViT of this width), `intermediate_size`, `patch_size`,
    `num_channels`, `image_size`, `qkv_bias`.

    Raises:
        ValueError: if a weight that every ViT has is not there, or if nothing tells the heads.
    """
    needed = ["embeddings.projection.weight", "embeddings.position_embeddings", "embeddings.class_token"]
    needed += ["blocks.0.mlp.fc1.weight"]
    lacking = [timm_vit_name(name) for name in needed if name not in weights]
    if lacking:
        raise ValueError(f"{source} holds no complete vision transformer: it lacks {lacking} (timm's names).")
    projection = weights["embeddings.projection.weight"]
    width, channels, patch = projection.shape[0], projection.shape[1], projection.shape[-1]
    heads = num_attention_heads or _VIT_HEADS.get(width)
    if heads is None:
        raise ValueError(
            f"{source} has {width} channels, which is no published ViT, and weights do not tell the number of attention "
            "heads: give num_attention_heads (for a converter --num_attention_heads)."
        )
    patches = weights["embeddings.position_embeddings"].shape[1] - 1
    if math.isqrt(patches) ** 2 != patches:
        raise ValueError(f"{source}: position embeddings for {patches} patches belong to no square image.")
    return {
        "hidden_size": width,
        "num_hidden_layers": 1 + max(int(m[1]) for key in weights if (m := re.match(r"blocks\.(\d+)\.", key))),
        "num_attention_heads": heads,
        "intermediate_size": weights["blocks.0.mlp.fc1.weight"].shape[0],
        "num_channels": channels,
        "patch_size": patch,
        "image_size": patch * math.isqrt(patches),
        "qkv_bias": "blocks.0.attention.qkv.bias" in weights,
    }


def vit_image_fields(
    checkpoint: ImageCheckpoint, num_attention_heads: int | None = None
) -> tuple[dict, dict[str, torch.Tensor]]:
    """
    Config fields and weights (renamed) of a ViT or DeiT image checkpoint.

    Raises:
        ValueError: for another architecture, or if nothing tells the heads.
    """
    config = checkpoint.config or {}
    if config.get("model_type", "vit") not in ("vit", "deit"):
        raise ValueError(
            f"{checkpoint.source} is a {config['model_type']!r} checkpoint; this model starts from 'vit' or 'deit' (such as "
            "google/vit-base-patch16-224-in21k)."
        )
    weights = rename_vit_weights(checkpoint.state_dict)
    fields = infer_vit_sizes(weights, checkpoint.source, config.get("num_attention_heads") or num_attention_heads)
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
    """
    Places along a side of a stage's map: the stem halves an image, rounded up; the patch embeddings divide by 4, 2 and 2,
    rounded down (360 pixels: 45, 22, 11).
    """
    return -(-image_size // 2) // (4 * 2**stage)


def is_visformer(state_dict: dict[str, torch.Tensor]) -> bool:
    return "patch_embed1.proj.weight" in state_dict


def rename_visformer_weights(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Weights of a Visformer (or of an original LAPS network) under the names of `modeling_laps.py`; 1 x 1 convolutions of
    attention and later MLPs become linear layers; a counter of batches that is not in the file is 0. Its head is left out.
    """
    renamed = {}
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
        renamed[name] = tensor
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


def infer_visformer_sizes(weights: dict[str, torch.Tensor], source: str, num_heads: int | None) -> dict:
    """
    Sizes that the shapes of a Visformer's weights tell, as fields of a `LAPSConfig`; `num_heads` given, or that of the
    release's Visformer of this width.

    Raises:
        ValueError: if a weight that every Visformer has is not there, or if nothing tells the heads.
    """
    needed = ["stem.conv.weight", "stages.1.embedding.projection.weight", "stages.0.position_embeddings"]
    needed += [
        "stages.0.blocks.0.mlp.conv2.weight",
        "stages.1.blocks.0.mlp.fc1.weight",
        "stages.2.blocks.0.mlp.fc1.weight",
    ]
    lacking = [original_visformer_name(name) for name in needed if name not in weights]
    if lacking:
        raise ValueError(f"{source} holds no complete Visformer: it lacks {lacking}.")
    width = weights["stages.1.embedding.projection.weight"].shape[0]
    heads = num_heads or _VISFORMER_HEADS.get(width)
    if heads is None:
        raise ValueError(
            f"{source} has {width} channels in its second stage, which is no Visformer of the release, and weights do not "
            "tell the number of attention heads: give num_heads (for a converter --num_attention_heads)."
        )
    blocks = [re.match(r"stages\.(\d)\.blocks\.(\d+)\.", key) for key in weights]
    grouped = weights["stages.0.blocks.0.mlp.conv2.weight"]
    return {
        "embed_dim": width,
        "depths": tuple(1 + max(int(m[2]) for m in blocks if m and int(m[1]) == stage) for stage in range(3)),
        "num_heads": heads,
        "mlp_ratio": weights["stages.1.blocks.0.mlp.fc1.weight"].shape[0] / width,
        "num_channels": weights["stem.conv.weight"].shape[1],
        "stem_channels": weights["stem.conv.weight"].shape[0],
        "conv_groups": grouped.shape[0] // grouped.shape[1],
        "image_size": 8 * weights["stages.0.position_embeddings"].shape[-1],
    }


def visformer_image_fields(
    checkpoint: ImageCheckpoint, num_heads: int | None = None
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Config fields and weights (renamed) of a Visformer file; raises as `infer_visformer_sizes`."""
    weights = rename_visformer_weights(checkpoint.state_dict)
    return infer_visformer_sizes(weights, checkpoint.source, num_heads), weights


def resize_visformer_positions(weights: dict[str, torch.Tensor], image_size: int) -> dict[str, torch.Tensor]:
    """The weights with position embeddings for another image size (bicubic)."""
    resized = dict(weights)
    for stage in range(3):
        name = f"stages.{stage}.position_embeddings"
        side = visformer_map_side(image_size, stage)
        if weights[name].shape[2:] != (side, side):
            resized[name] = nn.functional.interpolate(weights[name].float(), size=(side, side), mode="bicubic")
    return resized
