"""Leap attention (LAPS section 3): distant frames attend to each other in pairs."""

import torch

from .index_cache import cached_by_shape


def leap_pairs(num_frames: int, level: int) -> list[tuple[int, int]]:
    """The pairs of frames that attend jointly at a level.

    They are frame t and frame t + leap, leap = num_frames // 2**level, each frame in one pair, scanned upwards. In a
    clip with an odd number of frames the last frame is paired with itself, which is attention inside it alone; the
    others pair as in a clip without it.

    Raises:
        ValueError: for a level that leaves a frame without partner.

    Example:
        >>> leap_pairs(8, 2)
        [(0, 2), (1, 3), (4, 6), (5, 7)]
    """
    paired = num_frames - num_frames % 2
    leap = paired >> level if level >= 0 else 0
    if level < 1 or leap < 1 or paired % (2 * leap):
        possible = [
            at for at in range(1, max(num_frames, 2)) if paired >= 2**at and paired % (2 * (paired // 2**at)) == 0
        ]
        raise ValueError(
            f"Leap level {level} pairs frames {num_frames} // 2**{level} = {leap} apart, which leaves frames of a clip "
            f"of {num_frames} without partner; possible levels are {possible}, and None for attention inside each "
            "frame."
        )
    pairs = [(start + t, start + t + leap) for start in range(0, paired, 2 * leap) for t in range(leap)]
    return pairs + [(paired, paired)] * (num_frames % 2)


@cached_by_shape
def leap_order(num_frames: int, level: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The pairs of `leap_pairs` as one gather over frames and its inverse.

    Returns:
        order (2 * pairs,) int64: frames pair by pair; inverse (num_frames,): where each frame stands in it.
    """
    order = [frame for pair in leap_pairs(num_frames, level) for frame in pair]
    inverse = [order.index(frame) for frame in range(num_frames)]
    return torch.tensor(order, device=device), torch.tensor(inverse, device=device)
