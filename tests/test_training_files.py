"""Files that are there whole or not at all, and which exceptions are about files."""

import shutil

import pytest
import torch

from hf_tps.training.console import exit_code
from hf_tps.training.files import reading, whole_file, writing


def test_a_file_that_breaks_off_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")

    def break_off():
        with whole_file(path) as begun:
            begun.write_text("half")
            raise OSError("no room")

    with pytest.raises(OSError, match=r"results.json cannot be written: no room. Make room"):
        break_off()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with whole_file(path) as begun:
        begun.write_text("new")
        shutil.copyfile(begun, tmp_path / "as a killed process leaves it")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    (tmp_path / "as a killed process leaves it").rename(begun)
    with whole_file(path) as begun:
        begun.write_text("newer")
    assert path.read_text() == "newer"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_library_makes_of_a_damaged_file_names_the_file():
    with pytest.raises(ValueError, match="model cannot be read: KeyError: 'size'"), reading("model"):
        raise KeyError("size")


@pytest.mark.parametrize("error", [RuntimeError("sizes of tensors"), TypeError("no such argument"), KeyError("x")])
def test_errors_of_the_program_are_not_taken_for_errors_of_files(error):
    def work():
        raise error

    with pytest.raises(type(error)):
        exit_code(work)
    with pytest.raises(type(error)), writing("folder"):
        work()


def test_what_torch_says_of_a_file_that_it_cannot_read_is_one_line(tmp_path, capsys):
    torch.save(torch.zeros(100), tmp_path / "cut.bin")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "cut.bin").read_bytes()[:-30])
    assert exit_code(torch.load, tmp_path / "cut.bin") == 1
    assert capsys.readouterr().err.startswith("error: RuntimeError: PytorchStreamReader failed")
