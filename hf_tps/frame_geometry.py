"""How large resized frames are, and where they are cut: whole pixels, rounded as the releases round them."""

import math

ROUNDINGS = ("mmcv", "slowfast")


def check_rounding(rounding: str) -> None:
    """Raise `ValueError` for a rounding that is not among `ROUNDINGS`."""
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {', '.join(map(repr, ROUNDINGS))}, got {rounding!r}.")


def resized_size(height: int, width: int, short_side: int, rounding: str) -> tuple[int, int]:
    """Height and width of a frame whose shorter side becomes `short_side`, in pixels.

    Args:
        rounding: "mmcv" takes the nearest whole number for the longer side, a half upwards; "slowfast" the next lower.
    """
    short, long = sorted((height, width))
    if short == short_side:
        return height, width
    # The quotient comes first in both releases, and that decides some of the cases between two whole numbers.
    if rounding == "mmcv":
        resized = int(long * (short_side / short) + 0.5)
    else:
        resized = math.floor(long / short * short_side)
    return (short_side, resized) if height == short else (resized, short_side)


def crop_corners(
    height: int, width: int, crop_height: int, crop_width: int, num_crops: int, rounding: str
) -> list[tuple[int, int]]:
    """Top and left of the crops of a frame: the centre, or with `num_crops=3` both ends and the centre between them.

    The three lie along the width, or along the height of frames that are higher than wide.

    Args:
        rounding: where the space around the crop is odd, "mmcv" puts the centre half a pixel to the upper left and the
            last crop twice as far from the first, one pixel off the edge; "slowfast" puts the centre half a pixel to
            the lower right and the last crop at the edge.
    """
    centres, ends = [], []
    for space in (height - crop_height, width - crop_width):
        centres.append(space // 2 if rounding == "mmcv" else math.ceil(space / 2))
        ends.append(2 * (space // 2) if rounding == "mmcv" else space)
    top, left = centres
    if num_crops == 1:
        return [(top, left)]
    if height > width:
        return [(0, left), (top, left), (ends[0], left)]
    return [(top, 0), (top, left), (top, ends[1])]
