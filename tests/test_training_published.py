"""One table of the papers' settings: recipes, protocols and converters say the same of the same model and data set."""

import pytest
from transformers.video_utils import VideoMetadata

from conversion import convert_laps, convert_tps, convert_xvit
from conversion.common import processor_settings
from hf_tps import FAMILIES
from hf_tps.training.protocols import PROTOCOLS
from hf_tps.training.published import IMAGENET, NUM_CLASSES, PUBLISHED, VISFORMER, data_sets_of, short_side
from hf_tps.training.recipes import RECIPES
from hf_tps.video_processing_tps import TPSVideoProcessor
from tests import micro_models

# What each converter writes: models of the table, its settings by data set, and the data set for an unknown one
CONVERTERS = {
    "tps": (convert_tps.PUBLISHED, convert_tps.DEFAULT),
    "xvit": (convert_xvit.PUBLISHED, convert_xvit.DEFAULT),
    "laps": (convert_laps.PUBLISHED["visformer"], convert_laps.DEFAULT),
    "laps-vit": (convert_laps.PUBLISHED["vit"], convert_laps.DEFAULT),
}
CONVERTED = [(model, data_set) for model, data_set in PUBLISHED if model in CONVERTERS]
# Which frames are taken, and their normalisation: what recipes and converters both name
SHARED = (
    *("image_mean", "image_std", "antialias", "rounding"),
    *("sampling", "frame_interval", "index_rule", "past_end", "clip_placement"),
)


def recipe_of(model: str, data_set: str) -> str:
    return "xvit-ssv2-paper" if model == "xvit-paper" else f"{model}-{data_set}"


def converted_settings(model: str, data_set: str) -> dict:
    """The settings of the processor that the converter writes."""
    published, default = CONVERTERS[model]
    config = micro_models.config("tps", num_labels=NUM_CLASSES[data_set])
    return TPSVideoProcessor(**processor_settings(config, published, data_set, default)).to_dict()


def test_every_entry_of_the_table_has_its_recipe_and_every_recipe_its_entry():
    assert {recipe_of(*entry) for entry in PUBLISHED} == set(RECIPES)


@pytest.mark.parametrize(("model", "data_set"), PUBLISHED)
def test_a_recipe_shows_what_the_table_says(model, data_set):
    entry, settings = PUBLISHED[model, data_set], RECIPES[recipe_of(model, data_set)].settings
    assert (settings["num_frames"], settings["crop_size"]) == (entry.num_frames, entry.image_size)
    assert settings["image_mean"] == list(entry.normalisation.image_mean)
    assert settings["sampling"] == entry.sampling
    assert settings.get("frame_interval") == entry.frame_interval


@pytest.mark.parametrize(("model", "data_set"), CONVERTED)
def test_recipe_and_converter_agree_where_they_name_the_same(model, data_set):
    recipe, converted = RECIPES[recipe_of(model, data_set)].settings, converted_settings(model, data_set)
    named = [name for name in SHARED if name in recipe]
    assert {"image_mean", "image_std", "antialias", "rounding", "sampling"} <= set(named)
    for name in named:
        value = converted[name]
        assert (list(value) if isinstance(value, tuple) else value) == recipe[name], name


@pytest.mark.parametrize("entry", PUBLISHED)
def test_the_network_of_each_entry_can_be_built(entry):
    published = PUBLISHED[entry]
    config_class = next(config for config, _, _ in FAMILIES if config.model_type == published.model_type)
    config = config_class(num_frames=published.num_frames, **published.network)
    assert {name: getattr(config, name) for name in published.network} == published.network
    # the defaults of a class are the release's network, but for XViT, which has two
    if entry[0] in ("tps", "laps") or entry == ("xvit", "ssv2"):
        assert config == config_class(num_frames=published.num_frames)


