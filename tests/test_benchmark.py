"""The benchmark, run as a user runs it, on models of a few channels. No time is ever checked."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from examples.benchmarks import benchmark


def run(cwd: Path, root: Path, *arguments: str) -> subprocess.CompletedProcess:
    script = root / "examples" / "benchmarks" / "benchmark.py"
    command = [sys.executable, str(script), "--smoke", "--rounds", "2", "--threads", "1", "--device", "cpu", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_every_model_is_measured_in_both_passes(root, tmp_path):
    done = run(tmp_path, root, "--passes", "forward", "train", "--output_dir", "out")
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    names = list(benchmark.catalogue())
    assert [row["model"] for row in results["rows"]] == names * 2
    assert [row["setting"]["step"] for row in results["rows"]] == ["forward"] * len(names) + ["train"] * len(names)
    for row in results["rows"]:
        assert min(row[key] for key in ("seconds", "peak_memory", "macs", "parameters", "efficiency")) > 0, row
        assert (row["ratio"] is None) == (row["peer"] is None)
    assert len([line for line in done.stdout.splitlines() if line.startswith("| ")]) == 2 + 2 * len(names)
    picture = np.asarray(Image.open(tmp_path / "out" / "cost.png").convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    assert set(results["machine"]) >= {"processor", "cores", "threads", "torch", "transformers"}


def test_settings_are_combined_and_a_model_that_refuses_one_is_named(root, tmp_path):
    done = run(
        tmp_path,
        root,
        *("--models", "tps-tiny", "vit-base-8", "--batch_size", "1", "2", "--attention", "sdpa", "flash_attention_2"),
    )
    assert done.returncode in (0, 1)
    assert "left out: tps-tiny with" in done.stderr
    assert "Traceback" not in done.stderr
    rows = json.loads((tmp_path / "benchmark_output" / "results.json").read_text())["rows"]
    measured = [(row["model"], row["setting"]["batch_size"]) for row in rows if row["setting"]["attention"] == "sdpa"]
    assert measured == [("tps-tiny", 1), ("vit-base-8", 1), ("tps-tiny", 2), ("vit-base-8", 2)]


def test_another_implementation_is_measured_against_the_first_model(root, tmp_path, monkeypatch):
    (tmp_path / "released.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), (12,)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    done = run(tmp_path, root, "--models", "vit-base-8", "--reference", "released:net", "--passes", "train")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "benchmark_output" / "results.json").read_text())["rows"]
    assert [(row["model"], row["peer"]) for row in rows] == [
        ("vit-base-8", None),
        ("released:net", "vit-base-8"),
    ]
    assert rows[1]["macs"] == 48
    assert rows[1]["parameters"] == 52
    assert rows[0]["ratio"] is None
    assert rows[1]["ratio"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "resnet"], "unknown models ['resnet']"),
        (["--batch_size", "0"], "--batch_size must be at least 1"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--reference", "json"], "--reference takes MODULE:CALLABLE"),
        (["--reference", "json:absent"], "has no attribute 'absent'"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark.parse_arguments(["--smoke", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_peak_memory_counts_what_lives_at_the_same_time():
    start = torch.zeros(1000)
    with torch.no_grad(), benchmark.PeakMemory() as counter:
        once = start + 1
        view = once.view(10, 100)
        twice = view * 2
        del once, view
        twice.add_(1)
        torch.empty(250)
        _ = twice + 1
    assert counter.peak == 8000


def test_peak_memory_of_a_training_step_holds_activations_and_gradients():
    model = nn.Sequential(nn.Linear(10, 1000), nn.ReLU(), nn.Linear(1000, 10))
    clip = torch.randn(8, 10)
    with torch.no_grad(), benchmark.PeakMemory() as forward:
        model(clip)
    with benchmark.PeakMemory() as step:
        model(clip).sum().backward()
    assert forward.peak < 3 * 8 * 1000 * 4
    assert step.peak > 4 * sum(parameter.numel() for parameter in model.parameters())
