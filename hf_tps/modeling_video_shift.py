# Copyright 2026 The hf_tps authors. Apache-2.0.
"""VideoShift: an image transformer of Transformers that reads clips, with a temporal shift in its layers."""

import re
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from .checkpoint_reading import read_checkpoint
from .configuration_video_shift import VideoShiftConfig
from .modeling_base import PreTrainedModelAroundBackbone, VideoClassificationMixin, check_pixel_values
from .temporal_shift_plug_in import add_temporal_shift

# The image classifiers of these have no use for the base model's pooler, a dense layer: the class token is their
# feature. Swin's mean, and the norm of BEiT's mean, belong to the feature; the others give their class token without a
# pooler.
WITHOUT_POOLER = ("vit", "deit")
# What an image checkpoint may have besides: heads (BEiT's pretraining head has a layernorm ahead of it), poolers, mask
# tokens
LEFT_OVER = re.compile(r"^(?:\w*classifier|\w*head|decoder|layernorm|pooler)\.|(?:^|\.)mask_token$")


def image_model_settings(model_type: str) -> dict:
    """Keywords that build the image model without what no image classifier reads."""
    return {"add_pooling_layer": False} if model_type in WITHOUT_POOLER else {}


class VideoShiftPreTrainedModel(PreTrainedModelAroundBackbone):
    config: VideoShiftConfig
    base_model_prefix = "video_shift"
    _auto_classes = {
        "AutoConfig": "configuration_video_shift.VideoShiftConfig",
        "AutoModel": "modeling_video_shift.VideoShiftModel",
        "AutoModelForVideoClassification": "modeling_video_shift.VideoShiftForVideoClassification",
    }

    @classmethod
    def load_from_image(cls, name_or_path: str | Path, overrides: dict, loading: dict, hub_kwargs: dict) -> Self:
        """From any checkpoint that Transformers itself opens: of the image transformer, or of a model around it."""
        if "backbone_config" in overrides:
            raise ValueError("backbone_config comes from the image checkpoint: do not give it.")
        if Path(name_or_path).is_file():
            raise ValueError(
                f"{name_or_path} is a single file; this model starts from an image checkpoint of Transformers: "
                "a Hub id, or a folder with config.json and weights."
            )
        read_checkpoint(name_or_path, **hub_kwargs)  # damaged files are refused here, in one sentence
        image_config = AutoConfig.from_pretrained(name_or_path, **hub_kwargs)
        image_config.num_labels = 2  # Transformers' default, which is not saved: the image model's classes are not ours
        config = VideoShiftConfig(backbone_config=image_config, **overrides)
        image_model, report = AutoModel.from_pretrained(
            name_or_path,
            config=image_config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they come back in the report
            **image_model_settings(image_config.model_type),
            **hub_kwargs,
        )
        check_loading_report(image_model, report, str(name_or_path))
        config.backbone_config.name_or_path = ""  # a folder of this machine must not be saved with the model
        model = cls._from_config(config, **{"dtype": image_model.dtype, **loading}).eval()
        # Not through from_pretrained, which renames keys as if they came from a file of an older version.
        model.base_model.backbone.load_state_dict(image_model.state_dict())
        return model


def freeze_mask_token(image_model: nn.Module) -> None:
    """Make the mask token of DINOv2 and DINOv3 a buffer of the same name: no loss of a classifier reaches it.

    It is part of their checkpoints; `requires_grad` would be on again after `from_pretrained`.
    """
    for module in image_model.modules():
        if isinstance(mask_token := getattr(module, "mask_token", None), nn.Parameter):
            del module.mask_token
            module.mask_token = nn.Buffer(mask_token.detach())


