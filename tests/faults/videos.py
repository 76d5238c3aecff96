"""Broken videos: healthy files after bit flips, cuts, insertions, swapped headers and shuffled chunks; and bombs.

The judge is a plain decode of the same bytes from start to end, with one thread. What `read_video` answers must be the
frames that come out of it; where a part of the file is damaged that was not decoded for the answer, the frames with the
times that the container promised.
"""

import collections
import ctypes
import functools
import io
import random
import struct
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from PIL import Image

from hf_tps import TPSVideoProcessor
from hf_tps.video_reading import _ONE_THREAD, _demuxer_for, _upright, read_video
from tests.faults.sandbox import Case, Outcome
from tests.video_files import write_video

FRAMES, HEIGHT, WIDTH = 40, 96, 128
M_PERTURB = -6  # of the C library's mallopt
B_FRAMES = {"bf": "3"}
# One thread: the same file on every machine
OPEN_GROUPS = {"x265-params": "bframes=4:keyint=12:open-gop=1:pools=none:frame-threads=1:log-level=none"}

# file name: how it is written
KINDS = {
    "h264.mp4": {"codec_options": B_FRAMES},
    "h264.ts": {"codec_options": B_FRAMES},
    "h264.avi": {"codec_options": B_FRAMES},
    "h264_slices.mkv": {"codec_options": {**B_FRAMES, "x264-params": "slices=4"}},
    "hevc_leading.mkv": {"codec": "libx265", "codec_options": OPEN_GROUPS},
    "vp9.webm": {"codec": "libvpx-vp9", "codec_options": {"cpu-used": "8", "deadline": "realtime"}},
    "mpeg4.avi": {"codec": "mpeg4", "codec_options": {"bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "container": "mpeg", "codec_options": {"bf": "2"}},
    "mjpeg.mov": {"codec": "mjpeg"},
    "wmv2.wmv": {"codec": "wmv2", "container": "asf"},
    "flv1.flv": {"codec": "flv1"},
    "gif.gif": {"codec": "gif"},
}
# file name: the healthy file that it is cut from, and the share of bytes that is missing at the start
CUT_AT_THE_START = {"h264_cut.ts": ("h264.ts", 0.31), "hevc_cut.ts": ("hevc.ts", 0.37)}
FORMATS = {
    ".mp4": "mov",
    ".mov": "mov",
    ".ts": "mpegts",
    ".avi": "avi",
    ".mkv": "matroska",
    ".webm": "matroska",
    ".mpg": "mpeg",
    ".wmv": "asf",
    ".flv": "flv",
    ".gif": "gif",
}


def textured_frames(count: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    """A window that wanders over a textured picture: enough detail that damage shows."""
    rng = np.random.default_rng(0)
    world = rng.integers(0, 256, (height // 3 + 32, width // 3 + 32, 3), dtype=np.uint8).repeat(3, 0).repeat(3, 1)
    frames = []
    for number in range(count):
        top, left = int(40 + 30 * np.sin(number / 5)), int(40 + 35 * np.cos(number / 7))
        frames.append(world[top : top + height, left : left + width].copy())
        frames[-1][:10, :10] = number * 5 % 256
    return frames


@functools.cache
def healthy_videos() -> dict[str, bytes]:
    """The files that are broken, by name."""
    frames = textured_frames()
    videos = {name: written(name, frames, **options) for name, options in KINDS.items()}
    sources = videos | {"hevc.ts": written("hevc.ts", frames, codec="libx265", codec_options=OPEN_GROUPS)}
    for name, (source, share) in CUT_AT_THE_START.items():
        packets = len(sources[source]) // 188
        videos[name] = sources[source][int(share * packets) * 188 :]
    videos["latin1.mkv"] = with_latin1_tag(videos["h264_slices.mkv"], frames)
    return videos


def written(name: str, frames: list[np.ndarray], container: str | None = None, **options) -> bytes:
    """The bytes of a video file; `write_video` explains the options."""
    file = io.BytesIO()
    write_video(file, frames, container=container or FORMATS[Path(name).suffix], **options)
    return file.getvalue()


def with_latin1_tag(data: bytes, frames: list[np.ndarray]) -> bytes:
    """A Matroska file with a title that is not UTF-8, as old recorders write it."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(file, "w", format="matroska") as target:
        target.metadata["title"] = "cafe"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return file.getvalue().replace(b"cafe", "caf\xe9".encode("latin-1"))


# --- what is done to them ---------------------------------------------------------------------------------------------


def flip_bits(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def cut_off(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data))]


def cut_out(data: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 5000) :]


def insert(data: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(rng.randrange(1, 2000)) + data[start:]


def swap_header(data: bytearray, rng: random.Random) -> bytearray:
    """The first bytes of another file."""
    videos = healthy_videos()
    other = videos[rng.choice(sorted(videos))]
    length = rng.randrange(4, 600)
    return bytearray(other[:length]) + data[length:]


def shuffle_chunks(data: bytearray, rng: random.Random) -> bytearray:
    size = rng.choice([64, 188, 1024, 4096])
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    first, second = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    chunks[first], chunks[second] = chunks[second], chunks[first]
    return bytearray().join(chunks)


def blank(data: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(data))
    length = min(rng.randrange(1, 3000), len(data) - start)
    data[start : start + length] = bytes([rng.choice([0, 255])]) * length
    return data


def change_header_numbers(data: bytearray, rng: random.Random) -> bytearray:
    """Counts, sizes and times live in the first and the last kilobytes."""
    place = rng.choice(
        [rng.randrange(min(1500, len(data) - 4)), len(data) - 4 - rng.randrange(min(1500, len(data) - 4))]
    )
    data[place : place + 4] = struct.pack(">I", rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, rng.randrange(2**32)]))
    return data


MUTATIONS: tuple[Callable[[bytearray, random.Random], bytearray], ...] = (
    flip_bits,
    cut_off,
    cut_out,
    insert,
    swap_header,
    shuffle_chunks,
    blank,
    change_header_numbers,
)


def video_cases(seed: int, number: int) -> Iterator[Case]:
    """Healthy files, bombs, and `number` broken files, each another combination of file and mutation."""
    for name, data in healthy_videos().items():
        yield Case(f"healthy {name}", functools.partial(check_video, name=name, data=data, healthy=True))
    for name, data in bombs():
        yield Case(f"bomb {name}", functools.partial(check_bomb, name=name, data=data), megabytes=BOMB_MEGABYTES)
    names = sorted(healthy_videos())
    for name in names:
        healthy_frames(name)  # once, not in each case's process
    for index in range(number):
        name = names[index % len(names)]
        mutation = MUTATIONS[index // len(names) % len(MUTATIONS)]
        rng = random.Random(f"{seed} {index}")
        data = bytes(mutation(bytearray(healthy_videos()[name]), rng))
        yield Case(
            f"video {name}, {mutation.__name__}, seed {seed}, number {index}",
            functools.partial(check_video, name=name, data=data),
        )


# --- the judge --------------------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """What a plain decode shows."""

    frames: list[np.ndarray]  # scaled to the size of the stream
    times: list[int | None]
    signs: int  # errors and pictures that the decoder calls corrupt


def plain_decode(data: bytes, container_format: str, held: int = 0) -> Shown:
    """Everything that decodes, from start to end; the decoder does not get its last `held` frames back."""
    frames, times, signs, matrices = [], [], 0, {}
    last = collections.deque(maxlen=held)
    with av.open(io.BytesIO(data), format=container_format, metadata_errors="replace") as container:
        streams = [
            stream for stream in container.streams.video if not stream.disposition & stream.disposition.attached_pic
        ]
        stream = streams[0]
        stream.codec_context.thread_count = 1
        size = {"width": stream.codec_context.width or None, "height": stream.codec_context.height or None}
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return Shown(frames, times, signs)
                decoded = packet.decode()
            except av.error.FFmpegError:
                signs += 1
                continue
            for frame in decoded:
                last.append(frame)
                signs += frame.is_corrupt
                times.append(frame.pts)
                pixels = frame.reformat(format="rgb24", **_ONE_THREAD, **size).to_ndarray()
                if frame.rotation not in matrices:  # side data hold their frame until the garbage collector comes
                    matrices[frame.rotation] = bytes(frame.side_data.get("DISPLAYMATRIX") or b"")
                matrix = np.frombuffer(matrices[frame.rotation], np.int32)
                frames.append(_upright(pixels, matrix) if len(matrix) else pixels)


@functools.cache
def healthy_frames(name: str) -> list[np.ndarray]:
    return plain_decode(healthy_videos()[name], FORMATS[Path(name).suffix]).frames


def check_video(folder: Path, name: str, data: bytes, healthy: bool = False) -> tuple[Outcome, str]:
    """Read it from a path, from bytes and from a file object, some frames and all, and judge."""
    path = folder / name
    path.write_bytes(data)
    answers = [read(source) for source in (path, data, io.BytesIO(data))]
    first = answers[0]
    if any(answer.error for answer in answers):
        if any(type(answer.error) is not type(first.error) for answer in answers):
            return Outcome.WRONG, different(answers)
        return judge_error(first.error, name, healthy)
    container_format = _demuxer_for(io.BytesIO(data), name)
    shown = plain_decode(data, container_format)
    problem = compare(answers, shown, healthy_frames(name), set())
    if problem:
        problem = compare(answers, shown, healthy_frames(name), made_up(data, container_format))
    if problem:
        return Outcome.WRONG, problem
    if healthy and first.warning and name not in CUT_AT_THE_START:
        return Outcome.WRONG, f"a healthy file: {first.warning}"
    return (Outcome.WARNED, first.warning) if first.warning else (Outcome.RIGHT, "")


class Answer(NamedTuple):
    """What `read_video` made of a source."""

    frames: torch.Tensor | None
    indices: list[int]
    total: int
    warning: str
    error: Exception | None

    def equals(self, other: "Answer", unknowable: set[int]) -> bool:
        """Whether all is the same but the frames that may be anything."""
        if (self.total, self.indices, bool(self.warning)) != (other.total, other.indices, bool(other.warning)):
            return False
        known = [place for place, index in enumerate(self.indices) if index not in unknowable]
        return torch.equal(self.frames[known], other.frames[known])

    def __str__(self) -> str:
        if self.error is not None:
            return f"{type(self.error).__name__}: {self.error}"
        return f"{len(self.frames)} of {self.total} frames {self.warning}"


def read(source: Path | bytes | io.BytesIO) -> Answer:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            frames, metadata = read_video(
                source, lambda metadata: np.linspace(0, metadata.total_num_frames - 1, 7).round().astype(int)
            )
        except MemoryError:
            raise
        except Exception as error:
            return Answer(None, [], 0, "", error)
    said = "; ".join(str(each.message) for each in caught if issubclass(each.category, UserWarning))
    return Answer(frames, metadata.frames_indices, metadata.total_num_frames, said, None)


def judge_error(error: Exception, name: str, healthy: bool) -> tuple[Outcome, str]:
    text = f"{type(error).__name__}: {error}"
    if healthy:
        return Outcome.WRONG, f"a healthy file: {text}"
    if not isinstance(error, (ValueError, OSError)) or isinstance(error, av.error.FFmpegError):
        return Outcome.UNCLEAR_ERROR, text
    if name not in str(error) or "\n" in str(error):
        return Outcome.UNCLEAR_ERROR, text
    return Outcome.CLEAR_ERROR, text


def different(answers: list[Answer]) -> str:
    return f"path, bytes and file object differ: {[str(answer) for answer in answers]}"


def compare(answers: list[Answer], shown: Shown, healthy: list[np.ndarray], unknowable: set[int]) -> str:
    """What is wrong with the answers; empty if nothing is. `unknowable` are frames that may be anything."""
    answer = answers[0]
    if not all(other.equals(answer, unknowable) for other in answers):
        return different(answers)
    frames = answer.frames.permute(0, 2, 3, 1).numpy()
    known = [(frame, index) for frame, index in zip(frames, answer.indices, strict=True) if index not in unknowable]
    if answer.total == len(shown.frames) and all(np.array_equal(frame, shown.frames[index]) for frame, index in known):
        return ""
    places = [place_of(frame, shown.frames) for frame, _ in known]
    if not answer.warning:
        # Nothing was said, since what is damaged was not decoded for this answer: then each frame is one that the plain
        # decode shows, in the same order, or one of the healthy file, which the plain decode loses by damage before it.
        found = [place for place in places if place is not None]
        lost = [frame for (frame, _), place in zip(known, places, strict=True) if place is None]
        if found == sorted(found) and all(place_of(frame, healthy) is not None for frame in lost):
            return ""
    return (
        f"frames {[index for _, index in known]} of {answer.total} are {places} of {len(shown.frames)}, "
        f"{shown.signs} signs of damage {answer.warning}"
    )


def made_up(data: bytes, container_format: str) -> set[int]:
    """Numbers of the frames in which FFmpeg shows what was in memory before, as it does for some damage.

    Nobody can tell from outside (docs/video_input.md). Here the memory is changed: what it holds when it is handed out,
    and which buffers of earlier frames are taken again.
    """
    first = plain_decode(data, container_format).frames
    numbers = set()
    for byte, held in ((0x11, 0), (0xEE, 1), (0, 2), (0, 5)):
        fill_new_memory(byte)
        other = plain_decode(data, container_format, held).frames
        numbers |= {number for number, pair in enumerate(zip(first, other, strict=True)) if not np.array_equal(*pair)}
    return numbers


def fill_new_memory(byte: int) -> None:
    """Let the C library fill what it hands out with one byte; 0: leave it as it is."""
    ctypes.CDLL(None).mallopt(M_PERTURB, byte)


def place_of(frame: np.ndarray, frames: list[np.ndarray]) -> int | None:
    return next((place for place, other in enumerate(frames) if np.array_equal(frame, other)), None)


# --- bombs ------------------------------------------------------------------------------------------------------------

# What a frame at the limit (8192 x 4320) needs: the decoder's canvas (4 bytes a pixel) twice and the frame in RGB
BOMB_MEGABYTES = 600.0


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that declare very large frames."""
    yield "8192x8192.gif", blank_gif(8192, 8192)
    yield "65535x1.gif", blank_gif(65535, 1)
    yield "1x65535.gif", blank_gif(1, 65535)
    yield "65535x65535.gif", blank_gif(65535, 65535)
    yield "8192x4320.gif", blank_gif(8192, 4320)
    yield "png.mov", png_in_mov(16384, 8192)


def blank_gif(width: int, height: int, frames: int = 40) -> bytes:
    """A canvas of any size of which each frame changes one pixel."""
    data = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    for number in range(frames):
        data += b"\x21\xf9\x04\x00\x04\x00\x00\x00" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
        data += b"\x02\x02" + (b"\x44\x01" if number % 2 else b"\x4c\x01") + b"\0"
    return data + b"\x3b"


def png_in_mov(width: int, height: int) -> bytes:
    """One compressed picture of one colour, four times."""
    picture = io.BytesIO()
    Image.new("L", (width, height)).save(picture, "png")
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "gray"
        for number in range(4):
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            container.mux(packet)
    return file.getvalue()


def check_bomb(folder: Path, name: str, data: bytes) -> tuple[Outcome, str]:
    """32 frames through the processor: pixels of the size asked for, or one sentence."""
    path = folder / name
    path.write_bytes(data)
    try:
        pixels = TPSVideoProcessor()(path, return_tensors="pt").pixel_values
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error.__cause__, MemoryError):
            return Outcome.MEMORY, str(error)
        return judge_error(error, name, healthy=False)
    if pixels.shape == (1, 32, 3, 224, 224) and pixels.isfinite().all():
        return Outcome.RIGHT, ""
    return Outcome.WRONG, f"pixels of shape {tuple(pixels.shape)}"
