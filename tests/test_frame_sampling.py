"""Index lists against lists worked out by hand from the released code; each comment shows the arithmetic."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_tps.frame_sampling import sample_frame_indices

TPS_K400 = {"sampling": "dense", "frame_interval": 2, "index_rule": "stride", "past_end": "loop"}
XVIT_K400 = {
    "sampling": "dense",
    "num_frames": 16,
    "frame_interval": 16,
    "index_rule": "linspace",
    "past_end": "clamp",
    "clip_placement": "start",
}
LAPS_K400 = {
    "sampling": "dense",
    "num_frames": 8,
    "frame_interval": 8,
    "index_rule": "linspace",
    "past_end": "loop",
    "clip_placement": "start",
}


def test_tps_kinetics_clips_lie_in_the_middle_of_their_quarter_of_the_video():
    # Span 32 * 2 = 64. 281 frames leave 281 - 64 + 1 = 218 starts, 54.5 per clip; the middles of the four parts,
    # 27.25, 81.75, 136.25 and 190.75, are cut to whole frames.
    indices = sample_frame_indices(281, num_frames=32, num_clips=4, **TPS_K400)
    assert indices.dtype == np.int64
    assert indices.shape == (4, 32)
    assert indices[:, 0].tolist() == [27, 81, 136, 190]
    # fmt: off
    assert indices[0].tolist() == [
        27, 29, 31, 33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57,
        59, 61, 63, 65, 67, 69, 71, 73, 75, 77, 79, 81, 83, 85, 87, 89,
    ]
    # fmt: on
    assert indices[3, -1] == 190 + 62


def test_tps_kinetics_single_clip_is_centred():
    # Span 8 * 2 = 16, 100 - 16 + 1 = 85 starts, the middle 42.5 is cut to 42.
    indices = sample_frame_indices(100, num_frames=8, **TPS_K400)
    assert indices.tolist() == [[42, 44, 46, 48, 50, 52, 54, 56]]


def test_video_exactly_as_long_as_the_window_starts_at_frame_0():
    indices = sample_frame_indices(16, num_frames=8, num_clips=2, **TPS_K400)
    assert indices.tolist() == [[0, 2, 4, 6, 8, 10, 12, 14]] * 2


@pytest.mark.parametrize(
    ("past_end", "expected"),
    [("loop", [0, 2, 4, 6, 8, 0, 2, 4]), ("clamp", [0, 2, 4, 6, 8, 9, 9, 9])],
)
def test_dense_window_past_the_end_of_a_short_video(past_end, expected):
    # The window 0, 2, ..., 14 on ten frames: modulo 10, or stopped at 9.
    settings = TPS_K400 | {"past_end": past_end}
    assert sample_frame_indices(10, num_frames=8, **settings).tolist() == [expected]


def test_three_frame_clip_is_repeated():
    assert sample_frame_indices(3, num_frames=4, **TPS_K400).tolist() == [[0, 2, 1, 0]]  # 0, 2, 4, 6 modulo 3


def test_strided_clips_from_the_start():
    # Span 16, room 100 - 16 = 84, starts 0, 28, 56.
    indices = sample_frame_indices(100, num_frames=8, num_clips=3, clip_placement="start", **TPS_K400)
    assert indices[:, 0].tolist() == [0, 28, 56]


def test_something_something_views_are_middle_start_and_end_of_each_segment():
    # Segments of (21 - 1) / 8 = 2.5 frames. Borders 0, 2.5, 5, 7.5, ... round half to even: 0 2 5 8 10 12 15 18 20.
    # Middles are (start + end) // 2.
    indices = sample_frame_indices(21, num_frames=8, num_clips=3, sampling="uniform")
    assert indices.tolist() == [
        [1, 3, 6, 9, 11, 13, 16, 19],
        [0, 2, 5, 8, 10, 12, 15, 18],
        [2, 5, 8, 10, 12, 15, 18, 20],
    ]


def test_something_something_at_the_released_length():
    # 33 frames: borders 0, 1, ..., 32, so the middle (i + i + 1) // 2 is i. The interval has no say.
    indices = sample_frame_indices(33, num_frames=32, sampling="uniform", frame_interval=7)
    assert indices.tolist() == [list(range(32))]


def test_uniform_repeats_the_frames_of_a_short_video():
    # Borders 0, .25, .5, .75, 1, ... round to 0 0 0 1 1 1 2 2 2.
    assert sample_frame_indices(3, num_frames=8, sampling="uniform").tolist() == [[0, 0, 0, 1, 1, 1, 2, 2]]
    assert sample_frame_indices(1, num_frames=4, sampling="uniform").tolist() == [[0, 0, 0, 0]]


def test_xvit_kinetics_takes_every_17th_frame_of_its_window():
    # 16 frames over 16 * 16 = 256, both ends included: 255 / 15 = 17 apart. One clip starts at frame 0.
    indices = sample_frame_indices(300, **XVIT_K400)
    assert indices.tolist() == [[0, 17, 34, 51, 68, 85, 102, 119, 136, 153, 170, 187, 204, 221, 238, 255]]


def test_xvit_kinetics_stops_at_the_last_frame_of_a_short_video():
    indices = sample_frame_indices(200, **XVIT_K400)
    assert indices.tolist() == [[0, 17, 34, 51, 68, 85, 102, 119, 136, 153, 170, 187, 199, 199, 199, 199]]


def test_laps_ten_clips_begin_between_frames():
    # 8 frames over 8 * 8 = 64: 63 / 7 = 9 apart. Room 300 - 64 = 236, clip i starts at 23.6 i: 70.8 for the fourth,
    # 212.4 for the last; positions are cut after adding, 70.8 + 9 k.
    indices = sample_frame_indices(300, num_clips=10, **LAPS_K400)
    assert indices.shape == (10, 8)
    assert indices[0].tolist() == [0, 9, 18, 27, 36, 45, 54, 63]
    assert indices[3].tolist() == [70, 79, 88, 97, 106, 115, 124, 133]
    assert indices[9].tolist() == [212, 221, 230, 239, 248, 257, 266, 275]
    assert indices[:, 0].tolist() == [0, 23, 47, 70, 94, 118, 141, 165, 188, 212]


def test_laps_short_video_wraps():
    # 0, 9, ..., 63 modulo 20.
    assert sample_frame_indices(20, **LAPS_K400).tolist() == [[0, 9, 18, 7, 16, 5, 14, 3]]


def test_linspace_adds_its_steps_to_a_start_between_frames():
    # 4 frames over 4 * 3 = 12: 11 / 3 = 3.67 apart. Room 20 - 12 = 8, the second of five clips starts at 1.6:
    # 1.6, 5.27, 8.93, 12.6 (from a whole start, 1, they would be 1, 4, 8, 12).
    settings = LAPS_K400 | {"num_frames": 4, "frame_interval": 3}
    assert sample_frame_indices(20, num_clips=5, **settings)[1].tolist() == [1, 5, 8, 12]


def test_linspace_can_be_centred():
    # Span 64 of 100 frames: 37 starts, the middle 18.5 is cut to 18.
    indices = sample_frame_indices(100, **LAPS_K400 | {"clip_placement": "centre"})
    assert indices.tolist() == [[18, 27, 36, 45, 54, 63, 72, 81]]


def test_uniform_training_draws_inside_each_segment_and_reaches_both_borders():
    settings = {"num_frames": 8, "sampling": "uniform", "training": True}
    draws = np.concatenate([sample_frame_indices(21, **settings) for _ in range(300)])
    assert draws.min(axis=0).tolist() == [0, 2, 5, 8, 10, 12, 15, 18]
    assert draws.max(axis=0).tolist() == [2, 5, 8, 10, 12, 15, 18, 20]


@pytest.mark.parametrize("index_rule", ["stride", "linspace"])
def test_dense_training_starts_anywhere_in_the_room_and_nowhere_else(index_rule):
    settings = TPS_K400 | {"index_rule": index_rule, "training": True}
    draws = np.concatenate([sample_frame_indices(20, num_frames=8, **settings) for _ in range(300)])
    last = 14 if index_rule == "stride" else 15
    # Room 20 - 16 = 4. linspace starts between frames, so that 4 itself has probability 0.
    assert set(draws[:, 0]) == {0, 1, 2, 3, 4} - ({4} if index_rule == "linspace" else set())
    assert set(draws[:, -1] - draws[:, 0]) == {last}


def test_dense_training_clips_keep_to_their_part_of_the_video():
    # 97 starts in 4 parts of 24.
    draws = np.stack(
        [sample_frame_indices(112, num_frames=8, num_clips=4, training=True, **TPS_K400) for _ in range(300)]
    )
    starts = draws[:, :, 0]
    assert starts.min(axis=0).tolist() == [0, 24, 48, 72]
    assert starts.max(axis=0).tolist() == [23, 47, 71, 95]


@pytest.mark.parametrize("total_frames", [1, 5, 16, 17])
def test_dense_training_on_short_videos_stays_inside(total_frames):
    for index_rule in ("stride", "linspace"):
        settings = TPS_K400 | {"index_rule": index_rule, "training": True}
        indices = sample_frame_indices(total_frames, num_frames=8, num_clips=4, **settings)
        assert indices.min() >= 0
        assert indices.max() < total_frames


def test_training_positions_follow_the_given_generator_and_else_the_global_seed():
    settings = {"num_frames": 8, "sampling": "uniform", "training": True}
    with_generator = [
        sample_frame_indices(500, generator=torch.Generator().manual_seed(3), **settings) for _ in range(2)
    ]
    assert (with_generator[0] == with_generator[1]).all()
    first = sample_frame_indices(500, **settings)
    torch.manual_seed(7)
    seeded = sample_frame_indices(500, **settings)
    torch.manual_seed(7)
    assert (seeded == sample_frame_indices(500, **settings)).all()
    assert (seeded != first).any()


def test_video_without_frames_is_refused():
    with pytest.raises(ValueError, match="no frames"):
        sample_frame_indices(0, num_frames=8)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sampling": "random"}, "'uniform', 'dense'"),
        ({"index_rule": "step"}, "'stride', 'linspace'"),
        ({"past_end": "wrap"}, "'loop', 'clamp'"),
        ({"clip_placement": "center"}, "'centre', 'start'"),
        ({"num_frames": 0}, "num_frames must be"),
        ({"frame_interval": 1.5}, "frame_interval must be"),
        ({"num_clips": -1}, "num_clips must be"),
        ({"num_clips": 4}, "at most 3"),
    ],
)
def test_unknown_setting_is_refused_with_what_is_allowed(setting, message):
    with pytest.raises(ValueError, match=message):
        sample_frame_indices(100, **{"num_frames": 8, **setting})


# --- properties ------------------------------------------------------------------------------------------------------


VIDEOS = st.integers(1, 2000)
DENSE = st.fixed_dictionaries(
    {
        "sampling": st.just("dense"),
        "num_frames": st.integers(1, 40),
        "frame_interval": st.integers(1, 20),
        "num_clips": st.integers(1, 10),
        "clip_placement": st.sampled_from(["centre", "start"]),
        "training": st.booleans(),
    }
)
UNIFORM = st.fixed_dictionaries(
    {
        "sampling": st.just("uniform"),
        "num_frames": st.integers(1, 40),
        "num_clips": st.integers(1, 3),
        "training": st.booleans(),
    }
)


@given(
    total=VIDEOS,
    settings=st.one_of(DENSE, UNIFORM),
    index_rule=st.sampled_from(["stride", "linspace"]),
    past_end=st.sampled_from(["loop", "clamp"]),
)
def test_indices_are_frames_of_the_video(total, settings, index_rule, past_end):
    indices = sample_frame_indices(total, index_rule=index_rule, past_end=past_end, **settings)
    assert indices.dtype == np.int64
    assert indices.shape == (settings["num_clips"], settings["num_frames"])
    assert indices.min() >= 0
    assert indices.max() < total
    fits = total >= settings["num_frames"] * settings.get("frame_interval", 1)
    if settings["sampling"] == "uniform" or past_end == "clamp" or fits:
        assert (np.diff(indices) >= 0).all()
    if not settings["training"] and settings["sampling"] == "dense":
        assert (np.diff(indices[:, 0]) >= 0).all()


@given(total=VIDEOS, settings=DENSE, past_end=st.sampled_from(["loop", "clamp"]))
def test_a_strided_window_is_every_so_manyth_frame_from_its_start(total, settings, past_end):
    for clip in sample_frame_indices(total, index_rule="stride", past_end=past_end, **settings).tolist():
        expected = [clip[0]]
        for _ in range(settings["num_frames"] - 1):
            following = expected[-1] + settings["frame_interval"]
            while following >= total and past_end == "loop":
                following -= total
            expected.append(min(following, total - 1))
        assert clip == expected


@given(total=VIDEOS, settings=DENSE, past_end=st.sampled_from(["loop", "clamp"]))
def test_a_linspace_window_reaches_from_its_first_to_its_last_frame(total, settings, past_end):
    span = settings["num_frames"] * settings["frame_interval"]
    for clip in sample_frame_indices(total, index_rule="linspace", past_end=past_end, **settings).tolist():
        if total >= span and settings["num_frames"] > 1:
            # a start between two frames, cut to whole frames at both ends
            assert span - 2 <= clip[-1] - clip[0] <= span
            steps = np.diff(clip)
            assert steps.max() - steps.min() <= 1


@given(total=VIDEOS, settings=UNIFORM)
def test_uniform_clips_take_one_frame_of_each_segment(total, settings):
    borders = [round((total - 1) / settings["num_frames"] * place) for place in range(settings["num_frames"] + 1)]
    for clip in sample_frame_indices(total, **settings).tolist():
        assert all(first <= frame <= last for first, frame, last in zip(borders, clip, borders[1:], strict=False))
    if not settings["training"]:
        middle = sample_frame_indices(total, **settings | {"num_clips": 1}).tolist()[0]
        assert middle == [(first + last) // 2 for first, last in zip(borders, borders[1:], strict=False)]
