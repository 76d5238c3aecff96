"""The reader: exact frames from every kind of file, the right error for what is none, and no way out of the file."""

import http.server
import io
import os
import tempfile
import threading
import traceback
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from hf_tps import video_reading, video_sources
from hf_tps.video_reading import read_video
from tests.video_files import (
    corner_frame,
    cut,
    decode_from_start_to_end,
    moving_frames,
    set_display_matrix,
    write_sound,
    write_video,
)

VP9 = {"codec": "libvpx-vp9", "codec_options": {"cpu-used": "8", "deadline": "realtime"}}
B_FRAMES = {"codec_options": {"bf": "3"}}
FASTSTART = {"container_options": {"movflags": "faststart"}}
KINDS = {
    "h264_b_frames.mp4": B_FRAMES,
    "h264_b_frames.mkv": B_FRAMES,
    "h264_b_frames.ts": B_FRAMES,
    "h264_b_frames.avi": B_FRAMES,
    "h264_b_pyramid.mp4": {
        **B_FRAMES,
        "codec_options": {**B_FRAMES["codec_options"], "x264-params": "b-pyramid=normal"},
    },
    "hevc.mp4": {"codec": "libx265", "codec_options": {"x265-params": "bframes=4:keyint=12:log-level=none"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4_b_frames.avi": {"codec": "mpeg4", "codec_options": {"bf": "2", "g": "12"}},
    "mpeg4_b_frames.mp4": {"codec": "mpeg4", "codec_options": {"bf": "2", "g": "12"}},
    "vp9.webm": VP9,
    "mpeg2_b_frames.mpg": {"codec": "mpeg2video", "container": "mpeg", "codec_options": {"bf": "2"}},
    "flv1.flv": {"codec": "flv1"},
    "wmv2.wmv": {"codec": "wmv2", "container": "asf"},
    "gif.gif": {"codec": "gif"},
}


class Unseekable(io.RawIOBase):
    """A target that cannot go back, as for a live broadcast: headers stay without counts and sizes."""

    def __init__(self):
        super().__init__()
        self.data = bytearray()

    def writable(self):
        return True

    def write(self, data):
        self.data += bytes(data)
        return len(data)


def pixels(frames: torch.Tensor) -> np.ndarray:
    return frames.permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def mp4(tmp_path_factory) -> Path:
    """40 frames, B-frames, a keyframe every 12."""
    path = tmp_path_factory.mktemp("reading") / "clip.mp4"
    write_video(path, moving_frames(40), **B_FRAMES)
    return path


@pytest.fixture(scope="module")
def all_frames(mp4) -> np.ndarray:
    return decode_from_start_to_end(mp4)


@pytest.fixture
def full_decodes(monkeypatch) -> list:
    """Filled with one entry whenever the reader gives up seeking."""
    calls = []
    original = video_reading._Video._decode_all

    def counted(self, *args, **kwargs):
        calls.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(video_reading._Video, "_decode_all", counted)
    return calls


# ------------------------------------------------------------------------------------------------------ exact frames


@pytest.mark.parametrize("name", KINDS)
def test_frames_equal_a_full_sequential_decode(name, tmp_path):
    path = tmp_path / name
    write_video(path, moving_frames(40), **KINDS[name])
    expected = decode_from_start_to_end(path)
    assert len(expected) == 40
    for wanted in (*([number] for number in range(13)), [39], [3, 20], [11, 12, 13, 25], list(range(40))):
        frames, metadata = read_video(path, wanted)
        assert metadata.total_num_frames == 40
        assert (pixels(frames) == expected[wanted]).all()


def test_repeated_and_unsorted_indices_keep_their_order(mp4, all_frames):
    wanted = [30, 2, 2, 39, 0, 30]
    frames, metadata = read_video(mp4, wanted)
    assert (pixels(frames) == all_frames[wanted]).all()
    assert metadata.frames_indices == wanted


def test_all_frames_without_indices(mp4, all_frames):
    frames, metadata = read_video(mp4)
    assert frames.dtype == torch.uint8
    assert (pixels(frames) == all_frames).all()
    assert metadata.frames_indices == list(range(40))


def test_metadata_is_complete_when_the_frames_are_chosen(mp4):
    seen = []

    def choose(metadata):
        seen.append((metadata.total_num_frames, metadata.fps, metadata.duration, metadata.width, metadata.height))
        return np.array([0, metadata.total_num_frames - 1])

    frames, metadata = read_video(mp4, choose)
    assert seen == [(40, 25.0, 1.6, 64, 48)]
    assert frames.shape == (2, 3, 48, 64)
    assert metadata.video_backend == "pyav"
    assert metadata.frames_indices == [0, 39]


def test_only_what_follows_the_nearest_keyframe_is_decoded(mp4, monkeypatch):
    decoded = []
    original = video_reading._Video._decode_from

    def counted(self, *args):
        for frame in original(self, *args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(video_reading._Video, "_decode_from", counted)
    read_video(mp4, [38, 1])  # keyframes at 0, 12, 24 and 36
    assert len(decoded) == 2 + 3


def test_index_outside_the_video_is_refused(mp4):
    with pytest.raises(ValueError, match="it has 0 to 39"):
        read_video(mp4, [0, 40])
    with pytest.raises(ValueError, match="it has 0 to 39"):
        read_video(mp4, [-1])
    with pytest.raises(ValueError, match="whole numbers"):
        read_video(mp4, [])
    with pytest.raises(ValueError, match="whole numbers"):
        read_video(mp4, [0.5])


def test_webm_without_a_frame_count_in_the_header(tmp_path):
    target = Unseekable()
    write_video(target, moving_frames(30), container="webm", container_options={"live": "1"}, **VP9)
    path = tmp_path / "live.webm"
    path.write_bytes(target.data)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
        assert container.duration is None
    frames, metadata = read_video(path, [29, 7])
    assert metadata.total_num_frames == 30
    assert (pixels(frames) == decode_from_start_to_end(path)[[29, 7]]).all()


def test_false_timestamps_lead_to_a_sequential_decode(tmp_path, full_decodes):
    # B-frames in AVI, which stores no display times: what the packets say is guesswork.
    path = tmp_path / "b.avi"
    write_video(path, moving_frames(30), **B_FRAMES)
    frames, _ = read_video(path, [13, 22])
    assert full_decodes
    assert (pixels(frames) == decode_from_start_to_end(path)[[13, 22]]).all()


def test_frames_cut_away_by_the_edit_list_are_not_counted(tmp_path, full_decodes):
    # A trimmed recording: 20 frames lie before the start, its keyframe (12) among them.
    path = tmp_path / "trimmed.mp4"
    write_video(path, moving_frames(40), first_pts=-20, **B_FRAMES)
    expected = decode_from_start_to_end(path)
    assert len(expected) == 20
    frames, metadata = read_video(path, [0, 5, 19])
    assert metadata.total_num_frames == 20
    assert (pixels(frames) == expected[[0, 5, 19]]).all()
    assert not full_decodes


def test_pictures_shown_before_their_keyframe_are_left_out_after_a_seek(tmp_path, full_decodes):
    # An open group of pictures: after the keyframe in the file, before it on the screen.
    path = tmp_path / "open_gop.ts"
    write_video(path, moving_frames(40), codec="mpeg2video", codec_options={"bf": "2"})
    with av.open(str(path)) as container:
        packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
    in_file = next(number for number, (_, is_keyframe) in enumerate(packets) if is_keyframe and number > 5)
    assert packets[in_file + 1][0] < packets[in_file][0]
    keyframe = sorted(packets).index(packets[in_file])
    frames, _ = read_video(path, [keyframe, keyframe + 1])
    assert (pixels(frames) == decode_from_start_to_end(path)[[keyframe, keyframe + 1]]).all()
    assert not full_decodes


def test_first_frame_is_not_lost_when_all_frames_are_keyframes(tmp_path):
    path = tmp_path / "intra.mp4"
    write_video(path, moving_frames(10), keyframe_every=1)
    assert (pixels(read_video(path, [0, 4, 9])[0]) == decode_from_start_to_end(path)[[0, 4, 9]]).all()


# ------------------------------------------------------------------------------------------------- upright, one size


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),  # a quarter turn clockwise, as phones write it
        ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),  # a mirrored front camera
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
    ],
)
def test_frames_are_turned_upright(matrix, shown, tmp_path):
    path = tmp_path / "phone.mp4"
    write_video(path, [corner_frame()] * 3)
    stored = pixels(read_video(path)[0])
    assert np.abs(stored[0, 12, 16].astype(int) - (255, 0, 0)).max() < 30  # red is upper left
    set_display_matrix(path, *matrix)
    frames, metadata = read_video(path)
    expected = np.stack([shown(image) for image in stored])
    assert frames.shape == (3, 3, *expected.shape[1:3])
    assert (metadata.height, metadata.width) == expected.shape[1:3]
    assert (pixels(frames) == expected).all()


