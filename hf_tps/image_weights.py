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


# --- Swin ------------------------------------------------------------------------------------------------------------

# Transformers from 5.10 on, Transformers before, Microsoft / timm / TPS: all to the names of `modeling_tps.py`
_SWIN_NAMES = [
    (r"^(?:swin\.)?embeddings\.patch_embeddings\.projection\.|^patch_embed\.proj\.", "embeddings.projection."),
    (r"^(?:swin\.)?embeddings\.norm\.|^patch_embed\.norm\.", "embeddings.norm."),
    (r"^(?:swin\.)?encoder\.layers\.|^layers\.", "stages."),
    (r"^(?:swin\.)?layernorm\.", "norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attn\.", ".attention."),
    (r"\.attention\.(?:self|relative_position_bias)\.relative_position", ".attention.relative_position"),
    (r"\.attention\.(?:self\.query|q_proj)\.", ".attention.query."),
    (r"\.attention\.(?:self\.key|k_proj)\.", ".attention.key."),
    (r"\.attention\.(?:self\.value|v_proj)\.", ".attention.value."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attention.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
]
# What a video model has no use for: the image model's own head, and buffers that are rebuilt from the sizes
_SWIN_DROPPED = re.compile(
    r"^(?:head|classifier|decoder)\.|\.mask_token$|\.relative_position_index(?:_old)?$|\.attn_mask$"
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
        for pattern, replacement in _SWIN_NAMES:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    stages = [int(match[1]) for key in renamed if (match := re.match(r"stages\.(\d+)\.", key))]
    if any(key.startswith(f"stages.{max(stages, default=0)}.downsample.") for key in renamed):
        # timm merges patches at the start of a stage, all others at the end of the one before
        renamed = {
            re.sub(r"^stages\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.", key): tensor
            for key, tensor in renamed.items()
        }
    for key in [key for key in renamed if ".attention.query." in key]:
        parts = [renamed.pop(key.replace(".query.", f".{part}."), None) for part in ("query", "key", "value")]
        if any(part is None for part in parts):
            raise ValueError(f"The checkpoint has {key} but not the key and value projections beside it.")
        renamed[key.replace(".query.", ".qkv.")] = torch.cat(parts)
    return renamed


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
    taken_along = (
        "hidden_act",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "drop_path_rate",
        "layer_norm_eps",
        "initializer_range",
    )
    fields.update({name: config[name] for name in taken_along if name in config})
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
