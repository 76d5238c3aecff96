"""One small model of each registered family; a family without an entry here fails the tests that all families share."""

import torch

import hf_tps

SETTINGS = {
    "tps": {
        "image_size": 32,
        "num_frames": 6,
        "embed_dim": 16,
        "depths": (2, 2),
        "num_heads": (2, 4),
        "window_size": 4,
        "shift_div": 4,
    },
    "xvit": {
        "image_size": 32,
        "num_frames": 6,
        "patch_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_temporal_embeddings": 4,
        "temporal_head_heads": 4,
        "temporal_head_size": 12,
        "initializer_range": 0.2,
    },
    "laps": {
        "image_size": 32,
        "num_frames": 8,
        "embed_dim": 16,
        "depths": (1, 2, 2),
        "num_heads": 2,
        "stem_channels": 4,
        "conv_groups": 2,
        "leap_levels": ((1, 3), (2, None)),
        "initializer_range": 0.13,
    },
    "sttm": {
        "backbone_config": {
            "model_type": "videomae",
            "image_size": 32,
            "num_frames": 8,
            "patch_size": 8,
            "tubelet_size": 2,
            "hidden_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "initializer_range": 0.2,
        },
        "keep_ratio": 0.75,
        "initializer_range": 0.2,
    },
    "video_shift": {
        "num_frames": 6,
        "backbone_config": {
            "model_type": "vit",
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "initializer_range": 0.2,
        },
    },
}

# On top of the settings of "laps", whose network is a Visformer: its other one
LAPS_VIT = {
    "backbone": "vit",
    "patch_size": 8,
    "depths": (4,),
    "leap_levels": (1, 2, 3, None),
}


def config(model_type: str, **overrides):
    config_class = next(config for config, _, _ in hf_tps.FAMILIES if config.model_type == model_type)
    return config_class(**{"num_labels": 5, **SETTINGS[model_type], **overrides})


def classifier(model_type: str, **overrides):
    model_class = next(classifier for config, _, classifier in hf_tps.FAMILIES if config.model_type == model_type)
    return model_class(config(model_type, **overrides)).eval()


def processor(model_config, **settings) -> hf_tps.TPSVideoProcessor:
    """A processor whose crops have the model's size."""
    size = model_config.image_size
    return hf_tps.TPSVideoProcessor(
        **{
            "num_frames": model_config.num_frames,
            "size": {"shortest_edge": size},
            "crop_size": {"height": size, "width": size},
            **settings,
        }
    )


def clip(model_config, batch: int = 2) -> torch.Tensor:
    size = model_config.image_size
    return torch.randn(batch, model_config.num_frames, model_config.num_channels, size, size)