def test_clockwise_turn_brings_the_lower_left_corner_to_the_upper_left(tmp_path):
    path = tmp_path / "phone.mp4"
    write_video(path, [corner_frame()])
    set_display_matrix(path, 0, 1, -1, 0)
    frame = pixels(read_video(path)[0])[0].astype(int)
    assert frame.shape == (64, 48, 3)
    assert np.abs(frame[16, 12] - (0, 0, 255)).max() < 30  # blue
    assert np.abs(frame[16, 36] - (255, 0, 0)).max() < 30  # red


def test_frames_after_a_change_of_size_are_scaled_to_the_first_size(tmp_path):
    path = tmp_path / "two_sizes.ts"
    write_video(path, [corner_frame()] * 15 + [corner_frame(96, 80)] * 15)
    with av.open(str(path)) as container:
        sizes = {(frame.height, frame.width) for frame in container.decode(video=0)}
    assert sizes == {(48, 64), (96, 80)}
    frames, metadata = read_video(path, [0, 29])
    assert metadata.total_num_frames == 30
    assert frames.shape == (2, 3, 48, 64)
    difference = (frames[0].int() - frames[1].int()).abs()
    assert difference.float().mean() < 10  # the same picture, give or take blurred borders
    alone, _ = read_video(path, [29])
    assert torch.equal(alone[0], frames[1])


