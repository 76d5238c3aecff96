# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Tensors and config of any checkpoint, image or video, read as data: no code of the file is ever run."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers.utils import cached_file

from .plain_text import printable
from .text_files import LARGEST_CONFIG, read_json
from .torch_files import read_torch_file

WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Buffers of whole numbers that the layouts know: which row of a bias table belongs to which pair of places, how many
# batches a norm has seen, the numbers of positions.
INDEX_BUFFERS = re.compile(r"(?:^|\.)(?:relative_position_index(?:_old)?|num_batches_tracked|position_ids)$")


@dataclass
class Checkpoint:
    """What the files of a model hold.

    Attributes:
        state_dict: the tensors under the names of the file.
        config: Transformers' config.json, if there is one.
        source: the name or path, for messages.
    """

    state_dict: dict[str, torch.Tensor]
    config: dict[str, Any] | None
    source: str


def _read_weight_file(path: str | Path) -> dict:
    if Path(path).suffix != ".safetensors":
        return read_torch_file(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {printable(path)}.")
    try:
        return load_file(path)
    except (SafetensorError, RuntimeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{printable(path)} is damaged or no safetensors file: {printable(error)}") from None


def unwrap_state_dict(loaded: dict, wrappers: tuple[str, ...], path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint: under the first of `wrappers` that it has, else the dict itself.

    Args:
        loaded: what the file holds.
        wrappers: names under which a state dict may stand.
        path: the file, for messages; its size bounds what the tensors may claim.

    Raises:
        ValueError: if something in it is no tensor, or no weight (see `check_tensors`).
    """
    for name in wrappers:
        if isinstance(loaded.get(name), dict):
            loaded = loaded[name]
            break
    others = [printable(key, 80) for key, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if others or not loaded:
        raise ValueError(
            f"{printable(path)} has no state dict under {list(wrappers)} and is none itself: "
            + (f"the entries {others[:5]} are no tensors." if others else "it is empty.")
        )
    check_tensors(loaded, path)
    return _with_numbers_of_their_own(loaded)


def _with_numbers_of_their_own(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of which no two share memory: two weights of a model that do would be trained as one."""
    times = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values() if tensor.numel())
    return {
        name: tensor.clone() if times[tensor.untyped_storage().data_ptr()] > 1 else tensor
        for name, tensor in tensors.items()
    }


def check_tensors(tensors: dict[str, torch.Tensor], path: str | Path) -> None:
    """Refuse what is no weight: the one place that says what the tensors of a file may be.

    They have names; they are plain, dense tensors in memory, floating (index buffers: whole numbers), finite also as
    float32, and hold no more numbers than the file has room for.

    Raises:
        ValueError: naming the file, the tensor and what it is.
    """
    shown, file_bytes, claimed = printable(path), Path(path).stat().st_size, 0
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise ValueError(f"{shown} has the key {printable(repr(name), 80)}, which is no text; keys are names.")
        problem = _kind_problem(name, tensor)
        if problem is None:
            tensor_bytes = tensor.numel() * tensor.element_size()
            claimed += tensor_bytes
            if tensor_bytes > tensor.untyped_storage().nbytes():
                problem = f"has shape {tuple(tensor.shape)} but fewer numbers than that (one stands for many)"
        if problem is not None:
            raise ValueError(f"{shown}: the tensor {printable(name)} {problem}.")
    # Twice: a tensor that another one is tied to stands in the file once.
    if claimed > 2 * file_bytes:
        raise ValueError(
            f"{shown}: its tensors have {claimed:,} bytes by their shapes, but the file has {file_bytes:,}; tensors "
            "share their numbers."
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            beyond = "or beyond float32" if tensor.dtype == torch.float64 else "or not a number"
            raise ValueError(f"{shown}: the tensor {printable(name)} has values that are infinite {beyond}.")


def _kind_problem(name: str, tensor: torch.Tensor) -> str | None:
    """What keeps a tensor from being a weight, before any of its numbers is read; None if nothing does."""
    if type(tensor) not in (torch.Tensor, nn.Parameter):
        return f"is of type {type(tensor).__name__}; plain tensors are read"
    if tensor.is_nested or tensor.layout != torch.strided:
        return "is nested or sparse; dense tensors are read"
    if tensor.is_quantized:
        return f"is quantised ({tensor.dtype}); save the weights in floating point"
    if tensor.device.type != "cpu":
        return f"has no values (device {tensor.device.type}); save the weights themselves"
    if INDEX_BUFFERS.search(name):
        if tensor.is_floating_point() or tensor.is_complex():
            return f"is an index buffer, but of type {tensor.dtype}; whole numbers are needed"
    elif tensor.dtype not in WEIGHT_DTYPES:
        return f"is of type {tensor.dtype}; weights are {', '.join(map(str, WEIGHT_DTYPES))}"
    return None


def read_checkpoint(name_or_path: str | Path, **hub_kwargs: Any) -> Checkpoint:
    """Read the checkpoint of an image or a video model, whatever its architecture.

    Args:
        name_or_path: a folder or Hub id with weights (safetensors or torch, whole or in shards) and `config.json`, or a
            single `.safetensors` / `.pth` / `.pt` / `.bin` file.
        hub_kwargs: `cache_dir`, `force_download`, `local_files_only`, `token`, `revision`, `subfolder`.

    Raises:
        OSError: if the folder, the file or the Hub id does not exist.
        ValueError: if the files are unreadable.
    """
    source, path = str(name_or_path), Path(name_or_path)
    if path.is_file() or (path.suffix in (".pth", ".pt", ".bin", ".safetensors") and not path.is_dir()):
        return Checkpoint(unwrap_state_dict(_read_weight_file(path), ("model", "state_dict"), path), None, source)

    def find(filename: str) -> str | None:
        return cached_file(source, filename, _raise_exceptions_for_missing_entries=False, **hub_kwargs)

    if path.is_dir():
        config_file = find("config.json")
    else:
        try:
            config_file = cached_file(source, "config.json", **hub_kwargs)
        except OSError as error:
            raise OSError(f"{source} is neither a file nor a folder, and was not found on the Hub: {error}") from error
    config = read_json(config_file, LARGEST_CONFIG) if config_file else None
    if config is not None and not isinstance(config, dict):
        raise ValueError(
            f"{printable(config_file)} holds a {type(config).__name__}; a config is an object of settings."
        )
    for filename in ("model.safetensors", "pytorch_model.bin"):
        if whole := find(filename):
            return Checkpoint(unwrap_state_dict(_read_weight_file(whole), (), whole), config, source)
        if index := find(f"{filename}.index.json"):
            return Checkpoint(_read_shards(index, find, source), config, source)
    raise ValueError(f"{source} has neither model.safetensors nor pytorch_model.bin (nor their index files).")


def _read_shards(index: str, find: Callable[[str], str | None], source: str) -> dict[str, torch.Tensor]:
    content = read_json(index, LARGEST_CONFIG)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ValueError(f"{printable(index)} has no weight_map from the names of tensors to those of files.")
    shards = set(weight_map.values())
    outside = sorted(shard for shard in shards if Path(shard).name != shard or not shard.isprintable())
    if outside:
        raise ValueError(f"{printable(index)} names files outside its folder: {printable(outside)}.")
    state_dict = {}
    for shard in sorted(shards):
        file = find(shard)
        if file is None:
            raise ValueError(
                f"{printable(source)} lacks the shard {printable(shard)} that its {Path(index).name} names."
            )
        state_dict.update(unwrap_state_dict(_read_weight_file(file), (), file))
    return state_dict
