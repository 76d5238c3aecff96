"""Clip augmentation: alike in all frames, from the generator alone, and each operation what its name says."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from hf_tps.training import policies
from hf_tps.training.augmentation import CROPS, AugmentationSettings, ClipAugmentation, mix_batch
from hf_tps.training.clip_operations import auto_contrast, cutout, equalize, hue, posterize, rotate, solarize
from hf_tps.training.policies import TORCH_SPACE, color_jitter, rand_augment


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.randint(20, 200, (1, 3, height, width), dtype=torch.uint8, generator=seeded(9))


def still(frames: int = 3, **size) -> torch.Tensor:
    """A clip whose frames are all the same: what treats frames alike keeps it so."""
    return picture(**size).expand(frames, -1, -1, -1).contiguous()


@pytest.mark.parametrize("crop", CROPS)
def test_every_frame_is_treated_alike_and_the_size_is_right(crop):
    for seed in range(24):
        settings = AugmentationSettings(
            crop=crop,
            short_side=(16, 20),
            rand_augment_ops=2,
            rand_augment_space=("torch", "imgaug")[seed % 2],
            auto_augment=(None, "imagenet", "v0")[seed % 3],
            color_jitter=0.5,
            erasing=0.5,
        )
        augmentation = ClipAugmentation(settings, (16, 16))
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


def coordinates(height: int, width: int) -> torch.Tensor:
    """A clip of one frame whose pixels tell their place: row in red, column in green, its hundreds in blue."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns % 200, columns // 200]).to(torch.uint8)[None]


# With the seeds 0, 1 and 2: row and column of the first and the last pixel of the crop (mirrored where the last column
# comes first), and what the generator gives next
OLD_DRAWS = {
    "random_resized": [(23, 33, 109, 143, 0.0223), (25, 47, 79, 1, 0.5695), (0, 21, 116, 140, 0.3901)],
    "jitter": [(19, 151, 105, 64, 0.6341), (14, 24, 108, 118, 0.7999), (17, 48, 102, 134, 0.619)],
    "multiscale": [(15, 132, 119, 43, 0.6341), (25, 4, 114, 108, 0.7999), (3, 19, 81, 108, 0.619)],
}


@pytest.mark.parametrize("crop", OLD_DRAWS)
def test_an_older_run_goes_on_with_the_draws_that_it_began_with(crop):
    augmentation = ClipAugmentation(AugmentationSettings(crop=crop, short_side=(70, 100)), (64, 64))
    for seed, (*corners, following) in enumerate(OLD_DRAWS[crop]):
        generator = seeded(seed)
        changed = augmentation.change_frames(coordinates(120, 160), 0, generator)[0, :2].int()
        drawn = torch.cat([changed[:, 0, 0], changed[:, -1, -1]])
        assert (drawn - torch.tensor(corners)).abs().max() <= 1  # bytes may be rounded otherwise elsewhere
        assert abs(float(torch.rand((), generator=generator)) - following) < 1e-4


def test_fixed_crops_lie_at_thirteen_places_and_are_resized_as_by_pillow():
    # 340 x 256: sides 256, 224, 192 and 168; 13 places at quarters of what is left, as in XViT's release
    sides = {256: (0, 21), 224: (8, 29), 192: (16, 37), 168: (22, 43)}  # a quarter of the height left, of the width
    places = [(0, 0), (0, 2), (0, 4), (2, 0), (2, 2), (2, 4), (4, 0), (4, 2), (4, 4), (1, 1), (1, 3), (3, 1), (3, 3)]
    frames = coordinates(256, 340)
    whole = Image.fromarray(frames[0].permute(1, 2, 0).numpy())
    expected = {}
    for height, (down, _) in sides.items():
        for width, (_, right) in sides.items():
            if abs(list(sides).index(height) - list(sides).index(width)) > 1:
                continue
            for row, column in places:
                left, top = column * right, row * down
                crop = whole.crop((left, top, left + width, top + height)).resize((224, 224), Image.BILINEAR)
                expected[np.asarray(crop).tobytes()] = (top, left, height, width)
    augmentation = ClipAugmentation(AugmentationSettings(crop="multiscale_fixed", flip=0), (224, 224))
    seen = set()
    for seed in range(300):
        crop = augmentation.change_frames(frames, 0, seeded(seed))[0].permute(1, 2, 0).contiguous()
        seen.add(expected[crop.numpy().tobytes()])
    assert len(seen) > 80


