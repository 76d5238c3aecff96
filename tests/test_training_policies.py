"""RandAugment, AutoAugment and colour jitter: every strength as released, every draw once for a clip."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from hf_tps.training import policies
from hf_tps.training.augmentation import AugmentationSettings
from hf_tps.training.policies import (
    AUTO_AUGMENT_OPERATIONS,
    AUTO_AUGMENT_POLICIES,
    IMGAUG_SPACE,
    color_jitter,
    draw_auto_augment,
    rand_augment,
)

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clip(frames: int = 3, height: int = 224, width: int = 224) -> torch.Tensor:
    """Noise with another brightness in each frame, so that a histogram of the clip is not that of a frame."""
    noise = torch.randint(0, 150, (frames, 3, height, width), dtype=torch.uint8, generator=seeded(9))
    return noise + (torch.arange(frames) * 50).view(-1, 1, 1, 1).to(torch.uint8)


def with_pillow(frames: torch.Tensor, change) -> torch.Tensor:
    """Each frame changed by a function of Pillow's, on its own."""
    changed = [np.asarray(change(Image.fromarray(frame.permute(1, 2, 0).numpy()))) for frame in frames]
    return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2)


# ---------------------------------------------------------------------------------------------------- imgaug's space


def test_imgaugs_space_is_the_list_of_the_release():
    assert list(IMGAUG_SPACE) == [
        *("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "posterize", "solarize", "color", "contrast"),
        *("brightness", "sharpness", "auto_contrast", "equalize", "invert", "cutout"),
    ]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("posterize", lambda picture: ImageOps.posterize(picture, 3)),
        ("color", lambda picture: ImageEnhance.Color(picture).enhance(1.72)),
        ("contrast", lambda picture: ImageEnhance.Contrast(picture).enhance(1.72)),
        ("brightness", lambda picture: ImageEnhance.Brightness(picture).enhance(1.72)),
        ("sharpness", lambda picture: ImageEnhance.Sharpness(picture).enhance(1.72)),
        ("auto_contrast", ImageOps.autocontrast),
        ("equalize", ImageOps.equalize),
        ("invert", ImageOps.invert),
    ],
)
def test_imgaugs_colours_at_magnitude_9_are_pillows_to_the_byte(name, change):
    changed = IMGAUG_SPACE[name](clip(), 0.9, seeded())
    assert torch.equal(changed, with_pillow(clip(), change))


def test_imgaugs_solarize_inverts_from_230_on():
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256).expand(1, 3, 2, 256)
    solarized = IMGAUG_SPACE["solarize"](ramp, 0.9, seeded())  # 230.4: 231 and above
    assert solarized[0, 0, 0].tolist() == [*range(231), *range(24, -1, -1)]


def test_imgaugs_translation_is_40_of_224_pixels_either_way_and_black_behind():
    frames = clip()
    found = set()
    for seed in range(20):
        moved = IMGAUG_SPACE["translate_x"](frames, 0.9, seeded(seed))
        right = torch.equal(moved[..., 40:], frames[..., :-40]) and int(moved[..., :40].max()) == 0
        left = torch.equal(moved[..., :-40], frames[..., 40:]) and int(moved[..., -40:].max()) == 0
        assert right or left
        found.add("right" if right else "left")
        upright = IMGAUG_SPACE["translate_y"](frames.transpose(2, 3), 0.9, seeded(seed))
        assert torch.equal(upright, moved.transpose(2, 3))
    assert found == {"left", "right"}


def test_imgaugs_shear_is_15_and_a_half_degrees():
    line = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    line[..., 110:114] = 255
    found = set()
    for seed in range(20):
        sheared = IMGAUG_SPACE["shear_x"](line, 0.9, seeded(seed))[0, 0].float()
        middles = (sheared * torch.arange(224)).sum(1) / sheared.sum(1)
        degrees = torch.atan((middles[-1] - middles[0]) / 223).rad2deg()
        assert abs(degrees.abs() - 15.47) < 0.05
        found.add(bool(degrees > 0))
        upright = IMGAUG_SPACE["shear_y"](line.transpose(2, 3), 0.9, seeded(seed))[0, 0].float()
        torch.testing.assert_close(upright.T, sheared)
    assert found == {True, False}


