"""The scripts around token merging, run as a user runs them."""

import resource
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from transformers.video_utils import VideoMetadata

from examples import show_merging
from examples.benchmarks import merging_costs
from hf_tps import STTMForVideoClassification, TPSVideoProcessor
from hf_tps.training import pictures
from tests import video_transformers
from tests.video_files import moving_frames, write_video


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "clip.mp4", moving_frames(20, 48, 64))
    video_transformers.build("videomae").save_pretrained(tmp_path / "plain")
    return tmp_path


def test_a_plain_checkpoint_gives_a_picture_and_a_film(work, root):
    script = root / "examples" / "show_merging.py"
    arguments = [
        "clip.mp4",
        "--model",
        "plain",
        "--output",
        "merging.png",
        "--film",
        "merging.mp4",
        "--keep_ratio",
        "0.7",
    ]
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tokens: 64 -> 44 -> 31 -> 22 (34% are left)" in done.stdout
    assert "no settings of a processor" in done.stderr
    picture = np.asarray(Image.open("merging.png").convert("RGB"))
    assert picture.shape[0] > 1000  # frames, three stages, motion
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    with av.open("merging.mp4") as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 4
    assert frames[0].shape == (32, 4 * 32, 3)
    assert sorted(path.name for path in work.iterdir()) == ["clip.mp4", "merging.mp4", "merging.png", "plain"]


def test_a_merging_model_with_its_processor_gives_a_gif(work, capsys):
    STTMForVideoClassification.from_video_pretrained("plain", keep_ratio=0.75).save_pretrained("sttm")
    TPSVideoProcessor(num_frames=8, num_clips=3).save_pretrained("sttm")
    assert show_merging.main(["clip.mp4", "--model", "sttm", "--film", "film.gif"]) == 0
    assert "64 -> 48 -> 36 -> 27" in capsys.readouterr().out
    with Image.open("film.gif") as film:
        assert film.n_frames == 4


def test_the_row_of_motion_is_there_only_where_tokens_move_and_frames_tell_their_seconds(work, monkeypatch):
    model, processor = show_merging.load("plain", 0.7)
    frames, states, seconds = show_merging.merge("clip.mp4", model, processor)
    assert seconds == pytest.approx([0.04 * index for index in processor.sample_frames(VideoMetadata(20))[::2]])
    drawn = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: drawn.append(figure))
    show_merging.plot(frames, states, seconds, "title", Path("x.png"))
    monkeypatch.setattr(show_merging, "tracks", lambda state: (np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0)))
    show_merging.plot(frames, states, seconds, "title", Path("x.png"))
    moving, still = ({axes.get_ylabel() for axes in figure.axes} - {""} for figure in drawn)
    assert moving - still == {"motion"}
    assert drawn[0].axes[0].get_title() == f"{seconds[0]:.2f} s"


def test_regions_have_one_colour_and_lone_tokens_stay_as_filmed(work):
    model, processor = show_merging.load("plain", 0.7)
    frames, states, _ = show_merging.merge("clip.mp4", model, processor)
    assert frames.shape == (4, 32, 32, 3)
    assert np.array_equal(show_merging.paint(frames, states[0]), frames)
    painted, numbers = show_merging.paint(frames, states[-1]), show_merging.regions(states[-1])
    middles = painted[:, 4::8, 4::8]  # away from outlines
    for token in range(numbers.max() + 1):
        colours = middles[numbers == token]
        if len(colours) > 1:
            assert np.abs(colours - colours[0]).max() < 1e-6
        else:
            assert np.allclose(colours, frames[:, 4::8, 4::8][numbers == token])


def test_what_cannot_be_shown_is_said(work, capsys):
    assert show_merging.main(["absent.mp4", "--model", "plain"]) == 1
    assert "absent.mp4" in capsys.readouterr().err
    assert show_merging.main(["clip.mp4", "--model", "absent_model"]) == 1
    assert "absent_model" in capsys.readouterr().err
    assert show_merging.main(["clip.mp4", "--model", "plain", "--keep_ratio", "7"]) == 1
    assert "in (0, 1]; got 7" in capsys.readouterr().err
    for arguments in (["--film", "film.avi"], ["--output", "nowhere/x.png"], ["--fps", "0"]):
        with pytest.raises(SystemExit):
            show_merging.main(["clip.mp4", "--model", "plain", *arguments])
    assert not list(work.glob("*.png"))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_damaged_model_is_one_line(file, work, capsys):
    (work / "plain" / file).write_bytes((work / "plain" / file).read_bytes()[:-100])
    assert show_merging.main(["clip.mp4", "--model", "plain"]) == 1
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("error: plain")]) == 1


def test_a_picture_that_the_disk_cannot_hold_is_one_line_and_no_file(work, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        assert show_merging.main(["clip.mp4", "--model", "plain"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "error: merging.png cannot be written: " in capsys.readouterr().err
    assert sorted(path.name for path in work.iterdir()) == ["clip.mp4", "plain"]


def test_the_page_has_the_costs_that_are_counted(root):
    row = " | ".join(merging_costs.row("LAPS-ViT-B 8x224"))
    assert f"| {row} |" in (root / "docs" / "sttm.md").read_text()
