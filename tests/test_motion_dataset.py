"""The motion benchmark: opposite classes must differ in the order of the frames alone, and the files must hold it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.experiments import make_motion_dataset as motion
from hf_tps.video_reading import read_video

SETTINGS = motion.MotionSettings()


@pytest.fixture(scope="module")
def written(root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("motion") / "videos"
    done = make(root, folder, "--num_workers", "2")
    assert done.returncode == 0, done.stderr
    return folder


def make(root: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    script = root / "examples" / "experiments" / "make_motion_dataset.py"
    sizes = ["--train_clips", "24", "--validation_clips", "12", "--num_frames", "4"]
    command = [sys.executable, str(script), str(folder), *sizes, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_opposite_class_is_the_same_clip_backwards():
    for index in range(24):
        label = motion.class_of_clip(index)
        frames = motion.motion_clip(SETTINGS, 3, "train", index)
        opposite = motion.motion_clip(SETTINGS, 3, "train", index, motion.opposite_class(label))
        assert np.array_equal(frames, opposite[::-1]), label
        assert not np.array_equal(frames, opposite), label


def test_what_is_drawn_does_not_depend_on_the_class():
    """The first frames of all clips of one scene show one sprite at one place: none tells the axis or the sense."""
    firsts = [motion.motion_clip(SETTINGS, 0, "train", 5, pair[0])[0] for pair in motion.CLASS_PAIRS[:5]]
    assert all(np.array_equal(first, firsts[0]) for first in firsts)


def sprite_centre(frames: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre (row, column) in pixels of what differs from the background on the torus, and its area, of each frame."""
    size = frames.shape[1]
    cover = (np.abs(frames.astype(int) - background).sum(-1) > 60).astype(float)
    turns = np.exp(2j * np.pi * np.arange(size) / size)
    angles = np.stack((np.angle(cover.sum(2) @ turns), np.angle(cover.sum(1) @ turns)), axis=1)
    return angles % (2 * np.pi) * size / (2 * np.pi), cover.sum((1, 2))


@pytest.mark.parametrize(
    ("label", "direction"),
    [
        ("move_right", (0, 1)),
        ("move_left", (0, -1)),
        ("move_down", (1, 0)),
        ("move_up", (-1, 0)),
        ("move_down_right", (1, 1)),
        ("move_up_left", (-1, -1)),
        ("move_down_left", (1, -1)),
        ("move_up_right", (-1, 1)),
    ],
)
def test_the_sprite_moves_where_the_class_says_at_the_speed_of_the_settings(label, direction):
    settings = motion.MotionSettings(noise=0)
    half = settings.size / 2
    for index in range(8):
        scene = motion.draw_scene(settings, 0, "train", index)
        frames = motion.motion_clip(settings, 0, "train", index, label)
        seen, _ = sprite_centre(frames, scene.background)
        told, _ = motion.sprite_poses(settings, 0, "train", index, label)
        for centres in (seen, told):
            steps = (np.diff(centres, axis=0) + half) % settings.size - half
            assert steps.mean(0) == pytest.approx(scene.speed * np.array(direction) / np.hypot(*direction), abs=0.15)


def test_the_sprite_grows_and_turns_where_the_class_says():
    settings = motion.MotionSettings(noise=0, num_frames=2, turn=(30, 30), size=64)
    for index in range(8):
        scene = motion.draw_scene(settings, 0, "train", index)
        centre, _ = motion.sprite_poses(settings, 0, "train", index, "rotate_clockwise")
        to_middle = (32 - centre[0]).round().astype(int)
        first, last = np.roll(
            motion.motion_clip(settings, 0, "train", index, "rotate_clockwise"), to_middle, axis=(1, 2)
        )
        inside = np.hypot(*(np.mgrid[:64, :64] - 31.5)) < 16
        # PIL turns counterclockwise: by so much back, and as much on
        back, on = (
            np.abs(np.asarray(Image.fromarray(last).rotate(angle)).astype(int) - first)[inside].mean()
            for angle in (30, -30)
        )
        assert back < 0.5 * on, index

        _, area = sprite_centre(motion.motion_clip(settings, 0, "train", index, "grow"), scene.background)
        assert area[1] > 3 * area[0], index


