"""The scripts, run as a user runs them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import micro_models
from tests.video_files import moving_frames, write_video


@pytest.fixture
def folder(tmp_path) -> Path:
    model = micro_models.classifier("tps")
    model.config.id2label = {index: f"action {index}" for index in range(5)}
    processor = micro_models.processor(model.config, num_crops=3)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def classify(root: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    script = root / "examples" / "classify.py"
    return subprocess.run([sys.executable, str(script), *arguments], cwd=cwd, capture_output=True, text=True)


def test_classify_prints_a_table_and_draws_a_picture_for_every_video(folder, tmp_path, root):
    for name in ("one.mp4", "two.mp4"):
        write_video(tmp_path / name, moving_frames(12))
    done = classify(root, tmp_path, "one.mp4", "two.mp4", "--model", "model", "--top_k", "3", "--plot", "answer.png")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "action" in line]
    assert len(lines) == 6
    scores = [float(line.split()[-1].rstrip("%")) for line in lines]
    assert scores[:3] == sorted(scores[:3], reverse=True)
    picture = np.asarray(Image.open(tmp_path / "answer.png").convert("RGB"))
    assert picture.shape[1] > 1000
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


def test_classify_goes_on_after_a_broken_video_and_says_so(folder, tmp_path, root):
    (tmp_path / "broken.mp4").write_text("no video")
    write_video(tmp_path / "good.mp4", moving_frames(12))
    done = classify(root, tmp_path, "broken.mp4", "absent.mp4", "good.mp4", "--model", "model")
    assert done.returncode == 1
    assert "error: broken.mp4" in done.stderr
    assert "error: absent.mp4" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("action") == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--top_k", "0"], "--top_k must be at least 1"), (["--plot", "nowhere/x.png"], "no folder nowhere")],
)
def test_classify_refuses_bad_arguments_before_it_works(arguments, message, folder, tmp_path, root):
    done = classify(root, tmp_path, "x.mp4", "--model", "model", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_classify_names_a_model_that_is_not_there(tmp_path, root):
    done = classify(root, tmp_path, "x.mp4", "--model", "absent_model")
    assert done.returncode == 1
    assert "error: absent_model" in done.stderr
    assert "Traceback" not in done.stderr
