"""The scripts, run as a user runs them."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from examples import classify as examples_classify
from tests import micro_models
from tests.comparison import assert_close_to_spread
from tests.video_files import moving_frames, write_video


@pytest.fixture
def folder(tmp_path) -> Path:
    model = micro_models.classifier("tps")
    model.config.id2label = {index: f"action {index}" for index in range(5)}
    processor = micro_models.processor(model.config, num_crops=3)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def in_a_process(root: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    script = root / "examples" / "classify.py"
    return subprocess.run([sys.executable, str(script), *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def classify(tmp_path, monkeypatch, capsys):
    """The script without the seconds of a process of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        try:
            code = examples_classify.main([*arguments])
        except SystemExit as stopped:
            code = stopped.code
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    return run


def test_classify_prints_a_table_and_draws_a_picture_for_every_video(folder, tmp_path, root):
    for name in ("one.mp4", "two.mp4"):
        write_video(tmp_path / name, moving_frames(12))
    done = in_a_process(
        root, tmp_path, "one.mp4", "two.mp4", "--model", "model", "--top_k", "3", "--plot", "answer.png"
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "action" in line]
    assert len(lines) == 6
    scores = [float(line.split()[-1].rstrip("%")) for line in lines]
    assert scores[:3] == sorted(scores[:3], reverse=True)
    picture = np.asarray(Image.open(tmp_path / "answer.png").convert("RGB"))
    assert picture.shape[1] > 1000
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


def test_classify_takes_folders_and_patterns_and_writes_a_table(folder, tmp_path, classify):
    (tmp_path / "holidays" / "beach").mkdir(parents=True)
    for name in ("holidays/beach/one.mp4", "holidays/two.avi", "cat1.mp4", "cat2.mp4"):
        write_video(tmp_path / name, moving_frames(12))
    (tmp_path / "holidays" / "notes.txt").write_text("no video")
    (tmp_path / "holidays" / "broken.mp4").write_text("no video")
    given = ("holidays", "cat*.mp4", "cat1.mp4", "--model", "model", "--top_k", "2")
    done = classify(*given, "--output", "answers.csv")
    assert done.returncode == 1  # one is broken
    rows = list(csv.DictReader((tmp_path / "answers.csv").open(encoding="utf-8")))
    names = ["holidays/beach/one.mp4", "holidays/broken.mp4", "holidays/two.avi", "cat1.mp4", "cat2.mp4"]
    assert [row["video"] for row in rows] == names
    assert rows[1]["class_1"] == ""
    assert "is not a video file" in rows[1]["error"]
    for row in rows[:1] + rows[2:]:
        assert row["class_1"].startswith("action")
        assert float(row["score_1"]) >= float(row["score_2"]) > 0
        assert row["error"] == ""
    done = classify(*given, "--output", "answers.json")
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert [answer["video"] for answer in answers] == names
    assert [len(answer["classes"]) for answer in answers] == [2, 0, 2, 2, 2]
    assert answers[0]["classes"][0]["score"] == pytest.approx(float(rows[0]["score_1"]), abs=1e-5)


def test_classify_draws_pages_of_six_videos_with_seconds_under_the_frames(folder, tmp_path, classify):
    for number in range(7):
        write_video(tmp_path / f"clip{number}.mp4", moving_frames(12))
    done = classify("clip*.mp4", "--model", "model", "--plot", "page.png")
    assert done.returncode == 0, done.stderr
    six, one = (Image.open(tmp_path / name) for name in ("page.png", "page-2.png"))
    assert six.width == one.width
    assert six.height > 5 * one.height
    answer = examples_classify.Answer("x", [], frames=torch.zeros(4, 8, 8, 3), seconds=[0.5, 1.0, 1.5, 2.0])
    axes = Figure().add_axes((0, 0, 1, 1))
    examples_classify.label_frames(axes, answer, 40)
    assert [text.get_text() for text in axes.texts] == ["0.50 s", "1.00 s", "1.50 s", "2.00 s"]


def test_a_guess_looks_like_a_guess():
    axes = Figure().add_axes((0, 0, 1, 1))
    examples_classify.draw_bars(axes, [("waving", 0.018), ("jumping", 0.017)])
    assert axes.get_xlim() == (0, 1)
    assert [bar.get_width() for bar in axes.patches[2:]] == [0.018, 0.017]


def test_several_views_are_the_same_one_by_one(folder, tmp_path):
    write_video(tmp_path / "clip.mp4", moving_frames(12))
    model, processor = examples_classify.load(str(folder))
    answer = examples_classify.classify(str(tmp_path / "clip.mp4"), model, processor, 5)
    batch = processor(str(tmp_path / "clip.mp4"), return_tensors="pt").pixel_values
    assert batch.shape[1] == 3
    expected = model(pixel_values=batch).logits[0].softmax(-1).sort(descending=True).values
    assert_close_to_spread(torch.tensor([score for _, score in answer.classes]), expected)


def test_classify_goes_on_after_a_broken_video_and_says_so(folder, tmp_path, classify):
    (tmp_path / "broken.mp4").write_text("no video")
    write_video(tmp_path / "good.mp4", moving_frames(12))
    done = classify("broken.mp4", "absent.mp4", "good.mp4", "--model", "model")
    assert done.returncode == 1
    assert "error: broken.mp4" in done.stderr
    assert "error: absent.mp4" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("action") == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top_k", "0"], "--top_k must be at least 1"),
        (["--plot", "nowhere/x.png"], "no folder nowhere"),
        (["--output", "answers.txt"], "must end in .csv or .json"),
    ],
)
def test_classify_refuses_bad_arguments_before_it_works(arguments, message, folder, tmp_path, classify):
    done = classify("x.mp4", "--model", "model", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(("video", "message"), [("empty", "empty has no videos"), ("*.mkv", "No file fits")])
def test_classify_says_where_there_is_nothing_to_classify(video, message, folder, tmp_path, classify):
    (tmp_path / "empty").mkdir()
    done = classify(video, "--model", "model")
    assert done.returncode == 1
    assert f"error: {message}" in done.stderr


def test_classify_names_a_model_that_is_not_there(classify):
    done = classify("x.mp4", "--model", "absent_model")
    assert done.returncode == 1
    assert "error: absent_model" in done.stderr
    assert "Traceback" not in done.stderr
