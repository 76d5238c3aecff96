"""The processor: every form of input, the same frames from each, exact pixels, views, and settings that are kept."""

import io
import json
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.image_utils import PILImageResampling
from transformers.video_utils import VideoMetadata

from hf_tps.video_processing_tps import PartlyReadWarning, TPSVideoProcessor
from hf_tps.video_reading import read_video
from tests.video_files import corner_frame, moving_frames, write_video

# Frames of 48x64 pixels go through untouched, as float32 in [0, 255].
RAW = {
    "do_resize": False,
    "do_center_crop": False,
    "do_rescale": False,
    "image_mean": [0, 0, 0],
    "image_std": [1, 1, 1],
}


def raw_processor(**settings) -> TPSVideoProcessor:
    return TPSVideoProcessor(**{**RAW, "num_frames": 4, **settings})


def video(frames: int = 10, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 (frames, height, width, 3), noise."""
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def numbered_video(frames: int) -> np.ndarray:
    """Every pixel of a frame is the number of the frame."""
    return np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, 8, 10, 3))


def chosen(pixel_values: torch.Tensor) -> list:
    return pixel_values[..., 0, 0, 0].int().tolist()


# ------------------------------------------------------------------------------------------------------------- input


def test_every_form_of_a_video_in_memory_gives_the_same():
    array = video()
    processor = raw_processor()
    # Borders 0, 2 (2.25), 4 (4.5), 7 (6.75), 9.
    assert processor.sample_frames(VideoMetadata(total_num_frames=10)).tolist() == [1, 3, 5, 8]
    expected = torch.from_numpy(array[[1, 3, 5, 8]]).permute(0, 3, 1, 2).float()
    first = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    for form in (
        array,
        first,
        torch.from_numpy(array),
        torch.from_numpy(first),
        list(array),
        list(first),
        list(torch.from_numpy(array)),
        tuple(array),
        [Image.fromarray(frame) for frame in array],
        [array],
        array[None],
        torch.from_numpy(array)[None],
        array.astype(np.int64),
        array.astype(np.float64),
        array[::-1].copy()[::-1],  # negative strides
        [frame[::-1].copy()[::-1] for frame in array],
    ):
        pixel_values = processor(form, return_tensors="pt").pixel_values
        assert pixel_values.dtype == torch.float32
        assert torch.equal(pixel_values, expected[None])


def test_every_form_of_a_video_file_gives_the_same(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, moving_frames(30))
    processor = raw_processor()
    frames, _ = read_video(path)
    expected = processor(frames, return_tensors="pt").pixel_values
    with open(path, "rb") as file:
        for form in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), file, [path]):
            assert torch.equal(processor(form, return_tensors="pt").pixel_values, expected)


def test_as_the_pipeline_calls_it(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, moving_frames(3, 64, 80))
    processor = TPSVideoProcessor(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56})
    features = processor(str(path), num_frames=8, do_sample_frames=True, return_tensors="pt").to(torch.float32)
    assert list(features) == ["pixel_values"]
    assert features.pixel_values.shape == (1, 8, 3, 56, 56)


def test_batch_mixes_sources_and_sizes(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, moving_frames(12, 48, 80))
    processor = TPSVideoProcessor(num_frames=4, size={"shortest_edge": 40}, crop_size=32)
    videos = [path, video(), [Image.fromarray(frame) for frame in video(5, 60, 50)]]
    together = processor(videos, return_tensors="pt").pixel_values
    assert together.shape == (3, 4, 3, 32, 32)
    for single, expected in zip(videos, together, strict=True):
        assert torch.equal(processor(single, return_tensors="pt").pixel_values[0], expected)


def test_grey_frames_become_rgb():
    grey = video()[..., 0]
    processor = raw_processor()
    expected = processor(np.stack([grey] * 3, axis=-1), return_tensors="pt").pixel_values
    for form in (grey, grey[..., None], grey[:, None], list(grey), [Image.fromarray(frame) for frame in grey]):
        assert torch.equal(processor(form, return_tensors="pt").pixel_values, expected)


def test_rgba_frames_are_laid_over_white():
    rgb = video(1)
    alpha = np.zeros((1, 48, 64, 1), np.uint8)
    alpha[:, :, 32:] = 255
    alpha[:, :10] = 51  # a fifth
    rgba = np.concatenate([rgb, alpha], axis=-1)
    expected = np.where(alpha == 255, rgb, 255).astype(float)
    expected[:, :10] = 255 * 0.8 + rgb[:, :10] * 0.2
    processor = raw_processor()
    for form in (rgba, rgba.transpose(0, 3, 1, 2), [Image.fromarray(rgba[0])]):
        pixel_values = processor(form, return_tensors="pt").pixel_values[0, :1]
        assert np.abs(pixel_values.permute(0, 2, 3, 1).numpy() - expected).max() <= 0.5 + 1e-4


def test_float_rgba_in_0_1_has_white_at_1():
    rgba = np.zeros((1, 48, 64, 4), np.float32)
    assert (raw_processor()(rgba, return_tensors="pt").pixel_values == 1).all()


def test_palette_images_are_converted():
    frame = Image.fromarray(corner_frame()).convert("P")
    assert raw_processor()([frame], return_tensors="pt").pixel_values.shape == (1, 4, 3, 48, 64)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_than_three_channels_are_refused_without_conversion(channels):
    with pytest.raises(ValueError, match="need 3 channels"):
        raw_processor(do_convert_rgb=False)(np.zeros((8, 48, 64, channels), np.uint8))


def test_channel_axis_that_could_be_either_must_be_named():
    array = np.random.default_rng(0).integers(0, 256, (8, 3, 20, 3), dtype=np.uint8)
    processor = raw_processor()
    with pytest.raises(ValueError, match="input_data_format"):
        processor(array)
    assert processor(array, input_data_format="channels_first", return_tensors="pt").pixel_values.shape[-2:] == (20, 3)
    assert processor(array, input_data_format="channels_last", return_tensors="pt").pixel_values.shape[-2:] == (3, 20)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((0, 48, 64, 3), np.uint8), "no frames"),
        ([], "empty"),
        (np.zeros((8, 48, 64, 5), np.uint8), "no axis with 1, 3 or 4 channels"),
        (np.zeros((48, 64, 3), np.uint8), "add the missing axis"),
        (np.zeros((3, 48, 64), np.uint8), "add the missing axis"),
        (np.zeros((48, 64), np.uint8), "A video has the shape"),
        (np.zeros((8, 48, 64, 3), bool), "torch.bool"),
        (np.full((8, 48, 64, 3), 256), "from 0 to 255"),
        (np.full((8, 48, 64, 3), -1), "from 0 to 255"),
        ([np.zeros((48, 64, 3), np.uint8), np.zeros((48, 60, 3), np.uint8)], "same shape"),
        (Image.fromarray(corner_frame()), "list of frames"),
        (3, "Cannot use a int"),
    ],
)
def test_what_is_no_video_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        raw_processor()(wrong, return_tensors="pt")


def test_frames_already_scaled_to_0_1_get_a_warning():
    scaled = video().astype(np.float32) / 255
    with pytest.warns(UserWarning, match="already scaled"):
        raw_processor(do_rescale=True)(scaled)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raw_processor(do_rescale=False)(scaled)
        raw_processor(do_rescale=True)(scaled * 255)


# ---------------------------------------------------------------------------------------------------------- sampling


def test_frames_in_memory_are_sampled_by_the_saved_rule():
    # Window of 8 every second frame of 40: 40 - 16 + 1 = 25 starts, the middle 12.5 is cut to 12.
    dense = raw_processor(num_frames=8, sampling="dense", frame_interval=2)
    assert chosen(dense(numbered_video(40), return_tensors="pt").pixel_values) == [[12, 14, 16, 18, 20, 22, 24, 26]]


def test_short_clip_is_repeated_as_past_end_says():
    for past_end, expected in (("loop", [0, 1, 2, 0]), ("clamp", [0, 1, 2, 2])):
        processor = raw_processor(sampling="dense", past_end=past_end)
        assert chosen(processor(list(numbered_video(3)), return_tensors="pt").pixel_values) == [expected]


def test_short_file_is_repeated(tmp_path):
    path = tmp_path / "three_frames.mp4"
    write_video(path, moving_frames(3))
    frames, _ = read_video(path)
    pixel_values = raw_processor(sampling="dense")(path, return_tensors="pt").pixel_values
    assert torch.equal(pixel_values[0], frames[[0, 1, 2, 0]].float())


def test_without_sampling_all_frames_make_one_clip(tmp_path):
    processor = raw_processor(num_clips=3, do_sample_frames=False)
    assert chosen(processor(numbered_video(7), return_tensors="pt").pixel_values) == [list(range(7))]
    path = tmp_path / "clip.mp4"
    write_video(path, moving_frames(9))
    assert raw_processor()(path, do_sample_frames=False, return_tensors="pt").pixel_values.shape[1] == 9


def test_training_draws_from_the_global_generator():
    processor = raw_processor(num_frames=8)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(chosen(processor(numbered_video(200), training=True, return_tensors="pt").pixel_values))
    assert draws[0] == draws[1] != draws[2]
    test = chosen(processor(numbered_video(200), return_tensors="pt").pixel_values)
    assert test == chosen(processor(numbered_video(200), return_tensors="pt").pixel_values)


def test_num_frames_and_fps_exclude_each_other():
    with pytest.raises(ValueError, match="exclude each other"):
        TPSVideoProcessor(num_frames=8, fps=2)
    with pytest.raises(ValueError, match="exclude each other"):
        TPSVideoProcessor()(video(), num_frames=8, fps=2)
    with pytest.raises(ValueError, match="exclude each other"):
        TPSVideoProcessor().sample_frames(VideoMetadata(total_num_frames=10, fps=5), num_frames=8, fps=2)


def test_fps_takes_frames_by_the_duration(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, moving_frames(50))  # two seconds
    assert raw_processor()(path, fps=3, return_tensors="pt").pixel_values.shape[1] == 6
    assert raw_processor()(video(), fps=3, video_metadata={"fps": 5}, return_tensors="pt").pixel_values.shape[1] == 6
    with pytest.raises(ValueError, match="needs the duration"):
        raw_processor()(video(), fps=3)
    saved = TPSVideoProcessor(**RAW, fps=3)
    assert saved(path, return_tensors="pt").pixel_values.shape[1] == 6
    assert saved(path, num_frames=5, return_tensors="pt").pixel_values.shape[1] == 5  # as the pipeline insists


def test_metadata_tells_the_frames_taken(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, moving_frames(33))
    batch = raw_processor()([path, video(33)], return_metadata=True, return_tensors="pt")
    for metadata in batch["video_metadata"]:
        assert metadata.total_num_frames == 33
        assert metadata.frames_indices == [4, 12, 20, 28]
        assert (metadata.height, metadata.width) == (48, 64)
    assert batch["video_metadata"][0].fps == 25
    given = {"fps": 10.0, "total_num_frames": 33}
    batch = raw_processor()(video(33), video_metadata=[[given]], return_metadata=True)
    assert batch["video_metadata"][0].timestamps == [0.4, 1.2, 2.0, 2.8]
    assert given == {"fps": 10.0, "total_num_frames": 33}
    given = VideoMetadata(total_num_frames=33)
    raw_processor()(video(33), video_metadata=given)
    assert given == VideoMetadata(total_num_frames=33)
    with pytest.raises(ValueError, match="1 videos and 2 entries"):
        raw_processor()(video(33), video_metadata=[given, given])


# ------------------------------------------------------------------------------------------------------------ pixels


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resize_is_torchs_own_on_the_type_of_the_frames(antialias, mode, dtype):
    array = video(4, 48, 65).astype(dtype)
    processor = raw_processor(
        do_resize=True,
        size={"shortest_edge": 31},
        antialias=antialias,
        resample=PILImageResampling[mode.upper()],
        do_sample_frames=False,
    )
    pixel_values = processor(array, return_tensors="pt").pixel_values[0]
    # 65 * 31 / 48 = 41.98 rounds to 42
    frames = torch.from_numpy(array).permute(0, 3, 1, 2)
    expected = F.interpolate(frames, size=(31, 42), mode=mode, antialias=antialias)
    assert torch.equal(pixel_values, expected.float())
    assert not torch.equal(expected, F.interpolate(frames, size=(31, 42), mode=mode, antialias=not antialias))


@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [
        (48, 64, {"shortest_edge": 30}, (30, 40)),
        (64, 48, {"shortest_edge": 30}, (40, 30)),
        (48, 49, {"shortest_edge": 24}, (24, 25)),  # 24.5 rounds up
        (48, 64, {"shortest_edge": 60}, (60, 80)),
        (50, 50, {"shortest_edge": 20}, (20, 20)),
        (48, 64, {"height": 20, "width": 21}, (20, 21)),
        (48, 64, 30, (30, 40)),
    ],
)
def test_size_after_resizing(height, width, size, expected):
    processor = raw_processor(do_resize=True, size=size)
    assert processor(video(4, height, width), return_tensors="pt").pixel_values.shape[-2:] == expected


def slow_bilinear(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Half-pixel bilinear interpolation of (height, width, 3) in float64, one axis after the other."""
    for axis, size in ((0, height), (1, width)):
        length = frame.shape[axis]
        places = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, None)
        lower = places.astype(int)
        upper = np.minimum(lower + 1, length - 1)
        share = (places - lower).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        frame = frame.take(lower, axis) * (1 - share) + frame.take(upper, axis) * share
    return frame


