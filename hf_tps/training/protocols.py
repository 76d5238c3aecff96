"""The views of the papers' tests: how many clips of a video, how many crops of a clip, of what size."""

import re
from typing import NamedTuple

from ..video_processing_tps import TPSVideoProcessor
from .published import PUBLISHED, short_side


class Protocol(NamedTuple):
    """Views of a test, and who tested so."""

    num_clips: int
    num_crops: int
    sampling: str
    source: str


def _test(model: str, data_set: str, source: str) -> Protocol:
    settings = PUBLISHED[model, data_set]
    return Protocol(settings.num_clips, settings.num_crops, settings.sampling, source)


# Names are data set and clips x crops
PROTOCOLS = {
    "k400-4x3": _test("tps", "k400", "TPS on Kinetics-400"),
    "k400-1x3": _test("xvit", "k400", "XViT on Kinetics-400 and -600"),
    "k400-10x3": _test("laps", "k400", "LAPS and TokShift on Kinetics-400"),
    "k400-1x1": Protocol(1, 1, "dense", "validation during training on Kinetics"),
    "ssv1-1x3": _test("tps", "ssv1", "TPS on Something-Something-v1"),
    "ssv2-1x3": _test("tps", "ssv2", "TPS on Something-Something-v2; XViT's submission"),
    "ssv2-2x3": _test("xvit", "ssv2", "XViT's release on Something-Something-v2"),
    "ssv2-1x1": Protocol(1, 1, "uniform", "validation during training on Something-Something"),
    "diving48-1x3": _test("tps", "diving48", "TPS on Diving-48"),
    "diving48-1x1": Protocol(1, 1, "uniform", "validation during training on Diving-48"),
}


def protocol_views(name: str, processor: TPSVideoProcessor) -> dict:
    """Settings for a call of the processor.

    With three crops the shorter side is as long as the crop, so that they cover the frame; with the one crop of a
    preset it is 256/224 of it, with that of "2x1" as saved.

    Args:
        name: one of `PROTOCOLS`, "saved" (as the processor is), or clips x crops such as "2x3".

    Raises:
        ValueError: for an unknown name.
    """
    if name == "saved":
        return {}
    if name in PROTOCOLS:
        preset = PROTOCOLS[name]
        views = {"sampling": preset.sampling, "num_clips": preset.num_clips, "num_crops": preset.num_crops}
        return {**views, **_crop_views(preset.num_crops, processor)}
    if match := re.fullmatch(r"(\d+)x([13])", name):
        clips, crops = int(match[1]), int(match[2])
        sizes = _crop_views(crops, processor) if crops == 3 else {}
        return {"num_clips": clips, "num_crops": crops, **sizes}
    raise ValueError(f"Unknown protocol {name!r}: there are {', '.join(PROTOCOLS)}, 'saved', and CLIPSxCROPS (2x3).")


def _crop_views(num_crops: int, processor: TPSVideoProcessor) -> dict:
    side = max(dict(processor.crop_size).values())
    short = side if num_crops == 3 else short_side(side)
    return {"size": {"shortest_edge": short}, "do_resize": True, "do_center_crop": True}