def test_imgaugs_rotation_is_27_degrees():
    line = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    line[..., 110:114] = 255
    turned = {
        degrees: with_pillow(line, lambda picture, d=degrees: picture.rotate(d, BILINEAR)) for degrees in (27, -27)
    }
    found = set()
    for seed in range(10):
        rotated = IMGAUG_SPACE["rotate"](line, 0.9, seeded(seed)).int()
        # at the ends of the line Pillow and imgaug treat the black around differently
        close = [d for d in turned if (rotated - turned[d].int())[..., 20:204, :].abs().max() <= 1]
        assert len(close) == 1
        found.add(close[0])
    assert found == {27, -27}


def test_imgaugs_cutout_is_a_grey_square_of_40_pixels_anywhere():
    black = torch.zeros(2, 3, 224, 224, dtype=torch.uint8)
    sizes, corners = set(), set()
    for seed in range(40):
        cut = IMGAUG_SPACE["cutout"](black, 0.9, seeded(seed))
        assert torch.equal(cut[0], cut[1])
        assert set(cut.unique().tolist()) == {0, 128}
        rows, columns = (cut[0, 0] == 128).any(1).nonzero().flatten(), (cut[0, 0] == 128).any(0).nonzero().flatten()
        corners.add((int(rows[0]), int(columns[0])))
        sizes |= {len(side) for side in (rows, columns) if int(side[0]) > 0 and int(side[-1]) < 223}
    assert sizes <= {40, 41}  # 0.18 * 224 = 40.3
    assert len(corners) > 30


def test_the_strengths_follow_the_magnitude():
    frames = clip(1)
    for level, bits, factor in ((0.0, 1, 0.1), (0.5, 2, 1.0), (1.0, 4, 1.9)):
        assert torch.equal(IMGAUG_SPACE["posterize"](frames, level, seeded()), frames & (256 - 2 ** (8 - bits)))
        changed = IMGAUG_SPACE["brightness"](frames, level, seeded())
        assert torch.equal(
            changed, with_pillow(frames, lambda picture, f=factor: ImageEnhance.Brightness(picture).enhance(f))
        )
    assert torch.equal(IMGAUG_SPACE["solarize"](frames, 1.0, seeded()), frames)
    assert torch.equal(IMGAUG_SPACE["solarize"](frames, 0.0, seeded()), 255 - frames)
    assert torch.equal(IMGAUG_SPACE["rotate"](frames, 0.0, seeded()), frames)
    assert torch.equal(IMGAUG_SPACE["cutout"](frames, 0.0, seeded()), frames)


def recorded_space(monkeypatch, space: str) -> list[tuple[str, float]]:
    """The operations of a space only write down their names and strengths."""
    drawn: list[tuple[str, float]] = []
    table = getattr(policies, space)
    for name in list(table):
        monkeypatch.setitem(
            table, name, lambda frames, strength, *_, name=name: drawn.append((name, strength)) or frames
        )
    return drawn


def test_imgaugs_operations_are_drawn_without_repeats_alike_often_and_kept_in_the_order_of_the_list(monkeypatch):
    order = list(IMGAUG_SPACE)
    drawn = recorded_space(monkeypatch, "IMGAUG_SPACE")
    counts: Counter[str] = Counter()
    for seed in range(1500):
        drawn.clear()
        rand_augment(clip(1, 8, 8), 2, 9, seeded(seed), "imgaug")
        (first, level), (second, _) = drawn
        assert level == 0.9
        assert order.index(first) < order.index(second)
        counts.update((first, second))
    assert set(counts) == set(order)
    assert 140 < min(counts.values()) <= max(counts.values()) < 260  # 200 of 1,500 each
    drawn.clear()
    rand_augment(clip(1, 8, 8), 15, 9, seeded(), "imgaug")
    assert [name for name, _ in drawn] == order


def test_the_draws_of_the_older_space_are_what_they_were(monkeypatch):
    drawn = recorded_space(monkeypatch, "TORCH_SPACE")
    for seed in range(4):
        rand_augment(clip(1, 8, 8), 2, 9, seeded(seed))
    assert drawn == [
        *(("posterize", 0.9), ("shear_y", -0.9), ("shear_y", 0.9), ("posterize", -0.9)),
        *(("equalize", 0.9), ("contrast", -0.9), ("brightness", -0.9), ("rotate", 0.9)),
    ]


# ------------------------------------------------------------------------------------------------------- AutoAugment


