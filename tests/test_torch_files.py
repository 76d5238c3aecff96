"""Files of torch: what would cost more than the file is worth is refused before torch reads it."""

import collections
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_tps.torch_files import read_torch_file


@pytest.fixture
def file(tmp_path) -> Path:
    torch.save({"weight": torch.zeros(100, 100)}, tmp_path / "file.pth")
    return tmp_path / "file.pth"


def rewrite(file: Path, compression: int = zipfile.ZIP_STORED, described: bytes | None = None) -> None:
    """The same members packed again; `described` in place of the pickle."""
    packed = io.BytesIO()
    with zipfile.ZipFile(file) as plain, zipfile.ZipFile(packed, "w", compression) as archive:
        for name in plain.namelist():
            changed = described is not None and name.endswith("data.pkl")
            archive.writestr(name, described if changed else plain.read(name))
    file.write_bytes(packed.getvalue())


def test_members_that_are_only_packed_again_are_read(file):
    rewrite(file)
    assert read_torch_file(file)["weight"].shape == (100, 100)


def test_a_compressed_file_is_refused(file):
    rewrite(file, zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 3000
    with pytest.raises(ValueError, match=r"file\.pth.*it is compressed \(4\d,\d{3} bytes in"):
        read_torch_file(file)


def test_a_flipped_bit_of_a_weight_is_found_by_the_checksum(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.pth.*the checksum of its part file/data/0"):
        read_torch_file(file)


def test_what_is_added_behind_the_end_is_refused(file):
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(ValueError, match="something was added at its end"):
        read_torch_file(file)


@pytest.mark.parametrize("as_torch_file", [True, False])
@pytest.mark.parametrize(
    "tuples", [b")" + b"\x85" * 10**6, b")" + b"q\x00h\x00\x86" * 60], ids=["a million deep", "2**60 elements"]
)
def test_tuples_that_no_hash_comes_to_the_end_of_are_refused(tuples, as_torch_file, file):
    described = b"\x80\x02}" + tuples + b"K\x01s."
    if as_torch_file:
        rewrite(file, described=described)
    else:
        file.write_bytes(described)
    with pytest.raises(ValueError, match=r"file\.pth.*a tuple of more than 10,000 elements"):
        read_torch_file(file)


class Makes:
    def __init__(self, *call: object):
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call[0], self.call[1:]


SCALAR = np.float64(0).__reduce__()[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Makes(bytearray, 2**40), r"holds an object of type builtins\.bytearray"),
        (
            Makes(SCALAR, np.dtype("V1000000000"), b"1"),
            r"file\.pth is no checkpoint that torch can read safely: (?!Weights only)",
        ),
    ],
)
def test_what_makes_much_out_of_a_number_is_refused(content, message, tmp_path):
    torch.save({"weight": torch.ones(2), "extra": content}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=message):
        read_torch_file(tmp_path / "file.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_leaves_in_a_checkpoint_is_read(zipped, tmp_path):
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    extra = {
        "optimizer": optimizer.state_dict(),
        "milestones": collections.Counter([1, 2, 2]),
        "best": np.float64(0.5),
        "dtype": np.dtype("float32"),
        "text": ("a", b"b", None, 2**70, {1, 2}),
    }
    torch.save({"state_dict": model.state_dict(), **extra}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    loaded = read_torch_file(tmp_path / "x.pth")
    assert {name: loaded[name] for name in ("milestones", "best", "dtype", "text")} == {
        name: extra[name] for name in ("milestones", "best", "dtype", "text")
    }
    assert torch.equal(loaded["state_dict"]["weight"], model.weight)


def test_a_pickle_that_is_no_torch_file_is_refused(tmp_path):
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"x\.pth"):
        read_torch_file(tmp_path / "x.pth")
