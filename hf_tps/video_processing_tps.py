"""The video processor of all model families: sample -> resize -> crop -> normalise, in torch alone."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any
from warnings import warn

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.video_processing_utils import VideoProcessorMixin
from transformers.video_utils import VideoMetadata

from .frame_geometry import check_rounding, crop_corners, resized_size
from .frame_sampling import check_sampling_settings, sample_frame_indices
from .video_reading import MAX_FRAME_PIXELS, read_video
from .video_sources import name_of

# `fps` asks for as many frames as a file's duration makes, and that may be anything.
MAX_FRAMES_BY_FPS = 4096
# Settings of a call, which no file may change
CALL_SETTINGS = ("training", "max_frame_pixels", "start_sec", "end_sec")
# A video of which less than this share lies between the first and the last frame taken was hardly looked at.
HARDLY_READ = 0.1
SAMPLING_SETTINGS = ("sampling", "frame_interval", "index_rule", "past_end", "clip_placement", "num_clips")

_INTERPOLATION = {
    PILImageResampling.NEAREST: "nearest",
    PILImageResampling.BILINEAR: "bilinear",
    PILImageResampling.BICUBIC: "bicubic",
}


class TPSVideoProcessorKwargs(VideosKwargs, total=False):  # type: ignore[call-arg]
    """What Transformers knows, and our own settings; `TPSVideoProcessor` explains them."""

    sampling: str | None
    frame_interval: int | None
    index_rule: str | None
    past_end: str | None
    clip_placement: str | None
    num_clips: int | None
    num_crops: int | None
    antialias: bool | None
    rounding: str | None
    training: bool | None
    max_frame_pixels: int | None
    start_sec: float | int | None
    end_sec: float | int | None


class PartlyReadWarning(UserWarning):
    """The frames taken say little about the video as a whole."""


class TPSVideoProcessor(VideoProcessorMixin):
    r"""Turns videos into `pixel_values`, the input of the TPS, XViT, LAPS and STTM models.

    Every argument is a setting that is saved with the processor, and can be given for one call as well, where None
    stands for the saved value.

    Args:
        num_frames (`int`, defaults to 32): frames per clip.
        fps (`float`, *optional*): instead of `num_frames`, frames per second of video: the whole video is sampled
            uniformly, duration times `fps` frames. Not both.
        do_sample_frames (`bool`, defaults to True): False takes all frames of the video, as they are, for one clip.
        sampling, frame_interval, index_rule, past_end, clip_placement, num_clips: which frames; see
            `frame_sampling.sample_frame_indices`.
        do_resize, size, resample, antialias: `size` is `{"shortest_edge": s}` or `{"height": h, "width": w}`.
            `resample` is bilinear, bicubic or nearest. `antialias` defaults to False since the published models were
            trained and tested without it.
        do_center_crop, crop_size, num_crops: False leaves the frames whole. `num_crops=1` cuts out the centre,
            `num_crops=3` left, centre and right, or top, centre and bottom of frames that are higher than wide.
        rounding (`str`, defaults to "mmcv"): "mmcv" (TPS) or "slowfast" (XViT, LAPS), for the longer side after
            resizing and for the places of the crops, see `frame_geometry.py`; and for the resized pixels, which "mmcv"
            rounds to whole numbers (of uint8 frames), "slowfast" not.
        do_rescale, rescale_factor, do_normalize, image_mean, image_std: in float32, in one step. With both off,
            frames keep the type that resizing leaves.
        do_convert_rgb (`bool`, defaults to True): grey frames are repeated, RGBA frames laid over white. False refuses
            them, since the models want three channels.
        training (`bool`, call only): random frames, drawn from torch's global generator, instead of the test positions.
        max_frame_pixels (`int`, call only, defaults to 8192 * 4320): the most pixels that a frame may have, in the file
            and after resizing. Whatever a file declares, no more memory than that is taken for a frame.
        start_sec, end_sec (`float`, call only): the part of the video that is sampled, in seconds from its start.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = TPSVideoProcessorKwargs

    do_sample_frames = True
    num_frames = 32
    fps = None
    sampling = "uniform"
    frame_interval = 1
    index_rule = "stride"
    past_end = "loop"
    clip_placement = "centre"
    num_clips = 1
    training = False
    max_frame_pixels = MAX_FRAME_PIXELS
    start_sec = None
    end_sec = None

    do_convert_rgb = True
    do_resize = True
    size = {"shortest_edge": 256}
    default_to_square = False  # a plain number for `size` means the shorter side
    resample = PILImageResampling.BILINEAR
    antialias = False
    rounding = "mmcv"
    do_center_crop = True
    crop_size = {"height": 224, "width": 224}
    num_crops = 1
    do_rescale = True
    do_normalize = True
    image_mean = [0.485, 0.456, 0.406]
    image_std = [0.229, 0.224, 0.225]

    def __init__(self, **kwargs: Unpack[TPSVideoProcessorKwargs]) -> None:
        _check_types(self.valid_kwargs, kwargs)
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)
        if kwargs.get("fps") is not None and kwargs.get("num_frames") is None:
            self.num_frames = None
        for name in CALL_SETTINGS:
            if kwargs.get(name) is not None and kwargs[name] is not False:
                raise ValueError(
                    f"{name} is not a setting to save: give it at the call, processor(videos, {name}={kwargs[name]!r})."
                )
        _check_settings({name: getattr(self, name) for name in self.valid_kwargs.__annotations__})

    def to_dict(self) -> dict[str, Any]:
        """All settings, as they are saved in video_preprocessor_config.json."""
        settings = super().to_dict()
        return {name: value for name, value in settings.items() if name not in CALL_SETTINGS}

    def preprocess(self, videos: Any, **kwargs: Unpack[TPSVideoProcessorKwargs]) -> BatchFeature:
        """Prepare one video or several for a model; calling the processor does the same.

        Args:
            videos: a path (`str` or `Path`), an http(s) URL, bytes or a binary file object of a video file; an array or
                tensor (frames, height, width, channels), (frames, channels, height, width) or, grey, (frames, height,
                width); a list of PIL images or of frame arrays; or a list of any of these or a 5-D array for a batch.
            kwargs: settings for this call, and `return_tensors`, `device`, `input_data_format` (the channel axis of
                arrays, where it cannot be told from the shape), `video_metadata` (fps or duration of videos in memory;
                files speak for themselves) and `return_metadata`.

        Returns:
            `BatchFeature` with `pixel_values`, float32: (batch, frames, 3, height, width) for one view per video,
            (batch, num_clips * num_crops, frames, 3, height, width) for more, the crops of a clip next to each other.
            Without `return_tensors` a list with one tensor per video. `return_metadata=True` adds `video_metadata`.

        Raises:
            FileNotFoundError, ValueError: for a video or a setting that cannot be used, with what would be right.
        """
        settings = self._settings_for_call(kwargs)
        videos = _split_batch(videos)
        metadata = _split_metadata(settings["video_metadata"], len(videos))

        pixel_values = []
        for number, video in enumerate(videos):
            frames, metadata[number] = self._load(video, metadata[number], settings)
            pixel_values.append(_views(frames, settings))
            del frames  # the next video's come beside the finished pixels alone

        return_tensors = settings["return_tensors"]
        if return_tensors is not None:
            shapes = {tuple(video.shape) for video in pixel_values}
            if len(shapes) > 1:
                raise ValueError(
                    f"The videos of this batch have different shapes after processing: {sorted(shapes)}. Sample the "
                    "same number of frames (num_frames) and crop to one size (do_center_crop), or pass them one by one."
                )
            pixel_values = torch.stack(pixel_values)
        batch = BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)
        if settings["return_metadata"]:
            batch["video_metadata"] = metadata
        return batch

    def sample_frames(
        self, metadata: VideoMetadata, num_frames: int | None = None, fps: float | None = None, **kwargs: Any
    ) -> np.ndarray:
        """Frame numbers for a video of which `metadata.total_num_frames` (and, for `fps`, its duration) is known.

        `kwargs` may hold any of the sampling settings and `training`; what is not given is as saved.

        Returns:
            int64 array (num_clips * num_frames,), clip after clip.

        Raises:
            ValueError: for a part of the video that is not there, and where its duration is needed and not known.
        """
        first, total = _part(metadata, kwargs.get("start_sec"), kwargs.get("end_sec"))
        if num_frames is None and fps is None:
            num_frames, fps = self.num_frames, self.fps
        settings = {name: kwargs.get(name, getattr(self, name)) for name in (*SAMPLING_SETTINGS, "training")}
        if fps is not None:
            _check_frame_budget(num_frames, fps)
            whole = _seconds(metadata)
            if whole is None:
                raise ValueError(
                    "fps needs the duration of the video. A video in memory has none of its own: pass "
                    "video_metadata={'fps': ...} or {'duration': ...}, or use num_frames."
                )
            duration = whole * total / metadata.total_num_frames
            num_frames = max(1, round(duration * fps))
            if num_frames > max(total, MAX_FRAMES_BY_FPS):
                raise ValueError(
                    f"fps={fps:g} asks for {num_frames} frames of a video that has {total} and is said to last "
                    f"{duration:g} seconds: give num_frames instead."
                )
            settings["sampling"] = "uniform"
        return first + sample_frame_indices(total, num_frames=num_frames, **settings).reshape(-1)

    def _settings_for_call(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """All settings: those of the call where given, the saved ones elsewhere; checked."""
        given = {name: value for name, value in kwargs.items() if value is not None}
        # Counts often come out of numpy; the type check below wants Python's own numbers.
        given = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
        unknown = sorted(set(given) - set(self.valid_kwargs.__annotations__))
        if unknown:
            raise ValueError(f"{type(self).__name__} knows no argument {', '.join(unknown)}.")
        settings = {name: getattr(self, name, None) for name in self.valid_kwargs.__annotations__} | given
        # One that is given replaces the other that is saved.
        if "fps" in given and "num_frames" not in given:
            settings["num_frames"] = None
        if "num_frames" in given and "fps" not in given:
            settings["fps"] = None
        _check_settings(settings)
        _check_types(self.valid_kwargs, given)
        return self._standardize_kwargs(**settings)

    def _load(
        self, video: Any, metadata: VideoMetadata | None, settings: dict[str, Any]
    ) -> tuple[torch.Tensor, VideoMetadata]:
        """The sampled frames of one video, RGB, resized, (frames, 3, height, width), uint8 or float32."""
        choose: Callable[..., np.ndarray] | None
        choose = partial(self.sample_frames, **settings) if settings["do_sample_frames"] else None
        if _is_source(video):
            frames, metadata = read_video(
                video,
                choose,
                prepare=lambda frames: _prepare(frames, settings),
                max_frame_pixels=settings["max_frame_pixels"],
            )
            if not settings["training"]:
                _say_what_was_read(metadata, name_of(video), settings["start_sec"], settings["end_sec"])
            return frames, metadata
        total = len(video)
        if total == 0:
            raise ValueError("The video has no frames.")
        metadata = metadata or VideoMetadata(total_num_frames=total)
        metadata.total_num_frames = total
        # Chosen first, so that only the frames that are used are copied and converted.
        indices = choose(metadata) if choose else np.arange(total)
        metadata.frames_indices = indices.tolist()
        frames = _channels_first(_take(video, indices), settings["input_data_format"])
        frames = _to_rgb(frames, settings["do_convert_rgb"])
        metadata.height, metadata.width = frames.shape[-2:]
        if settings["do_rescale"] and frames.is_floating_point() and frames.min() >= 0 and frames.max() <= 1:
            warn(
                "The frames look as if they were already scaled to [0, 1] and will be scaled down again: pass "
                "do_rescale=False, or frames in [0, 255].",
                UserWarning,
                stacklevel=4,
            )
        return _prepare(frames, settings), metadata


def _seconds(metadata: VideoMetadata) -> float | None:
    """How long a video lasts; None where nobody tells."""
    if metadata.duration is None and metadata.fps:
        return metadata.total_num_frames / metadata.fps
    return metadata.duration


def _part(metadata: VideoMetadata, start_sec: float | None, end_sec: float | None) -> tuple[int, int]:
    """Number of the first frame between two times, and how many there are."""
    total = metadata.total_num_frames
    if start_sec is None and end_sec is None:
        return 0, total
    duration = _seconds(metadata)
    if duration is None or not duration > 0:
        raise ValueError("start_sec and end_sec need the video's duration, which is not known: pass video_metadata.")
    start, end = start_sec or 0.0, duration if end_sec is None else end_sec
    first, after = round(start * total / duration), min(total, round(end * total / duration))
    if not 0 <= start < duration or first >= after:
        raise ValueError(
            f"start_sec={start:g} and end_sec={end:g} leave no frame of a video that lasts {duration:g} seconds."
        )
    return first, after - first


def _say_what_was_read(metadata: VideoMetadata, name: str, start_sec: float | None, end_sec: float | None) -> None:
    """Warn where the frames say little about the video."""
    indices = metadata.frames_indices
    if metadata.total_num_frames == 1 and len(indices) > 1:
        warn(f"{name} has one frame, which is repeated {len(indices)} times.", PartlyReadWarning, stacklevel=5)
        return
    span = max(indices) - min(indices) + 1
    first, total = _part(metadata, start_sec, end_sec)
    if span >= HARDLY_READ * total:
        return
    seconds = _seconds(metadata)
    frame = 1.0 if seconds is None else seconds / metadata.total_num_frames
    unit = "frames" if seconds is None else "s"
    warn(
        f"{name}: read {span * frame:.3g} {unit} of {total * frame:.4g} {unit}, from {min(indices) * frame:.4g} {unit} "
        "on. sampling='uniform' takes frames from all of it, num_clips several windows, start_sec and end_sec another "
        "part.",
        PartlyReadWarning,
        stacklevel=5,
    )


# --- settings --------------------------------------------------------------------------------------------------------


def _check_frame_budget(num_frames: int | None, fps: float | None) -> None:
    if fps is None:
        return
    if num_frames is not None:
        raise ValueError(
            f"num_frames ({num_frames}) and fps ({fps}) exclude each other: give one, and None for the other."
        )
    if fps <= 0:
        raise ValueError(f"fps must be positive, got {fps}.")


def _check_types(schema: type, values: dict[str, Any]) -> None:
    # Files hold names of their own (the class, the code), which the schema does not know. It also takes
    # image_mean=[0, 0, 0] for wrong, since those are not floats; _check_settings looks at them.
    names = set(schema.__annotations__) - {"image_mean", "image_std", "rescale_factor"}
    known = {name: value for name, value in values.items() if name in names}
    known = {name: dict(value) if isinstance(value, SizeDict) else value for name, value in known.items()}
    try:
        validate_typed_dict(schema, known)
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error


def _check_settings(settings: dict[str, Any]) -> None:
    """Raise `ValueError` for settings that cannot be used, whether they come from a file, the caller or the class."""
    _check_frame_budget(settings["num_frames"], settings["fps"])
    check_sampling_settings(
        num_frames=1 if settings["fps"] is not None else settings["num_frames"],
        **{name: settings[name] for name in SAMPLING_SETTINGS},
    )
    check_rounding(settings["rounding"])
    if settings["num_crops"] not in (1, 3):
        raise ValueError(f"num_crops must be 1 (centre) or 3 (both ends and centre), got {settings['num_crops']!r}.")
    if settings["num_crops"] == 3 and not settings["do_center_crop"]:
        raise ValueError("num_crops=3 needs do_center_crop=True: without cropping there is only one view of a frame.")
    if settings["do_resize"]:
        size = _size(settings["size"], "size")
        if set(size) not in ({"shortest_edge"}, {"height", "width"}) or min(size.values()) < 1:
            raise ValueError(f"size must be {{'shortest_edge': n}} or {{'height': n, 'width': n}}, got {size}.")
        if settings["resample"] not in _INTERPOLATION:
            allowed = ", ".join(f"{int(filter)} ({mode})" for filter, mode in _INTERPOLATION.items())
            raise ValueError(f"resample must be one of {allowed}, got {settings['resample']!r}.")
    if settings["do_center_crop"]:
        crop = _size(settings["crop_size"], "crop_size")
        if set(crop) != {"height", "width"} or min(crop.values()) < 1:
            raise ValueError(f"crop_size must be {{'height': n, 'width': n}}, got {crop}.")
    if settings["do_rescale"] and not (_are_numbers(settings["rescale_factor"], 1) and settings["rescale_factor"]):
        raise ValueError(f"rescale_factor must be a finite number other than 0, got {settings['rescale_factor']!r}.")
    if settings["do_normalize"]:
        for name in ("image_mean", "image_std"):
            if not _are_numbers(settings[name], 1, 3):
                raise ValueError(f"{name} must be one finite number or three (RGB), got {settings[name]!r}.")
        if not np.all(settings["image_std"]):
            raise ValueError(f"image_std must not contain 0, got {settings['image_std']!r}.")
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).repeat(1, 3, 1, 1)
    if not _rescale_and_normalize(black_and_white, settings).isfinite().all():
        given = {name: settings[name] for name in ("rescale_factor", "image_mean", "image_std")}
        raise ValueError(f"{given} do not make finite numbers of pixels from 0 to 255: give the model's own.")
    if settings["data_format"] not in (None, ChannelDimension.FIRST, ChannelDimension.FIRST.value):
        raise ValueError(
            f"data_format can only be 'channels_first', the models' layout, got {settings['data_format']!r}."
        )
    if settings["do_pad"]:
        raise ValueError("do_pad is not supported: resize and crop the frames to one size instead.")


