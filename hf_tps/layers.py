# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Small layers that every family uses."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from .cpu_pieces import in_pieces


def pair(size: int | Iterable[int]) -> tuple[int, int]:
    """Height and width, given as both or as one number."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, a sample loses this residual branch with probability `rate`."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0.0:
            return hidden_states
        kept = hidden_states.new_empty((hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1))
        return hidden_states * kept.bernoulli_(1 - self.rate).div_(max(1 - self.rate, 1e-6))

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def drop_path_rates(rate: float, blocks: int) -> list[float]:
    """Stochastic depth of each block: it grows linearly from 0 at the first to `rate` at the last."""
    return [rate * block / max(blocks - 1, 1) for block in range(blocks)]


class MLP(nn.Module):
    """The MLP of a transformer block, on the last axis."""

    def __init__(self, channels: int, hidden_channels: int, activation: str, dropout: float = 0.0, bias: bool = True):
        super().__init__()
        self.hidden_channels = hidden_channels
        self.fc1 = nn.Linear(channels, hidden_channels, bias=bias)
        self.activation = ACT2FN[activation]
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden_channels, channels, bias=bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., channels) to the same."""
        tokens = hidden_states.flatten(0, -2)
        return in_pieces(self.forward_tokens, self.hidden_channels, tokens).view(hidden_states.shape)

    def forward_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """(tokens, channels) to the same."""
        return self.dropout(self.fc2(self.dropout(self.activation(self.fc1(tokens)))))


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, in the form of Transformers' attention interface.

    Args:
        query, key, value: (batch, heads, tokens, head_dim).
        attention_mask: added to the scores, broadcast to (batch, heads, tokens, tokens); or None.

    Returns:
        Output (batch, tokens, heads, head_dim) and weights (batch, heads, tokens, tokens).
    """
    scores = query @ key.transpose(-2, -1) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights
