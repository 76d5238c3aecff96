"""Golden cases: the original checkpoint files that they stand for, their input clips and logits."""

import json
import math
from pathlib import Path

import recipe
import torch

from hf_tps.temporal_shift import PATCH_SHIFT_PATTERNS
from hf_tps.window_layout import relative_position_index

FOLDER = Path(__file__).parent / "goldens"
# goldens/README.md: what tells a wrong method from rounding
MICRO_TOLERANCE, FULL_TOLERANCE = 1e-5, 2e-5


def load(case: str) -> dict:
    return json.loads((FOLDER / f"{case}.json").read_text())


def tensors(arrays: dict) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def original_state_dict(golden: dict) -> dict[str, torch.Tensor]:
    """Every key of the original TPS checkpoint: floats by the recipe, index buffers as the original code builds them."""
    state_dict = tensors(recipe.synth_state_dict(golden["manifest"]))
    for key, shape, _ in golden["manifest"]:
        if key not in state_dict:
            pattern = None if key.endswith("_old") else PATCH_SHIFT_PATTERNS["C"]
            window = math.isqrt(shape[1])
            state_dict[key] = relative_position_index(
                shape[0], (window, window), window, pattern, "key_frame_0", torch.device("cpu")
            ).clone()
    return state_dict


def write_checkpoint(golden: dict, path: Path, **extra) -> Path:
    """The file as mmcv saves it; `extra` are further top-level entries."""
    torch.save(
        {"meta": {"epoch": 30, "mmaction_version": "0.24"}, "state_dict": original_state_dict(golden), **extra}, path
    )
    return path


def pixel_values(golden: dict) -> torch.Tensor:
    """The case's clip as this package takes it: (batch, frames, channels, height, width)."""
    clip = recipe.synth_input(golden["input"]["case"], golden["input"]["shape"])
    return torch.from_numpy(clip).transpose(1, 2)


def logits(golden: dict) -> torch.Tensor:
    values = torch.tensor(golden["logits"])
    return values if values.ndim == 2 else values[None]