def test_splits_and_clips_share_no_sprite_and_no_background():
    settings = motion.MotionSettings(noise=0)
    firsts = [
        motion.motion_clip(settings, seed, split, index, "move_right")[0].tobytes()
        for seed in (0, 1)
        for split in motion.SPLITS
        for index in range(24)
    ]
    assert len(set(firsts)) == len(firsts)
    scenes = [motion.draw_scene(settings, 0, split, index) for split in motion.SPLITS for index in range(24)]
    assert len({scene.background.tobytes() for scene in scenes}) == len(scenes)
    assert len({scene.edge_at(np.arange(8)).tobytes() for scene in scenes}) == len(scenes)


def test_the_files_hold_the_clips_and_decode_through_the_package_reader(written):
    settings = motion.MotionSettings(num_frames=4)
    for split, count in (("train", 24), ("validation", 12)):
        assert len(list((written / split).rglob("*.mp4"))) == count
        for index in range(count):
            label = motion.class_of_clip(index)
            frames, metadata = read_video(written / split / label / f"{index // 12:05d}.mp4")
            assert metadata.total_num_frames == 4
            drawn = motion.motion_clip(settings, 0, split, index)
            decoded = frames.permute(0, 2, 3, 1).numpy().astype(int)
            # colour is stored at half the resolution, which takes most of its noise away
            error, error_backwards = (np.abs(decoded - clip).mean() for clip in (drawn, drawn[::-1]))
            assert error < 8, (split, index)
            assert error < error_backwards, (split, index)


def test_every_frame_is_coded_by_itself(written):
    """Else the residue of the prediction tells one frame what came before it."""
    import av

    with av.open(str(next((written / "train").rglob("*.mp4")))) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert all(packet.is_keyframe for packet in container.demux(stream) if packet.size)


def test_the_folder_is_what_datasets_calls_a_videofolder(written):
    from datasets import Video, load_dataset

    loaded = load_dataset("videofolder", data_dir=str(written)).cast_column("video", Video(decode=False))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 24, "validation": 12}
    assert sorted(motion.CLASSES) == loaded["train"].features["label"].names


def test_the_same_arguments_give_the_same_bytes_and_another_seed_does_not(written, root, tmp_path):
    assert make(root, tmp_path / "again").returncode == 0
    assert files(tmp_path / "again") == files(written)
    assert make(root, tmp_path / "other", "--seed", "1").returncode == 0
    other, first = files(tmp_path / "other"), files(written)
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train_clips", "25"], "multiple of the 12 classes, got 25"),
        (["--validation_clips", "0"], "multiple of the 12 classes, got 0"),
        (["--size", "16"], "32 to 64, got 16"),
        (["--num_frames", "1"], "from 2 to 32, got 1"),
        (["--noise", "-1"], "from 0 to 64"),
        (["--seed", "-1"], "seed must be 0 or more"),
        (["--num_workers", "0"], "num_workers must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(arguments, message, root, tmp_path):
    done = make(root, tmp_path / "videos", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_content_is_replaced_only_on_demand_and_only_if_it_is_a_benchmark(root, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for flags, message in (([], "is not empty"), (["--overwrite"], "not replaced")):
        done = make(root, mine, *flags)
        assert done.returncode == 1
        assert message in done.stderr
        assert (mine / "thesis.txt").read_text() == "years of work"

    videos = tmp_path / "videos"
    assert make(root, videos).returncode == 0
    before = files(videos)
    assert make(root, videos, "--seed", "1").returncode == 1
    assert files(videos) == before
    assert make(root, videos, "--seed", "1", "--overwrite").returncode == 0
    assert files(videos) != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "videos"]


def test_what_breaks_off_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(motion, "write_clip", fail)
    with pytest.raises(OSError, match="the disk is full"):
        motion.write_dataset(tmp_path / "videos", SETTINGS, {"train": 12})
    assert list(tmp_path.iterdir()) == []
