# Copyright 2026 The hf_tps authors. Apache-2.0.
"""STTM: a video transformer of Transformers or of this package whose similar tokens merge on the way."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForVideoClassification, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils.generic import can_return_tuple

from .checkpoint_reading import read_checkpoint
from .configuration_sttm import STTMConfig
from .modeling_base import PreTrainedModelAroundBackbone, VideoClassificationMixin, check_pixel_values, sort_keywords
from .modeling_laps import LAPSForVideoClassification, LAPSModel
from .modeling_xvit import XViTForVideoClassification, XViTModel
from .token_merging import MergeState
from .token_merging_plug_in import find_video_transformer, plug_merging

# Models of this package, by name here: a folder of STTM opens also where nothing is registered with the Auto classes.
OWN_MODELS: dict[str, tuple[type, type]] = {
    "xvit": (XViTModel, XViTForVideoClassification),
    "laps": (LAPSModel, LAPSForVideoClassification),
}


@dataclass
class STTMModelOutput(BaseModelOutputWithPooling):
    """`BaseModelOutputWithPooling`, and how the L tokens stand at the end.

    token_sizes: (batch, L): how many of the clip's tokens are inside each.
    token_positions: (batch, L, 3): centroid (time, row, column), in tubelets and patches.
    token_source: (batch, tokens of the clip) int64: the token that each of the clip's tokens ended in, in the order
        (time, row, column); -1 for one that "drop" or "tube-drop" threw away. `unmerge` reads it.
    merge_states: a `MergeState` (without tokens) before the first stage and after each, if they were asked for.
    """

    token_sizes: torch.Tensor | None = None
    token_positions: torch.Tensor | None = None
    token_source: torch.Tensor | None = None
    merge_states: tuple[MergeState, ...] | None = None


@dataclass
class STTMClassifierOutput(ImageClassifierOutput):
    """`ImageClassifierOutput`, and `token_sizes`, `token_positions`, `token_source` of [`STTMModelOutput`]."""

    token_sizes: torch.Tensor | None = None
    token_positions: torch.Tensor | None = None
    token_source: torch.Tensor | None = None


class STTMStage(nn.Module):
    """What one stage learns; None for what it does not. At the start nothing of it changes the output."""

    def __init__(self, config: STTMConfig):
        super().__init__()
        hidden_size = config.hidden_size
        head_dim = hidden_size // config.backbone_config.num_attention_heads
        learned = config.learned
        self.metric = nn.Linear(hidden_size, head_dim) if "metric" in learned else None
        # Without bias: the same gate for all tokens gates nothing.
        self.gate = nn.Linear(hidden_size, 1, bias=False) if "gate" in learned else None
        self.motion = nn.Linear(7, hidden_size) if "motion" in learned else None
        self.size_weight = nn.Parameter(torch.empty(1)) if "size_weight" in learned else None
        self.meta_weight = nn.Parameter(torch.empty(1)) if "meta_weight" in learned else None


def build_backbone(config: STTMConfig) -> tuple[PreTrainedModel, nn.Module | None]:
    """The base model, without what no classifier reads, and what its classifier does ahead of the last linear layer."""
    backbone_config = config.backbone_config
    if backbone_config.model_type in OWN_MODELS:
        return OWN_MODELS[backbone_config.model_type][0](backbone_config), None
    classifier = AutoModelForVideoClassification.from_config(backbone_config, dtype=torch.get_default_dtype())
    base = find_video_transformer(classifier)  # Transformers 5.20 does not find that of VideoPrism
    for part in config.backbone.unused:
        delattr(base, part)
    return base, config.backbone.pooler(classifier)


class AsVector(ConversionOps):
    """A number as a tensor with one axis, which FSDP can shard; the first release saved them without."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        (tensor,) = input_dict.values()
        return {target_patterns[0]: (tensor[0] if isinstance(tensor, list) else tensor).reshape(-1)}

    @property
    def reverse_op(self) -> ConversionOps:
        return self


