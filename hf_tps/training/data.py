"""How labelled videos become batches.

Two promises:

- **The same clips whatever the machine.** The random choices for a clip (frames, crop, flip, ...) hang on the seed, the
  epoch and the clip's place in the epoch alone: not on the number of workers or processes, nor on whether the run was
  broken off in between.
- **A broken video never ends a run by itself.** It is counted and named; in training another video takes its place, so
  that all batches have one shape; in evaluation it is left out of the scores. Whatever exception the reading of one
  video raises counts as a broken video: libraries have many. An error of the program, which every video would meet,
  ends a training after `MAX_BROKEN_IN_A_ROW` of them; its type is in the message.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ..frame_sampling import sample_frame_indices
from ..plain_text import printable
from ..video_processing_tps import SAMPLING_SETTINGS, PartlyReadWarning, TPSVideoProcessor
from ..video_reading import read_video
from .augmentation import ClipAugmentation
from .frame_cache import FrameCache
from .policies import ChangeFrames
from .text import first_line
from .video_lists import LabelledVideos, first_videos

logger = logging.getLogger(__name__)

# What `read_video` takes, or the decoded frames, uint8 (frames, 3, height, width)
Video: TypeAlias = str | os.PathLike | bytes | torch.Tensor

# The label of a video that could not be read: what torch's cross-entropy ignores.
IGNORED_LABEL = -100
# So many unreadable videos one after another are no accident.
MAX_BROKEN_IN_A_ROW = 100


def clip_seed(*parts: int) -> int:
    """One well-mixed number from seed, epoch, place, ...: the same on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])


class ClipReader:
    """From a video (path, bytes, or its decoded frames) to what a model reads.

    Args:
        processor: decides frames, size and normalisation.
        augmentation: of training clips; None shows training the same crop as a test.
        views: `num_clips`, `num_crops`, `size`, ... for the test; see `protocols.py`.

    Raises:
        ValueError: for a processor that samples by fps.
    """

    # A clip that is sampled already, in one view
    WHOLE = {"do_sample_frames": False, "num_clips": 1, "num_crops": 1, "return_tensors": "pt"}

    def __init__(
        self, processor: TPSVideoProcessor, augmentation: ClipAugmentation | None = None, views: dict | None = None
    ) -> None:
        if processor.fps is not None:
            raise ValueError("The processor samples by fps, which gives clips of different lengths: set num_frames.")
        self.processor, self.augmentation, self.views = processor, augmentation, views or {}
        self.sampling = {name: getattr(processor, name) for name in SAMPLING_SETTINGS} | {"num_clips": 1}

    def test_views(self, video: Video) -> torch.Tensor:
        """(views, frames, 3, height, width)."""
        with warnings.catch_warnings():
            # The protocol says how much of a video is looked at, for all of them.
            warnings.simplefilter("ignore", PartlyReadWarning)
            pixel_values = self.processor(video, return_tensors="pt", **self.views).pixel_values[0]
        return pixel_values if pixel_values.ndim == 5 else pixel_values[None]

    def training_clip(self, video: Video, label: int, seed: int) -> torch.Tensor:
        """(frames, 3, height, width) at random places of time and, with an augmentation, of the frame."""
        generator = torch.Generator().manual_seed(seed)
        frames = self._random_frames(video, generator)
        if self.augmentation is None:
            return self.processor(frames, **self.WHOLE).pixel_values[0]
        frames = self.augmentation.change_crops(frames, label, generator)
        cropped = self.augmentation.crops
        pixel_values = self.processor(
            frames,
            **self.WHOLE,
            do_resize=self.processor.do_resize and not cropped,
            do_center_crop=self.processor.do_center_crop and not cropped,
        ).pixel_values[0]
        return self.augmentation.erase(pixel_values, generator)

    def _random_frames(self, video: Video, generator: torch.Generator) -> torch.Tensor:
        """uint8 (frames, 3, height, width) at random places of time, cropped by the augmentation.

        They are cropped as they are decoded: no more than a few frames of a large video are held at their full size.
        """
        crop: ChangeFrames | None = None
        chosen_at: torch.Tensor | None = None  # state of the generator after the frames were chosen

        def indices(total: int) -> np.ndarray:
            nonlocal crop, chosen_at
            if chosen_at is not None:  # the count was wrong: the crop is drawn again as well, after the frames
                generator.set_state(chosen_at)
            chosen = sample_frame_indices(
                total, num_frames=self.processor.num_frames, training=True, generator=generator, **self.sampling
            )[0]
            crop, chosen_at = None, generator.get_state()
            return chosen

        def prepare(frames: torch.Tensor) -> torch.Tensor:
            nonlocal crop
            if self.augmentation is None:
                return frames
            if crop is None:
                height, width = frames.shape[-2:]
                crop = self.augmentation.draw_crop(height, width, generator)
            return crop(frames)

        if isinstance(video, torch.Tensor):
            return prepare(video[torch.from_numpy(indices(len(video)))])
        frames, _ = read_video(video, lambda metadata: indices(metadata.total_num_frames), prepare=prepare)
        return frames


