"""Broken checkpoints through the converters: a sample of what `make faults` runs in full."""

import contextlib
import io
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conversion import convert_xvit
from tests import golden_cases
from tests.conversion_checks import assert_refused
from tests.faults.checkpoints import ERROR, TENSORS, breaks_of, checkpoint_cases
from tests.faults.sandbox import Case, Outcome, failures, run_cases

HEADS = ["--num_attention_heads", "3"]


def test_no_broken_checkpoint_gives_a_wrong_model_or_an_unclear_error():
    results = list(run_cases(checkpoint_cases(seed=0, per_family=40)))
    assert len(results) == 120
    assert not failures(results), failures(results)
    outcomes = {result.outcome for result in results}
    assert outcomes == {Outcome.RIGHT, Outcome.CLEAR_ERROR}


def test_each_break_of_each_layout_comes_once_before_any_comes_again():
    wanted = len(breaks_of("tps"))
    names = [case.name.split(" (seed")[0] for case in checkpoint_cases(seed=3, per_family=wanted)][:wanted]
    assert len(set(names)) == wanted > 100


def test_a_converter_that_takes_infinite_weights_is_found_out(monkeypatch):
    monkeypatch.setattr("hf_tps.checkpoint_reading.check_tensors", lambda tensors, path: None)
    infinite = [case for case in checkpoint_cases(0, 250) if "tensors: infinite" in case.name]
    assert TENSORS["infinite"][1] == ERROR
    assert {result.outcome for result in run_cases(infinite[:2])} == {Outcome.WRONG}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return golden_cases.write_xvit_checkpoint(golden_cases.load("xvit_micro"), tmp_path / "x.pth")


def convert(checkpoint: Path, output_dir: Path, *flags: str) -> int:
    return convert_xvit.main([str(checkpoint), "--output_dir", str(output_dir), *HEADS, *flags])


def test_what_a_killed_conversion_left_is_removed_by_the_next_and_that_of_a_running_one_is_not(checkpoint, tmp_path):
    program = (
        "import sys, time\n"
        "from conversion import common, convert_xvit\n"
        "common.check_written = lambda *arguments: time.sleep(600)\n"
        "sys.exit(convert_xvit.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, str(checkpoint), "--output_dir", str(tmp_path / "out"), *HEADS]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob(".out-*/README.md"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running[0].send_signal(signal.SIGKILL)
        running[0].wait()
        mine = tmp_path / ".out-mine"
        mine.mkdir()
        assert convert(checkpoint, tmp_path / "out") == 0
        left = [path for path in tmp_path.glob(".out-hf_tps-*") if path.is_dir()]
        assert len(left) == 1
        assert mine.is_dir()
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_the_folder_may_be_a_symbolic_link(checkpoint, tmp_path, capsys):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "model")
    assert convert(checkpoint, tmp_path / "out") == 0
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "model" / "config.json").is_file()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model"]
    assert convert(checkpoint, tmp_path / "out", "--overwrite") == 0
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert convert(checkpoint, tmp_path / "loop") == 1
    assert "leads in a circle" in capsys.readouterr().err


def with_a_write_limit(folder: Path) -> tuple[Outcome, str]:
    checkpoint = golden_cases.write_xvit_checkpoint(golden_cases.load("xvit_micro"), folder / "x.pth")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = convert(checkpoint, folder / "out")
    errors = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    left = sorted(path.name for path in folder.iterdir())
    clear = code == 1 and len(errors) == 1 and f"{folder}/out could not be written" in errors[0] and left == ["x.pth"]
    return Outcome.CLEAR_ERROR if clear else Outcome.UNCLEAR_ERROR, f"{code} {errors} {left}"


def test_a_write_limit_is_one_sentence_with_the_folder():
    (result,) = run_cases([Case("write limit", with_a_write_limit)])
    assert result.outcome == Outcome.CLEAR_ERROR, result.detail


def test_no_room_is_one_sentence_with_the_folder(checkpoint, tmp_path, capsys, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert_xvit.XViTForVideoClassification, "save_pretrained", full)
    assert_refused(
        convert_xvit.main, checkpoint, tmp_path, capsys, f"{tmp_path}/out could not be written: .*No space", *HEADS
    )


def test_an_error_that_nobody_thought_of_is_one_line_that_asks_for_a_report(checkpoint, tmp_path, capsys, monkeypatch):
    def fails(*_args):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("conversion.common.apply_labels", fails)
    message = r"x\.pth: ZeroDivisionError: division by zero - this is a bug.*report"
    assert_refused(convert_xvit.main, checkpoint, tmp_path, capsys, message, *HEADS)


def test_control_characters_of_a_file_name_are_shown_and_not_obeyed(checkpoint, tmp_path, capsys):
    odd = checkpoint.rename(tmp_path / "x\x1b[2J\nerror: forged.pth")
    odd.write_bytes(b"nothing")
    assert_refused(convert_xvit.main, odd, tmp_path, capsys, r"x\\x1b\[2J\\nerror: forged", *HEADS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image_size", "100000"], r"x\.pth: image_size must be at most 8,192"),
        (["--num_frames", "1000000000"], r"x\.pth: num_frames must be at most 4,096"),
    ],
)
def test_sizes_that_no_model_has_are_refused(flags, message, checkpoint, tmp_path, capsys):
    assert_refused(convert_xvit.main, checkpoint, tmp_path, capsys, message, *HEADS, *flags)


def test_a_model_that_needs_far_more_than_its_file_holds_is_refused(tmp_path, capsys):
    tensors = golden_cases.tensors(golden_cases.recipe.synth_state_dict(golden_cases.load("xvit_micro")["manifest"]))
    image = {k.removeprefix("base_model."): t for k, t in tensors.items() if k.startswith("base_model.")}
    image.pop("temp_embed")
    torch.save({"model": image}, tmp_path / "x.pth")
    message = "bytes, but the model of these sizes would need"
    for number, expected in (("1000000", message), ("1000000000", "num_labels must be")):
        assert_refused(
            convert_xvit.main, tmp_path / "x.pth", tmp_path, capsys, expected, *HEADS, "--num_labels", number
        )


def test_a_damaged_converted_folder_is_refused_by_name(checkpoint, tmp_path):
    assert convert(checkpoint, tmp_path / "out") == 0
    weights = tmp_path / "out" / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:1000], whole[: len(whole) // 2], b"", b"\xff" * 100):
        weights.write_bytes(damaged)
        with pytest.raises((ValueError, OSError), match=f"{tmp_path}/out"):
            convert_xvit.XViTForVideoClassification.from_pretrained(tmp_path / "out")
