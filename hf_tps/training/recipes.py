"""The papers' training settings, under the names that `arguments.py` gives them.

Learning rates belong to the batch size beside them (`total_batch_size`, over all processes and accumulated steps). What
a clip looks like comes from `published.py`.
"""

from dataclasses import dataclass, field

from .published import PUBLISHED


@dataclass(frozen=True)
class Recipe:
    """How a paper trains a model on a data set.

    Attributes:
        source: where the values come from.
        total_batch_size: the batch that the learning rate is for.
        settings: the settings and their values.
        deviations: what the published training did otherwise.
    """

    source: str
    total_batch_size: int
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
    "erasing": 0.25,
}
_TPS_SOURCE = "TPS, released configs/recognition/tps (Swin-T)"
_TPS_NOTES = ("The release resizes the shorter side to 256 before the random crop, and trains in fp16 (apex).",)

_XVIT = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "lr_scheduler_type": "cosine",
    "warmup_epochs": 5.0,
    "learning_rate": 0.03,
    "classifier_dropout": 0.5,
    "drop_path_rate": 0.0,
    # The release decays everything but batch norms and the biases of the heads.
    "no_decay": "none",
    "rand_augment_ops": 2,
    "rand_augment_magnitude": 9.0,
}
_XVIT_KINETICS = {
    **_XVIT,
    "num_train_epochs": 30,
    "weight_decay": 1e-5,
    "label_smoothing": 0.3,
    "mixup": 0.4,
    "crop": "multiscale",
    "flip": 0.5,
}
_XVIT_SSV2 = {
    **_XVIT,
    "num_train_epochs": 35,
    "weight_decay": 1e-4,
    "erasing": 0.5,
    "crop": "jitter",
    "crop_short_side": [256, 320],
    "flip": 0.0,
}
_XVIT_NOTES = ("AutoAugment v0 is replaced by RandAugment (2 operations, magnitude 9).",)
_XVIT_WARMUP = "The release warms up from lr {}, this one from 0."

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
}
_LAPS_NOTES = (
    "The number of GPUs is not published: the batch size is that of one GPU, accumulated over 10 steps.",
    "The ranges of the colour jitter are not published; precise batch-norm statistics are not recomputed.",
)


def _recipe(
    model: str, data_set: str, source: str, total_batch_size: int, settings: dict, deviations: tuple[str, ...]
) -> Recipe:
    clips = PUBLISHED[model, data_set].training_settings()
    return Recipe(source, total_batch_size, {**clips, **settings}, deviations)


RECIPES = {
    "tps-k400": _recipe("tps", "k400", _TPS_SOURCE, 64, _TPS, _TPS_NOTES),
    "tps-ssv1": _recipe(
        "tps",
        "ssv1",
        _TPS_SOURCE,
        64,
        {**_TPS_UNIFORM, "label_smoothing": 0.1, "no_flip_classes": ["left_right"]},
        (*_TPS_NOTES, "The release keeps the flip list of Something-Something-v2 ids for v1; here class names decide."),
    ),
    "tps-ssv2": _recipe(
        "tps",
        "ssv2",
        _TPS_SOURCE,
        64,
        {**_TPS_UNIFORM, "label_smoothing": 0.1, "no_flip_classes": ["left_right"]},
        _TPS_NOTES,
    ),
    "tps-diving48": _recipe("tps", "diving48", _TPS_SOURCE, 64, {**_TPS_UNIFORM, "label_smoothing": 0.02}, _TPS_NOTES),
    "xvit-k400": _recipe(
        "xvit",
        "k400",
        "XViT, released Kinetics config",
        64,
        _XVIT_KINETICS,
        (*_XVIT_NOTES, _XVIT_WARMUP.format("0.01")),
    ),
    "xvit-k600": _recipe(
        "xvit",
        "k600",
        "XViT, released Kinetics config",
        64,
        _XVIT_KINETICS,
        (*_XVIT_NOTES, _XVIT_WARMUP.format("0.01")),
    ),
    "xvit-ssv2": _recipe(
        "xvit",
        "ssv2",
        "XViT, released Something-Something-v2 config",
        64,
        _XVIT_SSV2,
        (*_XVIT_NOTES, _XVIT_WARMUP.format("0.003")),
    ),
    "xvit-ssv2-paper": _recipe(
        "xvit-paper",
        "ssv2",
        "XViT, the paper's text (submission); weight decay from the released config",
        128,
        {**_XVIT_SSV2, "learning_rate": 0.05, "label_smoothing": 0.3},
        _XVIT_NOTES,
    ),
    "laps-k400": _recipe(
        "laps",
        "k400",
        "LAPS, released config visformer LAPS 8x8",
        400,
        {**_LAPS, "learning_rate": 0.2},
        _LAPS_NOTES,
    ),
    "laps-vit-k400": _recipe(
        "laps-vit", "k400", "LAPS, released config ViT-LAPS B 224", 180, {**_LAPS, "learning_rate": 0.18}, _LAPS_NOTES
    ),
    "tokshift-k400": _recipe(
        "tokshift", "k400", "TokShift, released config B 224", 240, {**_LAPS, "learning_rate": 0.24}, _LAPS_NOTES
    ),
}


def recipe_named(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        ValueError: for an unknown name, listing all.
    """
    if name not in RECIPES:
        raise ValueError(f"Unknown recipe {name!r}: there are {', '.join(RECIPES)}.")
    return RECIPES[name]
