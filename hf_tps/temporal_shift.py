"""Temporal shifts as pure functions: they move features between frames and cost no multiplication.

These are the readable forms, one function per idea. Where a model folds a shift into a gather that it needs anyway
(`window_layout.py`), the function here is the twin that the fast path is tested against.
"""

from collections.abc import Sequence

import torch
from torch import nn

# TPS figure 5: a tile of frame offsets, repeated over the patches of a window. Offset s at a place means that the place
# receives, at frame t, the patch of frame t - s (a circular roll by s, as the released code does; the paper states no
# sign convention). The number in the paper's name (A-3, B-4, C-9, D-16) counts the frames mixed.
PATCH_SHIFT_PATTERNS = {
    "A": ((0, 1), (-1, 0)),
    "B": ((0, 1), (-1, 2)),
    "C": ((-4, 1, 2), (-1, 0, 3), (-2, -3, 4)),
    "D": ((0, 1, 2, 3), (-1, -7, 4, 5), (-2, -4, 7, 6), (-3, -5, -6, 8)),
}


def resolve_patch_shift_pattern(pattern: str | Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The matrix of frame offsets that a pattern's name stands for, or the given matrix as tuples of ints.

    Raises:
        ValueError: for an unknown name, and for anything that is not a rectangular, non-empty matrix of integers.
    """
    if isinstance(pattern, str):
        if pattern not in PATCH_SHIFT_PATTERNS:
            raise ValueError(
                f"Unknown patch shift pattern {pattern!r}: give one of {sorted(PATCH_SHIFT_PATTERNS)} or a matrix of "
                "integer frame offsets such as [[0, 1], [-1, 0]]."
            )
        return PATCH_SHIFT_PATTERNS[pattern]
    try:
        rows = tuple(tuple(row) for row in pattern)
    except TypeError:
        rows = ()
    rectangular = len(rows) > 0 and len(rows[0]) > 0 and all(len(row) == len(rows[0]) for row in rows)
    if not rectangular or not all(
        isinstance(offset, int) and not isinstance(offset, bool) for row in rows for offset in row
    ):
        raise ValueError(
            f"A patch shift pattern is a name of {sorted(PATCH_SHIFT_PATTERNS)} or a rectangular matrix of integer "
            "frame "
            f"offsets such as [[0, 1], [-1, 0]]; got {pattern!r}."
        )
    return rows


def tile_patch_shift_pattern(
    pattern: Sequence[Sequence[int]], height: int, width: int, device: torch.device | str | None = None
) -> torch.Tensor:
    """The frame offsets of a map of patches: `pattern` repeated from the top left corner, (height, width), int64."""
    tile = torch.tensor(pattern, dtype=torch.int64, device=device)
    rows = torch.arange(height, device=device) % tile.shape[0]
    columns = torch.arange(width, device=device) % tile.shape[1]
    return tile[rows[:, None], columns[None, :]]


def patch_shift(hidden_states: torch.Tensor, pattern: Sequence[Sequence[int]], inverse: bool = False) -> torch.Tensor:
    """Temporal patch shift (TPS section 3, figure 5): each place of the map takes its patch from another frame.

    Args:
        hidden_states: (batch, frames, height, width, channels), one window or one map per frame.
        pattern: matrix of frame offsets, repeated over the map from its top left corner. Time wraps around.
        inverse: shift back, so that `patch_shift(patch_shift(x, p), p, inverse=True)` is `x`.

    Returns:
        The shifted tensor, same shape: `out[:, t, h, w] = hidden_states[:, (t - offset[h, w]) % frames, h, w]`.
    """
    _, frames, height, width, _ = hidden_states.shape
    offsets = tile_patch_shift_pattern(pattern, height, width, hidden_states.device)
    if inverse:
        offsets = -offsets
    time = torch.arange(frames, device=hidden_states.device)
    rows = torch.arange(height, device=hidden_states.device)
    columns = torch.arange(width, device=hidden_states.device)
    source = (time[:, None, None] - offsets) % frames
    return hidden_states[:, source, rows[:, None], columns[None, :]]


def channel_shift(hidden_states: torch.Tensor, shift_div: int, num_heads: int = 1) -> torch.Tensor:
    """Temporal channel shift of TPS: in every head, the first channels come from the frame before, the next from the
    frame after, the rest stays. At the ends of the clip a frame keeps its own values (no zeros), as the released code
    does.

    Args:
        hidden_states: (batch, frames, ..., channels).
        shift_div: each of the two moving groups has `channels / num_heads // shift_div` channels of a head.
        num_heads: heads that the channels are split into, head-major.

    Returns:
        The shifted tensor, same shape.
    """
    heads = hidden_states.unflatten(-1, (num_heads, -1))
    fold = heads.shape[-1] // shift_div
    if fold == 0:
        return hidden_states
    # split, not slices: their gradients would each be a full tensor of zeros to add
    from_before, from_after, kept = heads.split((fold, fold, heads.shape[-1] - 2 * fold), dim=-1)
    before = torch.cat((from_before[:, :1], from_before[:, :-1]), dim=1)
    after = torch.cat((from_after[:, 1:], from_after[:, -1:]), dim=1)
    return torch.cat((before, after, kept), dim=-1).flatten(-2)


def neighbour_shift(hidden_states: torch.Tensor, fold: int, window: int = 1) -> torch.Tensor:
    """The first channels come from the frames after, the next ones from the frames before; zeros beyond the ends of the
    clip.

    Args:
        hidden_states: (batch, frames, ..., channels).
        fold: channels taken from each side; with `window` 2 half of them come from the frame two steps away.
        window: how many frames away a neighbour may be (XViT's temporal window).

    Returns:
        Same shape: channels [0, fold) of frame t are those of t + 1, [fold, 2 fold) those of t - 1 (window 1); with a
        larger window the groups are t + 1, t - 1, t + 2, t - 2 and so on, `fold // window` channels each.
    """
    share = fold // window
    if share == 0:
        return hidden_states
    frames, channels = hidden_states.shape[1], hidden_states.shape[-1]
    offsets = [offset for step in range(1, window + 1) for offset in (step, -step)]
    # split, not slices: their gradients would each be a full tensor of zeros to add
    *groups, kept = hidden_states.split([share] * len(offsets) + [channels - share * len(offsets)], dim=-1)
    other_axes = (0, 0) * (hidden_states.ndim - 2)

    def from_frame(group: torch.Tensor, offset: int) -> torch.Tensor:
        missing = min(abs(offset), frames)
        if offset > 0:
            return nn.functional.pad(group[:, offset:], (*other_axes, 0, missing))
        return nn.functional.pad(group[:, :offset], (*other_axes, missing, 0))

    moved = [from_frame(group, offset) for group, offset in zip(groups, offsets, strict=True)]
    return torch.cat((*moved, kept), dim=-1)


def mixing_shift(
    hidden_states: torch.Tensor, shift_div: int, segment_length: int | None = None, window: int = 1
) -> torch.Tensor:
    """XViT's space-time mixing of keys or values (section 3.2): a share rho = 2 / shift_div of all channels is imported
    from the same place in neighbouring frames.

    Args:
        hidden_states: (batch, frames, ..., channels), the heads side by side; whole heads move, since the channels are
            counted over all of them.
        shift_div: `channels // shift_div` come from each side.
        segment_length: frames that exchange; nothing crosses the border of two segments. None: the whole clip. A clip
            that is no multiple has a shorter last segment.
        window: temporal window (1; 2 in the paper's ablation).
    """
    frames, channels = hidden_states.shape[1], hidden_states.shape[-1]
    fold = channels // shift_div
    if segment_length is None or segment_length >= frames:
        return neighbour_shift(hidden_states, fold, window)
    padded = nn.functional.pad(hidden_states, (0, 0) * (hidden_states.ndim - 2) + (0, -frames % segment_length))
    segments = padded.unflatten(1, (-1, segment_length)).flatten(0, 1)
    shifted = neighbour_shift(segments, fold, window)
    return shifted.unflatten(0, (hidden_states.shape[0], -1)).flatten(1, 2)[:, :frames]


def periodic_shift(hidden_states: torch.Tensor, shift_div: int, num_heads: int) -> torch.Tensor:
    """LAPS' periodic shift (section 3): in every head, `head_dim // shift_div` channels from the next frame, as many
    from the frame before, zeros at the ends. With `num_heads=1` it is the "plain shift" over all channels.

    Args:
        hidden_states: (batch, frames, ..., channels), the heads side by side.
    """
    heads = hidden_states.unflatten(-1, (num_heads, -1))
    return neighbour_shift(heads, heads.shape[-1] // shift_div).flatten(-2)


def token_shift(hidden_states: torch.Tensor, shift_div: int) -> torch.Tensor:
    """TokShift (arXiv 2108.02432): the class token alone, the first of each frame, is shifted over all its channels.

    Args:
        hidden_states: (batch, frames, tokens, channels).
    """
    shifted = neighbour_shift(hidden_states[:, :, :1], hidden_states.shape[-1] // shift_div)
    return torch.cat((shifted, hidden_states[:, :, 1:]), dim=2)
