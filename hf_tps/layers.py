# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Small layers that every family uses."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from transformers.activations import ACT2FN


def pair(size: int | Iterable[int]) -> tuple[int, int]:
    """Height and width, given as both or as one number."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, a sample loses this residual branch with probability `rate`."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    @property
    def drops(self) -> bool:
        return self.training and self.rate != 0.0

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.drops:
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


# Bytes of the widest tensor inside a piece: large enough for full-speed matrix products, small enough for the cache.
PIECE_BYTES = 2**23


def in_pieces(function: Callable, row_elements: int, *tensors: torch.Tensor) -> torch.Tensor:
    """
    `function(*tensors)` for a function that treats every row (first axis) alone; on a CPU some rows at a time.

    Then the wide tensors inside the function stay in the cache and in memory that the process owns already: one of more
    than 32 MB is asked from the operating system and given back at every call, which took half of the time of a large MLP.

    Args:
        function: takes rows of each tensor, returns one tensor with as many rows.
        row_elements: elements that the widest tensor inside the function has for a row.
        tensors: the first has all rows; another may have fewer, which are then repeated from its first row on.
    """
    rows = tensors[0].shape[0]
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or tensors[0].device.type != "cpu":
        return function(*(tensor.expand(rows // tensor.shape[0], *tensor.shape).flatten(0, 1) for tensor in tensors))
    tensors = [tensor.expand(rows, *tensor.shape[1:]) if tensor.shape[0] == 1 else tensor for tensor in tensors]
    period = min(tensor.shape[0] for tensor in tensors)
    piece = max(1, PIECE_BYTES // (row_elements * tensors[0].element_size()))
    lengths = [min(piece, period - start) for start in range(0, period, piece)]
    if len(lengths) == 1 and period == rows:
        return function(*tensors)
    parts = map(
        function,
        *(tensor.split(lengths * (tensor.shape[0] // period)) * (rows // tensor.shape[0]) for tensor in tensors),
    )
    if torch.is_grad_enabled():
        return torch.cat(list(parts))
    output, end = None, 0
    for part in parts:
        if output is None:
            output = part.new_empty(rows, *part.shape[1:])
        start, end = end, end + part.shape[0]
        output[start:end] = part
    return output


def clip_by_clip(function: Callable, clips: torch.Tensor) -> torch.Tensor:
    """`function(clips)` for a function that treats every clip (first axis) alone: on a CPU as fast for many as for one."""
    return in_pieces(function, 3 * clips[0].numel(), clips)


def feed_forward(block: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """The second half of a pre-norm block with `norm2`, `mlp` and `drop_path`: (..., channels) to the same."""
    tokens, width = hidden_states.flatten(0, -2), block.mlp.fc1.out_features
    if block.drop_path.drops:  # whole samples, which a piece does not know
        branch = in_pieces(lambda rows: block.mlp(block.norm2(rows)), width, tokens).view(hidden_states.shape)
        return hidden_states + block.drop_path(branch)
    return in_pieces(lambda rows: rows + block.mlp(block.norm2(rows)), width, tokens).view(hidden_states.shape)


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
