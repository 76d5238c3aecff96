"""Checkpoints of a training: damage is found before anything is loaded, a full disk leaves the older ones whole."""

import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from hf_tps.training.checkpoints import (
    Progress,
    find_checkpoint,
    find_damage,
    list_checkpoints,
    load_checkpoint,
    remove_incomplete,
    save_checkpoint,
)
from hf_tps.training.manifest import MANIFEST


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    return Accelerator()


@pytest.fixture
def run(accelerator, tmp_path):
    """A run with a model, momentum, a schedule and its progress, and checkpoints after steps 1, 2 and 3."""
    model = nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    progress = Progress(fingerprint={"seed": 1}, history=[{"step": 1, "loss": 0.5}])
    accelerator.register_for_checkpointing(progress)
    for step in (1, 2, 3):
        model(torch.randn(2, 8)).sum().backward()
        optimizer.step()
        progress.step = step
        save_checkpoint(accelerator, tmp_path, step)
    return tmp_path


def flip(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


FILES = ("model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [flip, cut, Path.unlink], ids=["flipped", "cut", "missing"])
def test_a_damaged_file_is_named_with_the_newest_whole_checkpoint(harm, file, run):
    harm(run / "step_3" / file)
    with pytest.raises(ValueError, match=f"step_3 is damaged: {file}.*whole checkpoint is .*step_2"):
        find_checkpoint(str(run / "step_3"), run)


@pytest.mark.parametrize("place", [0.001, 0.3, 0.7])
def test_a_damaged_manifest_is_no_manifest_to_trust(place, run):
    flip(run / "step_3" / MANIFEST, place)
    with pytest.raises(ValueError, match="step_3 is damaged: "):
        find_checkpoint(str(run / "step_3"), run)


def test_latest_is_the_newest_whole_checkpoint_and_says_what_it_passed_over(run, caplog):
    assert find_checkpoint("latest", run).name == "step_3"
    assert not caplog.records
    flip(run / "step_3" / "optimizer.bin")
    cut(run / "step_2" / "random_states_0.pkl")
    assert find_checkpoint("latest", run).name == "step_1"
    assert "step_3 is damaged (optimizer.bin" in caplog.text
    assert "step_2 is damaged (random_states_0.pkl" in caplog.text
    flip(run / "step_1" / "model.safetensors")
    with pytest.raises(ValueError, match="No checkpoint in .* is whole .*step_1: model.safetensors"):
        find_checkpoint("latest", run)


def test_a_whole_checkpoint_brings_everything_back(run, accelerator):
    model, progress = accelerator._models[0], accelerator._custom_objects[0]
    saved, drawn = model.weight.detach().clone(), torch.rand(3)
    with torch.no_grad():
        model.weight.zero_()
    progress.step = 9
    load_checkpoint(accelerator, find_checkpoint("latest", run))
    assert torch.equal(model.weight, saved)
    assert progress.step == 3
    assert torch.equal(torch.rand(3), drawn)


def test_a_checkpoint_without_a_manifest_is_read_with_a_warning(run, accelerator, caplog):
    (run / "step_3" / MANIFEST).unlink()
    load_checkpoint(accelerator, find_checkpoint("latest", run))
    assert "step_3 has no manifest.json" in caplog.text


@pytest.mark.parametrize("file", FILES)
def test_a_cut_file_is_noticed_without_a_manifest_too(file, run):
    (run / "step_3" / MANIFEST).unlink()
    cut(run / "step_3" / file)
    with pytest.raises(ValueError, match=f"step_3 is damaged: {file}"):
        find_checkpoint(str(run / "step_3"), run)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("code_was_run",)


def test_a_file_of_a_checkpoint_that_would_run_code_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run / "step_3" / MANIFEST).unlink()
    torch.save(Malicious(), run / "step_3" / "custom_checkpoint_0.pkl", pickle_module=pickle)
    assert "custom_checkpoint_0.pkl cannot be read" in find_damage(run / "step_3")
    assert not (tmp_path / "code_was_run").exists()


def test_a_checkpoint_that_does_not_fit_the_model_is_one_sentence(run, accelerator):
    accelerator._models[0] = nn.Linear(8, 4)
    with pytest.raises(ValueError, match="does not fit this run"):
        load_checkpoint(accelerator, run / "step_3")


def test_a_damaged_newer_checkpoint_does_not_push_out_the_older_ones(run, accelerator):
    flip(run / "step_3" / "model.safetensors")
    save_checkpoint(accelerator, run, 2, keep=1)
    assert [path.name for path in list_checkpoints(run)] == ["step_2", "step_3"]
    save_checkpoint(accelerator, run, 3, keep=1)
    assert [path.name for path in list_checkpoints(run)] == ["step_3"]
    assert find_damage(run / "step_3") is None


def test_what_a_killed_process_left_is_no_checkpoint_and_goes(run):
    (run / ".incomplete-step_4").mkdir()
    (run / ".incomplete-step_4" / "model.safetensors").write_bytes(b"half")
    assert find_checkpoint("latest", run).name == "step_3"
    remove_incomplete(run)
    assert sorted(path.name for path in run.iterdir()) == ["step_1", "step_2", "step_3"]


@pytest.mark.parametrize("kilobytes", [0, 0.5, 1, 2, 3])
def test_a_full_disk_leaves_the_older_checkpoints_and_nothing_else(kilobytes, run, accelerator):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(kilobytes * 1024), before[1]))
    try:
        with pytest.raises(OSError, match="step_4 cannot be written"):
            save_checkpoint(accelerator, run, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in run.iterdir()) == ["step_1", "step_2", "step_3"]
    assert [find_damage(path) for path in list_checkpoints(run)] == [None] * 3
    save_checkpoint(accelerator, run, 4)
    assert find_checkpoint("latest", run).name == "step_4"


IN_TWO_PROCESSES = """
import sys
from pathlib import Path

from accelerate import Accelerator

from hf_tps.training.checkpoints import find_checkpoint, save_checkpoint

accelerator, folder = Accelerator(cpu=True), Path(sys.argv[1])
save_checkpoint(accelerator, folder, 1)
save_checkpoint(accelerator, folder, 2)
if accelerator.is_main_process:
    (folder / "step_2" / "random_states_1.pkl").write_bytes(b"damaged")
accelerator.wait_for_everyone()
found = [find_checkpoint("latest", folder).name]
try:
    find_checkpoint(str(folder / "step_2"), folder)
except ValueError as error:
    found.append("random_states_1.pkl" in str(error))
if accelerator.process_index == 1:  # one process alone cannot write
    accelerator.save_state = lambda folder: Path(folder, "absent", "file").write_bytes(b"")
try:
    save_checkpoint(accelerator, folder, 3)
except OSError as error:
    found.append("step_3 cannot be written" in str(error))
found.append(sorted(path.name for path in folder.iterdir()))
Path(f"{folder}.{accelerator.process_index}").write_text(str(found))
"""


def test_processes_agree_on_the_checkpoint_and_on_its_damage(tmp_path, root):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    (tmp_path / "script.py").write_text(IN_TWO_PROCESSES)
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(tmp_path / "script.py"), str(tmp_path / "run")]
    # the limit is against a hang alone
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    expected = str(["step_1", True, True, ["step_1", "step_2"]])
    assert [(tmp_path / f"run.{rank}").read_text() for rank in (0, 1)] == [expected, expected]
