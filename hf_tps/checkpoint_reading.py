# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Tensors and config of any checkpoint, image or video, read as data: no code of the file is ever run."""

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import cached_file


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
    """What a `.pth` / `.pt` / `.bin` file holds, read with `weights_only=True`: no code of the file is ever run.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no torch file, is damaged, or holds more than tensors, plain Python values and numpy
            scalars.
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
            f"{path} holds an object of type {', '.join(dict.fromkeys(refused))}; loading it could run code of the "
            "file, so only tensors, plain Python values and numpy scalars are read. If you trust the file, strip it "
            "where that library is installed: `checkpoint = torch.load(path, weights_only=False); "
            "torch.save({'state_dict': checkpoint['state_dict']}, 'stripped.pth')` (or 'model' for an image "
            "checkpoint)."
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
    """The tensors of a checkpoint: under the first of `wrappers` that it has, else the dict itself.

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
        return Checkpoint(unwrap_state_dict(_read_weight_file(path), ("model", "state_dict"), source), None, source)

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
            return Checkpoint(unwrap_state_dict(_read_weight_file(whole), (), source), config, source)
        if index := find(f"{filename}.index.json"):
            return Checkpoint(_read_shards(index, find, source), config, source)
    raise ValueError(f"{source} has neither model.safetensors nor pytorch_model.bin (nor their index files).")


def _read_shards(index: str, find: Callable[[str], str | None], source: str) -> dict[str, torch.Tensor]:
    shards = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    outside = sorted(shard for shard in shards if Path(shard).name != shard)
    if outside:
        raise ValueError(f"{index} names files outside its folder: {outside}.")
    state_dict = {}
    for shard in sorted(shards):
        file = find(shard)
        if file is None:
            raise ValueError(f"{source} lacks the shard {shard} that its {Path(index).name} names.")
        state_dict.update(_read_weight_file(file))
    return state_dict
