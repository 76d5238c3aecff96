"""Any video source -> the frames asked for, and nothing more of the file (PyAV).

Two promises:

- **Exact.** Frame i is the i-th frame that a player shows, whatever the header says. One pass over the packets,
  without decoding, gives the number of frames and their order; then only what lies between a wanted frame and the
  keyframe before it is decoded. Every decoded frame is checked against that list, and a file that does not keep to it
  (missing or false timestamps, damage) is decoded from start to end instead. The result is the same, only slower.
- **Closed.** FFmpeg never sees a path or a URL: it gets an open file and the name of the one container format whose
  signature the file carries. Playlists, concatenation scripts and the like, which can name other files of the
  machine or addresses of the network, have no way in.
"""

import bisect
import http.client
import io
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, NamedTuple, TypeAlias

import av
import numpy as np
import torch
from transformers.video_utils import VideoMetadata

MAX_DOWNLOAD_BYTES = 2 * 1024**3
DOWNLOAD_TIMEOUT = 30.0

SUPPORTED = "MP4/MOV, Matroska/WebM, AVI, MPEG-TS, MPEG-PS, FLV, Ogg, ASF/WMV and GIF"

_SNIFF_BYTES = 1024
_CHUNK_BYTES = 1 << 20
_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")

# Newer PyAV converts every frame with threads of its own. They cost more than they bring, and a process that is forked
# afterwards (a worker of a DataLoader) waits forever for them when it clears away the frames of its parent.
_ONE_THREAD = {"threads": 1} if "threads" in (av.VideoFrame.reformat.__doc__ or "") else {}

# Decoders that give exact frames when those in between, from which none is predicted, are left out. (That of MPEG-4
# part 2 does not, where an AVI packs two frames into one packet.)
_SKIPPING_CODECS = ("h264", "hevc")

FrameIndices: TypeAlias = Sequence[int] | np.ndarray | torch.Tensor


def read_video(
    source: str | os.PathLike | bytes | BinaryIO,
    indices: FrameIndices | Callable[[VideoMetadata], FrameIndices] | None = None,
    *,
    max_download_bytes: int = MAX_DOWNLOAD_BYTES,
    timeout: float = DOWNLOAD_TIMEOUT,
) -> tuple[torch.Tensor, VideoMetadata]:
    """Read frames of a video.

    Args:
        source: a path, an http(s) URL, the bytes of a file, or a seekable binary file object. A file object is read as
            one whole file, wherever it stands; it is left open and put back to where it stood.
        indices: frame numbers in display order, or a function that is given the metadata, true frame count included,
            and returns them. They may repeat and come in any order; each frame is decoded once. None: all frames.
            The function is asked again in the rare case that decoding shows that the count was wrong.
        max_download_bytes: the most that is fetched from a URL, into a temporary file that is gone afterwards.
        timeout: seconds without an answer after which a URL is given up.

    Returns:
        `frames`, uint8 RGB (number of indices, 3, height, width) in the order asked for, upright as a player shows
        them (rotated or mirrored by the file's display matrix), in pixels as stored (the aspect ratio of the pixels is
        not applied). Where a video changes its size midway, all frames have the size that it declares at the start.
        `metadata`: frame count, fps, size, duration in seconds, `frames_indices` (a list of int).

    Raises:
        FileNotFoundError: for a path that is no file.
        ValueError: for what is not one of the supported containers, has no video stream or no frame that decodes, for
            indices outside the video and for a failed or too large download.

    Warns:
        UserWarning: for a damaged or cut-off file, of which the frames that decode are used.
    """
    with _opened(source, max_download_bytes, timeout) as (file, name):
        return _Video(file, name).read(indices)


