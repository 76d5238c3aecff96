"""Pillow's operations on every frame of a clip, for the policies whose releases were made with Pillow.

Clips are uint8 (frames, 3, height, width). What depends on a histogram is measured frame by frame, as there.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

ChangePicture: TypeAlias = Callable[[Image.Image], Image.Image]

GREY = (128, 128, 128)


def each_frame(frames: torch.Tensor, change: ChangePicture) -> torch.Tensor:
    """A clip of the changed pictures."""
    pictures = frames.permute(0, 2, 3, 1).contiguous().numpy()
    changed = np.stack([np.asarray(change(Image.fromarray(picture))) for picture in pictures])
    return torch.from_numpy(changed).permute(0, 3, 1, 2)


def resize(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """To this height and width, bilinear; antialiased, as Pillow always is."""
    height, width = size
    return each_frame(frames, lambda picture: picture.resize((width, height), Image.Resampling.BILINEAR))


def auto_contrast(frames: torch.Tensor) -> torch.Tensor:
    return each_frame(frames, ImageOps.autocontrast)


def equalize(frames: torch.Tensor) -> torch.Tensor:
    return each_frame(frames, ImageOps.equalize)


def invert(frames: torch.Tensor) -> torch.Tensor:
    return each_frame(frames, ImageOps.invert)


def solarize(frames: torch.Tensor, threshold: float) -> torch.Tensor:
    """Invert what is not below the threshold."""
    return each_frame(frames, lambda picture: ImageOps.solarize(picture, threshold=math.ceil(threshold)))


def solarize_add(frames: torch.Tensor, amount: int) -> torch.Tensor:
    """Make what is below 128 brighter by this amount."""
    table = [min(255, value + amount) if value < 128 else value for value in range(256)]
    return each_frame(frames, lambda picture: picture.point(table * 3))


def color(frames: torch.Tensor, factor: float) -> torch.Tensor:
    return each_frame(frames, lambda picture: ImageEnhance.Color(picture).enhance(factor))


def contrast(frames: torch.Tensor, factor: float) -> torch.Tensor:
    return each_frame(frames, lambda picture: ImageEnhance.Contrast(picture).enhance(factor))


def brightness(frames: torch.Tensor, factor: float) -> torch.Tensor:
    return each_frame(frames, lambda picture: ImageEnhance.Brightness(picture).enhance(factor))


def sharpness(frames: torch.Tensor, factor: float) -> torch.Tensor:
    return each_frame(frames, lambda picture: ImageEnhance.Sharpness(picture).enhance(factor))


def affine(frames: torch.Tensor, matrix: Sequence[float], resample: Image.Resampling) -> torch.Tensor:
    """Every frame seen through a, b, c, d, e, f: the pixel at (x, y) comes from (ax + by + c, dx + ey + f), else grey.

    Places are counted from the upper left corner.
    """
    return each_frame(
        frames,
        lambda picture: picture.transform(
            picture.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=GREY
        ),
    )


def rotate(frames: torch.Tensor, degrees: float, resample: Image.Resampling) -> torch.Tensor:
    """Anticlockwise around the centre; grey where nothing was."""
    return each_frame(frames, lambda picture: picture.rotate(degrees, resample=resample, fillcolor=GREY))