# Width and height of a frame; after resizing to a shorter side of 224 and where along the longer side the crops begin,
# as SlowFast (XViT, LAPS) and mmcv (TPS) have it
RELEASED_SIZES = [
    ((340, 256), "slowfast", (297, 224), (0, 37, 73)),
    ((320, 240), "slowfast", (298, 224), (0, 37, 74)),
    ((426, 240), "slowfast", (397, 224), (0, 87, 173)),
    ((640, 360), "slowfast", (398, 224), (0, 87, 174)),
    ((1280, 720), "slowfast", (398, 224), (0, 87, 174)),
    ((256, 340), "slowfast", (224, 297), (0, 37, 73)),
    ((340, 256), "mmcv", (298, 224), (0, 37, 74)),
    ((320, 240), "mmcv", (299, 224), (0, 37, 74)),
    ((426, 240), "mmcv", (398, 224), (0, 87, 174)),
    ((640, 360), "mmcv", (398, 224), (0, 87, 174)),
    ((1280, 720), "mmcv", (398, 224), (0, 87, 174)),
    ((256, 340), "mmcv", (224, 298), (0, 37, 74)),
]


@pytest.mark.parametrize(("frame", "rounding", "resized", "places"), RELEASED_SIZES)
def test_three_crops_of_real_frame_sizes_are_those_of_the_release(frame, rounding, resized, places):
    array = video(1, frame[1], frame[0])
    processor = TPSVideoProcessor(
        num_frames=1, size=224, num_crops=3, rounding=rounding, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3]
    )
    views = processor(array, return_tensors="pt").pixel_values[0, :, 0].permute(0, 2, 3, 1).double().numpy()

    width, height = resized
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.3])
    if rounding == "slowfast":  # normalises, then resizes
        expected = slow_bilinear((array[0] / 255 - mean) / std, height, width)
        tolerance = 5e-4  # torch counts places in float32; one of 255 would be 0.013
    else:  # resizes bytes, then normalises; two implementations of bytes may round one of 255 apart
        expected = (np.round(slow_bilinear(array[0].astype(float), height, width)) / 255 - mean) / std
        tolerance = 1.01 / 255 / std.min()
    for view, place in zip(views, places, strict=True):
        top, left = (0, place) if width > height else (place, 0)
        assert np.abs(view - expected[top : top + 224, left : left + 224]).max() < tolerance


