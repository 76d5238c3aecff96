# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Configuration of LAPS: leap attention between distant frames, then periodic shift, on Visformer or ViT."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_base import VideoConfig
from .leap_attention import leap_pairs

# What the two backbones of the release have where the fields below are None
_DEFAULTS = {
    "visformer": {
        "embed_dim": 384,
        "depths": (7, 4, 4),
        "num_heads": 6,
        "leap_levels": ((1, 2, 3, 1), (2, 3, 1, 2)),
    },
    "vit": {"embed_dim": 768, "depths": (12,), "num_heads": 12, "leap_levels": (1, 2, 3, 1)},
}


@strict
class LAPSConfig(VideoConfig):
    r"""Configuration of [`LAPSModel`] and [`LAPSForVideoClassification`].

    Zhang et al., "Long-term Leap Attention, Short-term Periodic Shift for Video Classification", ACM MM 2022, arXiv
    2207.05526; and the other networks of its release, TokShift among them (ACM MM 2021, arXiv 2108.02432).

    The defaults are Visformer-S with 8 frames of 224 x 224; `LAPSConfig(backbone="vit")` is ViT-B/16. The networks of
    the release's model zoo:

    | network | `attention_scope` | `shift` |
    |---|---|---|
    | LAPS | "leap" | "periodic" |
    | LA, leap attention alone | "leap" | None |
    | PS, periodic shift alone | "frame" | "periodic" |
    | plain shift | "frame" | "plain" |
    | Base2D | "frame" | None |
    | Base3D | "joint" | None |
    | TokShift (`backbone="vit"`) | "frame" | "token" |

    The paper and the released code do not differ in anything known, so there is no `paper()` as the other families have
    it.

    Args:
        backbone ("visformer" or "vit", defaults to "visformer")
        image_size (`int`, defaults to 224):
            Height and width that the position embeddings are for; other sizes interpolate them.
        num_frames (`int`, defaults to 8):
            Frames that the processor and the pipeline give. The model reads any number that its leap levels can pair.
        num_channels (`int`, defaults to 3)
        embed_dim (`int`, *optional*):
            ViT: channels (768). Visformer: channels of the second stage (384); the first has half, the third twice as
                many.
        depths (`tuple`, *optional*):
            Blocks of each stage: (7, 4, 4), or one number for a ViT, (12,).
        num_heads (`int`, *optional*):
            Attention heads of every block with attention (6, or 12).
        mlp_ratio (`float`, defaults to 4.0), hidden_act (`str`, defaults to "gelu")
        stem_channels (`int`, defaults to 32), conv_groups (`int`, defaults to 8):
            Visformer: channels of the stem, groups of the 3 x 3 convolutions of its first stage.
        batch_norm_eps (`float`, defaults to 1e-5): Visformer's norms.
        patch_size (`int`, defaults to 16), qkv_bias (`bool`, defaults to True), layer_norm_eps (`float`, defaults to
        1e-6):
            ViT. (Visformer's attention has no bias.)
        hidden_dropout_prob, attention_probs_dropout_prob, drop_path_rate, classifier_dropout (`float`, default to 0.0)
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of random weights. Visformer's layers are made by their width instead (Kaiming, fan-out,
            as released); its positions and classifier follow the field.
        attention_scope ("leap", "frame" or "joint", defaults to "leap"):
            Which tokens attend to each other: those of two frames a leap apart, of one frame, or of the whole clip.
        leap_levels (`tuple`, *optional*):
            Level of each block: frames `num_frames // 2**level` apart are paired; None is attention inside each frame.
            Visformer: a tuple for the second and one for the third stage, ((1, 2, 3, 1), (2, 3, 1, 2)). ViT: one tuple,
            (1, 2, 3, 1). Each is cycled over the blocks. In a clip with an odd number of frames the last frame attends
            alone.
        shift ("periodic", "plain", "token" or None, defaults to "periodic"):
            What moves between frames: a share of the channels of every head after the attention, the same share of all
            channels, or channels of the class token before attention and MLP (ViT). Zeros come in at the ends.
        shift_div (`int`, defaults to 4):
            1/shift_div of the channels come from the next frame, as many from the frame before.
        view_aggregation ("logits" or "probabilities", defaults to "logits"):
            How the views of a 6-D input become one answer: mean of the logits (released test), or of the probabilities.

    Raises:
        ValueError: for sizes that do not fit together and unknown names, with what was given and what is possible.

    Example:

        >>> from hf_tps import LAPSConfig, LAPSForVideoClassification
        >>> model = LAPSForVideoClassification(LAPSConfig(backbone="vit", num_labels=400))
    """

    model_type = "laps"
    attribute_map = {"num_attention_heads": "num_heads"}

    backbone: str = "visformer"
    image_size: int = 224
    num_frames: int = 8
    num_channels: int = 3
    embed_dim: int | None = None
    depths: list[int] | tuple[int, ...] | None = None
    num_heads: int | None = None
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"
    stem_channels: int = 32
    conv_groups: int = 8
    batch_norm_eps: float = 1e-5
    patch_size: int = 16
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    classifier_dropout: float | int = 0.0
    initializer_range: float = 0.02
    attention_scope: str = "leap"
    leap_levels: (
        list[int | None]
        | tuple[int | None, ...]
        | list[list[int | None]]
        | tuple[tuple[int | None, ...], ...]
        | list[tuple[int | None, ...]]
        | tuple[list[int | None], ...]
        | None
    ) = None
    shift: str | None = "periodic"
    shift_div: int = 4
    view_aggregation: str = "logits"

    def __post_init__(self, **kwargs: Any) -> None:
        for name, value in _DEFAULTS.get(self.backbone, {}).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Channels of the features that the classifier reads."""
        return self.embed_dim * 2 if self.backbone == "visformer" else self.embed_dim

    @property
    def num_hidden_layers(self) -> int:
        """Visformer: stages; ViT: blocks. `hidden_states` has one more entry than this."""
        return len(self.depths) if self.backbone == "visformer" else self.depths[0]

    def level_of_block(self, stage: int, block: int) -> int | None:
        """Leap level of a block (of Visformer's stages 1 and 2, counted from 0; ViT: stage 0), None for one frame."""
        if self.attention_scope != "leap":
            return None
        levels: Any = self.leap_levels[stage - 1] if self.backbone == "visformer" else self.leap_levels
        return levels[block % len(levels)]

    def levels(self) -> set[int]:
        """All leap levels that the network uses."""
        with_attention = range(1, 3) if self.backbone == "visformer" else range(1)
        used = {self.level_of_block(stage, block) for stage in with_attention for block in range(self.depths[stage])}
        return used - {None}

    def validate_architecture(self) -> None:
        """Check that the fields fit together; the model calls it too, since fields can be set one by one."""
        choices = {
            "backbone": ("visformer", "vit"),
            "attention_scope": ("leap", "frame", "joint"),
            "shift": ("periodic", "plain", "token", None),
        }
        for name, possible in choices.items():
            if getattr(self, name) not in possible:
                raise ValueError(f"{name} is one of {list(possible)}; got {getattr(self, name)!r}.")
        super().validate_architecture()
        stages = 3 if self.backbone == "visformer" else 1
        if len(self.depths) != stages:
            raise ValueError(f"depths of a {self.backbone} has {stages} numbers from 1 on; got {list(self.depths)}.")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}.")
        if self.backbone == "visformer" and (self.embed_dim % 2 or self.embed_dim % self.conv_groups):
            raise ValueError(
                f"embed_dim={self.embed_dim} must be a multiple of 2 and of conv_groups={self.conv_groups}."
            )
        if self.backbone == "visformer" and self.image_size < 32:
            raise ValueError(f"image_size must be at least 32 for a visformer, got {self.image_size}.")
        if self.backbone == "vit" and self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}.")
        if self.shift == "token" and self.backbone != "vit":
            raise ValueError("shift='token' moves class tokens, which only backbone='vit' has.")
        if self.shift is not None and self.shift_div < 2:
            raise ValueError(f"shift_div must be at least 2 (two groups of channels move), got {self.shift_div}.")
        if self.attention_scope == "leap":
            self.validate_levels()

    def validate_levels(self) -> None:
        nested = [isinstance(entry, list | tuple) for entry in self.leap_levels]
        if self.backbone == "visformer" and (len(nested) != 2 or not all(nested) or not all(self.leap_levels)):
            raise ValueError(
                "leap_levels of a visformer has one tuple for the second and one for the third stage, such as ((1, 2, "
                "3, 1), "
                f"(2, 3, 1, 2)); got {self.leap_levels!r}."
            )
        if self.backbone == "vit" and (not nested or any(nested)):
            raise ValueError(f"leap_levels of a vit is one tuple such as (1, 2, 3, 1); got {self.leap_levels!r}.")
        for level in self.levels():
            leap_pairs(self.num_frames, level)


__all__ = ["LAPSConfig"]
