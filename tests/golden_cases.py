"""Golden cases: the original checkpoint files that they stand for, their input clips and logits."""

import json
import math
from pathlib import Path

import torch
import yaml

from hf_tps.temporal_shift import PATCH_SHIFT_PATTERNS
from hf_tps.window_layout import relative_position_index
from tests.goldens import recipe

FOLDER = Path(__file__).parent / "goldens"
# goldens/README.md: what tells a wrong method from rounding
MICRO_TOLERANCE, FULL_TOLERANCE = 1e-5, 2e-5


def load(case: str) -> dict:
    return json.loads((FOLDER / f"{case}.json").read_text())


def tensors(arrays: dict) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def original_state_dict(golden: dict) -> dict[str, torch.Tensor]:
    """Every key of the original TPS checkpoint: floats by the recipe, index buffers as the original builds them."""
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


def write_xvit_checkpoint(golden: dict, path: Path, **replaced) -> Path:
    """The file as SlowFast saves it; `replaced` are other top-level entries."""
    state_dict = tensors(recipe.synth_state_dict(golden["manifest"]))
    content = {"epoch": 35, "model_state": state_dict, "optimizer_state": {}, "cfg": golden["cfg_yaml"]}
    torch.save({**content, **replaced}, path)
    return path


def write_laps_checkpoint(golden: dict, path: Path) -> tuple[Path, Path]:
    """The file as the release's scripts save it, and its YAML beside it."""
    state_dict = tensors(recipe.synth_state_dict(golden["manifest"], integer_fill=7))
    torch.save({"epoch": 18, "state_dict": state_dict, "best_acc1": 76.0, "optimizer": {}, "scheduler": {}}, path)
    config = golden["config"]
    model = ("NET", "BACKBONE", "FOLD_DIV", "S2_SKIP_LEVEL", "S3_SKIP_LEVEL")
    data = ("NUM_FRAMES", "SAMPLING_RATE", "TEST_CROP_SIZE", "MEAN", "STD")
    sections = {"DATA": {name: config[name] for name in data}, "MODEL": {name: config[name] for name in model}}
    path.with_suffix(".yaml").write_text(yaml.safe_dump(sections))
    return path, path.with_suffix(".yaml")


def pixel_values(golden: dict) -> torch.Tensor:
    """The case's clip as this package takes it: (batch, frames, channels, height, width)."""
    clip = recipe.synth_input(golden["input"]["case"], golden["input"]["shape"])
    return torch.from_numpy(clip).transpose(1, 2)


def logits(golden: dict) -> torch.Tensor:
    values = torch.tensor(golden["logits"])
    return values if values.ndim == 2 else values[None]
