"""Any video source -> the frames asked for, and nothing more of the file (PyAV).

Four promises:

- **Exact.** Frame i is the i-th frame that a player shows, whatever the header says. One pass over the packets,
  without decoding, gives the number of frames and their order; then only what lies between a wanted frame and the
  keyframe before it is decoded. Every decoded frame is checked against that list, and a file that does not keep to it
  (missing or false timestamps, damage) is decoded from start to end instead. The result is the same, only slower.
- **Closed.** FFmpeg never sees a path or a URL: it gets an open file and the name of the one container format whose
  signature the file carries. Playlists, concatenation scripts and the like, which can name other files of the
  machine or addresses of the network, have no way in.
- **Bounded.** Whatever a file declares, no frame is larger than the caller allows, at most a few are held at full size,
  and a download has an end.
- **Clear.** Whatever is wrong with a file, the error is a ValueError or an OSError of one sentence that names it.
"""

import bisect
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import av
import numpy as np
import torch
from transformers.video_utils import VideoMetadata

from .plain_text import printable
from .reading_threads import items_of_threads
from .video_sources import (
    DOWNLOAD_SECONDS,
    DOWNLOAD_TIMEOUT,
    MAX_DOWNLOAD_BYTES,
    CheckedFile,
    Download,
    opened_video,
)

_FULL_HD = 1920 * 1088
_MOST_DECODERS = 4
# 8K video (DCI 8192 x 4320) passes
MAX_FRAME_PIXELS = 8192 * 4320

SUPPORTED = "MP4/MOV, Matroska/WebM, AVI, MPEG-TS, MPEG-PS, FLV, Ogg, ASF/WMV and GIF"

_SNIFF_BYTES = 1024
_WITHOUT_HEADER = ("mpegts", "mpeg", "flv")
_MAX_BOXES = 1_000_000
_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")

# Newer PyAV converts every frame with threads of its own. They cost more than they bring, and a process that is forked
# afterwards (a worker of a DataLoader) waits forever for them when it clears away the frames of its parent.
_ONE_THREAD = {"threads": 1} if "threads" in (av.VideoFrame.reformat.__doc__ or "") else {}

# Decoders that give exact frames when those in between, from which none is predicted, are left out. (That of MPEG-4
# part 2 does not, where an AVI packs two frames into one packet.)
_SKIPPING_CODECS = ("h264", "hevc")

# Decoders that never paint over damage: however many threads they have, the frames are the same.
_THREADED_CODECS = ("libdav1d", "av1", "vp9")

# The decoder raises an error for all damage that it notices, where it would otherwise paint over it.
_STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}

# Frames that wait to be prepared together: many small ones, one large one
_PREPARED_BYTES = 32 * 2**20

FrameIndices: TypeAlias = Sequence[int] | np.ndarray | torch.Tensor
PrepareFrames: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


def read_video(
    source: str | os.PathLike | bytes | BinaryIO,
    indices: FrameIndices | Callable[[VideoMetadata], FrameIndices] | None = None,
    *,
    prepare: PrepareFrames | None = None,
    max_frame_pixels: int = MAX_FRAME_PIXELS,
    max_download_bytes: int = MAX_DOWNLOAD_BYTES,
    timeout: float = DOWNLOAD_TIMEOUT,
    max_download_seconds: float = DOWNLOAD_SECONDS,
) -> tuple[torch.Tensor, VideoMetadata]:
    """Read frames of a video.

    Args:
        source: a path, an http(s) URL, the bytes of a file, or a seekable binary file object. A file object is read as
            one whole file, wherever it stands; it is left open and put back to where it stood.
        indices: frame numbers in display order, or a function that is given the metadata, true frame count included,
            and returns them. They may repeat and come in any order; each frame is decoded once. None: all frames.
            The function is asked again in the rare case that decoding shows that the count was wrong.
        prepare: what becomes of frames, uint8 RGB (some, 3, height, width), as soon as they are decoded: resized, say,
            so that few are held at full size. It gives (some, 3, new height, new width).
        max_frame_pixels: the most pixels that a frame may have; larger ones are not decoded.
        max_download_bytes: the most that is fetched from a URL, into a temporary file that is gone afterwards.
        timeout: seconds without an answer after which a URL is given up.
        max_download_seconds: after which a download is given up, however steadily it comes.

    Returns:
        `frames`, uint8 RGB (number of indices, 3, height, width), or what `prepare` makes of them, in the order asked
        for, upright as a player shows them (rotated or mirrored by the file's display matrix), in pixels as stored (the
        aspect ratio of the pixels is not applied). Where a video changes its size midway, all frames have the size that
        it declares at the start.
        `metadata`: frame count, fps, size, duration in seconds, `frames_indices` (a list of int).

    Raises:
        FileNotFoundError: for a path that is no file.
        ValueError: for what is not one of the supported containers, has no video stream or no frame that decodes, has
            too large frames, for indices outside the video and for a failed or too large download.

    Warns:
        UserWarning: for a damaged or cut-off file, of which the frames that decode are used. Not all damage can be
            told: docs/video_input.md says which.
    """
    download = Download(max_download_bytes, timeout, max_download_seconds)
    with opened_video(source, download) as file:
        try:
            return _Video(file, max_frame_pixels, prepare).read(indices)
        except _CallersError as error:
            raise error.error from None
        except (ValueError, OSError) as error:
            if isinstance(error, av.error.FFmpegError):
                raise _unreadable(file.name, error) from error
            if file.name not in str(error):  # of `prepare`
                raise ValueError(f"{file.name}: {error}") from error
            raise
        # Damaged files end in an IndexError inside PyAV, in a RuntimeError of an allocation, in a MemoryError, ...
        except Exception as error:
            raise _unreadable(file.name, error) from error


