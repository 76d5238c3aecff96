# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Configuration of XViT: a ViT per frame whose keys and values mix channels of neighbouring frames."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_base import VideoConfig


@strict
class XViTConfig(VideoConfig):
    r"""Configuration of [`XViTModel`] and [`XViTForVideoClassification`].

    Bulat et al., "Space-time Mixing Attention for Video Transformer", NeurIPS 2021, arXiv 2106.05968.

    The defaults are ViT-B/16 with 16 frames of 224 x 224 and the released settings for Something-Something v2; the
    released Kinetics models have `shift_div=8, segment_length=8`. `XViTConfig.paper()` takes the paper's side where the
    released code differs (`num_temporal_embeddings`, `segment_length`).

    Args:
        image_size (`int`, defaults to 224):
            Height and width that the position embeddings are for; other sizes interpolate them.
        num_frames (`int`, defaults to 16):
            Frames that the processor and the pipeline give. The model reads any number.
        num_channels (`int`, defaults to 3), patch_size (`int`, defaults to 16), hidden_size (`int`, defaults to 768),
        num_hidden_layers (`int`, defaults to 12), num_attention_heads (`int`, defaults to 12),
        intermediate_size (`int`, defaults to 3072), qkv_bias (`bool`, defaults to True),
        hidden_act (`str`, defaults to "gelu"), layer_norm_eps (`float`, defaults to 1e-6),
        hidden_dropout_prob, attention_probs_dropout_prob, drop_path_rate (`float`, default to 0.0),
        initializer_range (`float`, defaults to 0.02): the ViT.
        shift_div (`int`, defaults to 4):
            Keys and values import `hidden_size // shift_div` channels from the next frame and as many from the frame
            before: the paper's rho = 2 / shift_div (4: 50 %, 8: 25 %). 0 turns the mixing off.
        temporal_window (`int`, defaults to 1):
            How many frames away a neighbour may be; 2 as in the paper's ablation shares the same channels among four.
        segment_length (`int`, *optional*):
            Mixing stays inside segments of so many frames. Released Kinetics configs: 8 of 16, so that the two halves
            of a clip do not mix; Something-Something, and the paper: the whole clip (None).
        mixing_layers (`tuple` of ints, *optional*):
            Blocks that mix; None is all (paper and release).
        num_temporal_embeddings (`int`, *optional*, defaults to 8):
            Rows of the temporal embedding; frame t takes row `t % rows`. Released code: 8 whatever the number of
            frames.
            Paper: one for each frame (None means `num_frames`).
        summary_token (`bool`, defaults to False):
            The paper's summary token: the mean of each frame's keys and values joins the keys and values of all frames.
            The release lacks it.
        temporal_head_layers (`int`, defaults to 1):
            Transformer layers of the temporal attention head over the frames' class tokens; 0 averages them instead.
        temporal_head_heads (`int`, defaults to 12), temporal_head_size (`int`, defaults to 768):
            Heads of those layers, and channels of the hidden layer before the classifier.
        classifier_dropout (`float`, defaults to 0.5):
            Dropout of the frame features and of that hidden layer.
        view_aggregation ("logits" or "probabilities", defaults to "logits"):
            How the views of a 6-D input become one answer: mean of the logits (released test), or of the probabilities.

    Raises:
        ValueError: for sizes that do not fit together, with what was given and what is possible.

    Example:

        >>> from hf_tps import XViTConfig, XViTForVideoClassification
        >>> model = XViTForVideoClassification(XViTConfig(num_labels=174))
    """

    model_type = "xvit"

    image_size: int = 224
    num_frames: int = 16
    num_channels: int = 3
    patch_size: int = 16
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    shift_div: int = 4
    temporal_window: int = 1
    segment_length: int | None = None
    mixing_layers: list[int] | tuple[int, ...] | None = None
    num_temporal_embeddings: int | None = 8
    summary_token: bool = False
    temporal_head_layers: int = 1
    temporal_head_heads: int = 12
    temporal_head_size: int = 768
    classifier_dropout: float | int = 0.5
    view_aggregation: str = "logits"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_temporal_embeddings is None:
            self.num_temporal_embeddings = self.num_frames
        super().__post_init__(**kwargs)

    @classmethod
    def paper(cls, **kwargs: Any) -> "XViTConfig":
        """The method as the paper describes it, where the released code differs; `kwargs` as for the class."""
        return cls(**{"num_temporal_embeddings": None, "segment_length": None, **kwargs})

    def mixes(self, layer: int) -> bool:
        """Whether block `layer` mixes neighbouring frames."""
        return self.shift_div > 0 and (self.mixing_layers is None or layer in self.mixing_layers)

    def validate_architecture(self) -> None:
        """Check that the fields fit together; the model calls it too, since fields can be set one by one."""
        super().validate_architecture()
        for name in ("num_attention_heads", "temporal_head_heads"):
            if self.hidden_size % getattr(self, name):
                raise ValueError(f"hidden_size={self.hidden_size} must be a multiple of {name}={getattr(self, name)}.")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}.")
        if self.shift_div == 1:
            raise ValueError("shift_div must be 0 (no mixing) or at least 2 (two sides give channels), got 1.")
        outside = [layer for layer in self.mixing_layers or () if not 0 <= layer < self.num_hidden_layers]
        if outside:
            raise ValueError(f"mixing_layers names {outside}; there are blocks 0 to {self.num_hidden_layers - 1}.")


__all__ = ["XViTConfig"]
