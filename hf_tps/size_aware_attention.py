# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Attention that knows how many tokens of the clip each of its keys stands for."""

from typing import Any, Protocol

import torch

from .attention_plug import AttentionInputs, AttentionPlug
from .token_merging import add_size_channel


class SizeSource(Protocol):
    """Whoever knows the sizes of the tokens of the current call."""

    def strength(self, stage: int) -> float | torch.Tensor: ...

    def sees_sizes(self, stage: int, strength: float | torch.Tensor) -> bool: ...

    def key_sizes(self, stage: int, key: torch.Tensor) -> torch.Tensor: ...


class SizeAwareAttention(AttentionPlug):
    """Raises the logits of attention by `strength * log(size of the key)`.

    Args:
        source: knows the sizes.
        stage: how often tokens have merged ahead of this attention.
        strength: None: what the source says for this stage.
        as_mask: the size enters as a mask rather than as a channel of the keys: for kernels that cap the products of
            queries and keys, as VideoPrism's.
    """

    def __init__(self, source: SizeSource, stage: int, strength: float | None = None, as_mask: bool = False):
        self.source = source
        self.stage = stage
        self.own_strength = strength
        self.as_mask = as_mask

    def strength(self) -> float | torch.Tensor:
        return self.source.strength(self.stage) if self.own_strength is None else self.own_strength

    def is_active(self) -> bool:
        return self.source.sees_sizes(self.stage, self.strength())

    def before(self, inputs: AttentionInputs, carried: dict[str, Any]) -> AttentionInputs:
        sizes = self.source.key_sizes(self.stage, inputs.key)
        if self.as_mask:
            bias = (self.strength() * sizes.log()).to(inputs.query.dtype)[:, None, None]
            return inputs._replace(mask=bias if inputs.mask is None else inputs.mask + bias)
        sized = add_size_channel(inputs.query, inputs.key, inputs.value, sizes, self.strength(), inputs.scaling)
        return AttentionInputs(sized.query, sized.key, sized.value, inputs.mask, sized.scale)

    def after(self, attended: torch.Tensor, inputs: AttentionInputs) -> torch.Tensor:
        return attended[..., : inputs.value.shape[-1]]
