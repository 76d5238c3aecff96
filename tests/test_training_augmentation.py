"""Clip augmentation: alike in all frames, from the generator alone, and each operation what its name says."""

import pytest
import torch

from hf_tps.training.augmentation import (
    _OPERATIONS,
    CROPS,
    AugmentationSettings,
    ClipAugmentation,
    auto_contrast,
    color_jitter,
    equalize,
    hue,
    mix_batch,
    posterize,
    rand_augment,
    rotate,
    solarize,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.randint(20, 200, (1, 3, height, width), dtype=torch.uint8, generator=seeded(9))


def still(frames: int = 3, **size) -> torch.Tensor:
    """A clip whose frames are all the same: what treats frames alike keeps it so."""
    return picture(**size).expand(frames, -1, -1, -1).contiguous()


@pytest.mark.parametrize("crop", CROPS)
def test_every_frame_is_treated_alike_and_the_size_is_right(crop):
    settings = AugmentationSettings(crop=crop, short_side=(16, 20), rand_augment_ops=2, color_jitter=0.5, erasing=0.5)
    augmentation = ClipAugmentation(settings, (16, 16))
    for seed in range(12):
        frames = augmentation.change_frames(still(), 0, generator := seeded(seed))
        assert frames.dtype == torch.uint8
        assert frames.shape[-2:] == ((24, 32) if crop == "center" else (16, 16))
        assert torch.equal(frames, frames[:1].expand_as(frames))
        erased = augmentation.erase(frames.float() + 1, generator)
        assert torch.equal(erased, erased[:1].expand_as(erased))


def test_the_generator_decides_alone():
    augmentation = ClipAugmentation(AugmentationSettings(rand_augment_ops=3), (16, 16))
    first = augmentation.change_frames(still(), 0, seeded(4))
    torch.rand(3)
    assert torch.equal(augmentation.change_frames(still(), 0, seeded(4)), first)
    assert any(not torch.equal(augmentation.change_frames(still(), 0, seeded(s)), first) for s in range(5, 9))


def test_classes_that_must_not_be_flipped_never_are():
    settings = AugmentationSettings(crop="center", flip=1.0, no_flip=frozenset({3}))
    augmentation = ClipAugmentation(settings, (16, 16))
    assert torch.equal(augmentation.change_frames(still(), 3, seeded()), still())
    assert torch.equal(augmentation.change_frames(still(), 2, seeded()), still().flip(-1))


def test_a_flip_of_one_half_happens_in_half_of_the_clips():
    augmentation = ClipAugmentation(AugmentationSettings(crop="center"), (16, 16))
    flipped = sum(not torch.equal(augmentation.change_frames(still(), 0, seeded(s)), still()) for s in range(300))
    assert 120 < flipped < 180


def test_a_random_crop_shows_a_part_with_the_wanted_area():
    # every pixel tells its place, so that the crop tells its corners
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    frames = torch.stack([rows, columns, rows]).to(torch.uint8)[None]
    augmentation = ClipAugmentation(AugmentationSettings(scale=(0.25, 0.25), ratio=(1, 1), flip=0), (32, 32))
    corners = set()
    for seed in range(20):
        crop = augmentation.change_frames(frames, 0, seeded(seed))[0]
        top, left = int(crop[0, 0, 0]), int(crop[1, 0, 0])
        assert torch.equal(crop, frames[0, :, top : top + 32, left : left + 32])
        corners.add((top, left))
    assert len(corners) > 10


def test_erasing_sets_one_box_of_the_wanted_area_to_zero():
    settings = AugmentationSettings(erasing=1.0, erasing_area=(0.25, 0.25), erasing_ratio=1.0)
    erased = ClipAugmentation(settings, (32, 32)).erase(torch.ones(2, 3, 32, 32), seeded())
    holes = erased[0, 0] == 0
    assert int(holes.sum()) == 256
    rows, columns = holes.any(1).nonzero().flatten(), holes.any(0).nonzero().flatten()
    assert len(rows) == len(columns) == 16
    assert torch.equal(erased == 0, holes.expand_as(erased))


@pytest.mark.parametrize("name", sorted(_OPERATIONS))
def test_every_operation_changes_the_clip_and_not_its_kind(name):
    frames = still()
    changed = _OPERATIONS[name](frames, 0.9)
    assert changed.shape == frames.shape
    assert changed.dtype == torch.uint8
    assert torch.equal(frames, still())
    assert torch.equal(changed, frames) == (name == "identity")


def test_strength_zero_leaves_what_has_a_strength():
    for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y", "saturation", "contrast", "brightness"):
        assert torch.equal(_OPERATIONS[name](still(), 0.0), still()), name


def test_single_operations_by_hand():
    frames = still()
    assert torch.equal(posterize(frames, 4), frames // 16 * 16)
    assert torch.equal(solarize(frames, 128), torch.where(frames < 128, frames, 255 - frames))
    dull = (frames // 4 + 100).to(torch.uint8)
    stretched = auto_contrast(dull)
    assert stretched.amin() == 0
    assert stretched.amax() == 255
    square = still(height=24, width=24)
    assert (rotate(square, 90).int() - torch.rot90(square, -1, (-2, -1)).int()).abs().max() <= 1
    assert (hue(frames, 1 / 3).float() - frames.roll(1, dims=1).float()).abs().max() <= 1
    flat = torch.bincount(equalize(dull)[:, 0].flatten().long() // 64, minlength=4).float()
    assert flat.min() > 0.6 * flat.max()


def test_contrast_counts_the_whole_clip_so_that_brightness_does_not_flicker():
    dark, light = torch.full((1, 3, 4, 4), 40, dtype=torch.uint8), torch.full((1, 3, 4, 4), 80, dtype=torch.uint8)
    clip = _OPERATIONS["contrast"](torch.cat([dark, light]), -1.0)  # factor 0.1: near the mean of the clip, 60
    assert clip.unique().tolist() == [58, 62]


def test_rand_augment_of_no_operations_is_nothing():
    assert torch.equal(rand_augment(still(), 0, 9, seeded()), still())
    assert torch.equal(color_jitter(still(), 0.0, seeded()), still())


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labels_are_mixed_as_the_pixels_are(kind):
    # clip i is filled with i, so that the mean of the mixed clip tells the share
    clips = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 2, 3, 20, 20).contiguous()
    mixed, targets = mix_batch(clips, torch.eye(4), seeded(2), **{f"{kind}_alpha": 1.0})
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    torch.testing.assert_close(mixed.mean((1, 2, 3, 4)), targets @ torch.arange(4.0))
    assert not torch.equal(targets, torch.eye(4))
    if kind == "cutmix":
        assert torch.equal(mixed[:, 0], mixed[:, 1])
        assert set(mixed.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}


def test_without_alpha_nothing_is_mixed():
    clips = torch.randn(2, 2, 3, 4, 4)
    assert torch.equal(mix_batch(clips, torch.eye(2), seeded())[0], clips)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": "five"}, "crop must be one of"),
        ({"flip": 1.5}, "flip is a probability"),
        ({"rand_augment_ops": 2, "rand_augment_magnitude": 11}, "magnitude 0 to 10"),
        ({"scale": (0.5, 0.1)}, "scale must be"),
        ({"ratio": (0, 1)}, "ratio must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AugmentationSettings(**settings)


def test_a_jitter_below_the_crop_is_refused():
    with pytest.raises(ValueError, match="short_side"):
        ClipAugmentation(AugmentationSettings(crop="jitter", short_side=(100, 200)), (112, 112))