# --- sources ---------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(source: Any, max_download_bytes: int, timeout: float) -> Iterator[tuple[BinaryIO, str]]:
    """The source as a seekable binary file, with a name for messages; closed afterwards if we opened it."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        with io.BytesIO(source) as file:
            yield file, f"<{len(file.getbuffer())} bytes>"
    elif isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        with tempfile.TemporaryFile() as file:
            _download(source, file, max_download_bytes, timeout)
            yield file, _without_query(source)
    elif isinstance(source, (str, os.PathLike)):
        with _open_path(source) as file:
            yield file, os.fspath(source)
    elif hasattr(source, "read") and hasattr(source, "seek"):
        name = f"file object {getattr(source, 'name', type(source).__name__)}"
        try:
            position = source.tell()
            source.seek(position)
        except (OSError, ValueError) as error:
            raise ValueError(f"{name} cannot seek: read it and pass its bytes instead.") from error
        try:
            yield source, name
        finally:
            source.seek(position)
    else:
        raise ValueError(
            f"Cannot read a video from a {type(source).__name__}: pass a path, an http(s) URL, bytes or a binary file."
        )


def _open_path(path: str | os.PathLike) -> BinaryIO:
    # Only regular files: a pipe or a device would block or never end.
    if os.path.isfile(path):
        return open(path, "rb")
    shown = repr(os.fspath(path))[:300]
    if os.path.isdir(path):
        raise FileNotFoundError(f"{shown} is a folder, not a video file: pass the path of one file in it.")
    raise FileNotFoundError(
        f"There is no file {shown}. A string must be the path of an existing video file or an http(s) URL; "
        "other protocols and FFmpeg's own notations are not followed."
    )


class _HttpOnlyRedirects(urllib.request.HTTPRedirectHandler):
    """A server must not send us on to file:, ftp: or anything else."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urllib.parse.urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.URLError(f"redirected to {newurl!r}, which is not http(s)")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, file: BinaryIO, max_bytes: int, timeout: float) -> None:
    # Put together by hand: urllib's ready-made opener would also fetch file:, ftp: and data: addresses.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
        _HttpOnlyRedirects,
    ):
        opener.add_handler(handler())
    request = urllib.request.Request(url, headers={"User-Agent": "hf_tps"})
    name = _without_query(url)
    try:
        with opener.open(request, timeout=timeout) as response:
            declared = int(response.headers.get("Content-Length") or 0)
            received = 0
            # The declared length stops a large file at once, the count one that says nothing or lies.
            while max(declared, received) <= max_bytes and (chunk := response.read(_CHUNK_BYTES)):
                received += len(chunk)
                file.write(chunk)
    # ValueError: a malformed address or header; HTTPException: an answer that breaks off.
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ValueError(
            f"Could not download {name}: {error}. Check the address, or download the file and pass its path."
        ) from error
    if max(declared, received) > max_bytes:
        raise ValueError(
            f"{name} is larger than the limit of {max_bytes} bytes for a download. Download it and pass its path, or "
            "call read_video with a larger max_download_bytes."
        )
    if received < declared:
        raise ValueError(f"The download of {name} ended after {received} of {declared} bytes. Try again.")


def _without_query(url: str) -> str:
    # The query and the user part of an address may hold a password or a signature: not for messages and logs.
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


# --- containers ------------------------------------------------------------------------------------------------------


