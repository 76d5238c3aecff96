"""The papers' training settings, under the names that `arguments.py` gives them.

Learning rates belong to the batch size beside them (`total_batch_size`, over all processes and accumulated steps). What
the network is and what a clip looks like comes from `published.py`. docs/reproduction.md sets every value beside that
of release and paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .published import PUBLISHED


@dataclass(frozen=True)
class Recipe:
    """How a paper trains a model on a data set.

    Attributes:
        source: where the values come from.
        total_batch_size: the batch that the learning rate is for; None where nobody can tell.
        model_type, network: the network: type and fields of its config, where trained weights do not fix them.
        settings: the settings and their values.
        deviations: what the published training did otherwise.
    """

    source: str
    total_batch_size: int | None
    model_type: str
    network: Mapping[str, Any]
    settings: dict
    deviations: tuple[str, ...] = field(default=())


_TPS = {
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "weight_decay": 0.02,
    "lr_scheduler_type": "cosine",
    "num_train_epochs": 30,
    "warmup_epochs": 2.5,
    # As mmcv has it: the cosine goes from epoch to epoch, the warm-up multiplies it at every step.
    "warmup_rule": "multiply",
    "warmup_start_factor": 0.1,
    "schedule_by_epoch": True,
    "backbone_lr_multiplier": 0.1,
    # As mmcv applies the released table: bias tables at full rate and without decay, norms as the rest of the backbone.
    "full_lr_names": ["relative_position_bias_table"],
    "no_decay": "positions",
    "drop_path_rate": 0.1,
    "classifier_dropout": 0.5,
    "crop": "random_resized",
    "crop_scale": [0.08, 1.0],
    "flip": 0.5,
}
_TPS_UNIFORM = {
    **_TPS,
    "rand_augment_ops": 2,
    "rand_augment_magnitude": 9.0,
    "rand_augment_space": "imgaug",
    "erasing": 0.25,
}
_TPS_SOURCE = "TPS, released configs/recognition/tps (Swin-T)"
_TPS_NOTES = ("The release resizes the shorter side to 256 before the random crop, and trains in fp16 (apex).",)
_TPS_UNIFORM_NOTES = (
    *_TPS_NOTES,
    "RandAugment draws a direction for each clip, the release once for a process; torch moves pixels, not OpenCV.",
)

_XVIT = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "lr_scheduler_type": "cosine",
    "warmup_epochs": 5.0,
    "warmup_rule": "join",
    "learning_rate": 0.03,
    "classifier_dropout": 0.5,
    "drop_path_rate": 0.0,
    # and batch norms, which there are none of
    "no_decay": "head_biases",
    "auto_augment": "v0",
}
_XVIT_KINETICS = {
    **_XVIT,
    "num_train_epochs": 30,
    "warmup_start_factor": 0.01 / 0.03,  # WARMUP_START_LR is 0.01
    "weight_decay": 1e-5,
    "label_smoothing": 0.3,
    "mixup": 0.4,
    "crop": "multiscale_fixed",
    "flip": 0.5,
}
_XVIT_SSV2 = {
    **_XVIT,
    "num_train_epochs": 35,
    "warmup_start_factor": 0.003 / 0.03,  # WARMUP_START_LR is 0.003
    "weight_decay": 1e-4,
    "erasing": 0.5,
    "crop": "jitter",
    "crop_short_side": [256, 320],
    "flip": 0.0,
}
# frames of "jitter", which the releases resize after normalisation
_ROUNDED = "Resized training frames are rounded to whole numbers, in the release they are not."
_XVIT_NOTES = (
    "AutoAugment draws the interpolation of a clip, bilinear or bicubic; the release draws it for each frame.",
)
_XVIT_SSV2_NOTES = (*_XVIT_NOTES, _ROUNDED)

_LAPS = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 0.0,
    "lr_scheduler_type": "multistep",
    "lr_milestones": [10.0, 15.0],
    "num_train_epochs": 18,
    "warmup_epochs": 0.0,
    "gradient_accumulation_steps": 10,
    "max_grad_norm": 1.0,
    "label_smoothing": 0.1,
    "crop": "jitter",
    "crop_short_side": [224, 360],
    "flip": 0.5,
    "color_jitter": 0.1,
    "jitter_brightness": [0.5, 2.0],
    "jitter_saturation": [0.5, 3.0],
    "jitter_gamma": [0.8, 1.2],
    "jitter_hue": [-0.5, 0.5],
}
_LAPS_NOTES = (
    "The colour jitter follows crop and flip, in the release it precedes them.",
    _ROUNDED,
)
_LAPS_BATCH = ("The number of GPUs is not published, and no number fits the rates of all Visformer configs.",)
# lr = 0.1 / 42 * clips of a GPU * GPUs, a comment in the configs: with 4 GPUs .171, .229 and .029, where they say .18,
# .24 and .03
_LAPS_VIT_BATCH = (
    "The number of GPUs, 4, is inferred from the learning rates (0.1 / 42 x clips x GPUs); 10 steps are accumulated.",
)


def _recipe(
    model: str, data_set: str, source: str, total_batch_size: int | None, settings: dict, deviations: tuple[str, ...]
) -> Recipe:
    published = PUBLISHED[model, data_set]
    return Recipe(
        source,
        total_batch_size,
        published.model_type,
        published.network,
        {**published.training_settings(), **settings},
        deviations,
    )


def _laps(model: str, config: str, learning_rate: float, crop_short_side: list[int] | None = None) -> Recipe:
    """Visformer: 10 accumulated steps on a number of GPUs that nobody tells."""
    settings = {**_LAPS, "learning_rate": learning_rate, "crop_short_side": crop_short_side or [224, 360]}
    settings["precise_bn_batches"] = 200
    return _recipe(model, "k400", f"LAPS, released config {config}", None, settings, (*_LAPS_BATCH, *_LAPS_NOTES))


def _laps_vit(
    model: str, config: str, learning_rate: float, clips_of_a_gpu: int, crop_short_side: list[int] | None = None
) -> Recipe:
    """ViT: 10 accumulated steps on 4 GPUs."""
    settings = {**_LAPS, "learning_rate": learning_rate, "crop_short_side": crop_short_side or [224, 360]}
    return _recipe(
        model, "k400", f"released config {config}", 10 * 4 * clips_of_a_gpu, settings, (*_LAPS_VIT_BATCH, *_LAPS_NOTES)
    )


RECIPES = {
    "tps-k400": _recipe("tps", "k400", _TPS_SOURCE, 64, _TPS, _TPS_NOTES),
    "tps-ssv1": _recipe(
        "tps",
        "ssv1",
        _TPS_SOURCE,
        64,
        {**_TPS_UNIFORM, "label_smoothing": 0.1, "no_flip_classes": ["left_right"]},
        (
            *_TPS_UNIFORM_NOTES,
            "The release keeps the flip list of Something-Something-v2 ids for v1; here class names decide.",
        ),
    ),
    "tps-ssv2": _recipe(
        "tps",
        "ssv2",
        _TPS_SOURCE,
        64,
        {**_TPS_UNIFORM, "label_smoothing": 0.1, "no_flip_classes": ["left_right"]},
        _TPS_UNIFORM_NOTES,
    ),
    "tps-diving48": _recipe(
        "tps", "diving48", _TPS_SOURCE, 64, {**_TPS_UNIFORM, "label_smoothing": 0.02}, _TPS_UNIFORM_NOTES
    ),
    "xvit-k400": _recipe(
        "xvit",
        "k400",
        "XViT, released Kinetics config",
        64,
        _XVIT_KINETICS,
        _XVIT_NOTES,
    ),
    "xvit-k600": _recipe(
        "xvit",
        "k600",
        "XViT, released Kinetics config",
        64,
        _XVIT_KINETICS,
        _XVIT_NOTES,
    ),
    "xvit-ssv2": _recipe(
        "xvit",
        "ssv2",
        "XViT, released Something-Something-v2 config",
        64,
        _XVIT_SSV2,
        _XVIT_SSV2_NOTES,
    ),
    "xvit-ssv2-paper": _recipe(
        "xvit-paper",
        "ssv2",
        "XViT, the paper's text (submission); weight decay from the released config",
        128,
        {**_XVIT_SSV2, "learning_rate": 0.05, "label_smoothing": 0.3},
        (*_XVIT_SSV2_NOTES, "The text does not tell where the warm-up begins: at a tenth of the rate, as released."),
    ),
    "laps-k400": _laps("laps", "Visformer LAPS 8x8", 0.2),
    "laps-320-k400": _laps("laps-320", "Visformer LAPS 32x8, 320 pixels", 0.036, [320, 480]),
    "laps-360-k400": _laps("laps-360", "Visformer LAPS 32x8, 360 pixels", 0.036, [360, 540]),
    "laps-vit-k400": _laps_vit("laps-vit", "ViT-LAPS B 224", 0.18, 18),
    "laps-vit-384-k400": _laps_vit("laps-vit-384", "ViT-LAPS B 384", 0.03, 3, [384, 512]),
    "tokshift-k400": _laps_vit("tokshift", "TokShift 8x32 B 224", 0.24, 24),
}


def recipe_named(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        ValueError: for an unknown name, listing all.
    """
    if name not in RECIPES:
        raise ValueError(f"Unknown recipe {name!r}: there are {', '.join(RECIPES)}.")
    return RECIPES[name]