def test_bytes_and_floats_give_the_same_where_resized_pixels_are_not_rounded(tmp_path):
    array = video(4)
    settings = {"do_resize": True, "size": 30, "do_sample_frames": False, "return_tensors": "pt"}
    pixels = {
        (rounding, dtype): raw_processor(rounding=rounding)(array.astype(dtype), **settings).pixel_values
        for rounding in ("mmcv", "slowfast")
        for dtype in ("uint8", "float32")
    }
    assert torch.equal(pixels["slowfast", "uint8"], pixels["slowfast", "float32"])
    assert torch.equal(pixels["mmcv", "uint8"], pixels["mmcv", "uint8"].round())
    assert not torch.equal(pixels["mmcv", "uint8"], pixels["mmcv", "float32"])
    path = tmp_path / "clip.mp4"
    write_video(path, moving_frames(4))
    decoded, _ = read_video(path)
    assert torch.equal(
        raw_processor(rounding="slowfast")(path, **settings).pixel_values,
        raw_processor(rounding="slowfast")(decoded, **settings).pixel_values,
    )


def test_nearest_resize_takes_no_antialias():
    processor = raw_processor(do_resize=True, size=24, resample=PILImageResampling.NEAREST, antialias=True)
    array = video(4)
    pixel_values = processor(array, do_sample_frames=False, return_tensors="pt").pixel_values
    assert torch.equal(pixel_values[0], torch.from_numpy(array[:, ::2, ::2]).permute(0, 3, 1, 2).float())


