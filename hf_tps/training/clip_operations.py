"""What augmentation does to a whole clip, all frames alike: uint8 (frames, 3, height, width) to the same, in torch."""

import math

import torch
import torch.nn.functional as F


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
    """Turn the hue (of hue, saturation and value) by a share of the circle."""
    values = frames.float()
    value, channel = values.max(-3, keepdim=True)
    chroma = value - values.amin(-3, keepdim=True)
    # Where on the circle, in sixths: 0 red, 2 green, 4 blue; between them the difference of the other two channels
    difference = (values.roll(-1, -3) - values.roll(-2, -3)).gather(-3, channel)
    sixths = 2 * channel + difference / chroma.clamp_min(1) + 6 * turn
    distance = ((sixths - torch.tensor([0.0, 2.0, 4.0]).view(3, 1, 1) + 3) % 6 - 3).abs()
    return _as_bytes(value - chroma * (distance - 1).clamp(0, 1))


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


def affine(frames: torch.Tensor, matrix: list[list[float]], fill: int = 128) -> torch.Tensor:
    """Every frame seen through a 2 x 3 matrix in pixels from the centre (output to input); `fill` where nothing was."""
    height, width = frames.shape[-2:]
    (a, b, x), (c, d, y) = matrix
    # affine_grid counts from -1 to 1 in both directions
    theta = torch.tensor([[a, b * height / width, 2 * x / width], [c * width / height, d, 2 * y / height]])
    grid = F.affine_grid(theta.expand(len(frames), 2, 3), list(frames.shape), align_corners=False)
    return _as_bytes(F.grid_sample(frames.float() - fill, grid, mode="bilinear", align_corners=False) + fill)


def rotate(frames: torch.Tensor, degrees: float, fill: int = 128) -> torch.Tensor:
    """Clockwise around the centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return affine(frames, [[cos, sin, 0], [-sin, cos, 0]], fill)


def cutout(frames: torch.Tensor, share: float, place: tuple[float, float]) -> torch.Tensor:
    """A grey square, with a side of this share of the height, around a place given in shares of height and width.

    What lies outside the frame is cut off.
    """
    centre = [share_of_side * side for share_of_side, side in zip(place, frames.shape[-2:], strict=True)]
    half = share * frames.shape[-2] / 2
    (top, bottom), (left, right) = ((max(0, round(c - half)), max(0, round(c + half))) for c in centre)
    cut = frames.clone()
    cut[..., top:bottom, left:right] = 128
    return cut