# ------------------------------------------------------------------------------------------------------------ damage


def test_mp4_cut_in_the_middle_gives_the_frames_that_decode(tmp_path):
    path = tmp_path / "cut.mp4"
    write_video(path, moving_frames(60), **B_FRAMES, **FASTSTART)
    cut(path, 0.7)
    expected = decode_from_start_to_end(path)
    assert 5 < len(expected) < 50
    with pytest.warns(UserWarning, match=f"{len(expected)} of 60 frames"):
        frames, metadata = read_video(path)
    assert metadata.total_num_frames == len(expected)
    assert metadata.duration == pytest.approx(len(expected) / 25)
    assert (pixels(frames) == expected).all()


def test_webm_cut_in_the_middle_gives_the_frames_that_decode(tmp_path):
    path = tmp_path / "cut.webm"
    write_video(path, moving_frames(60), **VP9)
    cut(path, 0.5)
    expected = decode_from_start_to_end(path)
    assert 5 < len(expected) < 50
    with pytest.warns(UserWarning, match=f"{len(expected)} of 60 frames"):
        frames, _ = read_video(path, [0, len(expected) - 1])
    assert (pixels(frames) == expected[[0, -1]]).all()


def test_avi_cut_in_the_middle_warns(tmp_path):
    path = tmp_path / "cut.avi"
    write_video(path, moving_frames(60), codec="mpeg4")
    cut(path, 0.8)
    with pytest.warns(UserWarning, match="of 60 frames"):
        _, metadata = read_video(path)
    assert 5 < metadata.total_num_frames < 60