def test_a_fixed_side_that_nearly_is_the_crop_becomes_it_where_the_frame_has_the_room():
    augmentation = ClipAugmentation(AugmentationSettings(crop="multiscale_fixed", flip=0), (224, 224))
    frames = coordinates(226, 226)
    # 226 becomes 224, so that the largest crop is a piece of the frame as it is; a quarter of what is left is nothing
    crops = [augmentation.change_frames(frames, 0, seeded(seed)) for seed in range(60)]
    assert any(torch.equal(crop, frames[..., :224, :224]) for crop in crops)
    assert augmentation.change_frames(coordinates(222, 222), 0, seeded()).shape[-2:] == (224, 224)


@pytest.mark.parametrize(("rounding", "width"), [("mmcv", 298), ("slowfast", 297)])
def test_the_jitters_longer_side_is_rounded_as_the_processor_rounds(rounding, width, monkeypatch):
    resized = []
    interpolate = ClipAugmentation._resize

    def recorded(self, frames, size):
        resized.append(size)
        return interpolate(self, frames, size)

    monkeypatch.setattr(ClipAugmentation, "_resize", recorded)
    settings = AugmentationSettings(crop="jitter", short_side=(224, 224))
    ClipAugmentation(settings, (224, 224), rounding=rounding).change_frames(coordinates(256, 340), 0, seeded())
    assert resized == [(224, width)]


def test_slowfasts_jitter_draws_the_ends_half_as_often_and_never_the_last_place(monkeypatch):
    resized = []
    monkeypatch.setattr(ClipAugmentation, "_resize", lambda self, frames, size: resized.append(size) or frames)
    settings = AugmentationSettings(crop="jitter", short_side=(20, 22), flip=0)
    augmentation = ClipAugmentation(settings, (16, 16), rounding="slowfast")
    corners = [augmentation.change_frames(coordinates(30, 20), 0, seeded(seed))[0, :2, 0, 0] for seed in range(800)]
    shares = [sum(width == side for _, width in resized) / 800 for side in (20, 21, 22)]
    assert np.abs(np.array(shares) - (0.25, 0.5, 0.25)).max() < 0.05
    for height, width in ((30, 20), (31, 21), (33, 22)):
        places = [corner.tolist() for corner, size in zip(corners, resized, strict=True) if size == (height, width)]
        assert {top for top, _ in places} == set(range(height - 16))
        assert {left for _, left in places} == set(range(width - 16))
    fitting = ClipAugmentation(AugmentationSettings(crop="jitter", short_side=(16, 16)), (16, 16), rounding="slowfast")
    assert fitting.change_frames(still(height=16, width=16), 0, seeded()).shape[-2:] == (16, 16)


def test_auto_augment_comes_before_the_crop(monkeypatch):
    whole = []
    monkeypatch.setitem(policies.AUTO_AUGMENT_POLICIES, "v0", ((("invert", 1.0, 0), ("record", 1.0, 0)),))

    def record(frames, **_):
        whole.append(tuple(frames.shape[-2:]))
        return frames

    monkeypatch.setitem(policies.AUTO_AUGMENT_OPERATIONS, "record", record)
    augmentation = ClipAugmentation(
        AugmentationSettings(auto_augment="v0", flip=0, scale=(1, 1), ratio=(1, 1)), (24, 24)
    )
    changed = augmentation.change_frames(still(height=24, width=24), 0, seeded())
    assert torch.equal(changed, 255 - still(height=24, width=24))
    augmentation.change_frames(still(), 0, seeded())
    assert whole == [(24, 24), (24, 32)]


