"""Sizes and crop places at the frame sizes that videos have, written down by hand from the released formulas."""

import pytest

from hf_tps.frame_geometry import ROUNDINGS, crop_corners, resized_size

# Width and height of a frame; its longer side at a shorter one of 224 and 256, rounded as mmcv and as SlowFast do
LONGER_SIDES = {
    (340, 256): {224: (298, 297), 256: (340, 340)},  # 297.5; no resizing
    (320, 240): {224: (299, 298), 256: (341, 341)},  # 298.67; 341.33
    (426, 240): {224: (398, 397), 256: (454, 454)},  # 397.6; 454.4
    (640, 360): {224: (398, 398), 256: (455, 455)},  # 398.22; 455.11
    (1280, 720): {224: (398, 398), 256: (455, 455)},
    (256, 340): {224: (298, 297), 256: (340, 340)},  # upright
}
# The longer side after resizing, and where along it crops of 224 begin: int((w - 224) / 2) and twice that, or
# ceil((w - 224) / 2) and w - 224
PLACES = {
    "mmcv": {297: (0, 36, 72), 298: (0, 37, 74), 299: (0, 37, 74), 398: (0, 87, 174), 455: (0, 115, 230)},
    "slowfast": {297: (0, 37, 73), 298: (0, 37, 74), 397: (0, 87, 173), 398: (0, 87, 174), 455: (0, 116, 231)},
}


@pytest.mark.parametrize("frame", LONGER_SIDES)
def test_the_longer_side_is_that_of_the_release(frame):
    width, height = frame
    for short_side, longer in LONGER_SIDES[frame].items():
        for rounding, side in zip(("mmcv", "slowfast"), longer, strict=True):
            expected = (short_side, side) if width > height else (side, short_side)
            assert resized_size(height, width, short_side, rounding) == expected, (short_side, rounding)


@pytest.mark.parametrize("rounding", PLACES)
def test_the_crops_lie_where_the_release_has_them(rounding):
    for side, (first, centre, last) in PLACES[rounding].items():
        across = [(0, first), (0, centre), (0, last)]
        assert crop_corners(224, side, 224, 224, 3, rounding) == across
        assert crop_corners(side, 224, 224, 224, 3, rounding) == [corner[::-1] for corner in across]
        assert crop_corners(224, side, 224, 224, 1, rounding) == across[1:2]


def test_the_one_crop_of_a_validation_is_central_in_both_directions():
    # 341 x 256, a crop of 224: 32 and 117 pixels to share
    assert crop_corners(256, 341, 224, 224, 1, "mmcv") == [(16, 58)]
    assert crop_corners(256, 341, 224, 224, 1, "slowfast") == [(16, 59)]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_frames_whose_shorter_side_is_right_stay_as_they_are(rounding):
    # SlowFast's own formula would cut a pixel off some of them: 255 / 187 * 187 is less than 255
    assert all(
        resized_size(height, width, min(height, width), rounding) == (height, width)
        for height in range(180, 260)
        for width in range(180, 260)
    )


def test_the_order_of_multiplication_is_that_of_the_releases():
    # 325 * 224 / 320 is 227.5; but 224 / 320 is a little below 0.7 in binary, and 227.49... is rounded down
    assert resized_size(320, 325, 224, "mmcv") == (224, 227)
    # 185 * 360 / 180 is 370; but 185 / 180 is a little below 1.02777...
    assert resized_size(180, 185, 360, "slowfast") == (360, 369)