def clip_item(pixel_values: torch.Tensor | None, label: int, index: int, broken: list[tuple[str, str]]) -> dict:
    """One entry of a batch, as `collate` takes it."""
    return {"pixel_values": pixel_values, "labels": label, "index": index, "broken": broken}


class VideoDataset(Dataset):
    """Clips by number.

    `dataset[(index, seed)]` is a training clip (see `TrainingBatches`), where a broken video is replaced by the next
    one that can be read. `dataset[index]` is one too with `training=True`, from torch's random state; without, all
    views of the test, and a broken video has the label `IGNORED_LABEL` and black frames.

    Each item has `pixel_values`, `labels`, `index`, and `broken`, pairs (name, reason) of what could not be read.

    Args:
        videos: what `read_class_folders` and its like return.
        class_names: the model's classes, in their order.
        clips: from a video to pixels.
        training: what a plain index means.
        frames: decoded frames of the same videos.

    Raises:
        ValueError: for labels that are not among the classes.
    """

    def __init__(
        self,
        videos: LabelledVideos,
        class_names: Sequence[str],
        clips: ClipReader,
        training: bool = False,
        frames: FrameCache | None = None,
    ) -> None:
        self.videos, self.clips, self.training = videos, clips, training
        self.class_names = class_names
        self.labels = videos.label_ids(class_names)
        self.sources = videos.sources if frames is None else frames
        self.blank: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.videos)

    def first(self, number: int, seed: int) -> "VideoDataset":
        """A random choice of so many of the videos, as in a test."""
        chosen = first_videos(self.videos, number, seed)
        return VideoDataset(chosen, self.class_names, self.clips)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        if isinstance(key, tuple):
            return self._training_item(*key)
        if self.training:
            return self._training_item(key, int(torch.randint(2**32, ())))
        try:
            pixel_values = self.clips.test_views(self.sources[key])
            return clip_item(pixel_values, self.labels[key], key, [])
        except Exception as error:
            broken = [(self.videos.names[key], first_line(error))]
            return clip_item(self._blank_views(), IGNORED_LABEL, key, broken)

    def _training_item(self, index: int, seed: int) -> dict:
        broken: list[tuple[str, str]] = []
        for other in range(min(len(self), MAX_BROKEN_IN_A_ROW)):
            number = (index + other) % len(self)
            try:
                pixel_values = self.clips.training_clip(self.sources[number], self.labels[number], seed)
                return clip_item(pixel_values, self.labels[number], number, broken)
            except Exception as error:
                broken.append((self.videos.names[number], first_line(error)))
        return clip_item(None, IGNORED_LABEL, index, broken)

    def _blank_views(self) -> torch.Tensor:
        if self.blank is None:
            # As many pixels as any crop needs, so that the processor itself gives the shape of a batch.
            processor = self.clips.processor
            side = max((self.clips.views.get("crop_size") or dict(processor.crop_size)).values())
            self.blank = self.clips.test_views(torch.zeros(1, 3, side, side, dtype=torch.uint8))
        return self.blank


