"""Scores of a whole data set, shared among processes, without a video counted twice."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..modeling_base import aggregate_views
from .data import BrokenVideos, VideoDataset, collate


@dataclass
class Predictions:
    """What a model says about a data set, in its order.

    Attributes:
        scores: (videos, classes), probabilities; NaN for a video that could not be read.
        labels: (videos,); `IGNORED_LABEL` for a video that could not be read.
        broken: name and reason of those.
    """

    scores: np.ndarray
    labels: np.ndarray
    broken: dict[str, str]


def predict_views(
    model: nn.Module,
    pixel_values: torch.Tensor,
    view_batch_size: int | None = None,
    progress: Callable[[Sequence[torch.Tensor]], Iterable[torch.Tensor]] = iter,
) -> torch.Tensor:
    """Logits (batch, classes) of videos with several views, as many views at a time as fit into memory.

    Args:
        model: a video classifier; `config.view_aggregation` says how views become one answer (without it: as the mean
            of probabilities).
        pixel_values: (batch, views, frames, channels, height, width).
        view_batch_size: the most views in one forward pass; None: all at once.
        progress: what the forward passes are shown by: from their inputs to the same ones.
    """
    videos, views = pixel_values.shape[:2]
    chunks = pixel_values.flatten(0, 1).split(view_batch_size or videos * views)
    logits = torch.cat([model(pixel_values=chunk).logits.float() for chunk in progress(chunks)])
    config = model.config
    return aggregate_views(
        logits.unflatten(0, (videos, views)), getattr(config, "view_aggregation", "probabilities"), config.problem_type
    )


@torch.no_grad()
def predict(
    model: nn.Module,
    dataset: VideoDataset,
    accelerator: Accelerator,
    *,
    batch_size: int,
    view_batch_size: int | None = None,
    num_workers: int = 0,
    on_broken_video: str = "skip",
    description: str = "evaluating",
) -> Predictions:
    """Scores of all videos, on every process. Process r takes the videos r, r + processes, ...; any number will do.

    Args:
        model: not wrapped for distributed training, since processes may run different numbers of batches.
        batch_size: videos in one batch.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    mine = list(range(rank, len(dataset), processes))
    batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=min(num_workers, len(batches)),
        collate_fn=collate,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # a loader draws a seed from its generator: not from the training's random state
    )
    broken = BrokenVideos(on_broken_video)
    was_training = model.training
    model.eval()
    found = []
    progress = tqdm(total=len(mine), desc=description, unit="video", disable=None if rank == 0 else True, leave=False)
    for batch in loader:
        broken.check(batch)
        with accelerator.autocast():
            logits = predict_views(model, batch["pixel_values"].to(accelerator.device), view_batch_size)
        scores = logits.float().softmax(-1).cpu().numpy()
        found.append((batch["index"].numpy(), batch["labels"].numpy(), scores))
        progress.update(len(scores))
    progress.close()
    model.train(was_training)

    shares = gather_object([(found, broken.reasons)])
    scores = np.full((len(dataset), model.config.num_labels), np.nan, np.float32)
    labels = np.zeros(len(dataset), np.int64)
    reasons: dict[str, str] = {}
    for share, share_reasons in shares:
        reasons |= share_reasons
        for index, label, values in share:
            scores[index], labels[index] = values, label
    scores[labels < 0] = np.nan
    return Predictions(scores, labels, reasons)