def test_packet_of_rubbish_in_the_middle_is_skipped(tmp_path):
    path = tmp_path / "hole.webm"
    write_video(path, moving_frames(40), **VP9)
    with av.open(str(path)) as container:
        packet = next(packet for number, packet in enumerate(container.demux(video=0)) if number == 20)
        rubbish = bytes(packet)
    data = path.read_bytes()
    assert data.count(rubbish) == 1
    path.write_bytes(data.replace(rubbish, b"\xff" * len(rubbish)))
    expected = decode_from_start_to_end(path)
    assert len(expected) == 39
    with pytest.warns(UserWarning, match="39 of 40 frames"):
        frames, _ = read_video(path)
    assert (pixels(frames) == expected).all()


def test_whole_files_give_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("h264_b_frames.mp4", "vp9.webm", "mpeg4.avi", "h264_b_frames.avi", "h264_b_frames.ts"):
            write_video(tmp_path / name, moving_frames(20), **KINDS[name])
            read_video(tmp_path / name, [10])
        # Bytes after the last box, as some cameras leave them, cut nothing off.
        mp4 = tmp_path / "h264_b_frames.mp4"
        mp4.write_bytes(mp4.read_bytes() + b"\xff" * 100)
        read_video(mp4, [10])


def test_mp4_cut_before_its_index_is_refused(tmp_path):
    path = tmp_path / "cut.mp4"
    write_video(path, moving_frames(40))
    cut(path, 0.5)
    with pytest.raises(ValueError, match="cut.mp4.*damaged or incomplete"):
        read_video(path)


# ------------------------------------------------------------------------------------------------ what is not a video


def test_sound_only_is_refused(tmp_path):
    write_sound(tmp_path / "sound.mp4")
    with pytest.raises(ValueError, match="sound.mp4.*no video stream"):
        read_video(tmp_path / "sound.mp4")


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("empty.mp4", b"", "is empty"),
        ("text.mp4", b"this is not a video, whatever it is called", "begins with b'this is not a vi'"),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nVIDEO\n#EXT-X-ENDLIST\n", "playlist"),
        ("list.mp4", b"\xef\xbb\xbf#EXTM3U\n#EXTINF:1,\nVIDEO\n#EXT-X-ENDLIST\n", "playlist"),
        ("script.ffconcat", b"ffconcat version 1.0\nfile VIDEO\n", "ffconcat"),
        ("stream.sdp", b"v=0\no=- 0 0 IN IP4 127.0.0.1\n", "SDP"),
        ("manifest.mpd", b"<?xml version='1.0'?><MPD></MPD>", "XML"),
        ("image.png", b"\x89PNG\r\n\x1a\n", "PNG"),
        ("pointer.mp4", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ("free.mp4", b"all free of video", "damaged or incomplete"),
    ],
)
def test_what_is_not_a_container_is_refused_by_name(name, content, found, tmp_path, mp4):
    path = tmp_path / name
    path.write_bytes(content.replace(b"VIDEO", str(mp4).encode()))
    for source in (path, str(path), path.read_bytes()):
        with pytest.raises(ValueError, match=found) as error:
            read_video(source)
        assert "Supported are MP4" in str(error.value) or "cannot be read as mov" in str(error.value)
        assert isinstance(source, bytes) or name in str(error.value)


@pytest.mark.parametrize(
    "source",
    ["no_such_file.mp4", "concat:{mp4}|{mp4}", "file:{mp4}", "file://{mp4}", "ftp://127.0.0.1/a.mp4", "{mp4}%03d"],
)
def test_string_that_is_neither_file_nor_http_address_is_not_found(source, mp4):
    with pytest.raises(FileNotFoundError, match="no file"):
        read_video(source.format(mp4=mp4))


def test_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_video(tmp_path)


