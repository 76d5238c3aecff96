"""An image transformer for the video models of the motion benchmark to start from, as the papers start from ImageNet.

It learns from single frames of the training scenes where the sprite is and which way its light end points: what an
image model can know of this data, and nothing about time.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    VivitConfig,
    VivitModel,
    get_cosine_schedule_with_warmup,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, wherever this file is run from

from examples.experiments.make_motion_dataset import MotionSettings, motion_clip, sprite_poses
from examples.experiments.motion_experiments import cpu_multiplies_bfloat16

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
    """Train a ViT on stills and save it as an image checkpoint of Transformers in `folder`.

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
    save_whole(model, folder)
    accuracy = float(np.mean(right))
    print(f"image model: {accuracy:.1%} of the stills in the right one of {CELLS**2} cells", file=sys.stderr)
    return accuracy


def inflate_to_vivit(image_model: Path, folder: Path, num_frames: int, tubelet_size: int, seed: int = 0) -> None:
    """Save a ViViT (attention among all tokens of the clip) made of a ViT.

    As its paper starts (arXiv 2103.15691, section 3.4): the kernel of the patches on one frame of a tubelet ("central
    frame"), the positions repeated over time.

    Each point in time also gets a vector of its own at random. With equal positions the order of the frames would mean
    nothing at the start.
    """
    image = ViTModel.from_pretrained(image_model, add_pooling_layer=False)
    sizes = ("image_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    config = VivitConfig(
        **{name: getattr(image.config, name) for name in (*sizes, "layer_norm_eps", "initializer_range")},
        num_frames=num_frames,
        tubelet_size=[tubelet_size, image.config.patch_size, image.config.patch_size],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    weights = image.state_dict()
    kernel = weights["embeddings.patch_embeddings.projection.weight"]
    inflated = kernel.new_zeros(*kernel.shape[:2], tubelet_size, *kernel.shape[2:])
    inflated[:, :, (tubelet_size - 1) // 2] = kernel
    weights["embeddings.patch_embeddings.projection.weight"] = inflated
    positions, times = weights["embeddings.position_embeddings"], num_frames // tubelet_size
    moments = 0.3 * torch.randn(1, times, 1, config.hidden_size, generator=torch.Generator().manual_seed(seed))
    patches = (positions[:, None, 1:] + moments).flatten(1, 2)
    weights["embeddings.position_embeddings"] = torch.cat((positions[:, :1], patches), dim=1)
    video = VivitModel(config, add_pooling_layer=False)
    video.load_state_dict(weights)
    save_whole(video, folder)


def save_whole(model: PreTrainedModel, folder: Path) -> None:
    """`save_pretrained` into a folder that appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as partial:
        model.save_pretrained(Path(partial) / "model")
        os.replace(Path(partial) / "model", folder)
