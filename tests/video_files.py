"""Small video files for the tests, written with PyAV: no test needs a file from elsewhere."""

import io
import struct
from pathlib import Path

import av
import numpy as np

RATE = 25


def moving_frames(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frames (height, width, 3) of which no two are alike, with something that moves."""
    frames = []
    for number in range(count):
        frame = np.zeros((height, width, 3), np.uint8)
        frame[..., 0] = 40 + 3 * number % 180
        left = 2 * number % (width - 8)
        frame[height // 4 : height // 2, left : left + 8, 1] = 255
        frame[: height // 4, : width // 4, 2] = 200
        frames.append(frame)
    return frames


def corner_frame(height: int = 48, width: int = 64) -> np.ndarray:
    """One frame whose upper left quarter is red, upper right green, lower left blue, lower right white."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[: height // 2, : width // 2] = (255, 0, 0)
    frame[: height // 2, width // 2 :] = (0, 255, 0)
    frame[height // 2 :, : width // 2] = (0, 0, 255)
    frame[height // 2 :, width // 2 :] = (255, 255, 255)
    return frame


def write_video(
    target: Path | io.IOBase,
    frames: list[np.ndarray],
    *,
    codec: str = "libx264",
    container: str | None = None,
    keyframe_every: int = 12,
    codec_options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    first_pts: int = 0,
) -> None:
    """Encode frames (height, width, 3) into one video file at 25 frames per second.

    Frames whose size differs from the one before start a new encoder in the same stream, as a broadcast does.
    """
    file = target if isinstance(target, io.IOBase) else str(target)
    with av.open(file, "w", format=container, options=container_options or {}) as output:
        height, width = frames[0].shape[:2]
        stream = _encoder(output, codec, height, width, keyframe_every, codec_options)
        sizes = [frame.shape[:2] for frame in frames]
        change = next((i for i, size in enumerate(sizes) if size != sizes[0]), len(frames))
        for packet in _packets(stream, frames[:change], first_pts):
            output.mux(packet)
        if change < len(frames):
            # A second encoder, whose packets go into the first one's stream.
            with av.open(io.BytesIO(), "w", format="mpegts") as other:
                second = _encoder(other, codec, *sizes[change], keyframe_every, codec_options)
                for packet in _packets(second, frames[change:], first_pts + change):
                    packet.stream = stream
                    output.mux(packet)


def _encoder(output, codec, height, width, keyframe_every, options):
    # One thread and no scene detection: the same file on every machine, keyframes where the test wants them.
    x264 = {"preset": "veryfast", "threads": "1", "sc_threshold": "0"} if codec == "libx264" else {"threads": "1"}
    stream = output.add_stream(codec, rate=RATE, options={**x264, **(options or {})})
    stream.height, stream.width = height, width
    stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
    stream.codec_context.gop_size = keyframe_every
    return stream


def _packets(stream, frames, first_pts):
    for number, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts = first_pts + number
        yield from stream.encode(frame)
    yield from stream.encode()


def write_sound(target: Path) -> None:
    """A tenth of a second of sound in an MP4 file, without a picture."""
    with av.open(str(target), "w") as output:
        stream = output.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            output.mux(packet)


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Let players show the pixel (x, y) of an MP4 file at (a x + c y, b x + d y), y downwards."""
    data = bytearray(path.read_bytes())
    # The track header box: 4 bytes of version and flags, then 36 (version 0) bytes up to the nine matrix entries.
    matrix = data.index(b"tkhd") + 4 + 4 + 36
    one = 1 << 16
    assert struct.unpack(">9i", data[matrix : matrix + 36]) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    data[matrix : matrix + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def cut(path: Path, fraction: float) -> None:
    """Keep only the first part of the bytes of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])


def decode_from_start_to_end(path: Path) -> np.ndarray:
    """All frames (frames, height, width, 3) as the decoder gives them, the plain way, without those that fail."""
    frames = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            try:
                frames += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
            except av.error.FFmpegError:
                continue
    return np.stack(frames)
