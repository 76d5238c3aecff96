"""Which frames of a video make up a clip: pure functions from a frame count to frame indices.

Two samplers cover the published methods:

- `"uniform"` cuts the whole video into `num_frames` equal segments and takes one frame from each
  (TPS and XViT on Something-Something, TPS on Diving-48);
- `"dense"` takes `num_frames` frames from a window of `num_frames * frame_interval` consecutive ones
  (Kinetics, all methods), either every `frame_interval`-th frame (`"stride"`, TPS) or spread over the whole
  window, both ends included (`"linspace"`, XViT and LAPS: 16 frames at interval 16 are 17 apart).
"""

import numpy as np
import torch

SAMPLING = ("uniform", "dense")
INDEX_RULES = ("stride", "linspace")
PAST_END = ("loop", "clamp")
CLIP_PLACEMENTS = ("centre", "start")

# Of all clips of a video together: more is a mistake, or a settings file that wants all the memory there is.
MAX_SAMPLED_FRAMES = 2**16
# Uniform sampling has three test views: the middle, the first and the last frame of each segment.
MAX_UNIFORM_CLIPS = 3


def check_sampling_settings(
    *,
    num_frames: int,
    sampling: str,
    frame_interval: int,
    index_rule: str,
    past_end: str,
    clip_placement: str,
    num_clips: int,
) -> None:
    """Raise `ValueError`, naming what is allowed, for a setting that no sampler knows."""
    choices = {
        "sampling": (sampling, SAMPLING),
        "index_rule": (index_rule, INDEX_RULES),
        "past_end": (past_end, PAST_END),
        "clip_placement": (clip_placement, CLIP_PLACEMENTS),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    counts = {"num_frames": num_frames, "frame_interval": frame_interval, "num_clips": num_clips}
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}.")
    if num_frames * num_clips > MAX_SAMPLED_FRAMES:
        raise ValueError(
            f"num_frames={num_frames} times num_clips={num_clips} is more than {MAX_SAMPLED_FRAMES} frames of a video."
        )
    if sampling == "uniform" and num_clips > MAX_UNIFORM_CLIPS:
        raise ValueError(
            f"sampling='uniform' has {MAX_UNIFORM_CLIPS} clips (middle, start and end of each segment), got "
            f"num_clips={num_clips}. Use at most {MAX_UNIFORM_CLIPS}, or sampling='dense'."
        )


def sample_frame_indices(
    total_frames: int,
    *,
    num_frames: int,
    sampling: str = "uniform",
    frame_interval: int = 1,
    index_rule: str = "stride",
    past_end: str = "loop",
    clip_placement: str = "centre",
    num_clips: int = 1,
    training: bool = False,
    generator: torch.Generator | None = None,
) -> np.ndarray:
    """Frame indices of all clips of one video.

    Args:
        total_frames: frames in the video.
        num_frames: frames per clip.
        sampling: `"uniform"` or `"dense"`, see the top of this file.
        frame_interval, index_rule: distance of neighbouring frames in frames of the video, and their positions in a
            dense window (`"stride"` or `"linspace"`); `"uniform"` ignores both.
        past_end: what a dense window takes after the last frame: `"loop"` begins again at the first one, `"clamp"`
            repeats the last one.
        clip_placement: where the `num_clips` dense windows of a test lie. `"centre"` puts each in the middle of its
            part of the video; `"start"` at the beginning of it, so that a single clip starts at frame 0.
        num_clips: clips per video (temporal views).
        training: random positions instead of the test positions.
        generator: a CPU generator for the random positions. None means torch's global one, which a `DataLoader`
            seeds differently in each of its workers.

    Returns:
        int64 array (num_clips, num_frames) with values in [0, total_frames). A short video gives repeated indices.

    Raises:
        ValueError: for a video without frames or an unknown setting.
    """
    check_sampling_settings(
        num_frames=num_frames,
        sampling=sampling,
        frame_interval=frame_interval,
        index_rule=index_rule,
        past_end=past_end,
        clip_placement=clip_placement,
        num_clips=num_clips,
    )
    if total_frames < 1:
        raise ValueError(f"The video has no frames (frame count {total_frames}): there is nothing to sample.")

    if sampling == "uniform":
        return _uniform(total_frames, num_frames, num_clips, training, generator)
    span = num_frames * frame_interval
    if training:
        starts = _random_starts(total_frames, span, num_clips, index_rule, generator)
    else:
        starts = _test_starts(total_frames, span, num_clips, index_rule, clip_placement)
    indices = np.stack([_positions(start, num_frames, frame_interval, index_rule) for start in starts])
    return indices % total_frames if past_end == "loop" else np.minimum(indices, total_frames - 1)


def _uniform(
    total_frames: int, num_frames: int, num_clips: int, training: bool, generator: torch.Generator | None
) -> np.ndarray:
    # Neighbouring segments share their border frame, and borders round half to even: both as in the released code.
    borders = np.round((total_frames - 1) / num_frames * np.arange(num_frames + 1)).astype(np.int64)
    start, end = borders[:-1], borders[1:]
    if not training:
        return np.stack([(start + end) // 2, start, end][:num_clips])
    draws = _random((num_clips, num_frames), generator)
    return start + (draws * (end - start + 1)).astype(np.int64)


def _test_starts(total_frames: int, span: int, num_clips: int, index_rule: str, placement: str) -> list[float]:
    clips = range(num_clips)
    if placement == "start":
        room = max(total_frames - span, 0)
        starts = [room * clip / num_clips for clip in clips]
        # Only linspace can begin between two frames.
        return starts if index_rule == "linspace" else [int(start) for start in starts]
    if total_frames < span:
        return [0] * num_clips
    part = (total_frames - span + 1) / num_clips
    return [int(clip * part + part / 2) for clip in clips]


def _random_starts(
    total_frames: int, span: int, num_clips: int, index_rule: str, generator: torch.Generator | None
) -> list[float]:
    draws = _random((num_clips,), generator)
    room = max(total_frames - span, 0)
    if index_rule == "linspace":
        return [float(draw) * room for draw in draws]
    # Each clip has its own part of the video; where there are fewer start frames than clips, any of them will do.
    part = (room + 1) // num_clips
    if part == 0:
        return [int(draw * (room + 1)) for draw in draws]
    return [clip * part + int(draw * part) for clip, draw in enumerate(draws)]


def _positions(start: float, num_frames: int, frame_interval: int, index_rule: str) -> np.ndarray:
    """The frames of one dense window, int64, which may lie past the end of the video."""
    if index_rule == "stride":
        return int(start) + frame_interval * np.arange(num_frames, dtype=np.int64)
    # float32, as torch.linspace computes it: a position that rounds to just below a whole number is cut to the
    # frame before it, and the released models have seen exactly that frame.
    end = start + num_frames * frame_interval - 1
    return torch.linspace(start, end, num_frames, dtype=torch.float32, device="cpu").long().numpy()


def _random(shape: tuple[int, ...], generator: torch.Generator | None) -> np.ndarray:
    """Uniform numbers in [0, 1), always drawn on the CPU."""
    return torch.rand(shape, dtype=torch.float64, generator=generator, device="cpu").numpy()
