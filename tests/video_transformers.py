"""Micro versions of every video transformer whose tokens can merge, with weights that make a difference."""

import torch
from transformers import (
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoPrismForVideoClassification,
    VideoPrismVisionConfig,
    VivitConfig,
    VivitForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
)

from hf_tps import LAPSConfig, LAPSForVideoClassification, XViTConfig, XViTForVideoClassification

_SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 5,
}

# 4 temporal groups of 4 x 4 tokens in each
MODELS = {
    "videomae": (
        VideoMAEForVideoClassification,
        VideoMAEConfig,
        {**_SIZES, "image_size": 32, "patch_size": 8, "num_frames": 8, "use_mean_pooling": True},
    ),
    "vivit": (
        VivitForVideoClassification,
        VivitConfig,
        {**_SIZES, "image_size": 32, "tubelet_size": [2, 8, 8], "num_frames": 8},
    ),
    "timesformer": (
        TimesformerForVideoClassification,
        TimesformerConfig,
        {**_SIZES, "image_size": 32, "patch_size": 8, "num_frames": 4},
    ),
    "vjepa2": (
        VJEPA2ForVideoClassification,
        VJEPA2Config,
        {
            "hidden_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "mlp_ratio": 2.0,
            "num_labels": 5,
            "crop_size": 32,
            "patch_size": 8,
            "frames_per_clip": 8,
            "pred_hidden_size": 12,
            "pred_num_attention_heads": 2,
            "pred_num_hidden_layers": 1,
            "num_pooler_layers": 1,
        },
    ),
    "videoprism": (
        VideoPrismForVideoClassification,
        VideoPrismVisionConfig,
        {
            "hidden_size": 24,
            "num_spatial_layers": 4,
            "num_temporal_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "num_labels": 5,
            "image_size": 32,
            "tubelet_size": (1, 8, 8),
            "num_frames": 4,
        },
    ),
    "xvit": (
        XViTForVideoClassification,
        XViTConfig,
        {
            **_SIZES,
            "image_size": 32,
            "patch_size": 8,
            "num_frames": 4,
            "temporal_head_heads": 2,
            "temporal_head_size": 8,
        },
    ),
    "laps": (
        LAPSForVideoClassification,
        LAPSConfig,
        {
            "backbone": "vit",
            "image_size": 32,
            "patch_size": 8,
            "num_frames": 4,
            "embed_dim": 24,
            "depths": (4,),
            "num_heads": 2,
            "mlp_ratio": 1.5,
            "leap_levels": (1, 2, None),
            "num_labels": 5,
        },
    ),
}

# Their attention has no other form.
EAGER_ONLY = ("timesformer", "videoprism")


def build(name: str, **overrides):
    """A classifier whose weights, positions and biases are all far from zero."""
    model_class, config_class, settings = MODELS[name]
    torch.manual_seed(7)
    model = model_class(config_class(**{**settings, **overrides})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def clip(name: str, batch: int = 2) -> torch.Tensor:
    settings = MODELS[name][2]
    frames = settings.get("num_frames") or settings["frames_per_clip"]
    return torch.randn((batch, frames, 3, 32, 32), generator=torch.Generator().manual_seed(3))
