"""Augmentation of whole clips: every random choice is made once for a clip, and all its frames follow.

Frames are uint8 (frames, 3, height, width) up to the crop; erasing works on normalised pixels, mixing on batches. All
randomness comes from the generator that is given.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

CROPS = ("random_resized", "jitter", "multiscale", "center")


@dataclass(frozen=True)
class AugmentationSettings:
    """What is changed in a training clip, how strongly and how often.

    Attributes:
        crop: "random_resized" (a random part of the area, stretched to the crop), "jitter" (shorter side to a random
            length, random crop), "multiscale" (TSN: side lengths of 1, .875, .75 or .66 of the shorter side), "center"
            (the processor's own resizing and crop).
        scale, ratio: area and width to height of "random_resized".
        short_side: bounds of the shorter side for "jitter".
        flip: probability of mirroring; classes in `no_flip` never are.
        rand_augment_ops: how many operations of RandAugment a clip gets; 0 turns it off.
        rand_augment_magnitude: their strength, 0 to 10.
        color_jitter: probability, each on its own, of a change of brightness, saturation, gamma and hue.
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
    color_jitter: float = 0.0
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
        for name in ("scale", "erasing_area"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} must be two shares of the area, 0 < low <= high <= 1; got {(low, high)}.")
        for name in ("ratio", "short_side"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be 0 < low <= high; got {(low, high)}.")


def _uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _below(generator: torch.Generator, count: int) -> int:
    return int(torch.randint(count, (), generator=generator))


class ClipAugmentation:
    """What a training clip goes through.

    Args:
        settings: see `AugmentationSettings`.
        crop_size: (height, width) of the result.
        antialias: of the resizing, as in the processor.
    """

    def __init__(self, settings: AugmentationSettings, crop_size: tuple[int, int], antialias: bool = False) -> None:
        if settings.crop == "jitter" and settings.short_side[0] < max(crop_size):
            raise ValueError(
                f"short_side={settings.short_side} must not be smaller than the crop {crop_size}: nothing is padded."
            )
        self.settings, self.crop_size, self.antialias = settings, crop_size, antialias

    @property
    def crops(self) -> bool:
        """Whether the frames have their final size; otherwise the processor resizes and crops."""
        return self.settings.crop != "center"

    def change_frames(self, frames: torch.Tensor, label: int, generator: torch.Generator) -> torch.Tensor:
        """uint8 (frames, 3, height, width) to the same of the crop's size (with crop "center": of the same size)."""
        settings = self.settings
        if settings.crop == "random_resized":
            frames = self._random_resized_crop(frames, generator)
        elif settings.crop == "jitter":
            frames = self._jitter_crop(frames, generator)
        elif settings.crop == "multiscale":
            frames = self._multiscale_crop(frames, generator)
        if settings.flip and _uniform(generator) < settings.flip and label not in settings.no_flip:
            frames = frames.flip(-1)
        if settings.rand_augment_ops:
            frames = rand_augment(frames, settings.rand_augment_ops, settings.rand_augment_magnitude, generator)
        if settings.color_jitter:
            frames = color_jitter(frames, settings.color_jitter, generator)
        return frames

    def erase(self, pixel_values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Normalised (frames, 3, height, width), perhaps with a box of zeros."""
        settings = self.settings
        if not settings.erasing or _uniform(generator) >= settings.erasing:
            return pixel_values
        ratio = (settings.erasing_ratio, 1 / settings.erasing_ratio)
        box = _random_box(pixel_values.shape[-2:], settings.erasing_area, ratio, generator)
        if box is None:
            return pixel_values
        top, left, height, width = box
        erased = pixel_values.clone()
        erased[..., top : top + height, left : left + width] = 0
        return erased

    def _resize(self, frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if tuple(frames.shape[-2:]) == tuple(size):
            return frames
        return F.interpolate(frames, size=size, mode="bilinear", antialias=self.antialias)

    def _random_resized_crop(self, frames: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        box = _random_box(frames.shape[-2:], self.settings.scale, self.settings.ratio, generator)
        if box is None:  # no such box fits: the largest centre crop with an allowed ratio
            height, width = frames.shape[-2:]
            low, high = self.settings.ratio
            box_height = height if width >= height * low else round(width / low)
            box_width = width if width <= height * high else round(height * high)
            box = ((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)
        top, left, height, width = box
        return self._resize(frames[..., top : top + height, left : left + width], self.crop_size)

    def _jitter_crop(self, frames: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        low, high = self.settings.short_side
        target = low + _below(generator, high - low + 1)
        height, width = frames.shape[-2:]
        short = min(height, width)
        height, width = (target if side == short else int(side * target / short + 0.5) for side in (height, width))
        frames = self._resize(frames, (height, width))
        top = _below(generator, height - self.crop_size[0] + 1)
        left = _below(generator, width - self.crop_size[1] + 1)
        return frames[..., top : top + self.crop_size[0], left : left + self.crop_size[1]]

    def _multiscale_crop(self, frames: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        scales = (1, 0.875, 0.75, 0.66)
        # Height and width may differ by one step of the scale, as in TSN.
        pairs = [(a, b) for i, a in enumerate(scales) for j, b in enumerate(scales) if abs(i - j) <= 1]
        scale = pairs[_below(generator, len(pairs))]
        short = min(frames.shape[-2:])
        height, width = (max(1, int(short * part)) for part in scale)
        top = _below(generator, frames.shape[-2] - height + 1)
        left = _below(generator, frames.shape[-1] - width + 1)
        return self._resize(frames[..., top : top + height, left : left + width], self.crop_size)


def _random_box(
    size: tuple[int, int], area: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int] | None:
    """Top, left, height and width of a random box whose area and ratio are within bounds; None: none fits."""
    height, width = size
    for _ in range(10):
        wanted = height * width * _uniform(generator, *area)
        shape = math.exp(_uniform(generator, math.log(ratio[0]), math.log(ratio[1])))
        box_height, box_width = round(math.sqrt(wanted / shape)), round(math.sqrt(wanted * shape))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = _below(generator, height - box_height + 1), _below(generator, width - box_width + 1)
            return top, left, box_height, box_width
    return None


# --- RandAugment -----------------------------------------------------------------------------------------------------


def _as_bytes(frames: torch.Tensor) -> torch.Tensor:
    return frames.round_().clamp_(0, 255).to(torch.uint8)


def _grey(frames: torch.Tensor) -> torch.Tensor:
    """Luma (ITU-R 601) as float, (frames, 1, height, width)."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (frames.float() * weights).sum(-3, keepdim=True)


def _blend(frames: torch.Tensor, other: torch.Tensor, factor: float) -> torch.Tensor:
    return _as_bytes(other + factor * (frames.float() - other))


def brightness(frames: torch.Tensor, factor: float) -> torch.Tensor:
    return _as_bytes(frames.float() * factor)


def saturation(frames: torch.Tensor, factor: float) -> torch.Tensor:
    return _blend(frames, _grey(frames), factor)


def contrast(frames: torch.Tensor, factor: float) -> torch.Tensor:
    # The mean of the whole clip: a mean per frame would make the clip flicker.
    return _blend(frames, _grey(frames).mean(), factor)


def sharpness(frames: torch.Tensor, factor: float) -> torch.Tensor:
    kernel = torch.ones(3, 3)
    kernel[1, 1] = 5
    smooth = frames.float()
    if min(frames.shape[-2:]) > 2:
        weight = (kernel / kernel.sum()).expand(3, 1, 3, 3)
        smooth = F.conv2d(F.pad(smooth, (1, 1, 1, 1), mode="replicate"), weight, groups=3)
    return _blend(frames, smooth, factor)


def gamma(frames: torch.Tensor, factor: float) -> torch.Tensor:
    return _as_bytes((frames.float() / 255) ** factor * 255)


def hue(frames: torch.Tensor, turn: float) -> torch.Tensor:
    """Turn the colours around the grey axis by a share of the circle."""
    angle = 2 * math.pi * turn
    cos, sin = math.cos(angle), math.sin(angle)
    one, root = (1 - cos) / 3, sin / math.sqrt(3)
    matrix = torch.tensor(
        [[cos + one, one - root, one + root], [one + root, cos + one, one - root], [one - root, one + root, cos + one]]
    )
    return _as_bytes(torch.einsum("ij,tjhw->tihw", matrix, frames.float()))


def posterize(frames: torch.Tensor, bits: int) -> torch.Tensor:
    return frames & (256 - 2 ** (8 - bits))


def solarize(frames: torch.Tensor, threshold: float) -> torch.Tensor:
    return torch.where(frames >= threshold, 255 - frames, frames)


def auto_contrast(frames: torch.Tensor) -> torch.Tensor:
    values = frames.float()
    low, high = values.amin((0, 2, 3), keepdim=True), values.amax((0, 2, 3), keepdim=True)
    return _as_bytes(torch.where(high > low, (values - low) * (255 / (high - low).clamp_min(1)), values))


def equalize(frames: torch.Tensor) -> torch.Tensor:
    """Every channel's histogram over the whole clip made flat."""
    channels = []
    for channel in frames.unbind(1):
        counts = torch.bincount(channel.flatten().long(), minlength=256)
        present = counts[counts > 0]
        step = (counts.sum() - present[-1]) // 255
        if step == 0:
            channels.append(channel)
            continue
        table = ((counts.cumsum(0) - counts + step // 2) // step).clamp(0, 255).to(torch.uint8)
        channels.append(table[channel.long()])
    return torch.stack(channels, dim=1)


def affine(frames: torch.Tensor, matrix: list[list[float]]) -> torch.Tensor:
    """Every frame seen through a 2 x 3 matrix in pixels from the centre (output to input); grey where nothing was."""
    height, width = frames.shape[-2:]
    (a, b, x), (c, d, y) = matrix
    # affine_grid counts from -1 to 1 in both directions
    theta = torch.tensor([[a, b * height / width, 2 * x / width], [c * width / height, d, 2 * y / height]])
    grid = F.affine_grid(theta.expand(len(frames), 2, 3), list(frames.shape), align_corners=False)
    return _as_bytes(F.grid_sample(frames.float() - 128, grid, mode="bilinear", align_corners=False) + 128)


def rotate(frames: torch.Tensor, degrees: float) -> torch.Tensor:
    """Clockwise around the centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return affine(frames, [[cos, sin, 0], [-sin, cos, 0]])


_OPERATIONS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    # strength is -1 to 1; what has no direction takes its absolute value
    "identity": lambda frames, strength: frames,
    "auto_contrast": lambda frames, strength: auto_contrast(frames),
    "equalize": lambda frames, strength: equalize(frames),
    "rotate": lambda frames, strength: rotate(frames, 30 * strength),
    "posterize": lambda frames, strength: posterize(frames, 8 - round(4 * abs(strength))),
    "solarize": lambda frames, strength: solarize(frames, 256 * (1 - abs(strength))),
    "shear_x": lambda frames, strength: affine(frames, [[1, 0.3 * strength, 0], [0, 1, 0]]),
    "shear_y": lambda frames, strength: affine(frames, [[1, 0, 0], [0.3 * strength, 1, 0]]),
    "translate_x": lambda frames, strength: affine(frames, [[1, 0, 0.45 * strength * frames.shape[-1]], [0, 1, 0]]),
    "translate_y": lambda frames, strength: affine(frames, [[1, 0, 0], [0, 1, 0.45 * strength * frames.shape[-2]]]),
    "saturation": lambda frames, strength: saturation(frames, 1 + 0.9 * strength),
    "contrast": lambda frames, strength: contrast(frames, 1 + 0.9 * strength),
    "brightness": lambda frames, strength: brightness(frames, 1 + 0.9 * strength),
    "sharpness": lambda frames, strength: sharpness(frames, 1 + 0.9 * strength),
}


def rand_augment(frames: torch.Tensor, num_ops: int, magnitude: float, generator: torch.Generator) -> torch.Tensor:
    """RandAugment (Cubuk et al., 2020) of a clip: `num_ops` random operations of one magnitude, alike in all frames.

    Args:
        frames: uint8 (frames, 3, height, width).
        magnitude: 0 to 10. Operations that have a direction take it by chance.
    """
    names = list(_OPERATIONS)
    for _ in range(num_ops):
        operation = _OPERATIONS[names[_below(generator, len(names))]]
        sign = 1 if _below(generator, 2) else -1
        frames = operation(frames, sign * magnitude / 10)
    return frames


def color_jitter(frames: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Brightness, saturation, gamma (each 0.7 to 1.3) and hue (a tenth of the circle), each with this probability."""
    for change, low, high in ((brightness, 0.7, 1.3), (saturation, 0.7, 1.3), (gamma, 0.7, 1.3), (hue, -0.1, 0.1)):
        wanted, amount = _uniform(generator), _uniform(generator, low, high)
        if wanted < probability:
            frames = change(frames, amount)
    return frames


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
    choice = choices[_below(generator, len(choices))]
    alpha = mixup_alpha if choice == "mixup" else cutmix_alpha
    share = np.random.default_rng(_below(generator, 2**62)).beta(alpha, alpha)  # torch's takes no generator
    other = torch.randperm(len(pixel_values), generator=generator).to(pixel_values.device)
    if choice == "mixup":
        mixed = share * pixel_values + (1 - share) * pixel_values[other]
    else:
        height, width = pixel_values.shape[-2:]
        cut_height, cut_width = (round(side * math.sqrt(1 - share)) for side in (height, width))
        top, left = _below(generator, height - cut_height + 1), _below(generator, width - cut_width + 1)
        mixed = pixel_values.clone()
        box = (..., slice(top, top + cut_height), slice(left, left + cut_width))
        mixed[box] = pixel_values[other][box]
        share = 1 - cut_height * cut_width / (height * width)
    return mixed, share * targets + (1 - share) * targets[other]
