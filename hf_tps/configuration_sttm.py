# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Configuration of STTM: a video transformer whose similar tokens merge on the way."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_base import VideoConfig, check_ranges
from .token_merging import BASELINES
from .token_merging_backbones import VIDEO_TRANSFORMERS, VideoBackbone, backbone_of_config
from .token_merging_plug_in import MergeOptions, MergePlan, plan_merging

# Configs of this package by name: a folder of STTM opens also where nothing is registered with the Auto classes.
OWN_CONFIGS = {backbone.model_type: backbone.config_class for backbone in VIDEO_TRANSFORMERS.values()}
LEARNABLE = ("metric", "gate", "motion", "size_weight", "meta_weight")


@strict
class STTMConfig(MergeOptions, VideoConfig):
    r"""Configuration of [`STTMModel`] and [`STTMForVideoClassification`] (Feng et al., "Efficient Video Transformers
    via Spatial-temporal Token Merging for Action Recognition", ACM TOMM 20(4), 2024, doi 10.1145/3633781).

    The paper is closed access and has no code: the formulas are this package's choice, and the defaults, which need no
    training, leave out parts of what its abstract tells (see `token_merging.py`). `hidden_size`, `image_size`,
    `num_channels`, `num_frames` and `num_hidden_layers` are read from `backbone_config`.

    Args:
        backbone_config (`dict` with "model_type" or `PreTrainedConfig`, *optional*):
            VideoMAE, ViViT, TimeSformer (divided space-time), V-JEPA 2, VideoPrism, XViT, or LAPS on ViT. None:
            `VideoMAEConfig()`.
        merge_layers, keep_ratio, method, temporal_share, merges_per_stage, size_weight, pool_windows, top_q,
        temperature,
        meta_weight, meta_grid, meta_rounds, meta_temperature:
            As in [`MergeOptions`]. Of the first four and `size_weight`, None becomes the number or name that it stands
            for.
        learned (`tuple` of str, defaults to ()):
            What each stage learns: "metric" (the space in which tokens are compared; starts as the mean of the key
            heads), "gate" (saliency), "motion" (where tokens come from and how they moved, added to them),
            "size_weight", "meta_weight". The parameters are named `sttm_*`; at the start none changes the output.
            "metric" and "meta_weight" have a gradient through the softmax over receivers alone: `top_q` of at least 2.
        classifier_dropout (`float`, defaults to 0.0), initializer_range (`float`, defaults to 0.02)
        view_aggregation ("logits" or "probabilities", defaults to "logits"):
            How the views of a 6-D input become one answer: mean of the logits, or of the probabilities.

    Raises:
        ValueError: for a backbone that cannot merge, settings out of range, layers that do not exist, more merges than
            a stage can do.

    Example:

        >>> from transformers import VideoMAEConfig
        >>> from hf_tps import STTMConfig, STTMForVideoClassification
        >>> config = STTMConfig(backbone_config=VideoMAEConfig(), num_labels=400)
        >>> config.keep_ratio, config.merge_layers
        (0.72, (3, 6, 9))
        >>> model = STTMForVideoClassification(config)
    """

    model_type = "sttm"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="videomae")}

    backbone_config: dict | PreTrainedConfig | None = None
    learned: list[str] | tuple[str, ...] = ()
    classifier_dropout: float | int = 0.0
    initializer_range: float = 0.02
    view_aggregation: str = "logits"

    def __post_init__(self, **kwargs: Any) -> None:
        if (
            kwargs.pop("merge_point", "after_block") != "after_block"
        ):  # a field of the first release, with this one value
            raise ValueError("Tokens merge after a block; merge_point is no setting any more.")
        backbone = self.backbone_config
        if isinstance(backbone, dict) and (own := OWN_CONFIGS.get(str(backbone.get("model_type")))):
            self.backbone_config = own.from_dict(backbone)
        super().__post_init__(**kwargs)
        plan = self.merge_plan()
        self.merge_layers, self.keep_ratio = plan.merge_layers, plan.keep_ratio
        self.method, self.size_weight = plan.method, plan.size_weight

    @property
    def backbone(self) -> VideoBackbone:
        """All that is known of the backbone."""
        return backbone_of_config(self.backbone_config)

    hidden_size = property(lambda self: self.backbone_config.hidden_size)
    num_hidden_layers = property(lambda self: self.backbone.num_hidden_layers(self.backbone_config))
    num_channels = property(lambda self: self.backbone.num_channels(self.backbone_config))
    num_frames = property(lambda self: self.backbone.clip_size(self.backbone_config)[0])
    image_size = property(lambda self: self.backbone.clip_size(self.backbone_config)[1])

    def merge_plan(self) -> MergePlan:
        """Everything that is decided before the first clip."""
        return plan_merging(self.backbone_config, self)

    def validate_architecture(self) -> None:
        """Check that the fields fit together; the model calls it too, since fields can be set one by one."""
        super().validate_architecture()
        check_ranges(self.backbone_config)
        plan = self.merge_plan()
        unknown = sorted(set(self.learned) - set(LEARNABLE))
        if unknown:
            raise ValueError(f"learned names {unknown}; a stage can learn {LEARNABLE}.")
        soft = [name for name in ("metric", "meta_weight") if name in self.learned]
        if soft and self.top_q == 1 and plan.method != "pool":
            raise ValueError(
                f"learned={soft} has no gradient with top_q=1, where each token goes whole into one receiver: give "
                "top_q of at "
                "least 2 (4 is meant for training)."
            )
        if self.learned and plan.method in BASELINES:
            raise ValueError(f"method={plan.method!r} is a baseline and learns nothing: learned must be empty.")
        if plan.method == "pool" and set(self.learned) - {"metric", "motion", "size_weight"}:
            raise ValueError("method='pool' can learn 'metric', 'motion' and 'size_weight'.")


__all__ = ["STTMConfig"]