def register_conversions() -> None:
    """What Transformers does to the tensors of a folder while it loads one of the models below."""
    for name in ("STTMModel", "STTMForVideoClassification"):
        numbers = [
            WeightConverter(number, number, operations=[AsVector()]) for number in ("size_weight", "meta_weight")
        ]
        register_checkpoint_conversion_mapping(name, numbers, overwrite=True)


register_conversions()


class STTMPreTrainedModel(PreTrainedModelAroundBackbone):
    config: STTMConfig
    base_model_prefix = "sttm"
    _no_split_modules = ["STTMStage"]
    # V-JEPA 2's predictor, which the first release saved
    _keys_to_ignore_on_load_unexpected = [r"backbone\.predictor\."]
    _auto_classes = {
        "AutoConfig": "configuration_sttm.STTMConfig",
        "AutoModel": "modeling_sttm.STTMModel",
        "AutoModelForVideoClassification": "modeling_sttm.STTMForVideoClassification",
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        sttm = self.base_model
        if sttm.pooler is not None and any(module is part for part in sttm.pooler.modules()):
            sttm.backbone._init_weights(module)  # it comes from the backbone's own classifier
            return
        super()._init_weights(module)
        if isinstance(module, STTMStage):
            for layer in (module.gate, module.motion):
                if layer is not None:
                    init.zeros_(layer.weight)
            if module.motion is not None:
                init.zeros_(module.motion.bias)
            if module.size_weight is not None:
                init.constant_(module.size_weight, self.config.size_weight)
            if module.meta_weight is not None:
                init.constant_(module.meta_weight, self.config.meta_weight)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        super().initialize_weights()
        for name in self.config.backbone.zero_at_start:
            init.zeros_(self.base_model.backbone.get_parameter(name))

    @classmethod
    def from_image_pretrained(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            f"{cls.__name__} starts from a video model: use from_video_pretrained. For an image model, make an XViT or "
            "LAPS of it first and save it."
        )

    @classmethod
    def from_video_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """A merging model from the checkpoint of a plain video transformer; without `learned`, nothing in it is new.

        Args:
            pretrained_model_name_or_path (`str` or `Path`):
                Hub id or folder of a VideoMAE, ViViT, TimeSformer, V-JEPA 2, XViT or LAPS checkpoint.
            dtype, attn_implementation: as in `from_pretrained`.
            cache_dir, force_download, local_files_only, token, revision, subfolder: as in `from_pretrained`.
            kwargs: fields of [`STTMConfig`] (`keep_ratio=0.75`, ...); `num_labels`, `id2label`: new classes, whose head
                is new.

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: if the backbone cannot merge, if a keyword is no field of the config, if weights are missing, or
                if a weight of the file did not arrive in the model as it is in the file.
        """
        hub_kwargs, overrides = sort_keywords(STTMConfig, kwargs)
        if "backbone_config" in overrides:
            raise ValueError("backbone_config comes from the video checkpoint: do not give it.")
        source = str(pretrained_model_name_or_path)
        weights = read_checkpoint(source, **hub_kwargs).state_dict  # damaged files are refused here, in one sentence
        video_config = AutoConfig.from_pretrained(source, **hub_kwargs)
        keep_classes = not {"num_labels", "id2label"} & set(overrides)
        config = merging_config(video_config, overrides, keep_classes)

        classifier_class = OWN_MODELS.get(video_config.model_type, (None, AutoModelForVideoClassification))[1]
        video_model, report = classifier_class.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **hub_kwargs
        )
        needs_head = issubclass(cls, STTMForVideoClassification) and keep_classes
        check_loaded(video_model, report, weights, source, needs_head)

        loading = {"dtype": dtype or video_model.dtype}
        if attn_implementation is not None:
            loading["attn_implementation"] = attn_implementation
        model = cls._from_config(config, **loading).eval()
        sttm = model.base_model
        # Not through from_pretrained: to the names of today it applies conversions that are for the names of files.
        video_base = find_video_transformer(video_model)
        for part in config.backbone.unused:
            delattr(video_base, part)
        sttm.backbone.load_state_dict(video_base.state_dict())
        if sttm.pooler is not None:
            sttm.pooler.load_state_dict(config.backbone.pooler(video_model).state_dict())
        if needs_head:
            model.classifier.load_state_dict(video_model.classifier.state_dict())
        sttm.start_metric_from_keys()
        return model