def test_ffmpeg_gets_an_open_file_and_a_format_and_never_a_name(mp4, monkeypatch):
    opened = []
    original = av.open

    def recorded(file, *args, **kwargs):
        opened.append((file, kwargs["format"]))
        return original(file, *args, **kwargs)

    monkeypatch.setattr(av, "open", recorded)
    for source in (mp4, str(mp4), mp4.read_bytes()):
        read_video(source, [0])
    assert len(opened) == 6  # a scan and a decode each
    assert all(hasattr(file, "read") and demuxer == "mov" for file, demuxer in opened)


def test_other_objects_are_refused():
    with pytest.raises(ValueError, match="Cannot read a video from a int"):
        read_video(7)


# ----------------------------------------------------------------------------------------------------------- sources


def test_path_string_bytes_and_file_objects_give_the_same(mp4, all_frames):
    data = mp4.read_bytes()
    for source in (mp4, str(mp4), data, bytearray(data), memoryview(data), io.BytesIO(data)):
        assert (pixels(read_video(source, [5])[0]) == all_frames[[5]]).all()


def test_file_object_stays_open_where_it_stood(mp4, all_frames):
    with open(mp4, "rb") as file:
        file.seek(100)
        frames, _ = read_video(file, [5])
        assert not file.closed
        assert file.tell() == 100
    assert (pixels(frames) == all_frames[[5]]).all()


def test_our_own_files_are_closed(mp4, monkeypatch):
    opened = []
    original = video_sources._open_path
    monkeypatch.setattr(video_sources, "_open_path", lambda path: opened.append(original(path)) or opened[-1])
    read_video(mp4, [5])
    with pytest.raises(ValueError, match="it has"):
        read_video(mp4, [500])
    assert [file.closed for file in opened] == [True, True]


def test_text_file_object_is_refused(tmp_path):
    with pytest.raises(ValueError, match="binary mode"):
        read_video(io.StringIO("not bytes"))


def test_file_object_that_cannot_seek_is_refused():
    with pytest.raises(ValueError, match="cannot seek"):
        read_video(io.BufferedReader(UnseekableSource()))


class UnseekableSource(io.RawIOBase):
    def readable(self):
        return True


# ------------------------------------------------------------------------------------------------------------- http