def test_normalisation_is_exact():
    array = video()
    pixel_values = raw_processor(
        do_rescale=True, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], do_sample_frames=False
    )(array, return_tensors="np").pixel_values
    expected = (array / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert pixel_values.dtype == np.float32
    assert np.abs(pixel_values[0].transpose(0, 2, 3, 1) - expected).max() < 1e-6


def test_rescale_alone_and_neither():
    array = video()
    rescaled = raw_processor(do_rescale=True, do_normalize=False)(array, do_sample_frames=False, return_tensors="pt")
    assert torch.equal(rescaled.pixel_values[0], torch.from_numpy(array).permute(0, 3, 1, 2) * (1 / 255))
    neither = raw_processor(do_normalize=False)(array, return_tensors="pt")
    assert neither.pixel_values.dtype == torch.uint8


def test_input_is_not_written_to():
    array = video().astype(np.float32)
    before = array.copy()
    raw_processor(image_mean=[9, 9, 9])(torch.from_numpy(array), do_sample_frames=False)
    assert (array == before).all()


# ------------------------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize(
    ("height", "width", "corners"),
    [
        # left, centre at 21 // 2, right at twice that and so a pixel off the edge, as TPS' release has it
        (40, 61, [(0, 0), (0, 10), (0, 20)]),
        (45, 60, [(2, 0), (2, 10), (2, 20)]),  # ... centred in the height
        (61, 40, [(0, 0), (10, 0), (20, 0)]),  # top, centre, bottom
    ],
)
def test_three_crops_lie_along_the_longer_side(height, width, corners):
    array = video(4, height, width)
    processor = raw_processor(do_center_crop=True, crop_size={"height": 40, "width": 40}, num_crops=3)
    pixel_values = processor(array, do_sample_frames=False, return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 3, 4, 3, 40, 40)
    frames = torch.from_numpy(array).permute(0, 3, 1, 2).float()
    for view, (y, x) in zip(pixel_values[0], corners, strict=True):
        assert torch.equal(view, frames[..., y : y + 40, x : x + 40])
    single = processor(array, do_sample_frames=False, num_crops=1, return_tensors="pt").pixel_values
    assert torch.equal(single, pixel_values[:, 1])


