"""Where training begins: a video checkpoint, an image checkpoint, a bare config, with or without token merging."""

import inspect
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForVideoClassification, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from ..configuration_laps import LAPSConfig
from ..modeling_base import VideoPreTrainedModel
from ..modeling_laps import LAPSForVideoClassification
from ..modeling_sttm import STTMForVideoClassification
from ..modeling_tps import TPSForVideoClassification
from ..modeling_video_shift import VideoShiftForVideoClassification
from ..modeling_xvit import XViTForVideoClassification
from ..text_files import read_json
from ..video_processing_tps import TPSVideoProcessor
from .files import reading
from .published import NORMALISATION_WITHOUT_A_FILE, ROUNDING, short_side
from .recipes import recipe_named

logger = logging.getLogger(__name__)

# By the word for what the image checkpoint becomes
FROM_IMAGE: dict[str, type[VideoPreTrainedModel]] = {
    "tps": TPSForVideoClassification,
    "xvit": XViTForVideoClassification,
    "laps": LAPSForVideoClassification,
    "shift": VideoShiftForVideoClassification,
}


def parse_overrides(text: str | None) -> dict:
    """`name=value,name=value` as a dictionary; values are JSON where they can be, else text. Lists: `depths=[2,2]`.

    Raises:
        ValueError: for an entry without a name or a value.
    """
    overrides, depth, entry = {}, 0, ""
    for character in (text or "") + ",":
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character != "," or depth > 0:
            entry += character
            continue
        name, equals, value = (part.strip() for part in entry.partition("="))
        if entry.strip():
            if not (name and equals and value):
                raise ValueError(f"Fields of a config are given as name=value,name=value; {entry!r} is not.")
            try:
                overrides[name] = json.loads(value)
            except json.JSONDecodeError:
                overrides[name] = {"None": None, "True": True, "False": False}.get(value, value)
        entry = ""
    return overrides


def class_order(class_names: Sequence[str], checkpoint_names: Sequence[str] | None) -> list[str]:
    """The classes in the order of the checkpoint, where it knows exactly them; else in their own."""
    if checkpoint_names is not None and set(class_names) == set(checkpoint_names):
        return list(checkpoint_names)
    return list(class_names)


def checkpoint_class_names(config: PreTrainedConfig) -> list[str]:
    """The names of a model's classes in the order of their ids."""
    return [config.id2label[number] for number in range(config.num_labels)]


def load_config(name_or_path: str, trust_remote_code: bool = False, **overrides: Any) -> PreTrainedConfig:
    """A config from a folder, a JSON file or the Hub, with some of its fields changed.

    Raises:
        ValueError: if a field does not exist, or the file is no config.
    """
    with reading(name_or_path):
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    unknown = sorted(name for name in overrides if not hasattr(config, name))
    if unknown:
        raise ValueError(f"{unknown} are no fields of {type(config).__name__}.")
    with reading(name_or_path):
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code, **overrides)


def check_fits_recipe(recipe_name: str, config: PreTrainedConfig | type[PreTrainedConfig], source: str) -> None:
    """Refuse a model that is not of the family that a recipe trains; of LAPS, one on another backbone.

    Args:
        config: of the start, or where image weights tell its fields, the config class of what they become.

    Raises:
        ValueError: naming the recipe and the model.
    """
    recipe = recipe_named(recipe_name)
    wanted, found = recipe.model_type, config.model_type
    if wanted == found and isinstance(config, LAPSConfig):
        wanted, found = f"laps on {recipe.network['backbone']}", f"laps on {config.backbone}"
    if wanted != found:
        raise ValueError(
            f"The recipe {recipe_name} trains a model of type {wanted!r}, but {source} gives {found!r}; choose a "
            "recipe of its family, or give the settings one by one."
        )