@pytest.mark.parametrize(
    ("name", "level", "change"),
    [
        ("auto_contrast", 0.5, ImageOps.autocontrast),
        ("equalize", 0.8, ImageOps.equalize),
        ("invert", 0.4, ImageOps.invert),
        ("posterize", 0.6, lambda picture: ImageOps.posterize(picture, 2)),
        ("posterize", 0.2, lambda picture: picture.point(lambda value: 0)),  # no bit is left: black
        ("posterize_less", 0.8, lambda picture: ImageOps.posterize(picture, 7)),
        ("posterize_less", 0.5, lambda picture: ImageOps.posterize(picture, 6)),
        ("solarize", 0.3, lambda picture: ImageOps.solarize(picture, 76)),
        ("solarize", 1.0, lambda picture: picture),
        ("solarize_add", 0.3, lambda picture: picture.point(lambda value: value + 33 if value < 128 else value)),
        ("solarize_add", 0.7, lambda picture: picture.point(lambda value: value + 77 if value < 128 else value)),
        ("color", 0.0, lambda picture: ImageEnhance.Color(picture).enhance(0.1)),
        ("color", 0.9, lambda picture: ImageEnhance.Color(picture).enhance(1.72)),
        ("contrast", 0.8, lambda picture: ImageEnhance.Contrast(picture).enhance(1.54)),
        ("sharpness", 0.7, lambda picture: ImageEnhance.Sharpness(picture).enhance(1.36)),
    ],
)
def test_auto_augments_colours_are_pillows_to_the_byte(name, level, change):
    changed = AUTO_AUGMENT_OPERATIONS[name](clip(), level=level, direction=-1, resample=BILINEAR)
    assert torch.equal(changed, with_pillow(clip(), change))


@pytest.mark.parametrize("resample", [BILINEAR, BICUBIC])
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize(
    ("name", "level", "matrix"),
    [
        ("shear_x", 0.9, lambda d: (1, d * 0.27, 0, 0, 1, 0)),
        ("shear_y", 0.4, lambda d: (1, 0, 0, d * 0.12, 1, 0)),
        ("translate_y", 0.9, lambda d: (1, 0, 0, 0, 1, d * 48.6)),  # 0.405 of 120 pixels
    ],
)
def test_auto_augments_shears_and_translations_are_pillows_to_the_byte(name, level, matrix, direction, resample):
    frames = clip(2, 120, 160)
    changed = AUTO_AUGMENT_OPERATIONS[name](frames, level=level, direction=direction, resample=resample)
    expected = with_pillow(
        frames,
        lambda picture: picture.transform(
            (160, 120), Image.Transform.AFFINE, matrix(direction), resample, fillcolor=(128, 128, 128)
        ),
    )
    assert torch.equal(changed, expected)


def test_auto_augments_rotation_is_three_degrees_for_each_step():
    frames = clip(2, 120, 160)
    changed = AUTO_AUGMENT_OPERATIONS["rotate"](frames, level=0.8, direction=-1, resample=BICUBIC)
    assert torch.equal(
        changed, with_pillow(frames, lambda picture: picture.rotate(-24, BICUBIC, fillcolor=(128, 128, 128)))
    )


@pytest.mark.parametrize("policy", AUTO_AUGMENT_POLICIES)
def test_every_policy_has_25_pairs_of_known_operations(policy):
    pairs = AUTO_AUGMENT_POLICIES[policy]
    assert len(pairs) == 25
    for pair in pairs:
        assert len(pair) == 2
        for name, probability, magnitude in pair:
            assert name in AUTO_AUGMENT_OPERATIONS
            assert probability in (0, 0.2, 0.4, 0.6, 0.8, 1)
            assert magnitude in range(11)


