# Copyright 2026 The hf_tps authors. Apache-2.0.
"""What every model of the package shares: input checks, views, loss, the start from an image model, auto_map."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .checkpoint_reading import Checkpoint, read_checkpoint
from .plain_text import one_line, printable


def check_pixel_values(pixel_values: torch.Tensor, num_channels: int, ranks: tuple[int, ...] = (5,)) -> None:
    """Refuse what is no batch of normalised clips.

    Raises:
        ValueError: for a rank not in `ranks`, another number of channels, integer pixels, or an empty axis.
    """
    layouts = {
        5: "(batch, num_frames, channels, height, width)",
        6: "(batch, views, num_frames, channels, height, width)",
    }
    if pixel_values.ndim not in ranks:
        raise ValueError(
            f"pixel_values must be {' or '.join(layouts[rank] for rank in ranks)}; got shape "
            f"{tuple(pixel_values.shape)}."
        )
    if pixel_values.shape[-3] != num_channels:
        raise ValueError(
            f"pixel_values must have {num_channels} channels at the third axis from the end, the layout being "
            f"{layouts[pixel_values.ndim]}; got shape {tuple(pixel_values.shape)}."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values must be normalised floats, as the video processor returns them; got {pixel_values.dtype}."
        )
    if 0 in pixel_values.shape:
        raise ValueError(f"pixel_values has an empty axis: shape {tuple(pixel_values.shape)}.")


def aggregate_views(logits: torch.Tensor, view_aggregation: str, problem_type: str | None) -> torch.Tensor:
    """One answer for each video from the answers for its views.

    Args:
        logits: (batch, views, labels).
        view_aggregation: "probabilities" (log of the mean softmax) or "logits" (mean).
        problem_type: of the config; "multi_label_classification" averages sigmoids whatever `view_aggregation` says.

    Returns:
        (batch, labels). Softmax (multi-label: sigmoid) of it gives the averaged probabilities.
    """
    if logits.shape[1] == 1:
        return logits[:, 0]
    if problem_type == "multi_label_classification":
        return torch.logit(logits.float().sigmoid().mean(dim=1), eps=1e-7).to(logits.dtype)
    if view_aggregation == "probabilities" and problem_type != "regression":
        log_probabilities = logits.float().log_softmax(dim=-1)
        return (log_probabilities.logsumexp(dim=1) - math.log(logits.shape[1])).to(logits.dtype)
    return logits.mean(dim=1)


HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def sort_keywords(config_class: type, kwargs: dict) -> tuple[dict, dict]:
    """The keywords of a `from_..._pretrained` method, sorted: those for the Hub, and fields of the config.

    Raises:
        ValueError: for a keyword that is neither.
    """
    hub_kwargs = {name: value for name, value in kwargs.items() if name in HUB_KEYWORDS}
    overrides = {name: value for name, value in kwargs.items() if name not in HUB_KEYWORDS}
    fields = {field.name for field in dataclasses.fields(config_class)} | {"num_labels"}
    unknown = sorted(set(overrides) - fields)
    if unknown:
        raise ValueError(f"{unknown} are no fields of {config_class.__name__}; it has {sorted(fields)}.")
    return hub_kwargs, overrides


class VideoPreTrainedModel(PreTrainedModel):
    """Base of the `XPreTrainedModel` of each family."""

    main_input_name = "pixel_values"
    input_modalities = ("video",)
    # Classes that a saved folder offers to the Auto classes, whichever of them was saved.
    _auto_classes: dict[str, str] = {}
    # Beginnings of the weights that an image model does not have
    _new_from_image: tuple[str, ...] = ("classifier.",)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> Any:
        # Transformers names only the class that is saved; then AutoModel would not open the folder of a classifier.
        if self._auto_class is not None:
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **self._auto_classes}
        return super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None, *args: Any, **kwargs: Any) -> Any:
        """As in Transformers; the errors that its readers have of their own become a ValueError that names the folder.

        Raises:
            OSError, ValueError: if the files are not there, damaged, or of another model.
            RuntimeError: for weights of other shapes than the config's, without `ignore_mismatched_sizes`.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except (SafetensorError, StrictDataclassError, UnpicklingError, EOFError, RecursionError) as error:
            raise ValueError(
                f"{printable(pretrained_model_name_or_path)} cannot be read: {type(error).__name__}: {one_line(error)}"
            ) from error

    @classmethod
    def config_and_weights_from_image(
        cls, checkpoint: Checkpoint, overrides: dict
    ) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        """The config, and the tensors of the base model, that an image checkpoint gives. Each family's own."""
        raise NotImplementedError(f"{cls.__name__} has no image model to start from.")

    @classmethod
    def from_image_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """A video model that starts from the weights of its image model.

        Args:
            pretrained_model_name_or_path (`str` or `Path`):
                A Transformers image checkpoint (Hub id or folder; the key layouts before and after version 5.10), or a
                file (`.pth`, `.safetensors`) of the original image release.
            dtype, attn_implementation: as in `from_pretrained`.
            cache_dir, force_download, local_files_only, token, revision, subfolder: as in `from_pretrained`.
            kwargs: fields of the config (`num_frames=32`, `num_labels=174`, ...); all others come from the image model.

        Returns:
            The model, in evaluation mode. What an image model has not (the classifier) is new, initialised from
            torch's global random state.

        Raises:
            ValueError: if the checkpoint is not of this family's image model, if a weight is missing or left over, or
                if a keyword is no field of the config.
        """
        hub_kwargs, overrides = sort_keywords(cls.config_class, kwargs)
        loading = {"dtype": dtype, "attn_implementation": attn_implementation}
        loading = {name: value for name, value in loading.items() if value is not None}
        return cls.load_from_image(pretrained_model_name_or_path, overrides, loading, hub_kwargs)

    @classmethod
    def load_from_image(cls, name_or_path: str | Path, overrides: dict, loading: dict, hub_kwargs: dict) -> Self:
        """`from_image_pretrained` with its keywords checked and sorted."""
        checkpoint = read_checkpoint(name_or_path, **hub_kwargs)
        try:
            config, state_dict = cls.config_and_weights_from_image(checkpoint, overrides)
        except StrictDataclassError as error:  # a setting of another type, in the file's config or in the keywords
            raise ValueError(f"{printable(checkpoint.source)} makes no {cls.__name__}: {one_line(error)}") from error
        model, report = cls.from_pretrained(
            None,
            config=config,
            state_dict=state_dict,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they come back in the report
            **loading,
        )
        prefix = f"{cls.base_model_prefix}."
        missing = sorted(
            n for n in report["missing_keys"] if not n.removeprefix(prefix).startswith(cls._new_from_image)
        )
        unexpected, mismatched = sorted(report["unexpected_keys"]), sorted(report["mismatched_keys"])
        if missing or unexpected or mismatched:
            raise ValueError(
                f"{checkpoint.source} does not fit {cls.__name__}: missing {missing}, unexpected {unexpected}, other "
                f"shapes {mismatched}."
            )
        return model


