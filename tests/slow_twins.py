"""Slow, readable forms of what the package computes fast: loops, one idea a line. Values and gradients must agree."""

import torch
from torch import nn

from hf_tps.temporal_shift import channel_shift


def tps_attention(attention: nn.Module, maps: torch.Tensor) -> torch.Tensor:
    """What `TPSAttention` computes on (batch, frames, height, width, channels), window by window and head by head."""
    config = attention.config
    batch, frames, height, width, channels = maps.shape
    size = config.window_size
    window_h, window_w = min(size, height), min(size, width)
    shift_h = size // 2 if attention.shifted and height > size else 0
    shift_w = size // 2 if attention.shifted and width > size else 0

    if attention.temporal_shift == "channel":
        maps = channel_shift(maps, config.shift_div, attention.num_heads)
    maps = nn.functional.pad(maps, (0, 0, 0, -width % window_w, 0, -height % window_h))
    padded_h, padded_w = maps.shape[2:4]
    maps = maps.roll((-shift_h, -shift_w), dims=(2, 3))
    # which piece of the map a place belongs to, once the map is rolled
    piece = torch.zeros(padded_h, padded_w)
    for row in range(padded_h):
        for column in range(padded_w):
            over_row = 2 if shift_h and row >= padded_h - shift_h else int(shift_h > 0 and row >= padded_h - window_h)
            over_column = (
                2 if shift_w and column >= padded_w - shift_w else int(shift_w > 0 and column >= padded_w - window_w)
            )
            piece[row, column] = 3 * over_row + over_column

    def offset(place: int) -> int:
        """Frames by which the patch shift rolls a place of a window."""
        if attention.pattern is None:
            return 0
        row, column = divmod(place, window_w)
        return attention.pattern[row % len(attention.pattern)][column % len(attention.pattern[0])]

    places = window_h * window_w
    out = torch.zeros_like(maps)
    for top in range(0, padded_h, window_h):
        for left in range(0, padded_w, window_w):
            window = maps[:, :, top : top + window_h, left : left + window_w].reshape(batch, frames, places, channels)
            shifted = torch.stack([window[:, :, p].roll(offset(p), dims=1) for p in range(places)], dim=2)
            pieces = piece[top : top + window_h, left : left + window_w].flatten()
            mask = (pieces[:, None] != pieces[None, :]) * -100.0
            answers = []
            for frame in range(frames):
                bias = position_bias(attention, frame, frames, window_h, window_w, offset) + mask
                query, key, value = (
                    part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
                    for part in attention.qkv(shifted[:, frame]).chunk(3, dim=-1)
                )
                weights = (query @ key.transpose(-1, -2) * attention.head_dim**-0.5 + bias).softmax(-1)
                answers.append((weights @ value).transpose(1, 2).flatten(2))
            answer = torch.stack(answers, dim=1)
            restored = answer
            if config.shift_back:
                restored = torch.stack([answer[:, :, p].roll(-offset(p), dims=1) for p in range(places)], dim=2)
            out[:, :, top : top + window_h, left : left + window_w] = restored.view(
                batch, frames, window_h, window_w, -1
            )
    out = out.roll((shift_h, shift_w), dims=(2, 3))[:, :, :height, :width]
    return attention.proj(out)


def position_bias(attention, frame: int, frames: int, window_h: int, window_w: int, offset) -> torch.Tensor:
    """(heads, places, places) for the queries of one frame, entry by entry."""
    config = attention.config
    side = 2 * config.window_size - 1
    if not config.shift_position_bias:
        offset = zero
    key_frame = 0 if config.relative_position_bias == "key_frame_0" else frame
    places = window_h * window_w
    rows = []
    for query in range(places):
        for key in range(places):
            time = (frame - offset(query)) % frames - (key_frame - offset(key)) % frames
            if attention.temporal_shift is None:
                time = 0
            down = query // window_w - key // window_w
            across = query % window_w - key % window_w
            rows.append(
                ((time + frames - 1) * side + down + config.window_size - 1) * side + across + config.window_size - 1
            )
    return attention.relative_position_bias_table[rows].t().reshape(-1, places, places)


def zero(place: int) -> int:
    return 0
