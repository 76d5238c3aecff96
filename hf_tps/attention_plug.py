"""A plug's hold on the attention of a live model: the attention interface of Transformers.

Queries, keys and values pass there on their way in and the attended values on their way out, whatever layers they come
from.

An attention module looks up its kernel by the name in its config. A plugged one has an overlay over its config, which
names the function below; it calls the kernel that the config itself names, so that kernels can be changed while a plug
is in.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .layers import eager_attention_forward
from .plug import ConfigOverlay, Plug

KERNEL = "hf_tps_plugged"
# The keyword of the attention module that carries what belongs to one call alone to the plugs.
CARRIED = "hf_tps_carried"


class AttentionInputs(NamedTuple):
    """What a kernel is called with."""

    query: torch.Tensor  # (batch, heads, queries, head_dim)
    key: torch.Tensor  # (batch, heads, keys, head_dim)
    value: torch.Tensor  # (batch, heads, keys, head_dim)
    mask: torch.Tensor | None  # added to the scores
    scaling: float | None


class AttentionPlug:
    """What one plug does around a kernel."""

    def is_active(self) -> bool:
        """Whether this call needs it; while no plug is active, the attention is the untouched one."""
        return True

    def before(self, inputs: AttentionInputs, carried: dict[str, Any]) -> AttentionInputs:
        return inputs

    def after(self, attended: torch.Tensor, inputs: AttentionInputs) -> torch.Tensor:
        """Args:
        attended: (batch, queries, heads, head_dim).
        inputs: what `before` was given.
        """
        return attended


class AttentionOverlay(ConfigOverlay):
    """The config of a plugged attention module."""

    def __init__(self, target: Any, plugs: Sequence[AttentionPlug], eager: Callable):
        super().__init__(target, plugs=tuple(plugs), eager=eager)

    @property
    def _attn_implementation(self) -> str:
        if any(plug.is_active() for plug in self.plugs):
            return KERNEL
        return self._target._attn_implementation

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        register_kernel()  # a pickled model may come to a process that has plugged nothing


def plugged_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The kernel that the module's own config names, between what its plugs do before and after it."""
    overlay = module.config
    carried = kwargs.pop(CARRIED, {})
    inputs = AttentionInputs(query, key, value, attention_mask, scaling)
    active = []
    for plug in overlay.plugs:
        if plug.is_active():
            active.append((plug, inputs))
            inputs = plug.before(inputs, carried)
    implementation = overlay._target._attn_implementation
    kernel = overlay.eager if implementation in (None, "eager") else ALL_ATTENTION_FUNCTIONS[implementation]
    if inputs.scaling is not None:
        kwargs["scaling"] = inputs.scaling
    # Kernels read the name of the implementation from the module's config.
    attended, weights = kernel(ConfigOverlay(module, config=overlay._target), *inputs[:4], **kwargs)
    for plug, given in reversed(active):
        attended = plug.after(attended, given)
    return attended, weights


def register_kernel() -> None:
    """Put the function above under its name into Transformers' registry."""
    if KERNEL not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(KERNEL, plugged_attention)


def plug_into_attention(plug: Plug, attention: nn.Module, attention_plug: AttentionPlug) -> None:
    """Let `attention_plug` act around the kernel of an attention module; with others that are there, after them.

    Args:
        plug: takes it out again.
        attention: has a `config`, by which it looks up its kernel.
    """
    register_kernel()
    target, plugs = attention.config, ()
    if isinstance(target, AttentionOverlay):
        target, plugs = target._target, target.plugs
    eager = getattr(sys.modules[type(attention).__module__], "eager_attention_forward", eager_attention_forward)
    attention.config = AttentionOverlay(target, (*plugs, attention_plug), eager)
    plug.undo.append(partial(unplug_from_attention, attention, attention_plug))


def unplug_from_attention(attention: nn.Module, attention_plug: AttentionPlug) -> None:
    """Take one plug out; the others stay."""
    overlay = attention.config
    left = [other for other in overlay.plugs if other is not attention_plug]
    attention.config = AttentionOverlay(overlay._target, left, overlay.eager) if left else overlay._target