@pytest.fixture
def server(mp4):
    """A web server on this machine: its address."""
    data = mp4.read_bytes()
    sent_to_the_end = []
    stopping = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            path = self.path.partition("?")[0]
            if path.startswith("/redirect/"):
                self.send_response(302)
                self.send_header("Location", path.removeprefix("/redirect/"))
                self.end_headers()
            elif path.startswith("/away/"):
                self.send_response(302)
                self.send_header("Location", f"{path.removeprefix('/away/')}://127.0.0.1/clip.mp4?token=secret")
                self.end_headers()
            elif path == "/endless.mp4":
                self.send_response(200)
                self.end_headers()
                for _ in range(64):
                    self.wfile.write(bytes(1 << 20))
                sent_to_the_end.append(path)
            elif path == "/slow.mp4":  # one byte now and then, for ever
                self.send_response(200)
                self.end_headers()
                while not stopping.wait(0.05):
                    self.wfile.write(b"x")
            elif path == "/slow_header.mp4":
                while not stopping.wait(0.05):
                    self.wfile.write(b"H")
            elif path == "/echo.mp4":
                self.send_error(403, message=f"no access with {self.path}\x1b[2J")
            elif path in ("/clip.mp4", "/no_length.mp4", "/broken_off.mp4"):
                self.send_response(200)
                if path != "/no_length.mp4":
                    self.send_header("Content-Length", str(len(data) + 1000 * (path == "/broken_off.mp4")))
                self.end_headers()
                self.wfile.write(data)
            else:
                self.send_error(404)

        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            pass  # a client that hangs up is part of the tests

    with Server(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        stopping.set()
        httpd.shutdown()
        thread.join()
    assert sent_to_the_end == []


@pytest.fixture
def downloads(tmp_path, monkeypatch) -> Path:
    """The folder of temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # The machine's own proxy settings are not what is tested.
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path


def test_url_is_read_and_leaves_no_file_behind(server, downloads, all_frames):
    for name in ("clip.mp4", "no_length.mp4"):
        frames, metadata = read_video(f"{server}/{name}", [0, 39])
        assert metadata.total_num_frames == 40
        assert (pixels(frames) == all_frames[[0, 39]]).all()
    # A redirect within http is followed.
    assert len(read_video(f"{server}/redirect/{server}/clip.mp4", [0])[0]) == 1
    assert list(downloads.iterdir()) == []


@pytest.mark.parametrize("name", ["clip.mp4", "no_length.mp4", "endless.mp4"])
def test_url_larger_than_the_limit_is_refused(name, server, downloads):
    with pytest.raises(ValueError, match="limit of 1000 bytes.*max_download_bytes"):
        read_video(f"{server}/{name}", [0], max_download_bytes=1000)
    assert list(downloads.iterdir()) == []


def test_url_that_is_not_there_is_an_error_without_the_secrets_of_the_address(server, downloads):
    with pytest.raises(ValueError, match="HTTP Error 404.*Check the address") as error:
        read_video(f"{server}/missing.mp4?token=secret", [0])
    assert "secret" not in str(error.value)


def test_download_that_breaks_off_is_an_error(server, downloads):
    with pytest.raises(ValueError, match="Could not download|ended after"):
        read_video(f"{server}/broken_off.mp4", [0])


@pytest.mark.parametrize("target", ["file://{mp4}", "ftp://127.0.0.1/clip.mp4", "data:video/mp4;base64,AAAA"])
def test_redirect_out_of_http_is_refused(target, server, downloads, mp4):
    with pytest.raises(ValueError, match="Could not download.*(not http|not allowed)"):
        read_video(f"{server}/redirect/{target.format(mp4=mp4)}", [0])


@pytest.mark.parametrize("name", ["slow.mp4", "slow_header.mp4"])
def test_server_that_sends_a_byte_now_and_then_is_given_up(name, server, downloads):
    with pytest.raises(ValueError, match=f"{name}.*more than 0.3 seconds.*max_download_seconds"):
        read_video(f"{server}/{name}", timeout=30, max_download_seconds=0.3)
    assert list(downloads.iterdir()) == []


@pytest.mark.parametrize(
    "address",
    [
        "{server}/echo.mp4?token=secret",  # the server repeats it
        "{server}/away/ftp?token=secret",
        "{server}/away/data?token=secret",
        "{server}/clip .mp4?token=secret",  # urllib repeats it
        "{server}/clip\n.mp4?token=secret",
        "http://user:secret@127.0.0.1:1/clip.mp4?token=secret#secret",
        "http://[::1/clip.mp4?token=secret",
        "http://127.0.0.1:port/clip.mp4?token=secret",
    ],
)
def test_no_message_holds_the_query_or_the_password_of_an_address(address, server, downloads):
    with pytest.raises(ValueError, match="Could not download") as error:
        read_video(address.format(server=server), timeout=2)
    shown = "".join(traceback.format_exception(error.value))
    assert "secret" not in str(error.value)
    assert "secret" not in shown.replace(address, "")
    assert str(error.value).isprintable()


def test_server_that_does_not_answer_is_an_error(downloads):
    with pytest.raises(ValueError, match="Could not download"):
        read_video("http://127.0.0.1:1/clip.mp4", timeout=2)


def test_no_thread_reads_on_where_preparing_a_frame_fails(mp4, monkeypatch):
    monkeypatch.setattr(video_reading, "_PREPARED_BYTES", 0)  # prepared one by one, as large frames are
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    before = set(threading.enumerate())

    def broken(frames):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="clip.mp4: mine") as error:
        read_video(mp4, prepare=broken)
    # while the exception, and with it every frame of the call, is still there
    assert set(threading.enumerate()) <= before, error