def test_views_are_clips_times_crops_with_the_crops_of_a_clip_together():
    # The number of the frame in red, the column in green.
    array = np.zeros((280, 8, 20, 3), np.uint8)
    array[..., 0] = np.minimum(np.arange(280), 255)[:, None, None]
    array[..., 1] = np.arange(20)
    processor = raw_processor(
        num_frames=32, sampling="dense", frame_interval=2, num_clips=4, num_crops=3, do_center_crop=True, crop_size=8
    )
    pixel_values = processor(array, return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 12, 32, 3, 8, 8)
    assert pixel_values.is_contiguous()
    starts = pixel_values[0, :, 0, 0, 0, 0].int().tolist()
    columns = pixel_values[0, :, 0, 1, 0, 0].int().tolist()
    assert starts == [27, 27, 27, 81, 81, 81, 135, 135, 135, 189, 189, 189]
    assert columns == [0, 6, 12] * 4


def test_frames_smaller_than_the_crop_are_refused():
    with pytest.raises(ValueError, match="64x48.*smaller than the crop of 56x56.*Set a larger size"):
        raw_processor(do_center_crop=True, crop_size=56)(video())


def test_videos_that_do_not_stack_are_refused_with_their_shapes():
    processor = raw_processor()
    videos = [video(), video(10, 40, 40)]
    with pytest.raises(ValueError, match="different shapes.*40, 40.*48, 64"):
        processor(videos, return_tensors="pt")
    assert [tuple(item.shape) for item in processor(videos).pixel_values] == [(4, 3, 48, 64), (4, 3, 40, 40)]