class PreTrainedModelAroundBackbone(VideoPreTrainedModel):
    """Base of the families that put a whole model of Transformers to another use: `backbone`, in the base model."""

    supports_gradient_checkpointing = True
    # Attention is the backbone's alone: its class refuses what it cannot do.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.backbone.set_input_embeddings(value)

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Load weights under the names of the modules, or under those that `save_pretrained` writes.

        The latter are the names of published image checkpoints. Trainer resumes through this method, without renaming,
        and would go on with new weights.
        """
        names = list(self.state_dict())
        numbers = {name: torch.tensor(number) for number, name in enumerate(names)}
        names_in_files = {key: names[number] for key, number in revert_weight_conversion(self, numbers).items()}
        renamed = {names_in_files.get(key, key): tensor for key, tensor in state_dict.items()}
        return super().load_state_dict(renamed, strict, assign)


class VideoClassificationMixin:
    """Forward pass of every `XForVideoClassification`: views as a batch, base model, classifier, views averaged.

    The class that uses it has `self.classifier`, `self.dropout` and its base model under `base_model_prefix`.
    """

    if TYPE_CHECKING:  # of the class that uses it
        config: PreTrainedConfig
        base_model: nn.Module
        classifier: nn.Linear
        dropout: nn.Dropout
        loss_function: Callable[..., torch.Tensor]

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        r"""Logits of videos, and the loss where labels are given.

        Args:
            pixel_values: (batch, num_frames, channels, height, width), normalised; or (batch, views, num_frames,
                channels, height, width), whose views are averaged as `config.view_aggregation` says.
            labels: (batch,) class ids; or (batch, num_labels) floats, class probabilities as mixup and cutmix make them
                (where `config.problem_type` is "multi_label_classification": 0 or 1 for each class).
            kwargs: `output_hidden_states`, `output_attentions` (with `attn_implementation="eager"`), `return_dict`.

        Returns:
            `ImageClassifierOutput`: `loss` if labels are given, `logits` (batch, num_labels), `hidden_states` and
            `attentions` as in the base model (of batch * views clips).

        Raises:
            ValueError: for another rank or number of channels, pixels that are not floats, soft labels of another
                shape, and what the base model refuses.
        """
        views = 1
        if pixel_values.ndim != 5:  # one clip each, 5-D, is left to the base model's own check
            check_pixel_values(pixel_values, self.config.num_channels, ranks=(5, 6))
            views = pixel_values.shape[1]
            pixel_values = pixel_values.flatten(0, 1)
        outputs = self.base_model(pixel_values, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        logits = aggregate_views(
            logits.unflatten(0, (-1, views)), self.config.view_aggregation, self.config.problem_type
        )
        loss = None if labels is None else self.classification_loss(logits, labels, **kwargs)
        return self.classifier_output(
            outputs, loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def classifier_output(self, outputs: ModelOutput, **answer: Any) -> ImageClassifierOutput:
        """The answer in its output class; a family that tells more of what the base model put out adds it."""
        return ImageClassifierOutput(**answer)

    def classification_loss(self, logits: torch.Tensor, labels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Cross-entropy with class probabilities for float labels (batch, num_labels); else Transformers' own loss."""
        problem = self.config.problem_type
        soft = (
            labels.is_floating_point()
            and labels.ndim == 2
            and problem not in ("multi_label_classification", "regression")
        )
        if soft and self.config.num_labels > 1:
            if labels.shape != logits.shape:
                raise ValueError(
                    f"Soft labels must be (batch, num_labels) = {tuple(logits.shape)}; got {tuple(labels.shape)}."
                )
            return nn.functional.cross_entropy(logits.float(), labels.to(logits.device).float())
        return self.loss_function(labels, logits, self.config, **kwargs)
