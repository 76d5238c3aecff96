"""
An image transformer for the video models of the motion benchmark to start from, as the papers start from ImageNet.

It learns from single frames of the training scenes where the sprite is and which way its light end points: what an image
model can know of this data, and nothing about time.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from make_motion_dataset import MotionSettings, motion_clip, sprite_poses
from motion_experiments import cpu_multiplies_bfloat16
from torch.nn import functional as F
from tqdm import tqdm
from transformers import ViTConfig, ViTForImageClassification, get_cosine_schedule_with_warmup

CELLS = 8  # along each side: where the sprite is
TURNS = 8  # parts of a full turn: where its light end points


def still_pictures(settings: MotionSettings, seed: int, clips: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All frames of the training clips (clips, num_frames, 3, size, size) uint8; the sprite's cell and turn in each."""
    frames, cells, turns = [], [], []
    for index in tqdm(range(clips), desc="drawing stills", unit="clip", disable=None):
        frames.append(motion_clip(settings, seed, "train", index))
        centres, angles = sprite_poses(settings, seed, "train", index)
        rows, columns = (centres * CELLS / settings.size).astype(np.int64).T
        cells.append(rows * CELLS + columns)
        turns.append((angles / (2 * np.pi) % 1 * TURNS).astype(np.int64))
    frames, cells, turns = (torch.from_numpy(np.stack(parts)) for parts in (frames, cells, turns))
    return frames.permute(0, 1, 4, 2, 3), cells, turns


def train_image_start(
    folder: Path,
    config: ViTConfig,
    settings: MotionSettings,
    seed: int,
    clips: int,
    steps: int = 500,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    image_std: float = 1.0,
) -> float:
    """
    Train a ViT on stills and save it as an image checkpoint of Transformers in `folder`.

    Args:
        clips: training clips of the benchmark that the stills come from.
        image_std: as the video models' processor will have it.

    Returns:
        Its accuracy in placing the sprite, on the last tenth of the clips, which it does not learn from.
    """
    torch.manual_seed(seed)
    frames, cells, turns = still_pictures(settings, seed, clips)
    learnt = clips - clips // 10
    config.num_labels = CELLS**2 + TURNS
    model = ViTForImageClassification._from_config(config, attn_implementation="eager")
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)

    def logits(pictures: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_multiplies_bfloat16()):
            return model(pixel_values=(pictures.float() / 255 - 0.5) / image_std).logits.float()

    progress = tqdm(range(steps), desc="training on stills", unit="step", disable=None)
    for _ in progress:
        clip, time = torch.randint(learnt, (batch_size,)), torch.randint(settings.num_frames, (batch_size,))
        place, turn = logits(frames[clip, time]).split((CELLS**2, TURNS), dim=-1)
        loss = F.cross_entropy(place, cells[clip, time]) + F.cross_entropy(turn, turns[clip, time])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.2f}")
    model.eval()
    with torch.no_grad():
        right = [
            (logits(pictures)[:, : CELLS**2].argmax(-1) == wanted).float().mean().item()
            for pictures, wanted in zip(frames[learnt:, 0].split(100), cells[learnt:, 0].split(100), strict=True)
        ]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as partial:
        model.save_pretrained(Path(partial) / "model")
        os.replace(Path(partial) / "model", folder)
    accuracy = float(np.mean(right))
    print(f"image model: {accuracy:.1%} of the stills in the right one of {CELLS**2} cells", file=sys.stderr)
    return accuracy