# ---------------------------------------------------------------------------------------------------------- settings

EVERY_SETTING = {
    "num_frames": 5,
    "sampling": "dense",
    "frame_interval": 3,
    "index_rule": "linspace",
    "past_end": "clamp",
    "clip_placement": "start",
    "num_clips": 2,
    "num_crops": 3,
    "antialias": True,
    "rounding": "slowfast",
    "size": {"shortest_edge": 40},
    "crop_size": {"height": 32, "width": 32},
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.5, 1],
}


def test_saved_settings_come_back(tmp_path):
    processor = TPSVideoProcessor(**EVERY_SETTING)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert {name: saved[name] for name in EVERY_SETTING} == EVERY_SETTING
    assert saved["video_processor_type"] == "TPSVideoProcessor"
    assert "training" not in saved
    loaded = TPSVideoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert torch.equal(
        loaded(video(), return_tensors="pt").pixel_values, processor(video(), return_tensors="pt").pixel_values
    )
    assert TPSVideoProcessor.from_pretrained(tmp_path, num_clips=1).num_clips == 1


def test_defaults_come_back(tmp_path):
    processor = TPSVideoProcessor()
    processor.save_pretrained(tmp_path)
    loaded = TPSVideoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.num_frames == 32
    assert loaded.antialias is False
    assert loaded.rounding == "mmcv"


def test_a_folder_saved_before_there_was_a_rounding_is_read_as_it_was(tmp_path):
    TPSVideoProcessor(rounding="slowfast").save_pretrained(tmp_path)
    file = tmp_path / "video_preprocessor_config.json"
    settings = json.loads(file.read_text())
    assert settings.pop("rounding") == "slowfast"
    file.write_text(json.dumps(settings))
    assert TPSVideoProcessor.from_pretrained(tmp_path).rounding == "mmcv"


