"""Augmentation of whole clips: every random choice is made once for a clip, and all its frames follow.

Frames are uint8 (frames, 3, height, width) up to the crop; erasing works on normalised pixels, mixing on batches. All
randomness comes from the generator that is given.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..frame_geometry import check_rounding, resized_size
from . import pillow_operations as pillow
from .draws import below, uniform
from .policies import (
    AUTO_AUGMENT_POLICIES,
    RAND_AUGMENT_SPACES,
    ChangeFrames,
    color_jitter,
    draw_auto_augment,
    rand_augment,
)

CROPS = ("random_resized", "jitter", "multiscale", "multiscale_fixed", "center")
# TSN: height and width of a crop, as shares of the frame's shorter side, which may differ by one step
MULTISCALE_SIDES = (1, 0.875, 0.75, 0.66)
# Where the crops of "multiscale_fixed" begin, in quarters of the space around them: corners, middles of the edges,
# centre, and between centre and corners
FIXED_PLACES = (
    *((row, column) for row in (0, 2, 4) for column in (0, 2, 4)),
    *((row, column) for row in (1, 3) for column in (1, 3)),
)


@dataclass(frozen=True)
class AugmentationSettings:
    """What is changed in a training clip, how strongly and how often.

    Attributes:
        crop: "random_resized" (a random part of the area, stretched to the crop), "jitter" (shorter side to a random
            length, random crop), "multiscale" (TSN: side lengths of 1, .875, .75 or .66 of the shorter side, anywhere),
            "multiscale_fixed" (the same at one of 13 places, resized by Pillow: XViT's release on Kinetics), "center"
            (the processor's own resizing and crop).
        scale, ratio: area and width to height of "random_resized".
        short_side: bounds of the shorter side for "jitter".
        flip: probability of mirroring; classes in `no_flip` never are.
        rand_augment_ops: how many operations of RandAugment a clip gets; 0 turns it off.
        rand_augment_magnitude: their strength, 0 to 10.
        rand_augment_space: which operations, how strong: see `policies.rand_augment`.
        auto_augment: a policy of `policies.AUTO_AUGMENT_POLICIES`, before the crop; None turns it off.
        color_jitter: probability, each on its own, of a change of brightness, saturation, gamma and hue.
        jitter_brightness, jitter_saturation, jitter_gamma: bounds of the factor (of gamma: the exponent).
        jitter_hue: bounds of the turn, in shares of the circle.
        erasing: probability that a box is set to the mean colour, the same in all frames.
        erasing_area, erasing_ratio: bounds of its share of the area, and the smallest width to height.
    """

    crop: str = "random_resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    short_side: tuple[int, int] = (256, 320)
    flip: float = 0.5
    no_flip: frozenset[int] = frozenset()
    rand_augment_ops: int = 0
    rand_augment_magnitude: float = 9
    rand_augment_space: str = "torch"
    auto_augment: str | None = None
    color_jitter: float = 0.0
    jitter_brightness: tuple[float, float] = (0.7, 1.3)
    jitter_saturation: tuple[float, float] = (0.7, 1.3)
    jitter_gamma: tuple[float, float] = (0.7, 1.3)
    jitter_hue: tuple[float, float] = (-0.1, 0.1)
    erasing: float = 0.0
    erasing_area: tuple[float, float] = (0.02, 1 / 3)
    erasing_ratio: float = 0.3

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ValueError(f"crop must be one of {CROPS}, got {self.crop!r}.")
        for name in ("flip", "color_jitter", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, 0 to 1; got {getattr(self, name)}.")
        if self.rand_augment_ops < 0 or not 0 <= self.rand_augment_magnitude <= 10:
            raise ValueError(
                f"RandAugment takes 0 or more operations of magnitude 0 to 10; got {self.rand_augment_ops} of "
                f"{self.rand_augment_magnitude}."
            )
        if self.rand_augment_space not in RAND_AUGMENT_SPACES:
            raise ValueError(
                f"rand_augment_space must be one of {RAND_AUGMENT_SPACES}, got {self.rand_augment_space!r}."
            )
        if self.auto_augment is not None and self.auto_augment not in AUTO_AUGMENT_POLICIES:
            raise ValueError(f"auto_augment must be one of {tuple(AUTO_AUGMENT_POLICIES)}, got {self.auto_augment!r}.")
        for name in ("scale", "erasing_area"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} must be two shares of the area, 0 < low <= high <= 1; got {(low, high)}.")
        for name in ("ratio", "short_side", "jitter_brightness", "jitter_saturation", "jitter_gamma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be 0 < low <= high; got {(low, high)}.")
        if not -0.5 <= self.jitter_hue[0] <= self.jitter_hue[1] <= 0.5:
            raise ValueError(f"jitter_hue must be -0.5 <= low <= high <= 0.5 of the circle; got {self.jitter_hue}.")

    def jitter_ranges(self) -> dict[str, tuple[float, float]]:
        """As `policies.color_jitter` takes them."""
        return {name: getattr(self, f"jitter_{name}") for name in ("brightness", "saturation", "gamma", "hue")}


class ClipAugmentation:
    """What a training clip goes through.

    Args:
        settings: see `AugmentationSettings`.
        crop_size: (height, width) of the result.
        antialias: of the resizing, as in the processor.
        rounding: as in the processor; of "jitter": "slowfast" also draws the shorter side and the place of the crop as
            that library does.
    """

    def __init__(
        self,
        settings: AugmentationSettings,
        crop_size: tuple[int, int],
        antialias: bool = False,
        rounding: str = "mmcv",
    ) -> None:
        if settings.crop == "jitter" and settings.short_side[0] < max(crop_size):
            raise ValueError(
                f"short_side={settings.short_side} must not be smaller than the crop {crop_size}: nothing is padded."
            )
        check_rounding(rounding)
        self.settings, self.crop_size, self.antialias, self.rounding = settings, crop_size, antialias, rounding

    @property
    def crops(self) -> bool:
        """Whether the frames have their final size; otherwise the processor resizes and crops."""
        return self.settings.crop != "center"

    def change_frames(self, frames: torch.Tensor, label: int, generator: torch.Generator) -> torch.Tensor:
        """uint8 (frames, 3, height, width) to the same of the crop's size (with crop "center": of the same size)."""
        height, width = frames.shape[-2:]
        return self.change_crops(self.draw_crop(height, width, generator)(frames), label, generator)

    def draw_crop(self, height: int, width: int, generator: torch.Generator) -> ChangeFrames:
        """What becomes of every frame of this size: the first half of `change_frames`, for a few at a time.

        Returns:
            uint8 (some, 3, height, width) to the same of the crop's size.
        """
        policy = self.settings.auto_augment
        first = draw_auto_augment(policy, generator) if policy else _as_it_is
        draw = {
            "random_resized": self._random_resized_crop,
            "jitter": self._jitter_crop,
            "multiscale": self._multiscale_crop,
            "multiscale_fixed": self._fixed_crop,
        }.get(self.settings.crop)
        crop = draw(height, width, generator) if draw else _as_it_is
        return lambda frames: crop(first(frames))

    def change_crops(self, frames: torch.Tensor, label: int, generator: torch.Generator) -> torch.Tensor:
        """The other half: what looks at the whole clip, uint8 (frames, 3, height, width) to the same."""
        settings = self.settings
        if settings.flip and uniform(generator) < settings.flip and label not in settings.no_flip:
            frames = frames.flip(-1)
        if settings.rand_augment_ops:
            frames = rand_augment(
                frames,
                settings.rand_augment_ops,
                settings.rand_augment_magnitude,
                generator,
                settings.rand_augment_space,
            )
        if settings.color_jitter:
            frames = color_jitter(frames, settings.color_jitter, settings.jitter_ranges(), generator)
        return frames

    def erase(self, pixel_values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Normalised (frames, 3, height, width), perhaps with a box of zeros."""
        settings = self.settings
        if not settings.erasing or uniform(generator) >= settings.erasing:
            return pixel_values
        ratio = (settings.erasing_ratio, 1 / settings.erasing_ratio)
        box = _random_box(pixel_values.shape[-2:], settings.erasing_area, ratio, generator)
        if box is None:
            return pixel_values
        top, left, height, width = box
        erased = pixel_values.clone()
        erased[..., top : top + height, left : left + width] = 0
        return erased

    def _resized(self, top: int, left: int, height: int, width: int) -> ChangeFrames:
        """Cut out this box and resize it to the crop."""
        return lambda frames: self._resize(frames[..., top : top + height, left : left + width], self.crop_size)

    def _resize(self, frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if tuple(frames.shape[-2:]) == tuple(size):
            return frames
        return F.interpolate(frames, size=size, mode="bilinear", antialias=self.antialias)

    def _random_resized_crop(self, height: int, width: int, generator: torch.Generator) -> ChangeFrames:
        box = _random_box((height, width), self.settings.scale, self.settings.ratio, generator)
        if box is None:  # no such box fits: the largest centre crop with an allowed ratio
            low, high = self.settings.ratio
            box_height = height if width >= height * low else round(width / low)
            box_width = width if width <= height * high else round(height * high)
            box = ((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)
        return self._resized(*box)

    def _jitter_crop(self, height: int, width: int, generator: torch.Generator) -> ChangeFrames:
        low, high = self.settings.short_side
        crop_height, crop_width = self.crop_size
        if self.rounding == "slowfast":  # draws a number between two whole ones, and never the last place of the crop
            size = resized_size(height, width, round(uniform(generator, low, high)), self.rounding)
            places = max(1, size[0] - crop_height), max(1, size[1] - crop_width)
        else:
            size = resized_size(height, width, low + below(generator, high - low + 1), self.rounding)
            places = size[0] - crop_height + 1, size[1] - crop_width + 1
        top, left = (below(generator, count) for count in places)
        return lambda frames: self._resize(frames, size)[..., top : top + crop_height, left : left + crop_width]

    def _multiscale_crop(self, height: int, width: int, generator: torch.Generator) -> ChangeFrames:
        short = min(height, width)
        sides = [max(1, int(short * share)) for share in MULTISCALE_SIDES]
        box_height, box_width = _similar_sides(sides, sides, generator)
        top, left = below(generator, height - box_height + 1), below(generator, width - box_width + 1)
        return self._resized(top, left, box_height, box_width)

    def _fixed_crop(self, height: int, width: int, generator: torch.Generator) -> ChangeFrames:
        short = min(height, width)
        sides = [max(1, int(short * share)) for share in MULTISCALE_SIDES]
        # A side that nearly is the crop's becomes it.
        heights, widths = ([wanted if abs(side - wanted) < 3 else side for side in sides] for wanted in self.crop_size)
        box_height, box_width = _similar_sides(
            [min(side, height) for side in heights], [min(side, width) for side in widths], generator
        )
        row, column = FIXED_PLACES[below(generator, len(FIXED_PLACES))]
        top, left = row * ((height - box_height) // 4), column * ((width - box_width) // 4)
        return lambda frames: pillow.resize(
            frames[..., top : top + box_height, left : left + box_width], self.crop_size
        )


def _as_it_is(frames: torch.Tensor) -> torch.Tensor:
    return frames


def _similar_sides(heights: list[int], widths: list[int], generator: torch.Generator) -> tuple[int, int]:
    """A height and a width that are at most one step apart."""
    pairs = [(a, b) for i, a in enumerate(heights) for j, b in enumerate(widths) if abs(i - j) <= 1]
    return pairs[below(generator, len(pairs))]


def _random_box(
    size: tuple[int, int], area: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int] | None:
    """Top, left, height and width of a random box whose area and ratio are within bounds; None: none fits."""
    height, width = size
    for _ in range(10):
        wanted = height * width * uniform(generator, *area)
        shape = math.exp(uniform(generator, math.log(ratio[0]), math.log(ratio[1])))
        box_height, box_width = round(math.sqrt(wanted / shape)), round(math.sqrt(wanted * shape))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = below(generator, height - box_height + 1), below(generator, width - box_width + 1)
            return top, left, box_height, box_width
    return None


# --- batch -----------------------------------------------------------------------------------------------------------


def soft_labels(labels: torch.Tensor, num_classes: int, smoothing: float = 0.0) -> torch.Tensor:
    """Class probabilities (batch, classes) from class ids (batch,).

    The class has 1 - smoothing, the rest is shared by all.
    """
    return F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def mix_batch(
    pixel_values: torch.Tensor,
    targets: torch.Tensor,
    generator: torch.Generator,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup or cutmix of a batch with itself in another order; with both, one of them by the toss of a coin.

    Args:
        pixel_values: (batch, frames, 3, height, width).
        targets: (batch, classes), class probabilities.
        generator: on the CPU.
        mixup_alpha, cutmix_alpha: of the Beta distribution that gives the share; 0 turns it off.

    Returns:
        both mixed, with one share for the whole batch. Cutmix takes the same box in all frames.
    """
    choices = [name for name, alpha in (("mixup", mixup_alpha), ("cutmix", cutmix_alpha)) if alpha > 0]
    if not choices:
        return pixel_values, targets
    choice = choices[below(generator, len(choices))]
    alpha = mixup_alpha if choice == "mixup" else cutmix_alpha
    share = np.random.default_rng(below(generator, 2**62)).beta(alpha, alpha)  # torch's takes no generator
    other = torch.randperm(len(pixel_values), generator=generator).to(pixel_values.device)
    if choice == "mixup":
        mixed = share * pixel_values + (1 - share) * pixel_values[other]
    else:
        height, width = pixel_values.shape[-2:]
        cut_height, cut_width = (round(side * math.sqrt(1 - share)) for side in (height, width))
        top, left = below(generator, height - cut_height + 1), below(generator, width - cut_width + 1)
        mixed = pixel_values.clone()
        box = (..., slice(top, top + cut_height), slice(left, left + cut_width))
        mixed[box] = pixel_values[other][box]
        share = 1 - cut_height * cut_width / (height * width)
    return mixed, share * targets + (1 - share) * targets[other]
