"""Precise batch norm: running statistics that belong to the weights at hand.

While the weights move, running statistics trail behind them, and a training in bfloat16 gathers those of rounded maps.
So, as SlowFast's `update_bn_stats` does for the release of LAPS, they are made anew before each test and at the end:
the mean over many batches of training clips, with weights that stand still, in float32.
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from .data import BrokenVideos, TrainingBatches, VideoDataset, clip_seed, collate

# Sets the clips and random choices below apart from those of the training with the same seed
_PURPOSE = 0xB47C


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The layers of a model that keep running statistics."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


def check_batch_norms(model: nn.Module, num_batches: int) -> None:
    """Refuse to make statistics of nothing.

    Raises:
        ValueError: for fewer than no batches, and for any where the model has no batch norms.
    """
    if num_batches < 0:
        raise ValueError(f"The number of batches must be 0 or more, got {num_batches}.")
    if num_batches and not batch_norms(model):
        raise ValueError(f"This {type(model).__name__} has no batch norms, so there are no statistics to make anew.")


def refresh_batch_norms(
    model: PreTrainedModel,
    clips: VideoDataset,
    accelerator: Accelerator,
    *,
    num_batches: int,
    batch_size: int,
    seed: int,
    step: int,
    num_workers: int,
    broken: BrokenVideos,
) -> None:
    """Replace the running statistics of all batch norms by the mean over `num_batches` batches, or one epoch if fewer.

    Every process reads its own batches; all end with the same statistics. The training's random states stay as they
    are, and so does whether the model is in training mode.

    Args:
        model: not wrapped for distributed training.
        clips: those of the training, augmented as there.
        seed, step: of the run; the same ones give the same batches.
    """
    norms = batch_norms(model)
    batches = TrainingBatches(
        len(clips),
        batch_size=batch_size,
        seed=clip_seed(seed, _PURPOSE, step),
        num_steps=0,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    batches.num_steps = min(num_batches, batches.steps_per_epoch)
    loader = DataLoader(
        clips, batch_sampler=batches, num_workers=num_workers, collate_fn=collate, generator=torch.Generator()
    )
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    was_training = model.training
    model.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the mean of all batches, each with the same weight
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(clip_seed(seed, _PURPOSE, step, accelerator.process_index))
        for batch in loader:
            broken.check(batch)
            # The base model alone: the classifier's forward pass is wrapped for the training's precision.
            with torch.autocast(accelerator.device.type, enabled=False):
                model.base_model(pixel_values=batch["pixel_values"].to(accelerator.device))
    for norm, (momentum, num_batches_tracked) in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.num_batches_tracked.copy_(num_batches_tracked)
        for statistic in (norm.running_mean, norm.running_var):
            statistic.copy_(accelerator.reduce(statistic, reduction="mean"))
    model.train(was_training)
