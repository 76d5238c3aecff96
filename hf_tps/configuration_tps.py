# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Configuration of TPS: a Swin transformer that reads video through temporal patch shift and channel shift."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_base import VideoConfig
from .plain_text import printable
from .temporal_shift import resolve_patch_shift_pattern

# Channels double from one stage to the next.
MOST_STAGES = 8


@strict
class TPSConfig(VideoConfig):
    r"""Configuration of [`TPSModel`] and [`TPSForVideoClassification`].

    Xiang et al., "Spatiotemporal Self-attention Modeling with Temporal Patch Shift for Action Recognition", ECCV 2022,
    arXiv 2207.13259.

    The defaults are the released tiny model at 32 x 224 x 224; the number of classes is `num_labels`, as everywhere in
    Transformers. The other two sizes:

    | model | `depths` | `embed_dim` | `num_heads` |
    |---|---|---|---|
    | tiny (default) | (2, 2, 6, 2) | 96 | (3, 6, 12, 24) |
    | base | (2, 2, 18, 2) | 128 | (4, 8, 16, 32) |
    | large | (2, 2, 18, 2) | 192 | (6, 12, 24, 48) |

    The defaults follow the released code where it differs from the paper; `TPSConfig.paper()` takes the paper's side in
    every such field (`shift_order`, `relative_position_bias`).

    Args:
        image_size (`int`, defaults to 224):
            Height and width in pixels that the model is meant for. The model itself reads any size.
        num_frames (`int`, defaults to 32):
            Frames per clip. Changing it on a trained checkpoint (`from_pretrained(..., num_frames=16)`) interpolates
            the temporal rows of the bias tables, see `temporal_bias_size`.
        num_channels (`int`, defaults to 3)
        patch_size (`int`, defaults to 4):
            Height and width in pixels of a patch. Images are padded with zeros at the bottom and right.
        tubelet_size (`int`, defaults to 2):
            Frames per patch. Clips are padded with zero frames at the end.
        embed_dim (`int`, defaults to 96):
            Channels of the first stage; each later stage has twice as many.
        depths, num_heads (`tuple`):
            Blocks and attention heads of each stage.
        window_size (`int`, defaults to 7):
            Height and width in patches of an attention window. A map that is smaller is one window.
        mlp_ratio (`float`, defaults to 4.0), qkv_bias (`bool`, defaults to True), hidden_act (`str`, defaults to
        "gelu") hidden_dropout_prob, attention_probs_dropout_prob (`float`, default to 0.0)
        drop_path_rate (`float`, defaults to 0.1):
            Stochastic depth of the last block; it grows linearly from 0 at the first.
        classifier_dropout (`float`, defaults to 0.5):
            Dropout before the classifier.
        layer_norm_eps (`float`, defaults to 1e-5):
            Of the norms in the blocks and the last norm. (Those of patch embedding and patch merging are 1e-5 always,
            in the released code as in Transformers' Swin.)
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of random weights; the classifier has half of it, and the patch embedding torch's own
            initialisation of convolutions, as released.
        shift_order (`tuple` of "channel", "patch" or None, defaults to ("channel", "patch")):
            Temporal shift of the blocks of a stage, cycled: block i of a stage uses entry `i % len`. Released code:
            even blocks shift channels, odd blocks (those with shifted windows) shift patches. Paper, figure 4: patch
            first, then channel. One entry alone is "patch-only" / "channel-only"; None (or `shift_order=None`) is a
            plain 2D Swin block, whose bias has temporal offset 0 in all frames, so that nothing tells the frames apart.
            A tuple (or None) for each stage instead, as in the paper's ablation of stages: `(("patch",), None, None,
            None)` shifts in the first stage alone.
        shift_pattern (`str` or matrix of ints, defaults to "C"):
            Frame offsets of the patch shift: "A", "B", "C", "D" (A-3, B-4, C-9, D-16 of the paper's figure 5) or a
            matrix, repeated from the corner of each window. The released code has C alone.
        shift_div (`int`, defaults to 8):
            The channel shift moves 1/shift_div of each head's channels one frame on, and as many one frame back.
        relative_position_bias ("key_frame_0" or "same_frame", defaults to "key_frame_0"):
            Which pair of frames the position bias is read for. Released code: query frame f against key frame 0, which
            gives every frame a bias of its own even in the channel-shift blocks. Paper, section 3.2: the pair of places
            inside one frame, at the frames that their patches came from.
        shift_back (`bool`, defaults to True):
            Whether patches go back to their frames after the attention (paper and release); False is the paper's
            ablation "without shift back".
        shift_position_bias (`bool`, defaults to True):
            Whether the position bias of a patch-shift block counts a patch as being in the frame that it came from
            (paper and release); False, the paper's ablation "without shifted bias", in the frame that it was put in.
        temporal_bias_size (`int`, *optional*):
            Temporal positions that the bias tables hold (2 * this - 1 rows); by default those of `num_frames`. Stays as
            it was trained when `num_frames` changes: the rows are then interpolated linearly, offset 0 staying where it
                is.
        view_aggregation ("probabilities" or "logits", defaults to "probabilities"):
            How the views of a 6-D input become one answer: the mean of the probabilities (GitHub release; the logits
            returned are its logarithm) or of the raw logits (ModelScope release). Multi-label models: mean of sigmoids.

    Raises:
        ValueError: for sizes that do not fit together and unknown names, with what was given and what is possible.

    Example:

        >>> from hf_tps import TPSConfig, TPSForVideoClassification
        >>> model = TPSForVideoClassification(TPSConfig(num_labels=174))
    """

    model_type = "tps"
    attribute_map = {"num_attention_heads": "num_heads"}

    image_size: int = 224
    num_frames: int = 32
    num_channels: int = 3
    patch_size: int = 4
    tubelet_size: int = 2
    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.1
    classifier_dropout: float | int = 0.5
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    shift_order: (
        list[str | None]
        | tuple[str | None, ...]
        | list[list[str | None] | None]
        | tuple[tuple[str | None, ...] | None, ...]
        | list[tuple[str | None, ...] | None]
        | tuple[list[str | None] | None, ...]
        | None
    ) = ("channel", "patch")
    shift_pattern: str | list[list[int]] | tuple[tuple[int, ...], ...] = "C"
    shift_div: int = 8
    relative_position_bias: str = "key_frame_0"
    shift_back: bool = True
    shift_position_bias: bool = True
    temporal_bias_size: int | None = None
    view_aggregation: str = "probabilities"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.temporal_bias_size is None and self.num_frames > 0 and self.tubelet_size > 0:
            self.temporal_bias_size = self.num_temporal_positions
        super().__post_init__(**kwargs)

    @classmethod
    def paper(cls, **kwargs: Any) -> "TPSConfig":
        """The method as the paper describes it, where the released code differs; `kwargs` as for the class."""
        return cls(**{"shift_order": ("patch", "channel"), "relative_position_bias": "same_frame", **kwargs})

    @property
    def num_temporal_positions(self) -> int:
        """Temporal positions after the patch embedding."""
        return -(-self.num_frames // self.tubelet_size)

    @property
    def num_hidden_layers(self) -> int:
        """Stages: `hidden_states` has one more entry than this."""
        return len(self.depths)

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)

    def shift_orders(self) -> list[tuple[str | None, ...]]:
        """`shift_order` of each stage, with at least one entry."""
        order: Any = self.shift_order or ()
        each = order if any(isinstance(entry, list | tuple) for entry in order) else [order] * len(self.depths)
        return [tuple(entries or (None,)) for entries in each]

    def shift_of_block(self, stage: int, block: int) -> str | None:
        """The temporal shift ("channel", "patch" or None) of a block, both numbers counted from 0."""
        order = self.shift_orders()[stage]
        return order[block % len(order)]

    def validate_architecture(self) -> None:
        """Check that the fields fit together; the model calls it too, since fields can be set one by one."""
        super().validate_architecture()
        if not 1 <= len(self.depths) <= MOST_STAGES or len(self.depths) != len(self.num_heads):
            raise ValueError(
                f"depths and num_heads need one entry for each stage, at most {MOST_STAGES}, got "
                f"depths={printable(list(self.depths), 80)} and num_heads={printable(list(self.num_heads), 80)}."
            )
        for stage, (depth, heads) in enumerate(zip(self.depths, self.num_heads, strict=True)):
            channels = self.embed_dim * 2**stage
            if depth < 1 or heads < 1 or channels % heads:
                raise ValueError(
                    f"Stage {stage} has {channels} channels, {depth} blocks and {heads} heads: it needs at least one "
                    "block, "
                    "and a number of heads that divides the channels."
                )
        self.validate_shift_order()
        resolve_patch_shift_pattern(self.shift_pattern)
        if self.shift_div < 2:
            raise ValueError(f"shift_div must be at least 2 (two groups of channels move), got {self.shift_div}.")
        if self.relative_position_bias not in ("key_frame_0", "same_frame"):
            raise ValueError(
                "relative_position_bias is 'key_frame_0' (released code) or 'same_frame' (paper); got "
                f"{self.relative_position_bias!r}."
            )

    def validate_shift_order(self) -> None:
        entries = list(self.shift_order or ())
        by_stage = any(isinstance(entry, list | tuple) for entry in entries)
        if by_stage and len(entries) != len(self.depths):
            raise ValueError(
                f"shift_order has one tuple (or None) for each of the {len(self.depths)} stages, or one for all; got "
                f"{self.shift_order!r}."
            )
        for entry in (shift for order in self.shift_orders() for shift in order):
            if entry not in ("channel", "patch", None):
                raise ValueError(
                    f"shift_order holds 'channel', 'patch' or None for each block, cycled; got {self.shift_order!r}."
                )


__all__ = ["TPSConfig"]
