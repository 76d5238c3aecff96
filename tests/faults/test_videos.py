"""Broken videos: some of those that `make faults` reads, and each fault that was once found, by name."""

import io
import warnings
from functools import partial

import av
import numpy as np
import pytest
import torch

from hf_tps import TPSVideoProcessor
from hf_tps.video_reading import read_video
from tests.faults.sandbox import Case, Outcome, failures, run_cases
from tests.faults.videos import FORMATS, blank_gif, healthy_videos, plain_decode, textured_frames, video_cases
from tests.video_files import moving_frames, write_video


def test_broken_videos_have_the_right_answer_or_one_clear_sentence():
    results = list(run_cases(video_cases(seed=7, number=240)))
    assert not failures(results), failures(results)
    # The mutations reach deep and stay outside: all three outcomes occur, none of them seldom.
    found = [result.outcome for result in results]
    assert all(found.count(outcome) > 20 for outcome in (Outcome.RIGHT, Outcome.WARNED, Outcome.CLEAR_ERROR))


@pytest.mark.parametrize("name", ["h264_cut.ts", "hevc_cut.ts"])
def test_frames_of_a_stream_that_begins_inside_a_group_of_pictures_are_counted_as_they_are_shown(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(healthy_videos()[name])
    shown = plain_decode(path.read_bytes(), FORMATS[path.suffix]).frames
    with av.open(str(path)) as container:
        packets = sum(packet.size > 0 for packet in container.demux(video=0))
    assert len(shown) <= packets  # older decoders show them all, newer ones leave some out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frames, metadata = read_video(path, [10])
    assert metadata.total_num_frames == len(shown)
    assert np.array_equal(frames[0].permute(1, 2, 0).numpy(), shown[10])


def damaged(name: str) -> bytes:
    """A few bytes of each picture after the first ones: decoders do not notice every change."""
    data = bytearray(healthy_videos()[name])
    for place in range(len(data) // 3, len(data) - len(data) // 8, 701):
        data[place] ^= 0x10
    return bytes(data)


@pytest.mark.parametrize("name", ["h264.mp4", "h264_slices.mkv", "mpeg4.avi", "mpeg2.mpg", "wmv2.wmv", "flv1.flv"])
def test_a_picture_that_the_decoder_knows_to_be_damaged_is_told(name, tmp_path):
    data = damaged(name)
    answers = []
    (tmp_path / name).write_bytes(data)
    for source in (tmp_path / name, data, io.BytesIO(data)):
        with pytest.warns(UserWarning, match="is damaged or cut off: "):
            answers.append(read_video(source)[0])
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    assert not np.array_equal(answers[0], read_video(healthy_videos()[name])[0])


def test_damage_outside_of_what_was_asked_for_costs_nothing(tmp_path):
    data = damaged("h264.mp4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames, _ = read_video(data, [0, 5])
    assert torch.equal(frames, read_video(healthy_videos()["h264.mp4"], [0, 5])[0])


def test_a_tag_that_is_not_utf8_does_not_keep_a_healthy_file_from_being_read():
    data = healthy_videos()["latin1.mkv"]
    with pytest.raises(UnicodeDecodeError):
        av.open(io.BytesIO(data))
    assert read_video(data, [3])[1].total_num_frames == 40


def test_too_large_frames_are_not_decoded_and_the_limit_can_be_moved():
    gif = blank_gif(600, 400, frames=3)
    with pytest.raises(ValueError, match="larger than the 200000 pixels that max_frame_pixels"):
        read_video(gif, max_frame_pixels=200_000)
    assert read_video(gif, max_frame_pixels=240_000)[0].shape == (3, 3, 400, 600)
    processor = TPSVideoProcessor(num_frames=4)
    with pytest.raises(ValueError, match="max_frame_pixels"):
        processor(gif, max_frame_pixels=200_000)
    assert processor(gif, return_tensors="pt", max_frame_pixels=240_000).pixel_values.shape == (1, 4, 3, 224, 224)


def test_a_strip_of_pixels_is_not_resized_to_all_the_memory_there_is(tmp_path):
    path = tmp_path / "strip.gif"
    path.write_bytes(blank_gif(65535, 1))
    with pytest.raises(ValueError, match="strip.gif: .*resized to 16776960x256, more than the 35389440 pixels"):
        TPSVideoProcessor()(path)


FULL_SIZE = 3 * 2160 * 3840 / 2**20  # MB of one decoded frame


def read_in_4k(path, how, folder):
    """How much memory decoding takes alone, and reading 32 frames into a clip."""
    if how == "decode":
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for _ in container.decode(video=0):
                pass
    else:
        TPSVideoProcessor(num_frames=32, sampling="dense")(path, return_tensors="pt")
    return Outcome.RIGHT, ""


def test_32_frames_of_4k_take_no_more_memory_than_three_frames_above_decoding(tmp_path):
    path = tmp_path / "4k.mp4"
    write_video(path, textured_frames(33, 2160, 3840), codec_options={"preset": "ultrafast"})
    cases = [Case(how, partial(read_in_4k, path, how), megabytes=2000) for how in ("decode", "read")]
    decode, read = run_cases(cases)
    assert (decode.outcome, read.outcome) == (Outcome.RIGHT, Outcome.RIGHT), (decode, read)
    result = 32 * 3 * 224 * 224 * 4 / 2**20
    assert read.megabytes - decode.megabytes - result < 3 * FULL_SIZE


@pytest.mark.parametrize(
    "error", [IndexError("list index out of range"), RuntimeError("[enforce fail]"), MemoryError()]
)
def test_whatever_breaks_inside_the_decoder_is_a_value_error_that_names_the_file(error, tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    write_video(path, moving_frames(4))

    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(av, "open", broken)
    with pytest.raises(ValueError, match=f"clip.mp4: cannot be read.*{type(error).__name__}"):
        read_video(path)


def test_an_error_of_the_callers_own_function_comes_back_as_it_was():
    def choose(metadata):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        read_video(healthy_videos()["h264.mp4"], choose)


class Greedy(io.BytesIO):
    """Gives more than it was asked for."""

    def read(self, size=-1):
        return super().read(size if size < 0 else size + 100_000)


def test_a_file_object_that_gives_too_much_is_refused_before_it_reaches_the_decoder():
    with pytest.raises(ValueError, match=r"file object Greedy is no binary file: read\(\d+\) gave"):
        read_video(Greedy(healthy_videos()["gif.gif"]))


def test_control_characters_of_a_name_are_shown_escaped(tmp_path):
    path = tmp_path / "clip\x1b[2J\n.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(ValueError, match="is not a video file") as error:
        read_video(path)
    assert "clip\\x1b[2J\\n.mp4" in str(error.value)
    assert str(error.value).isprintable()
    with pytest.raises(FileNotFoundError) as missing:
        read_video(f"{tmp_path}/none\x1b[2J")
    assert str(missing.value).isprintable()