def test_the_tables_of_the_policies():
    """How often an operation stands in a table, the sum of its probabilities and that of its magnitudes."""

    def totals(policy: str) -> dict[str, tuple[int, float, int]]:
        rows = [row for pair in AUTO_AUGMENT_POLICIES[policy] for row in pair]
        return {
            name: (
                sum(row[0] == name for row in rows),
                round(sum(row[1] for row in rows if row[0] == name), 1),
                sum(row[2] for row in rows if row[0] == name),
            )
            for name in sorted({row[0] for row in rows})
        }

    # the paper's table lists five of its pairs twice
    assert len(set(AUTO_AUGMENT_POLICIES["imagenet"])) == 20
    assert totals("imagenet") == {
        "auto_contrast": (2, 1.2, 10),
        "color": (6, 3.8, 18),
        "contrast": (2, 2.0, 16),
        "equalize": (17, 11.2, 102),
        "invert": (3, 1.8, 16),
        "posterize_less": (5, 2.8, 32),
        "rotate": (6, 3.6, 45),
        "sharpness": (1, 0.4, 7),
        "shear_x": (1, 0.6, 5),
        "solarize": (7, 3.6, 36),
    }
    assert totals("v0") == {
        "auto_contrast": (2, 1.0, 9),
        "color": (9, 5.0, 37),
        "equalize": (12, 8.0, 55),
        "invert": (1, 0.4, 9),
        "posterize": (2, 1.2, 8),
        "rotate": (7, 4.6, 39),
        "shear_x": (2, 0.2, 9),
        "shear_y": (4, 2.6, 14),
        "solarize": (8, 4.6, 41),
        "solarize_add": (2, 1.4, 10),
        "translate_y": (1, 0.8, 9),
    }


def test_a_pair_is_drawn_once_for_all_frames_of_a_clip():
    frames = clip(4, 40, 60)
    for policy in AUTO_AUGMENT_POLICIES:
        for seed in range(40):
            change = draw_auto_augment(policy, seeded(seed))
            assert torch.equal(change(frames), torch.cat([change(frames[:1]), change(frames[1:])]))
            assert torch.equal(change(frames), draw_auto_augment(policy, seeded(seed))(frames))


def test_operations_of_a_pair_come_in_order_and_as_often_as_their_probability_says(monkeypatch):
    drawn = []
    for name in ("a", "b"):
        monkeypatch.setitem(
            AUTO_AUGMENT_OPERATIONS, name, lambda frames, name=name, **given: drawn.append((name, given)) or frames
        )
    monkeypatch.setitem(AUTO_AUGMENT_POLICIES, "test", ((("a", 0.25, 3), ("b", 1.0, 7)),))
    runs = []
    for seed in range(400):
        drawn.clear()
        draw_auto_augment("test", seeded(seed))(clip(1, 8, 8))
        runs.append(list(drawn))
    assert {tuple(name for name, _ in run) for run in runs} == {("b",), ("a", "b")}
    assert 70 < sum(len(run) == 2 for run in runs) < 130
    assert {run[-1][1]["level"] for run in runs} == {0.7}
    ways = Counter((run[-1][1]["direction"], run[-1][1]["resample"]) for run in runs)
    assert set(ways) == {(1, BILINEAR), (-1, BILINEAR), (1, BICUBIC), (-1, BICUBIC)}
    assert min(ways.values()) > 70


def test_every_pair_of_a_policy_is_drawn_alike_often(monkeypatch):
    drawn = []
    names = [str(number) for number in range(25)]
    for name in names:
        monkeypatch.setitem(AUTO_AUGMENT_OPERATIONS, name, lambda frames, name=name, **_: drawn.append(name) or frames)
    monkeypatch.setitem(AUTO_AUGMENT_POLICIES, "test", tuple(((name, 1.0, 0),) for name in names))
    for seed in range(1000):
        draw_auto_augment("test", seeded(seed))(clip(1, 8, 8))
    counts = Counter(drawn)
    assert set(counts) == set(names)
    assert 20 <= min(counts.values()) <= max(counts.values()) <= 62  # 40 each


# ------------------------------------------------------------------------------------------------------ colour jitter


def test_colour_jitter_draws_from_the_whole_of_its_ranges(monkeypatch):
    settings = AugmentationSettings(
        jitter_brightness=(0.5, 2), jitter_saturation=(0.5, 3), jitter_gamma=(0.8, 1.2), jitter_hue=(-0.5, 0.5)
    )
    drawn: dict[str, list[float]] = {}
    for name in policies._JITTER:
        monkeypatch.setitem(
            policies._JITTER,
            name,
            lambda frames, amount, name=name: drawn.setdefault(name, []).append(amount) or frames,
        )
    for seed in range(2000):
        color_jitter(clip(1, 8, 8), 0.1, settings.jitter_ranges(), seeded(seed))
    assert sorted(drawn) == ["brightness", "gamma", "hue", "saturation"]
    for name, (low, high) in settings.jitter_ranges().items():
        amounts = drawn[name]
        assert 150 < len(amounts) < 250  # a tenth of 2,000
        assert low <= min(amounts) < low + (high - low) / 20
        assert high - (high - low) / 20 < max(amounts) <= high
