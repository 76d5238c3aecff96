# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Work in pieces: all that exists for the caches and the page faults of a CPU, and the one rule that it follows.

A wide tensor inside an MLP or an attention does not fit into the cache, and one of more than 32 MB is asked from the
operating system page by page and given back at every call, which took half of the time of a large MLP. Some rows at a
time, the same products run in memory that the process owns already. For the same reason the blocks of this package give
no names to tensors that they need only once: what is freed early is there for the next one.

The rule, in every family:

- A module of this package (block, attention, MLP) and each norm is called once, with everything. A hook on it sees the
  same calls on every device and in every family.
- Only the leaf layers inside an attention or an MLP may be called piece after piece: the linear layers, convolutions,
  activations and dropouts, and the attention kernel. A hook on one of these sees the pieces.
- And only on a CPU, neither compiled nor traced nor exported; in an attention also only while the kernel is called
  "sdpa". That one gives no weights; other kernels may, and whatever takes hold of an attention registers a kernel under
  another name.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

# Bytes of the widest tensor inside a piece: large enough for full-speed matrix products, small enough for the cache.
PIECE_BYTES = 2**23


def in_pieces(function: Callable[..., torch.Tensor], row_elements: int, *tensors: torch.Tensor) -> torch.Tensor:
    """`function(*tensors)` for a function that treats every row (first axis) alone; on a CPU some rows at a time.

    Args:
        function: takes rows of each tensor, returns one tensor with as many rows.
        row_elements: elements that the widest tensor inside the function has for a row.
        tensors: the first has all rows; another may have fewer, which are then repeated from its first row on.

    Returns:
        (rows, ...), what the function returns for all rows.
    """
    rows = tensors[0].shape[0]
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or tensors[0].device.type != "cpu":
        return function(*repeat_rows(tensors))
    tensors = tuple(tensor.expand(rows, *tensor.shape[1:]) if tensor.shape[0] == 1 else tensor for tensor in tensors)
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


def attend_in_pieces(
    attention: nn.Module,
    attend: Callable[..., tuple[torch.Tensor, torch.Tensor | None]],
    row_elements: int,
    *tensors: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`attend(*tensors, **kwargs)`, some rows at a time where the rule above allows it.

    Args:
        attention: the module whose `config` names the kernel.
        attend: takes rows of each tensor, returns the attended rows and the attention weights, or None for them.
        row_elements, tensors: as in `in_pieces`.

    Returns:
        What `attend` returns for all rows.
    """
    if attention.config._attn_implementation != "sdpa":
        return attend(*repeat_rows(tensors), **kwargs)
    return in_pieces(lambda *rows: attend(*rows, **kwargs)[0], row_elements, *tensors), None


def repeat_rows(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """All tensors with as many rows as the first: those of fewer rows are repeated from their first row on."""
    rows = tensors[0].shape[0]
    return [tensor.expand(rows // tensor.shape[0], *tensor.shape).flatten(0, 1) for tensor in tensors]
