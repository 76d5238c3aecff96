# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Parts of a vision transformer that XViT and LAPS share: frames to tokens, attention over given groups of tokens."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def resize_positions(positions: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A square grid of position embeddings for another map: bicubic, as XViT's released code does it.

    Args:
        positions: (1, side * side, channels).

    Returns:
        (1, rows * columns, channels).
    """
    side = math.isqrt(positions.shape[1])
    if (rows, columns) == (side, side):
        return positions
    grid = positions.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    grid = nn.functional.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2).to(positions.dtype)


class ViTEmbeddings(nn.Module):
    """Each frame as a class token and its patches, with learned positions.

    The projection is a linear layer on flattened patches (channel, row, column): a convolution with stride equal to its
    kernel. Other image sizes than the config's interpolate the positions.
    """

    def __init__(self, num_channels: int, image_size: int, patch_size: int, hidden_size: int, dropout: float):
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Linear(num_channels * patch_size**2, hidden_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + (image_size // patch_size) ** 2, hidden_size))
        self.dropout = nn.Dropout(dropout)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(frames, channels, height, width) to (frames, 1 + patches, hidden_size)."""
        patch = self.patch_size
        height, width = pixel_values.shape[-2:]
        if height % patch or width % patch:
            raise ValueError(
                f"Height and width must be multiples of the patch of {patch} pixels; got {height} x {width}."
            )
        pixel_values = pixel_values.to(self.class_token.dtype)  # that of a quantised projection is int8
        patches = pixel_values.unflatten(-2, (-1, patch)).unflatten(-1, (-1, patch))
        tokens = self.projection(patches.permute(0, 2, 4, 1, 3, 5).flatten(-3).flatten(1, 2))
        tokens = torch.cat((self.class_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        grid = resize_positions(self.position_embeddings[:, 1:], height // patch, width // patch)
        return self.dropout(tokens + torch.cat((self.position_embeddings[:, :1], grid), dim=1))


def attend(
    attention_interface: Callable,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of each group of tokens through Transformers' attention interface.

    Args:
        attention_interface: the kernel. Each modeling file looks it up itself, since Transformers reads their source to
            know whether the kernel of a model can be changed.
        module: has `num_heads`, `scaling`, `attention_dropout` and `is_causal`.
        query, key, value: (groups, tokens, channels), the heads side by side.

    Returns:
        (groups, tokens, channels), and the weights if the kernel gives them.
    """
    query, key, value = (part.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
    attended, weights = attention_interface(
        module,
        query,
        key,
        value,
        None,
        scaling=module.scaling,
        dropout=module.attention_dropout if module.training else 0.0,
        **kwargs,
    )
    return attended.flatten(-2), weights
