"""Windows of a video as index tables.

Cutting maps into windows, the cyclic shift of every second block, and the patch shift all permute the same grid of
(frame, row, column) tokens. So they compose into ONE gather on the way in and its inverse on the way out.
"""

from typing import NamedTuple

import torch

from .index_cache import cached_by_shape
from .temporal_shift import tile_patch_shift_pattern

Pattern = tuple[tuple[int, ...], ...]


class WindowLayout(NamedTuple):
    """How the tokens of a clip lie in windows.

    L = frames * windows * places is the number of tokens in windows, padding included, ordered frame, window, place.
    """

    gather: torch.Tensor  # (L,) int64: which token of the flat clip (frame, row, column) each place takes
    restore: torch.Tensor  # (frames * height * width,) int64: where in the windows each token of the clip lies
    mask: torch.Tensor | None  # (windows, places, places) float32, 0 or -100: keeps cyclically joined regions apart


class WindowGrid(NamedTuple):
    """Sizes along the two axes of a map: what a window really covers, how far it is shifted, how many there are."""

    window: tuple[int, int]
    shift: tuple[int, int]
    num_windows: tuple[int, int]


def window_grid(height: int, width: int, window_size: int, shifted: bool) -> WindowGrid:
    """The windows of a map, which never reach beyond it.

    An axis not longer than `window_size` is one window, not shifted (as in Swin; each axis on its own, as in the
    released TPS). Longer axes are padded up to a multiple of the window.
    """
    window = (min(window_size, height), min(window_size, width))
    shift = (
        window_size // 2 if shifted and height > window_size else 0,
        window_size // 2 if shifted and width > window_size else 0,
    )
    return WindowGrid(window, shift, (-(-height // window[0]), -(-width // window[1])))


@cached_by_shape
def window_layout(
    frames: int, height: int, width: int, window_size: int, shifted: bool, pattern: Pattern | None, device: torch.device
) -> WindowLayout:
    """The composed permutation of one block.

    Args:
        frames, height, width: the grid of tokens.
        window_size, shifted: Swin's window and whether this block shifts it.
        pattern: frame offsets of the patch shift, counted from the corner of each window, or None.
        device: where the tables live.

    A place in the padding takes the token number `frames * height * width`: the caller appends one token of zeros.
    """
    (window_h, window_w), (shift_h, shift_w), (count_h, count_w) = window_grid(height, width, window_size, shifted)
    padded_h, padded_w = count_h * window_h, count_w * window_w

    # Rows and columns broadcast to (windows down, windows across, places down, places across).
    rows = torch.arange(padded_h, device=device).view(count_h, 1, window_h, 1)
    columns = torch.arange(padded_w, device=device).view(1, count_w, 1, window_w)
    source_rows = (rows + shift_h) % padded_h
    source_columns = (columns + shift_w) % padded_w
    source_frames = torch.arange(frames, device=device).view(frames, 1, 1, 1, 1)
    if pattern is not None:
        offsets = tile_patch_shift_pattern(pattern, window_h, window_w, device)
        source_frames = (source_frames - offsets) % frames

    num_tokens = frames * height * width
    gather = (source_frames * height + source_rows) * width + source_columns
    inside = (source_rows < height) & (source_columns < width)
    gather = torch.where(inside, gather, num_tokens).flatten()
    # The inverse permutation; whatever the padding writes lands in the one slot that is cut off.
    places = torch.arange(gather.shape[0], device=device)
    restore = torch.zeros(num_tokens + 1, dtype=torch.int64, device=device).scatter(0, gather, places)[:num_tokens]

    mask = None
    if shift_h or shift_w:
        # After the cyclic shift a window may hold pieces from both ends of an axis; places see only their own piece.
        region_rows = (
            (rows >= padded_h - window_h).long() + (rows >= padded_h - shift_h).long() if shift_h else rows * 0
        )
        region_columns = (
            (columns >= padded_w - window_w).long() + (columns >= padded_w - shift_w).long() if shift_w else columns * 0
        )
        regions = (region_rows * 3 + region_columns).reshape(count_h * count_w, window_h * window_w)
        apart = regions[:, :, None] != regions[:, None, :]
        mask = torch.where(apart, -100.0, 0.0)
    return WindowLayout(gather, restore, mask)


@cached_by_shape
def relative_position_index(
    frames: int,
    window: tuple[int, int],
    window_size: int,
    pattern: Pattern | None,
    temporal: str | None,
    device: torch.device,
) -> torch.Tensor:
    """Rows of the bias table for each query place and key place of a window.

    The table has (2 * frames - 1) * (2 * window_size - 1)^2 rows: temporal offset, then vertical, then horizontal. A
    place counts as being in the frame that its patch came from, `(f - offset) % frames` under a patch shift.

    Args:
        frames: temporal positions.
        window: what the window covers, (height, width); may be less than `window_size` on small maps.
        pattern: frame offsets of the block's patch shift, or None.
        temporal: "key_frame_0": queries of frame f meet keys of frame 0 (the released code takes every 16th row of the
            256 frame pairs, where the pairs of a frame with itself are every 17th); "same_frame": keys of frame f (TPS
            section 3.2, the index shifted along with the patches); None: temporal offset 0 everywhere.

    Returns:
        (frames, places, places) int64, or (1, places, places) where all frames share their rows.
    """
    window_h, window_w = window
    rows = torch.arange(window_h, device=device).repeat_interleave(window_w)
    columns = torch.arange(window_w, device=device).repeat(window_h)
    side = 2 * window_size - 1
    spatial = (rows[:, None] - rows[None, :] + window_size - 1) * side + columns[:, None] - columns[None, :]
    spatial = spatial + window_size - 1

    if temporal is None or (pattern is None and temporal == "same_frame"):
        offsets = torch.zeros((1, 1, 1), dtype=torch.int64, device=device)
    else:
        came_from = torch.arange(frames, device=device)[:, None]
        if pattern is not None:
            came_from = (came_from - tile_patch_shift_pattern(pattern, window_h, window_w, device).flatten()) % frames
        keys = came_from[:1] if temporal == "key_frame_0" else came_from
        offsets = came_from[:, :, None] - keys[:, None, :]
    return (offsets + frames - 1) * side * side + spatial


@cached_by_shape
def temporal_resize_matrix(source: int, target: int, device: torch.device) -> torch.Tensor:
    """Linear interpolation of the temporal rows of a bias table from `source` to `target` temporal positions.

    Offsets -(source-1)..source-1 are stretched onto -(target-1)..target-1, so that the offset 0 stays where it is and
    the longest offset stays the longest: a clip sampled with fewer or more frames over the same time.

    Returns:
        (2 * target - 1, 2 * source - 1) float32, rows sum to 1.
    """
    last = 2 * source - 2
    scale = (source - 1) / (target - 1) if target > 1 else 0.0
    positions = torch.arange(-(target - 1), target, dtype=torch.float64, device=device) * scale + (source - 1)
    low = positions.floor().long().clamp(0, last)
    high = (low + 1).clamp(max=last)
    share = (positions - low).clamp(0, 1).to(torch.float32)[:, None]
    identity = torch.eye(2 * source - 1, device=device)
    return identity[low] * (1 - share) + identity[high] * share