def differences_from_recipe(recipe_name: str, config: PreTrainedConfig) -> dict[str, tuple[Any, Any]]:
    """Fields in which a model is not the network of a recipe: the recipe's value and the model's."""
    network = recipe_named(recipe_name).network
    values = {name: (value, getattr(config, name)) for name, value in network.items()}
    # as in a file, where tuples are lists
    return {name: pair for name, pair in values.items() if json.dumps(pair[0]) != json.dumps(pair[1])}


def load_model(
    class_names: Sequence[str],
    *,
    model_name_or_path: str | None = None,
    config_name: str | None = None,
    from_image: str | None = None,
    sttm_keep_ratio: float | None = None,
    config_overrides: dict | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A video classifier for these classes.

    Args:
        class_names: in the order of their ids. A checkpoint keeps its classifier if it has these very classes.
        model_name_or_path: a video checkpoint, or with `from_image` an image checkpoint; folder or Hub id.
        config_name: instead of it, a config (folder or file): training from scratch.
        from_image: one of `FROM_IMAGE`.
        sttm_keep_ratio: token merging in a video checkpoint, with this share of tokens kept.
        config_overrides: fields of the config.

    Raises:
        ValueError: if these contradict each other, or weights other than the classifier's do not fit.
    """
    source = _checked_source(model_name_or_path, config_name, from_image, sttm_keep_ratio)
    overrides = dict(config_overrides or {})
    loading = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if config_name is not None:
        config = load_config(source, trust_remote_code, **overrides, **_label_fields(class_names))
        return AutoModelForVideoClassification.from_config(config, trust_remote_code=trust_remote_code, **loading)
    if from_image is not None:
        with reading(source):
            model = FROM_IMAGE[from_image].from_image_pretrained(
                source, num_labels=len(class_names), **overrides, **loading
            )
        for name, value in _label_fields(class_names).items():
            setattr(model.config, name, value)
        return model
    with reading(source):
        return _load_video_checkpoint(source, class_names, sttm_keep_ratio, overrides, loading, trust_remote_code)


def _checked_source(
    model_name_or_path: str | None, config_name: str | None, from_image: str | None, sttm_keep_ratio: float | None
) -> str:
    """The checkpoint or the config to begin with, if no other argument of `load_model` contradicts it."""
    source = config_name if model_name_or_path is None else model_name_or_path
    if source is None or (model_name_or_path is not None and config_name is not None):
        raise ValueError("Give either model_name_or_path (a checkpoint) or config_name (training from scratch).")
    if from_image is not None and from_image not in FROM_IMAGE:
        raise ValueError(f"from_image must be one of {', '.join(FROM_IMAGE)}, got {from_image!r}.")
    if from_image is not None and model_name_or_path is None:
        raise ValueError("from_image needs model_name_or_path, the image checkpoint.")
    if sttm_keep_ratio is not None and (from_image is not None or model_name_or_path is None):
        raise ValueError("sttm_keep_ratio needs model_name_or_path with a video checkpoint.")
    return source


def _label_fields(class_names: Sequence[str]) -> dict[str, dict]:
    """The fields of a config that name its classes."""
    id2label = dict(enumerate(class_names))
    return {"id2label": id2label, "label2id": {name: number for number, name in id2label.items()}}


def _load_video_checkpoint(
    source: str,
    class_names: Sequence[str],
    sttm_keep_ratio: float | None,
    overrides: dict,
    loading: dict,
    trust_remote_code: bool,
) -> PreTrainedModel:
    config = load_config(source, trust_remote_code)
    same = checkpoint_class_names(config) == list(class_names)
    labels: dict[str, Any] = {} if same else _label_fields(class_names)
    if not same:
        logger.warning("%s has other classes: the classifier is new.", source)
    if sttm_keep_ratio is not None and config.model_type != "sttm":
        return STTMForVideoClassification.from_video_pretrained(
            source, keep_ratio=sttm_keep_ratio, **overrides, **labels, **loading
        )
    load_config(source, trust_remote_code, **overrides)  # refuses fields that do not exist
    if sttm_keep_ratio is not None:
        overrides["keep_ratio"] = sttm_keep_ratio
    model, report = AutoModelForVideoClassification.from_pretrained(
        source,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        ignore_mismatched_sizes=not same,
        **labels,
        **overrides,
        **loading,
    )
    doubtful = sorted(
        str(key)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for key in report[kind]
        if same or "classifier" not in str(key)
    )
    if doubtful:
        raise ValueError(f"{source} does not fit its model, these weights do not load: {doubtful[:10]}.")
    return model


def load_processor(name_or_path: str | None, config: PreTrainedConfig, overrides: dict) -> TPSVideoProcessor:
    """The checkpoint's processor with some settings changed; where there is none of ours, one from what its files tell.

    Args:
        name_or_path: the checkpoint; None, or an image checkpoint: sizes come from the model's config.
        overrides: settings of `TPSVideoProcessor`; `num_frames` is the model's.
    """
    settings = {} if name_or_path is None else _saved_settings(name_or_path)
    if settings.get("video_processor_type") == TPSVideoProcessor.__name__:
        settings |= overrides
    else:
        # Other processors mean other things by the same names: a frame is cut to the size that the model reads.
        side = image_size_of(config) or 224
        plain = {name: settings[name] for name in ("image_mean", "image_std", "rescale_factor") if name in settings}
        image_model = _image_model(config)
        if image_model in NORMALISATION_WITHOUT_A_FILE:
            plain = {**NORMALISATION_WITHOUT_A_FILE[image_model].settings(), **plain}
        if config.model_type in ROUNDING:
            plain["rounding"] = ROUNDING[config.model_type]
        settings = {**plain, "crop_size": {"height": side, "width": side}, "antialias": True, **overrides}
        settings.setdefault("size", {"shortest_edge": short_side(max(dict(settings["crop_size"]).values()))})
    num_frames = getattr(config, "num_frames", None) or getattr(_backbone(config), "num_frames", None)
    if num_frames is not None:
        settings["num_frames"], settings["fps"] = num_frames, None
    known = TPSVideoProcessor.valid_kwargs.__annotations__
    return TPSVideoProcessor(**{name: value for name, value in settings.items() if name in known and value is not None})


def _backbone(config: PreTrainedConfig) -> PreTrainedConfig | None:
    return getattr(config, "backbone_config", None)


def _image_model(config: PreTrainedConfig) -> str:
    """What reads the frames, as `NORMALISATION_WITHOUT_A_FILE` names it."""
    return config.backbone if config.model_type == "laps" else (_backbone(config) or config).model_type


def image_size_of(config: PreTrainedConfig) -> int | None:
    """Height and width in pixels of the frames that a model is made for; None where its config does not tell."""
    size = getattr(config, "image_size", None) or getattr(_backbone(config), "image_size", None)
    size = size or getattr(config, "crop_size", None)
    return max(size) if isinstance(size, list | tuple) else size


def _saved_settings(name_or_path: str) -> dict:
    if Path(name_or_path).is_file():
        return {}
    for file in ("video_preprocessor_config.json", "preprocessor_config.json"):
        try:
            found = cached_file(name_or_path, file, _raise_exceptions_for_missing_entries=False)
        except OSError:
            found = None
        if found:
            settings = read_json(found)
            if not isinstance(settings, dict):
                raise ValueError(f"{found} must hold a JSON object, the settings of a processor.")
            return settings
    return {}


def freeze_backbone(model: nn.Module) -> None:
    """Only the classifier is trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))


def check_model(model: nn.Module) -> None:
    """Refuse a model that the scripts cannot train or test.

    Raises:
        ValueError: for one that has several classes for a video, or takes no pixel_values.
    """
    if model.config.problem_type in ("multi_label_classification", "regression"):
        raise ValueError(
            f"One class for each video is trained; the config has problem_type={model.config.problem_type!r}."
        )
    if "pixel_values" not in inspect.signature(model.forward).parameters:
        raise ValueError(f"{type(model).__name__} does not take pixel_values.")
