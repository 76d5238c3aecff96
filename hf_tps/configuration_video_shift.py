# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Configuration of VideoShift: an image transformer of Transformers with a temporal shift plugged in."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from .configuration_base import VideoConfig, check_ranges
from .temporal_shift_plug_in import IMAGE_TRANSFORMERS, check_shift_settings

# Model types of the image transformers that the plug-in knows
BACKBONES = tuple(
    model_type for model_type, model_class in MODEL_MAPPING_NAMES.items() if model_class in IMAGE_TRANSFORMERS
)
# What other code asks every config of the package for; the backbone's config has it
BACKBONE_FIELDS = ("hidden_size", "image_size", "num_channels", "num_hidden_layers", "patch_size")


@strict
class VideoShiftConfig(VideoConfig):
    r"""Configuration of [`VideoShiftModel`] and [`VideoShiftForVideoClassification`]: an image transformer of
    Transformers whose layers exchange features between the frames of a clip, as `add_temporal_shift` plugs it in.

    `hidden_size`, `image_size`, `num_channels`, `num_hidden_layers` and `patch_size` are read from `backbone_config`.

    Args:
        backbone_config (`dict` with "model_type" or `PreTrainedConfig`, *optional*):
            The image transformer: ViT, DeiT, DINOv2 (with or without registers), DINOv3 ViT, Swin or BEiT. None:
            `ViTConfig()`.
        shift (`str`, *optional*, defaults to "patch"):
            "patch" or "channel" (TPS), "mixing" (XViT), "periodic" or "plain" (LAPS), "token" (TokShift: the class
            token, so not in Swin). None: frames are read alone and averaged, the control of an experiment.
        num_frames (`int`, defaults to 8):
            Frames of a clip. Another number may be given at loading, since no weight depends on it.
        shift_div (`int`, *optional*), pattern (`str` or matrix of frame offsets, *optional*),
        layers (list of layer numbers, *optional*), segment_length (`int`, *optional*),
        temporal_window (`int`, *optional*):
            As in `add_temporal_shift`; None is the shift's own default.
        classifier_dropout (`float`, defaults to 0.0):
            Dropout ahead of the classifier. The image models have none there.
        view_aggregation ("logits" or "probabilities", defaults to "logits"):
            How the views of a 6-D input become one answer: mean of the logits, or of the probabilities.

    Raises:
        ValueError: for a backbone that the plug-in does not know, an unknown shift, settings out of range or meant for
            another shift. What depends on the layers of the backbone is checked when the model is built.

    Example:

        >>> from transformers import Dinov2Config
        >>> from hf_tps import VideoShiftConfig, VideoShiftForVideoClassification
        >>> config = VideoShiftConfig(backbone_config=Dinov2Config(), shift="mixing", num_frames=16, num_labels=174)
        >>> model = VideoShiftForVideoClassification(config)
    """

    model_type = "video_shift"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="vit")}

    backbone_config: dict | PreTrainedConfig | None = None
    shift: str | None = "patch"
    num_frames: int = 8
    shift_div: int | None = None
    pattern: str | list[list[int]] | tuple[tuple[int, ...], ...] | None = None
    layers: list[int] | tuple[int, ...] | None = None
    segment_length: int | None = None
    temporal_window: int | None = None
    classifier_dropout: float | int = 0.0
    view_aggregation: str = "logits"

    def __post_init__(self, **kwargs: Any) -> None:
        self.check_backbone()  # Transformers would say KeyError
        misplaced = [name for name in BACKBONE_FIELDS if name in kwargs]
        if misplaced:
            raise ValueError(f"{misplaced} are fields of the backbone: set them in backbone_config.")
        super().__post_init__(**kwargs)

    hidden_size = property(lambda self: self.backbone_config.hidden_size)
    image_size = property(lambda self: self.backbone_config.image_size)
    num_channels = property(lambda self: self.backbone_config.num_channels)
    num_hidden_layers = property(lambda self: self.backbone_config.num_hidden_layers)
    patch_size = property(lambda self: self.backbone_config.patch_size)

    def check_backbone(self) -> None:
        """Raise a ValueError for a backbone that takes no temporal shift."""
        backbone = self.backbone_config
        if backbone is None:
            return
        model_type = backbone.get("model_type") if isinstance(backbone, dict) else backbone.model_type
        if model_type not in BACKBONES:
            raise ValueError(
                f"backbone_config has model_type={model_type!r}; a temporal shift can be plugged into "
                f"{', '.join(BACKBONES)}."
            )

    def validate_architecture(self) -> None:
        """Check that the fields fit together; the model calls it too, since fields can be set one by one."""
        self.check_backbone()
        super().validate_architecture()
        check_ranges(self.backbone_config)
        settings = ("shift_div", "pattern", "segment_length", "temporal_window")
        if self.shift is not None:
            check_shift_settings(self.shift, *(getattr(self, name) for name in settings))
        elif given := [name for name in (*settings, "layers") if getattr(self, name) is not None]:
            raise ValueError(f"{given} are settings of a shift, and shift=None has none.")


__all__ = ["VideoShiftConfig"]