def test_erasing_sets_one_box_of_the_wanted_area_to_zero():
    settings = AugmentationSettings(erasing=1.0, erasing_area=(0.25, 0.25), erasing_ratio=1.0)
    erased = ClipAugmentation(settings, (32, 32)).erase(torch.ones(2, 3, 32, 32), seeded())
    holes = erased[0, 0] == 0
    assert int(holes.sum()) == 256
    rows, columns = holes.any(1).nonzero().flatten(), holes.any(0).nonzero().flatten()
    assert len(rows) == len(columns) == 16
    assert torch.equal(erased == 0, holes.expand_as(erased))


@pytest.mark.parametrize("name", sorted(TORCH_SPACE))
def test_every_operation_changes_the_clip_and_not_its_kind(name):
    frames = still()
    changed = TORCH_SPACE[name](frames, 0.9)
    assert changed.shape == frames.shape
    assert changed.dtype == torch.uint8
    assert torch.equal(frames, still())
    assert torch.equal(changed, frames) == (name == "identity")


def test_strength_zero_leaves_what_has_a_strength():
    for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y", "saturation", "contrast", "brightness"):
        assert torch.equal(TORCH_SPACE[name](still(), 0.0), still()), name


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


def test_hue_turns_as_pythons_own_colours_do():
    frames = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8, generator=seeded())
    for turn in (-0.5, -0.3, 0.1, 0.5):
        turned = hue(frames, turn)
        for before, after in zip(
            frames.movedim(1, -1).reshape(-1, 3), turned.movedim(1, -1).reshape(-1, 3), strict=True
        ):
            tone, saturation, value = colorsys.rgb_to_hsv(*(before / 255).tolist())
            expected = torch.tensor(colorsys.hsv_to_rgb((tone + turn) % 1, saturation, value)) * 255
            assert (after - expected).abs().max() <= 0.51
    assert torch.equal(hue(frames, 0.0), frames)


def test_cutout_is_a_grey_square_that_the_frame_cuts_off():
    black = torch.zeros(2, 3, 100, 200, dtype=torch.uint8)
    cut = cutout(black, 0.2, (0.5, 0.25))
    expected = black.clone()
    expected[..., 40:60, 40:60] = 128
    assert torch.equal(cut, expected)
    corner = cutout(black, 0.2, (0.0, 1.0))
    assert torch.equal(corner[..., :10, 190:], torch.full((2, 3, 10, 10), 128, dtype=torch.uint8))
    assert int((corner == 128).sum()) == 2 * 3 * 100


def test_contrast_counts_the_whole_clip_so_that_brightness_does_not_flicker():
    dark, light = torch.full((1, 3, 4, 4), 40, dtype=torch.uint8), torch.full((1, 3, 4, 4), 80, dtype=torch.uint8)
    clip = TORCH_SPACE["contrast"](torch.cat([dark, light]), -1.0)  # factor 0.1: near the mean of the clip, 60
    assert clip.unique().tolist() == [58, 62]


def test_rand_augment_of_no_operations_is_nothing():
    assert torch.equal(rand_augment(still(), 0, 9, seeded()), still())
    assert torch.equal(rand_augment(still(), 0, 9, seeded(), "imgaug"), still())
    assert torch.equal(color_jitter(still(), 0.0, AugmentationSettings().jitter_ranges(), seeded()), still())


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
        ({"rand_augment_space": "pil"}, "'torch', 'imgaug'"),
        ({"auto_augment": "cifar"}, "'imagenet', 'v0'"),
        ({"jitter_gamma": (0, 1)}, "jitter_gamma must be"),
        ({"jitter_hue": (-0.6, 0.1)}, "jitter_hue must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AugmentationSettings(**settings)


def test_a_jitter_below_the_crop_is_refused():
    with pytest.raises(ValueError, match="short_side"):
        ClipAugmentation(AugmentationSettings(crop="jitter", short_side=(100, 200)), (112, 112))
