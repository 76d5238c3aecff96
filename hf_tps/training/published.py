"""What each paper trains and shows it of each data set: network, sizes, normalisation, sampling, views of the test.

The one table of these settings: recipes, protocols, converters and starting points read it. Where paper and released
code differ, it is the code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple


class Normalisation(NamedTuple):
    """Mean and standard deviation of each channel (RGB), of pixels between 0 and 1."""

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    def settings(self) -> dict[str, list[float]]:
        """As settings of the processor, which are also flags of the scripts."""
        return {name: list(values) for name, values in self._asdict().items()}


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
VISFORMER = Normalisation((0.486, 0.457, 0.407), (0.229, 0.224, 0.225))

# Of the image models that a family starts from, where no file tells it: by the model's type, for LAPS by its backbone.
# All others: the processor's default, ImageNet's.
NORMALISATION_WITHOUT_A_FILE = {"xvit": HALF, "visformer": VISFORMER, "vit": HALF}

# By the type of the model: whose library the release resizes and crops with, see `frame_geometry.py`
ROUNDING = {"tps": "mmcv", "xvit": "slowfast", "laps": "slowfast"}


@dataclass(frozen=True)
class PublishedSettings:
    """A network, and what it is shown of a video. What is None is as the processor has it by default.

    Attributes:
        model_type: of the network's config.
        network: fields of its config that its image weights do not tell.
        num_frames: of a clip.
        image_size: height and width of a crop, in pixels.
        num_clips, num_crops: of the test.
        sampling, frame_interval, index_rule, past_end, clip_placement: see `frame_sampling.sample_frame_indices`.
    """

    model_type: str
    network: Mapping[str, Any]
    num_frames: int
    image_size: int
    normalisation: Normalisation
    num_clips: int
    num_crops: int
    sampling: str
    frame_interval: int | None = None
    index_rule: str | None = None
    past_end: str | None = None
    clip_placement: str | None = None

    def sampling_settings(self) -> dict[str, str | int]:
        """Which frames are taken, as settings of the processor."""
        names = ("sampling", "frame_interval", "index_rule", "past_end", "clip_placement")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def pixel_settings(self) -> dict:
        """Normalisation and resizing, as settings of the processor: no release antialiases its test's frames."""
        return {**self.normalisation.settings(), "antialias": False, "rounding": ROUNDING[self.model_type]}

    def test_settings(self) -> dict:
        """Pixels, sampling and views of the test, as settings of the processor."""
        views = {"num_clips": self.num_clips, "num_crops": self.num_crops}
        return {**self.pixel_settings(), **self.sampling_settings(), **views}

    def training_settings(self) -> dict:
        """Pixels, sizes and sampling, as settings of a recipe."""
        sizes = {"num_frames": self.num_frames, "crop_size": self.image_size}
        return {**self.pixel_settings(), **sizes, **self.sampling_settings()}


_TPS = PublishedSettings(
    model_type="tps",
    network={
        "shift_order": ("channel", "patch"),
        "shift_pattern": "C",
        "shift_div": 8,
        "relative_position_bias": "key_frame_0",
        "tubelet_size": 2,
    },
    num_frames=32,
    image_size=224,
    normalisation=IMAGENET,
    num_clips=1,
    num_crops=3,
    sampling="uniform",
)
_XVIT = PublishedSettings(
    model_type="xvit",
    network={"shift_div": 4, "segment_length": None, "num_temporal_embeddings": 8},
    num_frames=16,
    image_size=224,
    normalisation=HALF,
    num_clips=2,
    num_crops=3,
    sampling="uniform",
)
_XVIT_KINETICS = replace(
    _XVIT,
    # SHIFT_DIV 8 and NUM_SEGMENTS 8: the two halves of a clip of 16 frames do not mix
    network={"shift_div": 8, "segment_length": 8, "num_temporal_embeddings": 8},
    num_clips=1,
    sampling="dense",
    frame_interval=16,
    index_rule="linspace",
    past_end="clamp",
    clip_placement="start",
)
_LAPS = PublishedSettings(
    model_type="laps",
    network={
        "backbone": "visformer",
        "attention_scope": "leap",
        "leap_levels": ((1, 2, 3, 1), (2, 3, 1, 2)),
        "shift": "periodic",
        "shift_div": 4,
    },
    num_frames=8,
    image_size=224,
    normalisation=VISFORMER,
    num_clips=10,
    num_crops=3,
    sampling="dense",
    frame_interval=8,
    index_rule="linspace",
    past_end="loop",
    clip_placement="start",
)
_LAPS_LONG = {**_LAPS.network, "leap_levels": ((1, 2, 3, 4), (5, 1, 2, 3))}
_LAPS_VIT = replace(
    _LAPS, network={**_LAPS.network, "backbone": "vit", "leap_levels": (1, 2, 3, 1)}, normalisation=HALF
)
_TOKSHIFT = replace(
    _LAPS_VIT,
    network={"backbone": "vit", "attention_scope": "frame", "shift": "token", "shift_div": 4},
    frame_interval=32,
)

# By model and data set
PUBLISHED = {
    # the processor's index rule and clip placement are those of the TPS release
    ("tps", "k400"): replace(_TPS, num_clips=4, sampling="dense", frame_interval=2, past_end="loop"),
    ("tps", "ssv1"): _TPS,
    ("tps", "ssv2"): _TPS,
    ("tps", "diving48"): _TPS,
    ("xvit", "k400"): _XVIT_KINETICS,
    ("xvit", "k600"): _XVIT_KINETICS,
    ("xvit", "ssv2"): _XVIT,
    ("xvit-paper", "ssv2"): replace(_XVIT, network={**_XVIT.network, "num_temporal_embeddings": 16}, num_clips=1),
    ("laps", "k400"): _LAPS,
    # position embeddings of an image model for 224 pixels are resized
    ("laps-320", "k400"): replace(_LAPS, network={**_LAPS_LONG, "image_size": 320}, num_frames=32, image_size=320),
    ("laps-360", "k400"): replace(_LAPS, network={**_LAPS_LONG, "image_size": 360}, num_frames=32, image_size=360),
    ("laps-vit", "k400"): _LAPS_VIT,
    ("laps-vit-384", "k400"): replace(_LAPS_VIT, network={**_LAPS_VIT.network, "image_size": 384}, image_size=384),
    ("tokshift", "k400"): _TOKSHIFT,
}

NUM_CLASSES = {"k400": 400, "k600": 600, "ssv1": 174, "ssv2": 174, "diving48": 48}


def data_sets_of(model: str) -> dict[str, PublishedSettings]:
    """The data sets that a model was published for, with its settings."""
    return {data_set: settings for (name, data_set), settings in PUBLISHED.items() if name == model}


def short_side(crop_size: int) -> int:
    """The shorter side of frames whose centre is cut out, in pixels: 256 for a crop of 224."""
    return round(crop_size * 256 / 224)