def check_loading_report(image_model: nn.Module, report: dict, source: str) -> None:
    """Refuse a checkpoint that does not fit its image model.

    Raises:
        ValueError: for weights of the image model that the checkpoint lacks, has in another shape, or has too many of.
            A head, a pooler that is not used and a mask token may be left over; BEiT's pooler may be new, as before any
            fine-tuning.
    """
    prefix = f"{image_model.base_model_prefix}."
    unexpected = sorted(key for key in report["unexpected_keys"] if not LEFT_OVER.search(key.removeprefix(prefix)))
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    mismatched = sorted(str(key) for key in report["mismatched_keys"])
    if missing or unexpected or mismatched:
        raise ValueError(
            f"{source} does not fit {type(image_model).__name__}: missing {missing}, unexpected {unexpected}, "
            f"other shapes {mismatched}."
        )


class VideoShiftModel(VideoShiftPreTrainedModel):
    """The bare image transformer with a temporal shift: features of a clip.

    Args:
        config ([`VideoShiftConfig`])

    Raises:
        ValueError: for layers that the backbone does not have, a shift that would move nothing in it, "token" in a
            Swin.
    """

    def __init__(self, config: VideoShiftConfig):
        super().__init__(config)
        config.validate_architecture()
        self.num_frames = config.num_frames  # what the shift was added for, whatever becomes of the config
        self.backbone = AutoModel.from_config(
            config.backbone_config,
            dtype=torch.get_default_dtype(),  # that of the classifier, not that of the image checkpoint
            **image_model_settings(config.backbone_config.model_type),
        )
        freeze_mask_token(self.backbone)
        if config.shift is not None:
            add_temporal_shift(
                self.backbone,
                config.num_frames,
                config.shift,
                shift_div=config.shift_div,
                pattern=config.pattern,
                layers=config.layers,
                segment_length=config.segment_length,
                temporal_window=config.temporal_window,
            )
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        r"""Args:
            pixel_values: (batch, num_frames, channels, height, width), normalised.
            kwargs: `output_hidden_states`, `output_attentions` (with `attn_implementation="eager"`), `return_dict`, and
                what the backbone takes besides, such as `interpolate_pos_encoding`.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` (batch, num_frames * tokens, hidden_size), the tokens of
                each
            frame as the backbone gives them; `pooler_output` (batch, hidden_size), the mean over the frames of the
            feature
            of a frame: the class token after the last norm, in Swin the mean of the patches, in BEiT what its config's
            `use_mean_pooling` says; `hidden_states` and `attentions` as the backbone gives them for (batch *
            num_frames) images (ViT: (batch * num_frames, tokens, hidden_size); Swin: one for each stage).

        Raises:
            ValueError: for another rank, number of channels or number of frames, pixels that are not floats, and images
                that the backbone or the shift cannot take.
        """
        check_pixel_values(pixel_values, self.config.num_channels)
        batch, frames = pixel_values.shape[:2]
        if frames != self.num_frames:
            raise ValueError(
                f"This model shifts over clips of {self.num_frames} frames; got {frames}, in shape "
                f"{tuple(pixel_values.shape)}. Sample {self.num_frames} frames (the processor's num_frames), or load "
                f"the model with from_pretrained(..., num_frames={frames})."
            )
        kwargs.setdefault("output_hidden_states", self.config.output_hidden_states)
        kwargs.setdefault("output_attentions", self.config.output_attentions)
        outputs = self.backbone(pixel_values.flatten(0, 1).to(self.dtype), return_dict=True, **kwargs)
        tokens = outputs.last_hidden_state
        features = tokens[:, 0] if outputs.pooler_output is None else outputs.pooler_output
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens.unflatten(0, (batch, frames)).flatten(1, 2),
            pooler_output=features.unflatten(0, (batch, frames)).mean(dim=1),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class VideoShiftForVideoClassification(VideoClassificationMixin, VideoShiftPreTrainedModel):
    """An image transformer with a temporal shift and a linear classifier on the mean of the frames' features.

    Args:
        config ([`VideoShiftConfig`])
    """

    def __init__(self, config: VideoShiftConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.video_shift = VideoShiftModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


__all__ = ["VideoShiftForVideoClassification", "VideoShiftModel", "VideoShiftPreTrainedModel"]