@pytest.mark.parametrize(("model", "data_set"), CONVERTED)
def test_the_converters_views_are_a_protocol_of_the_data_set(model, data_set):
    converted = converted_settings(model, data_set)
    # XViT's tests on Kinetics-400 and -600 are the same
    name = f"{data_set.replace('k600', 'k400')}-{converted['num_clips']}x{converted['num_crops']}"
    assert PROTOCOLS[name].sampling == converted["sampling"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_name_of_a_protocol_tells_its_data_set_and_views(name):
    protocol = PROTOCOLS[name]
    data_set, views = name.split("-")
    assert views == f"{protocol.num_clips}x{protocol.num_crops}"
    assert protocol.sampling == data_sets_of("tps")[data_set].sampling


def test_the_published_numbers():
    # facts of the papers' code that a slip in the table would change
    assert {name: entry.num_clips for name, entry in data_sets_of("tps").items()} == {
        "k400": 4,
        "ssv1": 1,
        "ssv2": 1,
        "diving48": 1,
    }
    assert (PUBLISHED["tps", "k400"].frame_interval, PUBLISHED["tps", "k400"].num_frames) == (2, 32)
    assert (PUBLISHED["xvit", "k600"].frame_interval, PUBLISHED["xvit", "k600"].past_end) == (16, "clamp")
    assert (PUBLISHED["xvit", "ssv2"].num_clips, PUBLISHED["xvit-paper", "ssv2"].num_clips) == (2, 1)
    assert (PUBLISHED["laps", "k400"].num_clips, PUBLISHED["laps", "k400"].normalisation) == (10, VISFORMER)
    assert VISFORMER.image_mean != IMAGENET.image_mean
    assert (PUBLISHED["laps", "k400"].frame_interval, PUBLISHED["tokshift", "k400"].frame_interval) == (8, 32)
    assert PUBLISHED["laps-360", "k400"].network["leap_levels"] == ((1, 2, 3, 4), (5, 1, 2, 3))
    assert {entry.num_crops for entry in PUBLISHED.values()} == {3}
    for entry in PUBLISHED.values():
        rounding = "mmcv" if entry.model_type == "tps" else "slowfast"
        assert entry.pixel_settings() == {**entry.normalisation.settings(), "antialias": False, "rounding": rounding}
    assert short_side(224) == 256


def test_the_augmentation_of_each_recipe():
    """What the releases do with a training clip; the strengths stand in test_training_policies.py."""
    names = ("crop", "rand_augment_ops", "rand_augment_magnitude", "rand_augment_space", "auto_augment", "color_jitter")
    imgaug = ("random_resized", 2, 9, "imgaug", None, None)
    laps = ("jitter", None, None, None, None, 0.1)
    expected = {
        "tps-k400": ("random_resized", None, None, None, None, None),
        **dict.fromkeys(("tps-ssv1", "tps-ssv2", "tps-diving48"), imgaug),
        **dict.fromkeys(("xvit-k400", "xvit-k600"), ("multiscale_fixed", None, None, None, "v0", None)),
        **dict.fromkeys(("xvit-ssv2", "xvit-ssv2-paper"), ("jitter", None, None, None, "v0", None)),
        **dict.fromkeys(("laps-k400", "laps-320-k400", "laps-360-k400"), laps),
        **dict.fromkeys(("laps-vit-k400", "laps-vit-384-k400", "tokshift-k400"), laps),
    }
    assert {name: tuple(recipe.settings.get(key) for key in names) for name, recipe in RECIPES.items()} == expected
    for name, recipe in RECIPES.items():
        if recipe.model_type == "laps":
            ranges = [recipe.settings[f"jitter_{part}"] for part in ("brightness", "saturation", "gamma", "hue")]
            assert ranges == [[0.5, 2.0], [0.5, 3.0], [0.8, 1.2], [-0.5, 0.5]], name


# Frames of a video of 300, by the released formulas: TPS' clips begin at int(59.25 * (i + 0.5)), every 2nd frame; the
# segments are (300 - 1) / 32 and / 16 long; XViT's window ends at 255; those of LAPS begin at 23.6 * i, every 9th frame
FRAMES_OF_300 = {
    ("tps", "k400"): [list(range(start, start + 64, 2)) for start in (29, 88, 148, 207)],
    ("tps", "ssv2"): [
        [4, 14, 23, 32, 42, 51, 60, 70, 79, 88, 98, 107, 116, 126, 135, 145]
        + [154, 163, 173, 182, 191, 201, 210, 219, 229, 238, 247, 257, 266, 275, 285, 294]
    ],
    ("xvit", "k400"): [list(range(0, 256, 17))],
    ("xvit", "ssv2"): [
        [9, 28, 46, 65, 84, 102, 121, 140, 159, 177, 196, 215, 233, 252, 271, 289],
        [0, 19, 37, 56, 75, 93, 112, 131, 150, 168, 187, 206, 224, 243, 262, 280],
    ],
    ("laps", "k400"): [list(range(start, start + 64, 9)) for start in (0, 23, 47, 70, 94, 118, 141, 165, 188, 212)],
}


@pytest.mark.parametrize("entry", FRAMES_OF_300)
def test_the_frames_of_a_test_are_those_of_the_release(entry):
    published = PUBLISHED[entry]
    processor = TPSVideoProcessor(num_frames=published.num_frames, **published.test_settings())
    indices = processor.sample_frames(VideoMetadata(total_num_frames=300))
    assert indices.reshape(published.num_clips, -1).tolist() == FRAMES_OF_300[entry]
