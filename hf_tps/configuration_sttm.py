# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Configuration of STTM: a video transformer whose similar tokens merge on the way."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_laps import LAPSConfig
from .configuration_xvit import XViTConfig
from .token_merging import BASELINES
from .token_merging_plug_in import MERGE_POINT, MergePlan, family_of_config, plan_merging

# Backbones of this package, by name here: a folder of STTM opens also where nothing is registered with the Auto classes.
OWN_BACKBONES = {"xvit": XViTConfig, "laps": LAPSConfig}
LEARNABLE = ("metric", "gate", "motion", "size_weight", "meta_weight")


@strict
class STTMConfig(PreTrainedConfig):
    r"""
    Configuration of [`STTMModel`] and [`STTMForVideoClassification`] (Feng et al., "Efficient Video Transformers via
    Spatial-temporal Token Merging for Action Recognition", ACM TOMM 20(4), 2024, doi 10.1145/3633781).

    The paper is closed access and has no code: its abstract is followed, the formulas are this package's choice (see
    `token_merging.py`). The defaults need no training. `hidden_size`, `image_size`, `num_channels`, `num_frames` and
    `num_hidden_layers` are read from `backbone_config`.

    Args:
        backbone_config (`dict` with "model_type" or `PreTrainedConfig`, *optional*):
            VideoMAE, ViViT, TimeSformer (divided space-time), V-JEPA 2, XViT, or LAPS on ViT. None: `VideoMAEConfig()`.
        merge_layers (`tuple` of ints, *optional*):
            Tokens merge after so many blocks. None: after a quarter, a half and three quarters of them; (3, 6, 9) of 12.
        keep_ratio (`float`, *optional*):
            Share of the tokens that each stage keeps, in (0, 1]. None: the largest, in hundredths, that saves 38 % of the
            backbone's multiply-accumulates (VideoMAE-B: 0.72); the config then holds that number.
        merge_point (`str`, defaults to "after_block"):
            Where a block's tokens merge; so far there is this place alone.
        method (`str`, *optional*):
            "match" merges the most similar tokens in space, then in time; "tube" gives all frames the same merges. None: the
            one that fits the backbone. "pool" puts all tokens into global meta tokens, once, and needs training. "tome",
            "random" and "drop" are baselines, "tube-random" and "tube-drop" those of "tube".
        temporal_share (`float`, defaults to 0.5):
            Share of the merges of "match" that join frames.
        merges_per_stage (`int`, *optional*):
            Of "tome", "random" and "drop", in place of `keep_ratio`: the same number of merges at each of `merge_layers`.
        size_weight (`float`, *optional*):
            alpha: attention logits get alpha * log(size of the key). None: the backbone's (VideoMAE and V-JEPA 2, which were
            trained with missing tokens, 0; the others 1). V-JEPA 2's pooler always has 1.
        pool_windows (`int`, *optional*):
            Of "pool": windows of frames that are fused; `pool_windows` times the cells of `meta_grid` tokens are left.
        top_q (`int`, defaults to 1):
            Receivers that share a moving token, by softmax with `temperature` (`float`, defaults to 0.05). 4 is meant for
            training, and then for evaluation too.
        meta_weight (`float`, defaults to 0.0):
            eta: weight of the agreement on global meta tokens. These start from the cells of `meta_grid` (`tuple`, defaults to
            (2, 4, 4), over time, rows, columns) and take `meta_rounds` (`int`, defaults to 2) rounds of soft k-means with
            `meta_temperature` (`float`, defaults to 0.1).
        learned (`tuple` of str, defaults to ()):
            What each stage learns: "metric" (the space in which tokens are compared; starts as the mean of the key heads),
            "gate" (saliency), "motion" (where tokens come from and how they moved, added to them), "size_weight",
            "meta_weight". The parameters are named `sttm_*`; at the start none changes the output. "metric" and
            "meta_weight" have a gradient through the softmax over receivers alone: `top_q` of at least 2.
        classifier_dropout (`float`, defaults to 0.0), initializer_range (`float`, defaults to 0.02)
        view_aggregation ("logits" or "probabilities", defaults to "logits"):
            How the views of a 6-D input become one answer: mean of the logits, or of the probabilities.

    Raises:
        ValueError: for a backbone that cannot merge, settings out of range, layers that do not exist, more merges than a
            stage can do.

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
    merge_layers: list[int] | tuple[int, ...] | None = None
    keep_ratio: float | int | None = None
    merge_point: str = MERGE_POINT
    method: str | None = None
    temporal_share: float | int = 0.5
    merges_per_stage: int | None = None
    size_weight: float | int | None = None
    pool_windows: int | None = None
    top_q: int = 1
    temperature: float | int = 0.05
    meta_weight: float | int = 0.0
    meta_grid: list[int] | tuple[int, ...] = (2, 4, 4)
    meta_rounds: int = 2
    meta_temperature: float | int = 0.1
    learned: list[str] | tuple[str, ...] = ()
    classifier_dropout: float | int = 0.0
    initializer_range: float = 0.02
    view_aggregation: str = "logits"

    def __post_init__(self, **kwargs):
        backbone = self.backbone_config
        if isinstance(backbone, dict) and backbone.get("model_type") in OWN_BACKBONES:
            self.backbone_config = OWN_BACKBONES[backbone["model_type"]].from_dict(backbone)
        super().__post_init__(**kwargs)
        # Here rather than left to @strict, which would wrap the ValueError into an error that is none.
        plan = self.validate_architecture()
        self.merge_layers, self.keep_ratio = plan.merge_layers, plan.keep_ratio
        self.method, self.size_weight = plan.method, plan.size_weight

    hidden_size = property(lambda self: self.backbone_config.hidden_size)
    num_hidden_layers = property(lambda self: self.backbone_config.num_hidden_layers)
    num_channels = property(
        lambda self: getattr(self.backbone_config, "num_channels", None) or self.backbone_config.in_chans
    )
    num_frames = property(lambda self: family_of_config(self.backbone_config).clip_size(self.backbone_config)[0])
    image_size = property(lambda self: family_of_config(self.backbone_config).clip_size(self.backbone_config)[1])

    def merge_plan(self) -> MergePlan:
        """Everything that is decided before the first clip."""
        return plan_merging(
            self.backbone_config,
            merge_layers=self.merge_layers,
            keep_ratio=self.keep_ratio,
            merge_point=self.merge_point,
            method=self.method,
            temporal_share=self.temporal_share,
            merges_per_stage=self.merges_per_stage,
            size_weight=self.size_weight,
            pool_windows=self.pool_windows,
            top_q=self.top_q,
            temperature=self.temperature,
            meta_weight=self.meta_weight,
            meta_grid=self.meta_grid,
            meta_rounds=self.meta_rounds,
            meta_temperature=self.meta_temperature,
        )

    def validate_architecture(self) -> MergePlan:
        """Check that the fields fit together; the model calls it too, since fields can be set one by one."""
        plan = self.merge_plan()
        unknown = sorted(set(self.learned) - set(LEARNABLE))
        if unknown:
            raise ValueError(f"learned names {unknown}; a stage can learn {LEARNABLE}.")
        soft = [name for name in ("metric", "meta_weight") if name in self.learned]
        if soft and self.top_q == 1 and plan.method != "pool":
            raise ValueError(
                f"learned={soft} has no gradient with top_q=1, where each token goes whole into one receiver: give top_q of at "
                "least 2 (4 is meant for training)."
            )
        if self.learned and plan.method in BASELINES:
            raise ValueError(f"method={plan.method!r} is a baseline and learns nothing: learned must be empty.")
        if plan.method == "pool" and set(self.learned) - {"metric", "motion", "size_weight"}:
            raise ValueError("method='pool' can learn 'metric', 'motion' and 'size_weight'.")
        if self.view_aggregation not in ("probabilities", "logits"):
            raise ValueError(f"view_aggregation is 'probabilities' or 'logits'; got {self.view_aggregation!r}.")
        return plan


__all__ = ["STTMConfig"]