def collate(items: list[dict]) -> dict:
    """A batch of items; `pixel_values` is None where no video could be found for one of them."""
    clips = [item["pixel_values"] for item in items]
    return {
        "pixel_values": None if any(clip is None for clip in clips) else torch.stack(clips),
        "labels": torch.tensor([item["labels"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
        "broken": [pair for item in items for pair in item["broken"]],
    }


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """The micro-batches of one process from any step of a run to its end, as lists of (index, seed).

    Every epoch is one permutation. It is cut into optimizer steps of `batch_size * accumulation * world_size` clips,
    and each step into parts for the micro-batches and processes, in this order: two processes together see what one
    sees with twice the batch size or accumulation. What is left over at the end of an epoch is dropped; a data set
    smaller than one step is repeated to fill it.

    Raises:
        ValueError: without videos, or for a batch size below 1.
    """

    def __init__(
        self,
        num_videos: int,
        *,
        batch_size: int,
        seed: int,
        num_steps: int,
        first_step: int = 0,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_videos < 1 or batch_size < 1:
            raise ValueError(f"There must be videos ({num_videos}) and a batch size of at least 1 ({batch_size}).")
        self.num_videos, self.batch_size, self.seed = num_videos, batch_size, seed
        self.first_step, self.num_steps = first_step, num_steps
        self.accumulation, self.rank, self.world_size = accumulation, rank, world_size

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.num_videos // (self.batch_size * self.accumulation * self.world_size))

    def __len__(self) -> int:
        return (self.num_steps - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        clips_per_step = self.batch_size * self.accumulation * self.world_size
        order: list[int] = []
        ordered_epoch = -1
        for step in range(self.first_step, self.num_steps):
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            if epoch != ordered_epoch:
                order, ordered_epoch = self._order(epoch, clips_per_step), epoch
            for part in range(self.accumulation):
                start = step_in_epoch * clips_per_step + (part * self.world_size + self.rank) * self.batch_size
                yield [
                    (order[place], clip_seed(self.seed, epoch, place))
                    for place in range(start, start + self.batch_size)
                ]

    def _order(self, epoch: int, at_least: int) -> list[int]:
        generator = torch.Generator().manual_seed(clip_seed(self.seed, epoch))
        order: list[int] = []
        while len(order) < max(self.num_videos, at_least):
            order += torch.randperm(self.num_videos, generator=generator).tolist()
        return order


class BrokenVideos:
    """Counts and names what could not be read.

    Args:
        policy: "skip" logs each video once and goes on, "error" stops at the first one.

    Raises:
        ValueError: for another policy.
    """

    POLICIES = ("skip", "error")

    def __init__(self, policy: str) -> None:
        if policy not in self.POLICIES:
            raise ValueError(f"on_broken_video must be one of {self.POLICIES}, got {policy!r}.")
        self.policy = policy
        self.reasons: dict[str, str] = {}

    def check(self, batch: dict) -> None:
        """Note the broken videos of a batch.

        Raises:
            ValueError: by policy, or if no readable video was found in their place.
        """
        for name, reason in batch["broken"]:
            if name in self.reasons:
                continue
            self.reasons[name] = reason
            name = printable(name)
            if self.policy == "error":
                raise ValueError(f"Broken video {name}: {reason} (on_broken_video='skip' goes on without it.)")
            logger.warning("broken video %s: %s", name, reason)
        if batch["pixel_values"] is None:
            raise ValueError(
                f"None of {len(batch['broken'])} videos in a row can be read; the first: "
                f"{printable(batch['broken'][0][0])}: {batch['broken'][0][1]}"
            )
