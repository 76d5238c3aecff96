"""Temporal shifts as pure functions: they move features between frames and cost no multiplication.

These are the readable forms, one function per idea. Where a model folds a shift into a gather that it needs anyway
(`window_layout.py`), the function here is the twin that the fast path is tested against.
"""

from collections.abc import Sequence

import torch

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
    """
    The matrix of frame offsets that a pattern's name stands for, or the given matrix as tuples of ints.

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
            f"A patch shift pattern is a name of {sorted(PATCH_SHIFT_PATTERNS)} or a rectangular matrix of integer frame "
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
    """
    Temporal patch shift (TPS section 3, figure 5): each place of the map takes its patch from another frame.

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
    """
    Temporal channel shift of TPS: in every head, the first channels come from the frame before, the next from the frame
    after, the rest stays. At the ends of the clip a frame keeps its own values (no zeros), as the released code does.

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
    from_before = heads[..., :fold]
    from_after = heads[..., fold : 2 * fold]
    before = torch.cat((from_before[:, :1], from_before[:, :-1]), dim=1)
    after = torch.cat((from_after[:, 1:], from_after[:, -1:]), dim=1)
    return torch.cat((before, after, heads[..., 2 * fold :]), dim=-1).flatten(-2)