def test_fps_instead_of_num_frames_comes_back(tmp_path):
    TPSVideoProcessor(fps=2).save_pretrained(tmp_path)
    loaded = TPSVideoProcessor.from_pretrained(tmp_path)
    assert loaded.fps == 2
    assert loaded.num_frames is None


def test_call_leaves_the_processor_as_it_was():
    processor = TPSVideoProcessor(size=40, crop_size=32)
    before = processor.to_dict()
    processor(video(), num_frames=np.int64(3), num_crops=3, sampling="dense", image_mean=[0.5, 0.5, 0.5])
    assert processor.to_dict() == before


def test_none_at_the_call_means_as_saved():
    processor = raw_processor()
    nothing = {"num_frames": None, "fps": None, "sampling": None, "do_resize": None, "num_crops": None}
    assert processor(video(), return_tensors="pt", **nothing).pixel_values.shape == (1, 4, 3, 48, 64)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sampling": "random"}, "'uniform', 'dense'"),
        ({"index_rule": "step"}, "'stride', 'linspace'"),
        ({"past_end": "wrap"}, "'loop', 'clamp'"),
        ({"clip_placement": "end"}, "'centre', 'start'"),
        ({"num_frames": 0}, "num_frames"),
        ({"num_frames": "8"}, "num_frames"),
        ({"fps": -1}, "fps"),
        ({"frame_interval": 0}, "frame_interval"),
        ({"num_clips": 4}, "at most 3"),
        ({"num_crops": 2}, "num_crops must be 1"),
        ({"num_crops": 3, "do_center_crop": False}, "needs do_center_crop"),
        ({"rounding": "floor"}, "'mmcv', 'slowfast'"),
        ({"resample": 1}, "0 .nearest., 2 .bilinear., 3 .bicubic."),
        ({"size": {"longest_edge": 40}}, "shortest_edge"),
        ({"size": {"shortest_edge": 0}}, "shortest_edge"),
        ({"crop_size": {"shortest_edge": 40}}, "crop_size"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"do_resize": "yes"}, "do_resize"),
        ({"do_pad": True}, "do_pad"),
        ({"data_format": "channels_last"}, "data_format"),
    ],
)
def test_wrong_setting_is_refused_at_construction_and_at_the_call(setting, message):
    with pytest.raises(ValueError, match=message):
        TPSVideoProcessor(**setting)
    with pytest.raises(ValueError, match=message):
        TPSVideoProcessor()(video(), **setting)


def test_unknown_argument_of_a_call_is_refused():
    with pytest.raises(ValueError, match="frame_sampling_rate"):
        TPSVideoProcessor()(video(), frame_sampling_rate=4)


def test_training_is_no_setting_to_save():
    with pytest.raises(ValueError, match="training"):
        TPSVideoProcessor(training=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e-320])
@pytest.mark.parametrize("name", ["image_mean", "image_std", "rescale_factor"])
def test_numbers_that_make_pixels_infinite_are_refused(name, value, tmp_path):
    wrong = value if name == "rescale_factor" else [0.5, value, 0.5]
    if name == "image_mean" and value == 1e-320:
        return  # a mean of nothing is a number like any other
    with pytest.raises(ValueError, match=name):
        TPSVideoProcessor(**{name: wrong})
    processor = TPSVideoProcessor()
    with pytest.raises(ValueError, match=name):
        processor(torch.zeros(4, 3, 300, 300, dtype=torch.uint8), **{name: wrong})
    processor.save_pretrained(tmp_path)
    file = tmp_path / "video_preprocessor_config.json"
    settings = json.loads(file.read_text()) | {name: wrong}
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=name):
        TPSVideoProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["training", "max_frame_pixels"])
