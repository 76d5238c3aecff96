"""The papers' training settings, as values for the flags of `examples/finetune.py`.

Learning rates belong to the batch size beside them (`total_batch_size`, over all processes and accumulated steps);
`--scale_learning_rate` scales them linearly to another one.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Recipe:
    """
    Attributes:
        source: where the values come from.
        total_batch_size: the batch that the learning rate is for.
        settings: flags of `examples/finetune.py` and their values.
        deviations: what the published training did otherwise.
    """

    source: str
    total_batch_size: int
    settings: dict
    deviations: tuple[str, ...] = field(default=())


_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

_TPS = {
    **_IMAGENET,
    "num_frames": 32,
    "crop_size": 224,
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
    "sampling": "uniform",
    "rand_augment_ops": 2,
    "rand_augment_magnitude": 9.0,
    "erasing": 0.25,
}
_TPS_SOURCE = "TPS, released configs/recognition/tps (Swin-T)"
_TPS_NOTES = ("The release resizes the shorter side to 256 before the random crop, and trains in fp16 (apex).",)

_XVIT = {
    **_HALF,
    "num_frames": 16,
    "crop_size": 224,
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
    "sampling": "dense",
    "frame_interval": 16,
    "index_rule": "linspace",
    "past_end": "clamp",
    "clip_placement": "start",
    "num_train_epochs": 30,
    "weight_decay": 1e-5,
    "label_smoothing": 0.3,
    "mixup": 0.4,
    "crop": "multiscale",
    "flip": 0.5,
}
_XVIT_SSV2 = {
    **_XVIT,
    "sampling": "uniform",
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
    "num_frames": 8,
    "crop_size": 224,
    "sampling": "dense",
    "frame_interval": 8,
    "index_rule": "linspace",
    "past_end": "loop",
    "clip_placement": "start",
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

RECIPES = {
    "tps-k400": Recipe(
        _TPS_SOURCE, 64, {**_TPS, "sampling": "dense", "frame_interval": 2, "past_end": "loop"}, _TPS_NOTES
    ),
    "tps-ssv1": Recipe(
        _TPS_SOURCE,
        64,
        {**_TPS_UNIFORM, "label_smoothing": 0.1, "no_flip_classes": ["left_right"]},
        (*_TPS_NOTES, "The release keeps the flip list of Something-Something-v2 ids for v1; here class names decide."),
    ),
    "tps-ssv2": Recipe(
        _TPS_SOURCE, 64, {**_TPS_UNIFORM, "label_smoothing": 0.1, "no_flip_classes": ["left_right"]}, _TPS_NOTES
    ),
    "tps-diving48": Recipe(_TPS_SOURCE, 64, {**_TPS_UNIFORM, "label_smoothing": 0.02}, _TPS_NOTES),
    "xvit-k400": Recipe(
        "XViT, released Kinetics config", 64, _XVIT_KINETICS, (*_XVIT_NOTES, _XVIT_WARMUP.format("0.01"))
    ),
    "xvit-k600": Recipe(
        "XViT, released Kinetics config", 64, _XVIT_KINETICS, (*_XVIT_NOTES, _XVIT_WARMUP.format("0.01"))
    ),
    "xvit-ssv2": Recipe(
        "XViT, released Something-Something-v2 config",
        64,
        _XVIT_SSV2,
        (*_XVIT_NOTES, _XVIT_WARMUP.format("0.003")),
    ),
    "xvit-ssv2-paper": Recipe(
        "XViT, the paper's text (submission); weight decay from the released config",
        128,
        {**_XVIT_SSV2, "learning_rate": 0.05, "label_smoothing": 0.3},
        _XVIT_NOTES,
    ),
    "laps-k400": Recipe(
        "LAPS, released config visformer LAPS 8x8",
        400,
        {**_LAPS, "learning_rate": 0.2, "image_mean": [0.486, 0.457, 0.407], "image_std": [0.229, 0.224, 0.225]},
        _LAPS_NOTES,
    ),
    "laps-vit-k400": Recipe(
        "LAPS, released config ViT-LAPS B 224", 180, {**_LAPS, **_HALF, "learning_rate": 0.18}, _LAPS_NOTES
    ),
    "tokshift-k400": Recipe(
        "TokShift, released config B 224", 240, {**_LAPS, **_HALF, "learning_rate": 0.24}, _LAPS_NOTES
    ),
}


def recipe_named(name: str) -> Recipe:
    """
    Raises:
        ValueError: for an unknown name, listing all.
    """
    if name not in RECIPES:
        raise ValueError(f"Unknown recipe {name!r}: there are {', '.join(RECIPES)}.")
    return RECIPES[name]