def _unreadable(name: str, error: Exception) -> ValueError:
    reason = "more memory than there is" if isinstance(error, MemoryError) else printable(error)
    return ValueError(
        f"{name}: cannot be read, it is damaged or asks for what this machine cannot do "
        f"({type(error).__name__}: {reason})."
    )


# --- containers ------------------------------------------------------------------------------------------------------


def _demuxer_for(file: BinaryIO | CheckedFile, name: str) -> str:
    """FFmpeg's name of the container format, from the first bytes; `ValueError` for anything off the whitelist."""
    file.seek(0)
    head = file.read(_SNIFF_BYTES)
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


def _ends_too_early(file: CheckedFile, demuxer: str) -> bool:
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
        for _ in range(_MAX_BOXES):
            if position + 8 > size:
                break
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


def _ebml_size(file: CheckedFile) -> int | None:
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


class _Run(NamedTuple):
    """Frames that are decoded in one go."""

    nearest: int  # number of the keyframe to begin with, among the keyframes
    targets: list[int]  # in display order


class _UnreliableError(Exception):
    """The decoder does not give the frames that the packets announced, or not undamaged."""


class _CallersError(Exception):
    """What a function of the caller raised, on its way back to the caller."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class _Video:
    """One open file with one video in it."""

    def __init__(self, file: CheckedFile, max_frame_pixels: int, prepare: PrepareFrames | None) -> None:
        self.file = file
        self.name = file.name
        self.max_frame_pixels = max_frame_pixels
        self.prepare = prepare
        self.demuxer = _demuxer_for(file, file.name)
        self.damaged = _ends_too_early(file, self.demuxer)

    def read(self, indices: Any) -> tuple[torch.Tensor, VideoMetadata]:
        scan = self._scan()
        if scan.reliable and not self.damaged:
            metadata = self._metadata(scan, len(scan.pts))
            answer = _Answer(self._resolve(indices, metadata), scan.size, self.prepare)
            try:
                self._decode_sparse(scan, answer)
                return answer.frames, self._with_size(metadata, answer)
            except _UnreliableError:
                pass
        # From start to end, twice: first to count, since the choice of frames depends on the count, then to keep.
        # Keeping everything the first time would spare the second, but needs memory for the whole video.
        total = self._count(scan)
        metadata = self._metadata(scan, total)
        answer = _Answer(self._resolve(indices, metadata), scan.size, self.prepare)
        for number, frame in enumerate(self._decode_all()):
            if number in answer.places:
                answer.put(number, answer.pixels_of(frame))
            if answer.is_complete:
                break
        return answer.frames, self._with_size(metadata, answer)

    def _count(self, scan: _Scan) -> int:
        """How many frames decode, with a warning if not all of them do, or not undamaged."""
        if not self.damaged:
            try:
                return self._at_least_one(sum(1 for _ in self._decode_all(strict=True)), scan, None)
            except _UnreliableError:
                pass
        failures: list[Exception] = []
        blemished = total = 0
        for frame in self._decode_all(failures):
            total += 1
            blemished += frame.is_corrupt
        self._at_least_one(total, scan, failures[0] if failures else None)
        announced = max(scan.declared_frames or round((scan.duration or 0) * (scan.fps or 0)), len(scan.pts), total)
        pictures = f", {blemished} of them with visible damage" if blemished else ""
        warnings.warn(
            f"{self.name} is damaged or cut off: {total} of {announced} frames can be decoded and are used{pictures}.",
            UserWarning,
            stacklevel=4,
        )
        return total

    def _at_least_one(self, total: int, scan: _Scan, failure: Exception | None) -> int:
        if total:
            return total
        if not all(scan.size):
            raise ValueError(
                f"{self.name}: its frames are damaged, or larger than the {self.max_frame_pixels} pixels that "
                "max_frame_pixels allows."
            )
        reason = f" ({printable(failure)})" if failure else ""
        raise ValueError(f"{self.name}: no frame can be decoded, the file is damaged or cut off{reason}.")

    @contextmanager
    def _stream(self, strict: bool = False) -> Iterator[tuple[Any, Any]]:
        """A fresh container and its video stream: no state is left over from an earlier pass.

        `strict` makes an error of all damage that the decoder notices.
        """
        # With room for what decoders add at the edges. The size that a file declares is compared exactly, below.
        limit = {"max_pixels": str(min(self.max_frame_pixels * 5 // 4 + 2**16, 2**31 - 1))}
        # FFmpeg may decode a frame while it probes the file: the limit holds there, too. Not where streams are found on
        # the way, since PyAV before 18 crashes then; of their codecs none packs a large frame into little.
        probing = {} if self.demuxer in _WITHOUT_HEADER else limit
        try:
            # Tags come in any encoding.
            container = av.open(self.file.view(), format=self.demuxer, options=probing, metadata_errors="replace")
        except av.error.FFmpegError as error:
            raise ValueError(
                f"{self.name}: cannot be read as {self.demuxer}, the file is damaged or incomplete "
                f"({printable(error)}). An MP4 that is cut off before its index, which is often at its end, cannot be "
                "read at all."
            ) from error
        with container:
            # The cover picture of a sound file is stored as a video stream too.
            streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
            if not streams:
                raise ValueError(f"{self.name}: there is no video stream in this file (sound only?).")
            stream = streams[0]
            if stream.codec_context is None:
                raise ValueError(f"{self.name}: this build of FFmpeg has no decoder for its video stream.")
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > self.max_frame_pixels:
                raise ValueError(
                    f"{self.name}: its frames of {width} x {height} are larger than the {self.max_frame_pixels} pixels "
                    "that max_frame_pixels allows."
                )
            # One thread: what is damaged is painted over in another way with several. Where they share a frame the
            # decoder does not tell; where each has a frame of its own it may tell too late.
            stream.codec_context.thread_type = "SLICE"
            stream.codec_context.thread_count = 0 if stream.codec_context.name in _THREADED_CODECS else 1
            stream.codec_context.options = limit | (_STRICT if strict else {})
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
        keyframes.sort()
        # A stream that is shown from before its first keyframe begins inside a group of pictures (a cut transport
        # stream, leading pictures): which of those a decoder shows, only decoding tells.
        begins = len(pts) > 0 and len(keyframes) > 0 and keyframes[0][0] <= pts[0]
        return _Scan(
            declared_frames=declared_frames,
            fps=float(rate) if rate else None,
            duration=duration or None,
            size=size,
            pts=pts,
            keyframes=[_Keyframe(bisect.bisect_left(pts, key[0]), *key) for key in keyframes],
            reliable=timed and begins and len(set(pts)) == len(pts),
            reordered=reordered,
        )

    def _decode_sparse(self, scan: _Scan, answer: "_Answer") -> None:
        """Put the wanted frames in place, each decoded from the nearest keyframe, or from the wanted one before it."""
        runs = self._runs(scan, sorted(answer.places))
        # Decoders with a run each are faster than one with several threads, which hide damage and do not tell. Above
        # Full HD the memory of another decoder counts more than the time.
        large = scan.size[0] * scan.size[1] > _FULL_HD
        decoders = 1 if large else min(_MOST_DECODERS, os.cpu_count() or 1, len(runs))
        waiting = iter(runs)  # of which each decoder takes the next
        number_of = {pts: number for number, pts in enumerate(scan.pts)}

        def decode() -> Iterator[tuple[int, np.ndarray]]:
            return answer.converted(self._decode_runs(waiting, scan, number_of, answer.places))

        for number, pixels in items_of_threads(decode, decoders) if decoders > 1 else decode():
            answer.put(number, pixels)
            del pixels  # before the next frame is converted

    def _runs(self, scan: _Scan, targets: list[int]) -> list[_Run]:
        """The wanted frames in display order, grouped by the keyframes from which they are decoded."""
        runs: list[_Run] = []
        following = -1  # number of the frame that a decoder would give next
        for target in targets:
            nearest = bisect.bisect_right(scan.keyframes, target, key=lambda keyframe: keyframe.number) - 1
            if nearest < 0:
                raise _UnreliableError
            if scan.keyframes[nearest].number > following:
                runs.append(_Run(nearest, []))
            runs[-1].targets.append(target)
            following = target + 1
        return runs

    def _decode_runs(
        self, runs: Iterator[_Run], scan: _Scan, number_of: Mapping[int, int], places: Collection[int]
    ) -> Iterator[tuple[int, Any]]:
        """The wanted frames with their numbers, by a decoder of its own.

        Args:
            runs: what this decoder takes its work from.
            number_of: of each frame that is shown, by its timestamp.
            places: numbers of all frames that are wanted.
        """
        with self._stream(strict=True) as (container, stream):
            # Where packets do not carry the time of their frame, it cannot be told which ones to leave out.
            skips = scan.reordered and stream.codec_context.name in _SKIPPING_CODECS
            wanted_pts = {scan.pts[number] for number in places} if skips else number_of.keys()
            for nearest, targets in runs:
                keyframe = scan.keyframes[nearest]
                if nearest > 0:  # a fresh container stands before its first keyframe, of which the first run is
                    container.seek(keyframe.seek_to, stream=stream, backward=True)
                frames = self._decode_from(container, stream, keyframe.pts, wanted_pts)
                following = keyframe.number
                for target in targets:
                    while following <= target:
                        frame = next(frames, None)
                        number = None if frame is None else number_of.get(frame.pts)
                        expected = range(following, target + 1) if skips else [following]
                        if number is None or number not in expected:
                            raise _UnreliableError
                        if number == target:
                            yield number, frame
                        del frame
                        following = number + 1
                self._look_at_the_rest(stream.codec_context)

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
                # Pictures that are stored after the keyframe but shown before it belong to the part before. They may
                # need pictures from there, which were not decoded.
                leading = packet.pts is not None and packet.pts < start
                for frame in self._decode_packet(packet, may_fail=leading):
                    if frame.pts is None or frame.pts >= start:
                        self._note_damage(frame.is_corrupt)
                        yield frame
        except av.error.FFmpegError as error:
            self._note_damage(True, error)

    def _look_at_the_rest(self, context: Any) -> None:
        """Ask the decoder for the frames that it has decoded and not given yet.

        They are shown later, but the wanted ones may be predicted from them.
        """
        try:
            for frame in context.decode(None):
                self._note_damage(frame.is_corrupt)
        except av.error.EOFError:  # it has given all: the file ended
            return
        except av.error.FFmpegError as error:
            self._note_damage(True, error)

    def _decode_packet(self, packet: Any, may_fail: bool) -> list[Any]:
        try:
            return packet.decode()
        except av.error.FFmpegError:
            if may_fail:
                return []
            raise

    def _note_damage(self, damaged: bool, cause: Exception | None = None) -> None:
        if damaged:
            self.damaged = True
            raise _UnreliableError from cause

    def _decode_all(self, failures: list[Exception] | None = None, strict: bool = False) -> Iterator[Any]:
        """Every frame that decodes, in the decoder's order; errors go to `failures`.

        `strict` ends at the first sign of damage.
        """
        with self._stream(strict) as (container, stream):
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets, None)  # None also after an error in the demuxer
                    if packet is None:
                        return
                    frames = packet.decode()
                except av.error.FFmpegError as error:
                    self._note_damage(strict, error)
                    if failures is not None:
                        failures.append(error)
                    continue
                for frame in frames:
                    self._note_damage(strict and frame.is_corrupt)
                    yield frame

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
            array = np.asarray(self._choose(indices, metadata) if callable(indices) else indices).reshape(-1)
            if array.size == 0 or not np.issubdtype(array.dtype, np.integer):
                raise ValueError(f"{self.name}: frame indices must be whole numbers, at least one, got {array}.")
            wanted = array.tolist()
            if min(wanted) < 0 or max(wanted) >= total:
                raise ValueError(
                    f"{self.name}: frames {min(wanted)} to {max(wanted)} were asked for, it has 0 to {total - 1}."
                )
        metadata.frames_indices = wanted
        return wanted

    def _choose(self, indices: Callable[[VideoMetadata], FrameIndices], metadata: VideoMetadata) -> FrameIndices:
        try:
            return indices(metadata)
        except Exception as error:
            raise _CallersError(error) from error

    def _with_size(self, metadata: VideoMetadata, answer: "_Answer") -> VideoMetadata:
        # Known only now: a quarter turn swaps the sides.
        metadata.width, metadata.height = answer.upright_size
        return metadata


class _Answer:
    """The frames asked for, each put in its places as it comes.

    Args:
        wanted: frame numbers, in any order; they may repeat.
        size: (width, height) that all frames are scaled to; (0, 0): that of the first one.
        prepare: as in `read_video`.
    """

    def __init__(self, wanted: list[int], size: tuple[int, int], prepare: PrepareFrames | None) -> None:
        self.count, self.size, self.prepare = len(wanted), size, prepare
        self.places: dict[int, list[int]] = {}
        for place, number in enumerate(wanted):
            self.places.setdefault(number, []).append(place)
        self.missing = len(self.places)
        self.upright_size = size
        self.matrices: dict[int, np.ndarray | None] = {}
        self._waiting: list[tuple[int, np.ndarray]] = []  # number and pixels of frames that are not prepared yet
        self._frames: torch.Tensor | None = None  # (count, height, width, 3)

    @property
    def is_complete(self) -> bool:
        return self.missing == 0

    @property
    def frames(self) -> torch.Tensor:
        """(number of frames, 3, height, width)."""
        if self.missing:
            raise RuntimeError(f"{self.missing} frames did not come when the file was decoded a second time")
        self._prepare_waiting()
        assert self._frames is not None
        return self._frames.permute(0, 3, 1, 2)

    def put(self, number: int, pixels: np.ndarray) -> None:
        """Keep a frame that is wanted."""
        height, width = pixels.shape[:2]
        if self.upright_size != (width, height) and self.missing < len(self.places):
            raise RuntimeError(f"frame {number} lies on its side, unlike those before it")
        self.upright_size = (width, height)
        self.missing -= 1
        if self.prepare is None:
            self._place(number, torch.from_numpy(pixels))
            return
        self._waiting.append((number, pixels))
        if (len(self._waiting) + 1) * pixels.nbytes > _PREPARED_BYTES:
            self._prepare_waiting()

    def _prepare_waiting(self) -> None:
        if not self._waiting or self.prepare is None:
            return
        numbers, pixels = zip(*self._waiting, strict=True)
        self._waiting.clear()
        stacked = torch.from_numpy(np.stack(pixels) if len(pixels) > 1 else pixels[0][None])
        del pixels
        for number, prepared in zip(numbers, self.prepare(stacked.permute(0, 3, 1, 2)), strict=True):
            self._place(number, prepared.permute(1, 2, 0))

    def _place(self, number: int, pixels: torch.Tensor) -> None:
        if self._frames is None:
            self._frames = pixels.new_empty(self.count, *pixels.shape)
        for place in self.places[number]:
            if pixels.device.type == "cpu":
                # With one thread: torch's threads would spend more time on waiting for each other than on copying.
                self._frames.numpy()[place] = pixels.numpy()
            else:
                self._frames[place] = pixels

    def converted(self, frames: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, np.ndarray]]:
        """Pixels in place of decoded frames, with their numbers."""
        for number, frame in frames:
            pixels = self.pixels_of(frame)
            del frame  # before the next one is decoded
            yield number, pixels
            del pixels

    def pixels_of(self, frame: Any) -> np.ndarray:
        """A decoded frame as uint8 RGB (height, width, 3), scaled to the size of all frames and upright."""
        if not all(self.size):
            self.size = (frame.width, frame.height)
        pixels = frame.reformat(width=self.size[0], height=self.size[1], format="rgb24", **_ONE_THREAD).to_ndarray()
        # A frame whose side data were looked at is a circle of references, which holds its memory until the garbage
        # collector comes: one for each rotation is enough.
        if frame.rotation not in self.matrices:
            matrix = frame.side_data.get("DISPLAYMATRIX")
            self.matrices[frame.rotation] = None if matrix is None else np.frombuffer(bytes(matrix), np.int32)
        matrix = self.matrices[frame.rotation]
        # Copied: torch takes no axes that run backwards.
        return pixels if matrix is None else np.ascontiguousarray(_upright(pixels, matrix))


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