def test_settings_of_a_call_are_neither_saved_nor_read_from_a_file(name, tmp_path):
    TPSVideoProcessor().save_pretrained(tmp_path)
    file = tmp_path / "video_preprocessor_config.json"
    settings = json.loads(file.read_text())
    assert name not in settings
    file.write_text(json.dumps(settings | {name: 10**12 if name == "max_frame_pixels" else True}))
    with pytest.raises(ValueError, match=f"{name} is not a setting to save"):
        TPSVideoProcessor.from_pretrained(tmp_path)


def test_no_file_decides_how_many_frames_are_made():
    clip = torch.zeros(3, 3, 240, 240, dtype=torch.uint8)
    with pytest.raises(ValueError, match="fps=2 asks for 2000000 frames of a video that has 3"):
        TPSVideoProcessor()(clip, fps=2.0, video_metadata={"duration": 1e6})
    with pytest.raises(ValueError, match="more than 65536 frames"):
        TPSVideoProcessor(num_frames=10**9)


def test_a_crop_larger_than_the_frames_names_the_file(tmp_path):
    path = tmp_path / "small.mp4"
    write_video(path, moving_frames(4))
    with pytest.raises(ValueError, match="small.mp4: Frames of 64x48.*smaller than the crop"):
        TPSVideoProcessor(do_resize=False)(path)


@pytest.fixture
def long_video(tmp_path):
    """20 seconds; the frames of each second have one brightness, ten times its number."""
    path = tmp_path / "long.mp4"
    write_video(path, [np.full((48, 64, 3), 10 * (number // 25), np.uint8) for number in range(500)])
    return path


DENSE = {"num_frames": 8, "sampling": "dense", "frame_interval": 2, "size": {"shortest_edge": 40}, "crop_size": 32}


def test_a_video_that_is_hardly_looked_at_is_said(long_video):
    with pytest.warns(PartlyReadWarning, match=r"long.mp4: read 0.6 s of 20 s, from 9.\d+ s on. sampling='uniform'"):
        TPSVideoProcessor(**DENSE)(long_video)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TPSVideoProcessor(**{**DENSE, "sampling": "uniform"})(long_video)
        TPSVideoProcessor(**DENSE)(long_video, num_clips=4)
        TPSVideoProcessor(**DENSE)(long_video, start_sec=4, end_sec=7.5)


def test_one_frame_that_is_repeated_is_said(tmp_path):
    write_video(tmp_path / "one.mp4", moving_frames(1))
    with pytest.warns(PartlyReadWarning, match="one.mp4 has one frame, which is repeated 8 times"):
        TPSVideoProcessor(**DENSE)(tmp_path / "one.mp4")


@pytest.mark.parametrize(
    ("part", "seconds"),
    [({"start_sec": 15}, range(15, 20)), ({"end_sec": 3.0}, range(3)), ({"start_sec": 4, "end_sec": 6}, (4, 5))],
)
def test_a_part_of_a_video_is_all_that_is_sampled(part, seconds, long_video):
    processor = TPSVideoProcessor(**{**DENSE, "sampling": "uniform"}, do_normalize=False, do_rescale=False)
    batch = processor(long_video, return_metadata=True, **part)
    shown = batch.pixel_values[0].float().mean(dim=(1, 2, 3)) / 10
    assert {round(value.item()) for value in shown} == set(seconds)
    by_fps = processor(long_video, fps=2.0, **part).pixel_values[0]
    assert len(by_fps) == 2 * len(seconds)


@pytest.mark.parametrize("part", [{"start_sec": 20}, {"start_sec": 5, "end_sec": 5}, {"start_sec": -1}, {"end_sec": 0}])
def test_a_part_that_is_not_there_is_refused(part, long_video):
    with pytest.raises(ValueError, match="leave no frame of a video that lasts 20 seconds"):
        TPSVideoProcessor(**DENSE)(long_video, **part)
    with pytest.raises(ValueError, match="duration"):
        TPSVideoProcessor(**DENSE)(torch.zeros(9, 3, 48, 64, dtype=torch.uint8), **part)