def _demuxer_for(file: BinaryIO, name: str) -> str:
    """FFmpeg's name of the container format, from the first bytes; `ValueError` for anything off the whitelist."""
    file.seek(0)
    head = file.read(_SNIFF_BYTES)
    if not isinstance(head, bytes):
        raise ValueError(f"{name} is open as text: open it in binary mode ('rb').")
    if head[4:8] in _MOV_BOXES:
        return "mov"
    if head[:4] == b"RIFF" and head[8:11] == b"AVI":
        return "avi"
    # A transport stream repeats its sync byte with every packet; Blu-ray's packets have 4 bytes more, in front.
    for start, step in ((0, 188), (4, 192)):
        sync = head[start::step]
        if len(sync) >= 3 and set(sync) == {0x47}:
            return "mpegts"
    for signature, demuxer in (
        (b"\x1a\x45\xdf\xa3", "matroska"),
        (b"\x00\x00\x01\xba", "mpeg"),
        (b"FLV", "flv"),
        (b"OggS", "ogg"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
        (b"GIF87a", "gif"),
        (b"GIF89a", "gif"),
    ):
        if head.startswith(signature):
            return demuxer
    raise ValueError(f"{name} is not a video file: it {_what_it_is(head)}. Supported are {SUPPORTED}.")


def _what_it_is(head: bytes) -> str:
    if not head:
        return "is empty"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for beginning, kind in (
        (b"#EXTM3U", "is a playlist (m3u8), which names other files and is not followed"),
        (b"ffconcat", "is an ffconcat script, which names other files and is not followed"),
        (b"v=0", "is a session description (SDP), which names network streams and is not followed"),
        (b"<", "is an XML or HTML text"),
        (b"\x89PNG", "is a PNG image"),
        (b"\xff\xd8\xff", "is a JPEG image"),
        (b"version https://git-lfs", "is a Git LFS pointer (the file itself was not fetched)"),
    ):
        if text.startswith(beginning):
            return kind
    return f"begins with {head[:16]!r}"


def _ends_too_early(file: BinaryIO, demuxer: str) -> bool:
    """Whether the file has fewer bytes than its own structure says (for the containers that say it).

    FFmpeg reads a cut-off file without a word up to where it ends, so this is the only way to know.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if demuxer == "avi":
        return 8 + int.from_bytes(file.read(8)[4:], "little") > size
    if demuxer == "matroska":
        # EBML header, then one segment, each an id and a size; a live recording leaves the size open (all ones).
        file.seek(4)
        header = _ebml_size(file)
        if header is None:
            return False
        file.seek(header, os.SEEK_CUR)
        if file.read(4) != b"\x18\x53\x80\x67":
            return False
        segment = _ebml_size(file)
        return segment is not None and file.tell() + segment > size
    if demuxer == "mov":
        position = 0
        while position + 8 <= size:
            file.seek(position)
            box = file.read(16)
            length, kind = int.from_bytes(box[:4], "big"), box[4:8]
            if length == 1:
                length = int.from_bytes(box[8:16], "big")
            if length < 8:  # 0: up to the end of the file; anything else is not a box
                return False
            position += length
            if position > size:
                return kind in (b"mdat", b"moov", b"moof")  # anything else is junk after the last box
    return False


def _ebml_size(file: BinaryIO) -> int | None:
    """Matroska's variable-length number: the leading zeros of the first byte count the bytes that follow."""
    first = (file.read(1) or b"\0")[0]
    if not first:
        return None
    extra = 8 - first.bit_length()
    value = int.from_bytes(bytes([first & (0xFF >> (extra + 1))]) + file.read(extra), "big")
    return None if value == (1 << 7 * (extra + 1)) - 1 else value


# --- reading ---------------------------------------------------------------------------------------------------------


class _Keyframe(NamedTuple):
    """A place where decoding can begin."""

    number: int  # of the first frame that is shown from here on: itself, unless the file's edit list cuts it away
    pts: int
    seek_to: int


@dataclass
class _Scan:
    """What the container tells about its video stream, copied: PyAV's objects die with their container."""

    declared_frames: int  # by the header, 0: not said
    fps: float | None
    duration: float | None  # seconds, by the header
    size: tuple[int, int]  # (width, height) as stored, before rotation
    pts: list[int]  # of every frame that is shown, in display order
    keyframes: list[_Keyframe]  # in display order
    reliable: bool  # every frame has a timestamp of its own
    reordered: bool  # packets carry the time at which their frame is shown (AVI counts them as they are stored)


class _UnreliableTimestampsError(Exception):
    """The decoder does not give the frames that the packets announced."""


class _Video:
    """One open file with one video in it."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file = file
        self.name = name
        self.demuxer = _demuxer_for(file, name)
        self.damaged = _ends_too_early(file, self.demuxer)

    def read(self, indices: Any) -> tuple[torch.Tensor, VideoMetadata]:
        scan = self._scan()
        if scan.reliable and not self.damaged:
            metadata = self._metadata(scan, len(scan.pts))
            wanted = self._resolve(indices, metadata)
            try:
                return self._assemble(self._decode_sparse(scan, set(wanted)), wanted, metadata)
            except _UnreliableTimestampsError:
                pass
        # From start to end, twice: first to count, since the choice of frames depends on the count, then to keep.
        # Keeping everything the first time would spare the second, but needs memory for the whole video.
        failures: list[Exception] = []
        total = sum(1 for _ in self._decode_all(failures))
        if total == 0:
            reason = f" ({failures[0]})" if failures else ""
            raise ValueError(f"{self.name}: no frame can be decoded, the file is damaged or cut off{reason}.")
        if self.damaged or failures:
            announced = scan.declared_frames or round((scan.duration or 0) * (scan.fps or 0))
            announced = max(announced, len(scan.pts), total)
            warnings.warn(
                f"{self.name} is damaged or cut off: {total} of {announced} frames can be decoded and are used.",
                UserWarning,
                stacklevel=3,
            )
        metadata = self._metadata(scan, total)
        wanted = self._resolve(indices, metadata)
        keep = set(wanted)
        frames = enumerate(self._decode_all([], limit=max(keep) + 1))
        kept = {number: _pixels(frame, scan.size) for number, frame in frames if number in keep}
        return self._assemble(kept, wanted, metadata)

    @contextmanager
    def _stream(self) -> Iterator[tuple[Any, Any]]:
        """A fresh container and its video stream: no state is left over from an earlier pass."""
        self.file.seek(0)
        try:
            container = av.open(self.file, format=self.demuxer)
        except av.error.FFmpegError as error:
            raise ValueError(
                f"{self.name}: cannot be read as {self.demuxer}, the file is damaged or incomplete ({error}). An MP4 "
                "that is cut off before its index, which is often at its end, cannot be read at all."
            ) from error
        with container:
            # The cover picture of a sound file is stored as a video stream too.
            streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
            if not streams:
                raise ValueError(f"{self.name}: there is no video stream in this file (sound only?).")
            stream = streams[0]
            if stream.codec_context is None:
                raise ValueError(f"{self.name}: this build of FFmpeg has no decoder for its video stream.")
            # Not one thread per frame: those run ahead of what is wanted, which a seek throws away (38 seeks took twice
            # the time), and an error in one of them costs the good frames that are under way in the others.
            stream.codec_context.thread_type = "SLICE"
            yield container, stream

    def _scan(self) -> _Scan:
        """One pass over all packets, without decoding."""
        pts: list[int] = []
        keyframes: list[tuple[int, int]] = []
        timed, reordered = True, False
        with self._stream() as (container, stream):
            rate = stream.average_rate or stream.guessed_rate
            duration = stream.duration and float(stream.duration * stream.time_base)
            duration = duration or (container.duration and container.duration / av.time_base)
            size = (stream.codec_context.width, stream.codec_context.height)
            declared_frames = stream.frames
            try:
                for packet in container.demux(stream):
                    if packet.size == 0:  # PyAV's sign of the end
                        continue
                    self.damaged = self.damaged or packet.is_corrupt
                    timed = timed and packet.pts is not None
                    if not timed:
                        continue
                    if packet.is_keyframe:
                        keyframes.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
                    if not packet.is_discard:  # those are cut away by the file's edit list
                        reordered = reordered or (len(pts) > 0 and packet.pts < pts[-1])
                        pts.append(packet.pts)
            except av.error.FFmpegError:
                self.damaged = True
        pts.sort()
        return _Scan(
            declared_frames=declared_frames,
            fps=float(rate) if rate else None,
            duration=duration or None,
            size=size,
            pts=pts,
            keyframes=[_Keyframe(bisect.bisect_left(pts, key[0]), *key) for key in sorted(keyframes)],
            reliable=timed and len(pts) > 0 and len(set(pts)) == len(pts),
            reordered=reordered,
        )

    def _decode_sparse(self, scan: _Scan, wanted: set[int]) -> dict[int, np.ndarray]:
        """The wanted frames by their number, each decoded from the nearest keyframe, or from where we already are."""
        kept: dict[int, np.ndarray] = {}
        number_of = {pts: number for number, pts in enumerate(scan.pts)}
        with self._stream() as (container, stream):
            # Where packets do not carry the time of their frame, it cannot be told which ones to leave out.
            skips = scan.reordered and stream.codec_context.name in _SKIPPING_CODECS
            wanted_pts = {scan.pts[number] for number in wanted} if skips else number_of.keys()
            frames: Iterator[Any] = iter(())
            following = -1  # number of the frame that the decoder gives next
            for target in sorted(wanted):
                nearest = bisect.bisect_right(scan.keyframes, target, key=lambda keyframe: keyframe.number) - 1
                if nearest < 0:
                    raise _UnreliableTimestampsError
                keyframe = scan.keyframes[nearest]
                if keyframe.number > following:
                    if nearest > 0:  # a fresh container stands before its first keyframe
                        container.seek(keyframe.seek_to, stream=stream, backward=True)
                    frames = self._decode_from(container, stream, keyframe.pts, wanted_pts)
                    following = keyframe.number
                while following <= target:
                    frame = next(frames, None)
                    number = None if frame is None else number_of.get(frame.pts)
                    expected = range(following, target + 1) if skips else [following]
                    if number is None or number not in expected:
                        raise _UnreliableTimestampsError
                    if number == target:
                        kept[target] = _pixels(frame, scan.size)
                    following = number + 1
        return kept

    def _decode_from(self, container: Any, stream: Any, start: int, wanted: Set[int]) -> Iterator[Any]:
        """Frames in display order, beginning with the keyframe whose timestamp is `start`.

        Those that are not wanted, by their timestamps, and that no other frame is predicted from, are left out without
        being decoded.
        """
        started = False
        try:
            for packet in container.demux(stream):
                if not started:
                    # A seek may end before the keyframe: nothing is decoded until it comes. Had it ended behind, the
                    # first frame would not be the expected one.
                    if not packet.is_keyframe or packet.pts is None or packet.pts < start:
                        continue
                    started = True
                stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                for frame in packet.decode():
                    # Pictures that are stored after the keyframe but shown before it belong to the part before.
                    if frame.pts is None or frame.pts >= start:
                        yield frame
        except av.error.FFmpegError as error:
            raise _UnreliableTimestampsError from error

    def _decode_all(self, failures: list[Exception], limit: int | None = None) -> Iterator[Any]:
        """Every frame that decodes (the first `limit` of them), in the decoder's order; errors go to `failures`."""
        given = 0
        with self._stream() as (container, stream):
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets, None)  # None also after an error in the demuxer
                    if packet is None:
                        return
                    frames = packet.decode()
                except av.error.FFmpegError as error:
                    failures.append(error)
                    continue
                for frame in frames:
                    yield frame
                    given += 1
                    if given == limit:
                        return

    def _metadata(self, scan: _Scan, total: int) -> VideoMetadata:
        fps = scan.fps or (total / scan.duration if scan.duration else None)
        # Duration as counted, not as declared: the header of a cut-off file still gives the full length.
        return VideoMetadata(
            total_num_frames=total,
            fps=fps,
            width=scan.size[0],
            height=scan.size[1],
            duration=total / fps if fps else None,
            video_backend="pyav",
        )

    def _resolve(self, indices: Any, metadata: VideoMetadata) -> list[int]:
        """The indices as a checked list, which also goes into the metadata."""
        total = metadata.total_num_frames
        if indices is None:
            wanted = list(range(total))
        else:
            array = np.asarray(indices(metadata) if callable(indices) else indices).reshape(-1)
            if array.size == 0 or not np.issubdtype(array.dtype, np.integer):
                raise ValueError(f"{self.name}: frame indices must be whole numbers, at least one, got {array}.")
            wanted = array.tolist()
            if min(wanted) < 0 or max(wanted) >= total:
                raise ValueError(
                    f"{self.name}: frames {min(wanted)} to {max(wanted)} were asked for, it has 0 to {total - 1}."
                )
        metadata.frames_indices = wanted
        return wanted

    def _assemble(
        self, kept: dict[int, np.ndarray], wanted: list[int], metadata: VideoMetadata
    ) -> tuple[torch.Tensor, VideoMetadata]:
        frames = torch.from_numpy(np.stack([kept[number] for number in wanted])).permute(0, 3, 1, 2)
        # Known only now: a quarter turn swaps the sides.
        metadata.height, metadata.width = frames.shape[-2:]
        return frames, metadata


def _pixels(frame: Any, size: tuple[int, int]) -> np.ndarray:
    """The frame as uint8 RGB (height, width, 3), scaled to the stored size (width, height) and upright."""
    pixels = frame.reformat(width=size[0], height=size[1], format="rgb24", **_ONE_THREAD).to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return pixels if matrix is None else _upright(pixels, np.frombuffer(matrix, np.int32))


def _upright(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply a display matrix (9 fixed-point numbers) to an image (height, width, 3), to the nearest quarter turn.

    A pixel at (x, y), y downwards, is shown at (a x + c y, b x + d y); an axis that runs backwards is flipped.
    """
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels = pixels.transpose(1, 0, 2)
        a, d = c, b
    if a < 0:
        pixels = pixels[:, ::-1]
    if d < 0:
        pixels = pixels[::-1]
    return pixels