def _are_numbers(value: Any, *counts: int) -> bool:
    array = np.asarray(value)
    return array.dtype.kind in "iuf" and array.size in counts and bool(np.isfinite(array).all())


def _size(value: Any, name: str) -> dict[str, int]:
    """A size setting as a plain dictionary; single numbers and pairs have become dictionaries in Transformers' way."""
    if isinstance(value, int):
        return {"shortest_edge": value} if name == "size" else {"height": value, "width": value}
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return {"height": value[0], "width": value[1]}
    if isinstance(value, (dict, SizeDict)):
        return dict(value)
    raise ValueError(f"{name} must be a number, a pair or a dictionary, got {value!r}.")


# --- input -----------------------------------------------------------------------------------------------------------


def _is_source(video: Any) -> bool:
    """Whether it is something that `read_video` reads, as opposed to frames in memory."""
    return isinstance(video, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(video, "read")


def _is_array(video: Any) -> bool:
    return isinstance(video, (np.ndarray, torch.Tensor))


def _is_frame(item: Any) -> bool:
    return isinstance(item, Image.Image) or (_is_array(item) and item.ndim in (2, 3))


def _split_batch(videos: Any) -> list[Any]:
    """One video or a batch, in any of its forms, as a list of videos."""
    if _is_source(videos):
        return [videos]
    if _is_array(videos):
        if videos.ndim == 5:
            return list(videos)
        if videos.ndim == 4:
            return [videos]
        if videos.ndim == 3:
            if videos.shape[-1] in (3, 4) or videos.shape[0] == 3:
                raise ValueError(
                    f"An array of shape {tuple(videos.shape)} may be one colour frame or several grey ones: add the "
                    "missing axis, array[None] for a video of one frame, array[..., None] for grey frames."
                )
            return [videos]
        raise ValueError(
            f"A video has the shape (frames, height, width, channels), (frames, channels, height, width) or (frames, "
            f"height, width), a batch of videos one axis more; got {tuple(videos.shape)}."
        )
    if not isinstance(videos, (list, tuple)):
        raise ValueError(
            f"Cannot use a {type(videos).__name__} as a video: pass a path, a URL, bytes, a file object, an array, a "
            "list of frames, or a list of those."
        )
    if len(videos) == 0:
        raise ValueError("The list of videos, or of frames, is empty.")
    if all(_is_frame(item) for item in videos):
        return [videos]
    return [video for item in videos for video in _split_batch(item)]


def _split_metadata(metadata: Any, count: int) -> list[VideoMetadata | None]:
    """One entry per video, copied: the frame numbers are written into it. Lists may be nested, as Transformers does."""
    if metadata is None:
        return [None] * count
    entries = [metadata]
    while any(isinstance(entry, (list, tuple)) for entry in entries):
        entries = [inner for entry in entries for inner in (entry if isinstance(entry, (list, tuple)) else [entry])]
    if len(entries) != count:
        raise ValueError(f"There are {count} videos and {len(entries)} entries of video_metadata: pass one for each.")
    return [VideoMetadata(**{"total_num_frames": 0, **dict(entry)}) for entry in entries]


def _take(video: Any, indices: np.ndarray) -> torch.Tensor:
    """The frames with these numbers, stacked, as uint8 or float32."""
    if isinstance(video, torch.Tensor):
        frames = video[torch.from_numpy(indices).to(video.device)]
    elif isinstance(video, np.ndarray):
        frames = torch.from_numpy(video[indices])
    else:
        # Repeated frames are converted once.
        arrays = {index: _frame_array(video[index]) for index in set(indices.tolist())}
        shapes = {tuple(array.shape) for array in arrays.values()}
        if len(shapes) > 1:
            raise ValueError(f"All frames of one video must have the same shape, got {sorted(shapes)}.")
        frames = torch.stack([arrays[index] for index in indices.tolist()])

    if frames.is_floating_point():
        return frames.float()
    if frames.dtype == torch.uint8:
        return frames
    if frames.dtype == torch.bool or frames.is_complex():
        raise ValueError(f"Frames must be whole numbers from 0 to 255 or floats, got {frames.dtype}.")
    frames = frames.long()
    if frames.min() < 0 or frames.max() > 255:
        raise ValueError(
            f"Whole numbers must be from 0 to 255, got {frames.min()} to {frames.max()}: scale the frames."
        )
    return frames.to(torch.uint8)


def _frame_array(frame: Any) -> torch.Tensor:
    if isinstance(frame, Image.Image):
        if frame.mode not in ("L", "RGB", "RGBA"):
            transparent = frame.mode in ("LA", "PA") or "transparency" in frame.info
            frame = frame.convert("RGBA" if transparent else "RGB")
        frame = np.asarray(frame)
    # Copied: torch takes neither read-only memory, which PIL gives, nor reversed axes.
    return torch.from_numpy(np.array(frame, order="C")) if isinstance(frame, np.ndarray) else frame


def _channels_first(frames: torch.Tensor, data_format: str | ChannelDimension | None) -> torch.Tensor:
    """(frames, channels, height, width) from that, from channels last, or from grey frames without a channel axis."""
    if frames.ndim == 3:
        return frames.unsqueeze(1)
    axes = {ChannelDimension.FIRST.value: 1, ChannelDimension.LAST.value: 3}
    fitting = [axis for axis in axes.values() if frames.shape[axis] in (1, 3, 4)]
    if data_format is not None:
        data_format = getattr(data_format, "value", data_format)
        if axes.get(data_format) not in fitting:
            raise ValueError(
                f"input_data_format={data_format!r} does not fit frames of shape {tuple(frames.shape)}: it must be one "
                f"of {sorted(axes)}, and the channel axis must have 1, 3 or 4 entries."
            )
        fitting = [axes[data_format]]
    if len(fitting) != 1:
        problem = "may be channels first or last" if fitting else "have no axis with 1, 3 or 4 channels"
        raise ValueError(
            f"Frames of shape {tuple(frames.shape)} {problem}: pass (frames, height, width, channels) or (frames, "
            "channels, height, width), and input_data_format 'channels_first' or 'channels_last' where both fit."
        )
    return frames if fitting == [1] else frames.permute(0, 3, 1, 2)


def _to_rgb(frames: torch.Tensor, do_convert_rgb: bool) -> torch.Tensor:
    channels = frames.shape[1]
    if channels == 3:
        return frames
    if not do_convert_rgb:
        raise ValueError(f"The models need 3 channels, the frames have {channels}: leave do_convert_rgb on.")
    if channels == 1:
        return frames.expand(-1, 3, -1, -1)
    white = 1.0 if frames.is_floating_point() and frames.max() <= 1 else 255.0
    alpha = frames[:, 3:] / white
    rgb = frames[:, :3] * alpha + white * (1 - alpha)
    return rgb if frames.is_floating_point() else rgb.round().to(torch.uint8)


# --- pixels ----------------------------------------------------------------------------------------------------------


def _prepare(frames: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """Frames (frames, 3, height, width) on the device asked for, resized: the part that can be done frame by frame.

    Raises:
        ValueError: if they are too large then, or smaller than the crop.
    """
    if settings["device"] is not None:
        frames = frames.to(settings["device"])
    if settings["do_resize"]:
        frames = _resize(frames, settings)
    height, width = frames.shape[-2:]
    crop = settings["crop_size"]
    if settings["do_center_crop"] and (height < crop.height or width < crop.width):
        raise ValueError(
            f"Frames of {width}x{height} (width x height) are smaller than the crop of {crop.width}x{crop.height}. "
            "Set a larger size (with do_resize=True), a smaller crop_size, or do_center_crop=False."
        )
    return frames


def _views(frames: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """Frames (clips * frames, 3, height, width) -> (views, frames, 3, crop height, crop width).

    A single view gives (frames, 3, crop height, crop width).
    """
    num_clips = settings["num_clips"] if settings["do_sample_frames"] else 1
    crops = _crops(frames, settings) if settings["do_center_crop"] else [frames]
    views = torch.stack([crop.unflatten(0, (num_clips, -1)) for crop in crops], dim=1).flatten(0, 1)
    views = _rescale_and_normalize(views, settings)
    return views[0] if len(views) == 1 else views


def _resize(frames: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    height, width = frames.shape[-2:]
    size, mode = settings["size"], _INTERPOLATION[settings["resample"]]
    if size.shortest_edge is not None:
        new_size = resized_size(height, width, size.shortest_edge, settings["rounding"])
    else:
        new_size = (size.height, size.width)
    if new_size == (height, width):
        return frames
    if new_size[0] * new_size[1] > settings["max_frame_pixels"]:
        raise ValueError(
            f"Frames of {width}x{height} (width x height) would be resized to {new_size[1]}x{new_size[0]}, more than "
            f"the {settings['max_frame_pixels']} pixels of max_frame_pixels: give another size, or more pixels."
        )
    antialias = settings["antialias"] and mode != "nearest"
    if settings["rounding"] == "slowfast":
        frames = frames.float()
    if frames.dtype == torch.uint8 and frames.device.type != "cpu":
        # Only the CPU resizes whole numbers.
        resized = F.interpolate(frames.float(), size=new_size, mode=mode, antialias=antialias)
        return resized.round_().clamp_(0, 255).to(torch.uint8)
    return F.interpolate(frames, size=new_size, mode=mode, antialias=antialias)


def _crops(frames: torch.Tensor, settings: dict[str, Any]) -> list[torch.Tensor]:
    height, width = frames.shape[-2:]
    crop_height, crop_width = settings["crop_size"].height, settings["crop_size"].width
    corners = crop_corners(height, width, crop_height, crop_width, settings["num_crops"], settings["rounding"])
    return [frames[..., y : y + crop_height, x : x + crop_width] for y, x in corners]


def _rescale_and_normalize(frames: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    factor = settings["rescale_factor"] if settings["do_rescale"] else 1.0
    if not settings["do_normalize"]:
        return frames.float() * factor if settings["do_rescale"] else frames
    # (x * factor - mean) / std with the factor moved into the constants.
    mean, std = (
        torch.tensor(settings[name], dtype=torch.float64).div(factor).float().to(frames.device).reshape(-1, 1, 1)
        for name in ("image_mean", "image_std")
    )
    return frames.float().sub_(mean).div_(std)  # in place: the views are a copy of the input