def merging_config(video_config: PreTrainedConfig, overrides: dict, keep_classes: bool) -> STTMConfig:
    """The config of a model that merges the tokens of this video transformer; `overrides` are some of its fields."""
    labels = {"id2label": video_config.id2label, "label2id": video_config.label2id}
    backbone_config = copy.deepcopy(video_config)
    # Classes are the whole model's; the folder that a backbone came from is no setting of it.
    backbone_config.num_labels, backbone_config.name_or_path = 2, ""
    fields = {"backbone_config": backbone_config, **(labels if keep_classes else {}), **overrides}
    return STTMConfig(**fields)


def check_loaded(
    model: PreTrainedModel, report: dict, weights: dict[str, torch.Tensor], source: str, needs_head: bool
) -> None:
    """Compare a loaded video classifier with its file, tensor by tensor.

    Transformers renames weights while it loads; a rename that misses leaves zeros or random numbers (published VideoMAE
    files have `q_bias` and `v_bias`, which some versions did not find). So each tensor of the base model in the file
    must be somewhere in the loaded one, whatever its name is now.

    Args:
        weights: of the file, under its names.
        needs_head: whether the classifier of the file will be used.

    Raises:
        ValueError: with the names of weights that are missing, do not fit, or did not arrive.
    """
    prefix = f"{model.base_model_prefix}."
    missing = sorted(name for name in report["missing_keys"] if needs_head or name.startswith(prefix))
    mismatched = sorted(str(key) for key in report["mismatched_keys"])
    if missing or mismatched:
        no_head = missing and not any(name.startswith(prefix) for name in missing)
        raise ValueError(
            f"{source} does not fit {type(model).__name__}: missing {missing}, other shapes {mismatched}."
            + (" It has no classifier: give num_labels for a new one." if no_head and not mismatched else "")
        )
    base_parts = {name.split(".")[0] for name in model.base_model.state_dict()}
    loaded: dict[tuple, list[torch.Tensor]] = {}
    for tensor in model.state_dict().values():
        loaded.setdefault(fingerprint(tensor), []).append(tensor)
    lost = []
    for name, tensor in weights.items():
        # Heads, decoders of pre-training and the like are no part of the base model.
        if not name.startswith(prefix) and name.split(".")[0] not in base_parts:
            continue
        if tensor.is_floating_point():
            tensor = tensor.to(model.dtype)
        if not any(torch.equal(tensor, other) for other in loaded.get(fingerprint(tensor), ())):
            lost.append(name)
    if lost:
        raise ValueError(
            f"{len(lost)} weights of {source} are not in the {type(model).__name__} that Transformers made of it, such "
            f"as {lost[:4]}: this version of Transformers does not know their names. Take another one (5.20 to 5.23 "
            "are known)."
        )


def fingerprint(tensor: torch.Tensor) -> tuple:
    """What equal tensors share and few others do: shape and first values."""
    return tuple(tensor.shape), tuple(tensor.flatten()[:8].tolist())


