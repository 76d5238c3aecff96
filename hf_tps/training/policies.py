"""Random changes of a clip as papers and releases draw them: RandAugment, AutoAugment, colour jitter.

Every choice is drawn once for a clip. Clips are uint8 (frames, 3, height, width); all randomness comes from the
generator that is given.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from PIL import Image

from . import clip_operations as clip
from . import pillow_operations as pillow
from .draws import below, sign, uniform

ChangeFrames: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

# --- RandAugment -----------------------------------------------------------------------------------------------------

TORCH_SPACE: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    # strength is -1 to 1; what has no direction takes its absolute value
    "identity": lambda frames, strength: frames,
    "auto_contrast": lambda frames, strength: clip.auto_contrast(frames),
    "equalize": lambda frames, strength: clip.equalize(frames),
    "rotate": lambda frames, strength: clip.rotate(frames, 30 * strength),
    "posterize": lambda frames, strength: clip.posterize(frames, 8 - round(4 * abs(strength))),
    "solarize": lambda frames, strength: clip.solarize(frames, 256 * (1 - abs(strength))),
    "shear_x": lambda frames, strength: clip.affine(frames, [[1, 0.3 * strength, 0], [0, 1, 0]]),
    "shear_y": lambda frames, strength: clip.affine(frames, [[1, 0, 0], [0.3 * strength, 1, 0]]),
    "translate_x": lambda frames, strength: clip.affine(
        frames, [[1, 0, 0.45 * strength * frames.shape[-1]], [0, 1, 0]]
    ),
    "translate_y": lambda frames, strength: clip.affine(
        frames, [[1, 0, 0], [0, 1, 0.45 * strength * frames.shape[-2]]]
    ),
    "saturation": lambda frames, strength: clip.saturation(frames, 1 + 0.9 * strength),
    "contrast": lambda frames, strength: clip.contrast(frames, 1 + 0.9 * strength),
    "brightness": lambda frames, strength: clip.brightness(frames, 1 + 0.9 * strength),
    "sharpness": lambda frames, strength: clip.sharpness(frames, 1 + 0.9 * strength),
}


def _sheared(frames: torch.Tensor, degrees: float, along_x: bool) -> torch.Tensor:
    slope = math.tan(math.radians(degrees))
    return clip.affine(frames, [[1, slope, 0], [0, 1, 0]] if along_x else [[1, 0, 0], [slope, 1, 0]], fill=0)


def _moved(frames: torch.Tensor, share: float, along_x: bool) -> torch.Tensor:
    pixels = round(share * frames.shape[-1 if along_x else -2])
    return clip.affine(frames, [[1, 0, pixels if along_x else 0], [0, 1, 0 if along_x else pixels]], fill=0)


# TPS' release makes its list of imgaug's operations. The level is the magnitude's tenth: a higher one posterizes and
# solarizes LESS, and turns colour, contrast, brightness and sharpness from weak (0.1) through as they are to strong.
# Most are Pillow's in imgaug too; it fills with black.
IMGAUG_SPACE: dict[str, Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]] = {
    "shear_x": lambda frames, level, generator: _sheared(frames, 17.19 * level * sign(generator), along_x=True),
    "shear_y": lambda frames, level, generator: _sheared(frames, 17.19 * level * sign(generator), along_x=False),
    "translate_x": lambda frames, level, generator: _moved(frames, 0.2 * level * sign(generator), along_x=True),
    "translate_y": lambda frames, level, generator: _moved(frames, 0.2 * level * sign(generator), along_x=False),
    "rotate": lambda frames, level, generator: clip.rotate(frames, 30 * level * sign(generator), fill=0),
    "posterize": lambda frames, level, generator: clip.posterize(frames, max(1, int(4 * level))),
    "solarize": lambda frames, level, generator: pillow.solarize(frames, 256 * level),
    "color": lambda frames, level, generator: pillow.color(frames, 1.8 * level + 0.1),
    "contrast": lambda frames, level, generator: pillow.contrast(frames, 1.8 * level + 0.1),
    "brightness": lambda frames, level, generator: pillow.brightness(frames, 1.8 * level + 0.1),
    "sharpness": lambda frames, level, generator: pillow.sharpness(frames, 1.8 * level + 0.1),
    "auto_contrast": lambda frames, level, generator: pillow.auto_contrast(frames),
    "equalize": lambda frames, level, generator: pillow.equalize(frames),
    "invert": lambda frames, level, generator: pillow.invert(frames),
    "cutout": lambda frames, level, generator: clip.cutout(
        frames, 0.2 * level, (uniform(generator), uniform(generator))
    ),
}

RAND_AUGMENT_SPACES = ("torch", "imgaug")


def rand_augment(
    frames: torch.Tensor, num_ops: int, magnitude: float, generator: torch.Generator, space: str = "torch"
) -> torch.Tensor:
    """RandAugment (Cubuk et al., 2020) of a clip: `num_ops` random operations of one magnitude, alike in all frames.

    Args:
        frames: uint8 (frames, 3, height, width).
        magnitude: 0 to 10.
        space: "torch" draws among 14 operations, with repeats; those that have a direction take it by chance. "imgaug"
            is the space of TPS' release: different ones of 15, in the order of the list.
    """
    if space == "imgaug":
        operations = list(IMGAUG_SPACE.values())
        for number in sorted(torch.randperm(len(operations), generator=generator)[:num_ops].tolist()):
            frames = operations[number](frames, magnitude / 10, generator)
        return frames
    names = list(TORCH_SPACE)
    for _ in range(num_ops):
        operation = TORCH_SPACE[names[below(generator, len(names))]]
        frames = operation(frames, sign(generator) * magnitude / 10)
    return frames


# --- AutoAugment -----------------------------------------------------------------------------------------------------


def _auto_sheared(
    frames: torch.Tensor, level: float, direction: int, resample: Image.Resampling, along_x: bool
) -> torch.Tensor:
    slope = 0.3 * level * direction
    return pillow.affine(frames, (1, slope, 0, 0, 1, 0) if along_x else (1, 0, 0, slope, 1, 0), resample)


def _auto_moved_y(frames: torch.Tensor, level: float, direction: int, resample: Image.Resampling) -> torch.Tensor:
    return pillow.affine(frames, (1, 0, 0, 0, 1, 0.45 * level * direction * frames.shape[-2]), resample)


# As the implementation for EfficientNet has them, which XViT's release contains. The level is the magnitude's tenth.
AUTO_AUGMENT_OPERATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "shear_x": partial(_auto_sheared, along_x=True),
    "shear_y": partial(_auto_sheared, along_x=False),
    "translate_y": _auto_moved_y,
    "rotate": lambda frames, level, direction, resample: pillow.rotate(frames, 30 * level * direction, resample),
    "auto_contrast": lambda frames, level, direction, resample: pillow.auto_contrast(frames),
    "equalize": lambda frames, level, direction, resample: pillow.equalize(frames),
    "invert": lambda frames, level, direction, resample: pillow.invert(frames),
    "posterize": lambda frames, level, direction, resample: clip.posterize(frames, int(4 * level)),
    "posterize_less": lambda frames, level, direction, resample: clip.posterize(frames, int(4 * level) + 4),
    "solarize": lambda frames, level, direction, resample: pillow.solarize(frames, int(256 * level)),
    "solarize_add": lambda frames, level, direction, resample: pillow.solarize_add(frames, int(110 * level)),
    "color": lambda frames, level, direction, resample: pillow.color(frames, 1.8 * level + 0.1),
    "contrast": lambda frames, level, direction, resample: pillow.contrast(frames, 1.8 * level + 0.1),
    "sharpness": lambda frames, level, direction, resample: pillow.sharpness(frames, 1.8 * level + 0.1),
}

# Pairs of (operation, its probability, its magnitude from 0 to 10). "imagenet" is the paper's table for ImageNet (Cubuk
# et al., 2019), "v0" what was published with EfficientNet's code under this name and XViT's release asks for.
AUTO_AUGMENT_POLICIES = {
    "imagenet": (
        (("posterize_less", 0.4, 8), ("rotate", 0.6, 9)),
        (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
        (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
        (("posterize_less", 0.6, 7), ("posterize_less", 0.6, 6)),
        (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
        (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
        (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
        (("posterize_less", 0.8, 5), ("equalize", 1.0, 2)),
        (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
        (("equalize", 0.6, 8), ("posterize_less", 0.4, 6)),
        (("rotate", 0.8, 8), ("color", 0.4, 0)),
        (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
        (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
        (("invert", 0.6, 4), ("equalize", 1.0, 8)),
        (("color", 0.6, 4), ("contrast", 1.0, 8)),
        (("rotate", 0.8, 8), ("color", 1.0, 2)),
        (("color", 0.8, 8), ("solarize", 0.8, 7)),
        (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
        (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
        (("color", 0.4, 0), ("equalize", 0.6, 3)),
        (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
        (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
        (("invert", 0.6, 4), ("equalize", 1.0, 8)),
        (("color", 0.6, 4), ("contrast", 1.0, 8)),
        (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    ),
    "v0": (
        (("equalize", 0.8, 1), ("shear_y", 0.8, 4)),
        (("color", 0.4, 9), ("equalize", 0.6, 3)),
        (("color", 0.4, 1), ("rotate", 0.6, 8)),
        (("solarize", 0.8, 3), ("equalize", 0.4, 7)),
        (("solarize", 0.4, 2), ("solarize", 0.6, 2)),
        (("color", 0.2, 0), ("equalize", 0.8, 8)),
        (("equalize", 0.4, 8), ("solarize_add", 0.8, 3)),
        (("shear_x", 0.2, 9), ("rotate", 0.6, 8)),
        (("color", 0.6, 1), ("equalize", 1.0, 2)),
        (("invert", 0.4, 9), ("rotate", 0.6, 0)),
        (("equalize", 1.0, 9), ("shear_y", 0.6, 3)),
        (("color", 0.4, 7), ("equalize", 0.6, 0)),
        (("posterize", 0.4, 6), ("auto_contrast", 0.4, 7)),
        (("solarize", 0.6, 8), ("color", 0.6, 9)),
        (("solarize", 0.2, 4), ("rotate", 0.8, 9)),
        (("rotate", 1.0, 7), ("translate_y", 0.8, 9)),
        (("shear_x", 0.0, 0), ("solarize", 0.8, 4)),
        (("shear_y", 0.8, 0), ("color", 0.6, 4)),
        (("color", 1.0, 0), ("rotate", 0.6, 2)),
        (("equalize", 0.8, 4), ("equalize", 0.0, 8)),
        (("equalize", 1.0, 4), ("auto_contrast", 0.6, 2)),
        (("shear_y", 0.4, 7), ("solarize_add", 0.6, 7)),
        (("posterize", 0.8, 2), ("solarize", 0.6, 10)),
        (("solarize", 0.6, 8), ("equalize", 0.6, 1)),
        (("color", 0.8, 6), ("rotate", 0.4, 5)),
    ),
}


def draw_auto_augment(policy: str, generator: torch.Generator) -> ChangeFrames:
    """One pair of operations of an AutoAugment policy, for frames that may come a few at a time.

    Args:
        policy: a name of `AUTO_AUGMENT_POLICIES`.
    """
    pairs = AUTO_AUGMENT_POLICIES[policy]
    changes: list[ChangeFrames] = []
    for name, probability, magnitude in pairs[below(generator, len(pairs))]:
        wanted, direction = uniform(generator) < probability, sign(generator)
        resample = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)[below(generator, 2)]
        if wanted:
            operation = AUTO_AUGMENT_OPERATIONS[name]
            changes.append(partial(operation, level=magnitude / 10, direction=direction, resample=resample))

    def change(frames: torch.Tensor) -> torch.Tensor:
        for one in changes:
            frames = one(frames)
        return frames

    return change


# --- colour jitter ---------------------------------------------------------------------------------------------------

ColorRanges: TypeAlias = dict[str, tuple[float, float]]


def color_jitter(
    frames: torch.Tensor, probability: float, ranges: ColorRanges, generator: torch.Generator
) -> torch.Tensor:
    """Brightness, saturation, gamma and hue, each with this probability and by an amount from its range."""
    for name, change in _JITTER.items():
        wanted, amount = uniform(generator), uniform(generator, *ranges[name])
        if wanted < probability:
            frames = change(frames, amount)
    return frames


_JITTER = {"brightness": clip.brightness, "saturation": clip.saturation, "gamma": clip.gamma, "hue": clip.hue}
