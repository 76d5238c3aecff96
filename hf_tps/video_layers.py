# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Small layers that every family uses."""

import torch
from torch import nn
from transformers.activations import ACT2FN


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, a sample loses this residual branch with probability `rate`."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.rate == 0.0 or not self.training:
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
        self.fc1 = nn.Linear(channels, hidden_channels, bias=bias)
        self.activation = ACT2FN[activation]
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden_channels, channels, bias=bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(self.dropout(self.activation(self.fc1(hidden_states)))))


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Attention written out, in the form of Transformers' attention interface.

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