class STTMModel(STTMPreTrainedModel):
    """A video transformer that merges tokens: features of a clip.

    Args:
        config ([`STTMConfig`])
    """

    def __init__(self, config: STTMConfig):
        super().__init__(config)
        config.validate_architecture()
        plan = config.merge_plan()
        self.backbone, self.pooler = build_backbone(config)
        self.sttm_stages = nn.ModuleList(STTMStage(config) for _ in plan.merge_layers if config.learned)
        self.merging = plug_merging(self, plan, self.sttm_stages or None)
        self.post_init()

    def set_keep_ratio(self, keep_ratio: float) -> None:
        """Merge more or less from here on, such as step by step at the start of a training. Each value is one static
        shape.

        Raises:
            ValueError: if it is out of range, more than the stages can do, or the method does not have it.
        """
        before = self.config.keep_ratio
        self.config.keep_ratio = keep_ratio
        try:
            self.merging.plan = self.config.merge_plan()
        except ValueError:
            self.config.keep_ratio = before
            raise

    @torch.no_grad()
    def start_metric_from_keys(self) -> None:
        """Learned metrics start as what the training-free model compares: the keys, averaged over the heads."""
        known = self.config.backbone
        blocks = self.backbone.get_submodule(known.blocks)
        for stage, layer in zip(self.sttm_stages, self.config.merge_layers, strict=False):
            if stage.metric is None:
                continue
            keys = blocks[layer - 1].get_submodule(known.attention).get_submodule(known.key_projection)
            heads = self.config.backbone_config.num_attention_heads
            for name, target in (("weight", stage.metric.weight), ("bias", stage.metric.bias)):
                source = getattr(keys, name)
                if source is None:
                    target.zero_()
                    continue
                source = source.chunk(3)[1] if known.fused_projection else source
                target.copy_(source.unflatten(0, (heads, -1)).mean(0))

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, output_merge_states: bool = False, **kwargs: Any) -> STTMModelOutput:
        r"""Args:
            pixel_values: (batch, num_frames, channels, height, width), normalised.
            output_merge_states: whether to return how the tokens stand after each stage.
            kwargs: `output_hidden_states`, `output_attentions` (with `attn_implementation="eager"`), `return_dict`, and
                what the backbone knows.

        Returns:
            [`STTMModelOutput`]: `last_hidden_state`, the backbone's, with the tokens that are left (and its class
            tokens); `pooler_output`, what the backbone's own classifier reads; `hidden_states` and `attentions` as the
            backbone gives them, fewer tokens behind each merge; sizes, places and origin of the tokens.

        Raises:
            ValueError: for another rank or number of channels, pixels that are not floats, a clip that the backbone or
                the plan does not fit.
        """
        check_pixel_values(pixel_values, self.config.num_channels)
        kwargs.setdefault("output_hidden_states", self.config.output_hidden_states)
        kwargs.setdefault("output_attentions", self.config.output_attentions)
        clip = {self.backbone.main_input_name: pixel_values.to(self.backbone.dtype)}
        outputs = self.backbone(**clip, **self.config.backbone.call_arguments, **kwargs)
        run = self.merging.run
        state = run.states[-1]
        sizes = state.sizes.to(outputs.last_hidden_state.device) if run.has_merged(len(run.budgets)) else None
        return STTMModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.config.backbone.pool(self.pooler, outputs, sizes),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            token_sizes=state.sizes,
            token_positions=state.positions,
            token_source=state.source,
            merge_states=tuple(run.states) if output_merge_states else None,
        )


class STTMForVideoClassification(VideoClassificationMixin, STTMPreTrainedModel):
    """STTM with a linear classifier on what the backbone's own classifier reads.

    Args:
        config ([`STTMConfig`])
    """

    def __init__(self, config: STTMConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.sttm = STTMModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.backbone.feature_size(config.backbone_config), config.num_labels)
        self.post_init()

    def set_keep_ratio(self, keep_ratio: float) -> None:
        """As [`STTMModel.set_keep_ratio`]."""
        self.sttm.set_keep_ratio(keep_ratio)

    def classifier_output(self, outputs: STTMModelOutput, **answer: Any) -> STTMClassifierOutput:
        return STTMClassifierOutput(
            **answer,
            token_sizes=outputs.token_sizes,
            token_positions=outputs.token_positions,
            token_source=outputs.token_source,
        )


__all__ = [
    "STTMClassifierOutput",
    "STTMForVideoClassification",
    "STTMModel",
    "STTMModelOutput",
    "STTMPreTrainedModel",
]
