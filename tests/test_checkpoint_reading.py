"""Checkpoints of any architecture as they lie on the disk: single files, folders, shards, and what is no checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_tps.checkpoint_reading import read_checkpoint
from tests import micro_models


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {"backbone.weight": torch.randn(3, 4), "backbone.bias": torch.randn(3).half()}


def assert_same(state_dict: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert state_dict.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state_dict[name], tensor), name


@pytest.mark.parametrize("wrapper", ["model", "state_dict", None])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_a_torch_file_gives_its_tensors_wherever_they_stand(wrapper, suffix, weights, tmp_path):
    content = {wrapper: weights, "epoch": 300} if wrapper else weights
    torch.save(content, tmp_path / f"file{suffix}")
    checkpoint = read_checkpoint(tmp_path / f"file{suffix}")
    assert_same(checkpoint.state_dict, weights)
    assert checkpoint.config is None


def test_a_safetensors_file_gives_its_tensors(weights, tmp_path):
    save_file(weights, tmp_path / "file.safetensors")
    assert_same(read_checkpoint(tmp_path / "file.safetensors").state_dict, weights)


def test_the_folder_of_a_video_model_gives_tensors_and_config(tmp_path):
    model = micro_models.classifier("xvit")
    model.save_pretrained(tmp_path)
    checkpoint = read_checkpoint(str(tmp_path))
    assert_same(checkpoint.state_dict, model.state_dict())
    assert checkpoint.config["model_type"] == "xvit"
    assert checkpoint.source == str(tmp_path)


def test_pickled_and_sharded_folders_give_the_tensors_of_a_whole_one(tmp_path):
    model = micro_models.classifier("tps")
    pickled, sharded = tmp_path / "pickled", tmp_path / "sharded"
    model.config.save_pretrained(pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    model.save_pretrained(sharded, max_shard_size="10KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    for folder in (pickled, sharded):
        assert_same(read_checkpoint(folder).state_dict, model.state_dict())


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(OSError, match="no file"):
        read_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(OSError, match="someone/absent"):
        read_checkpoint("someone/absent")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"neither model.safetensors nor pytorch_model.bin"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged or no safetensors"):
        read_checkpoint(tmp_path)


def test_entries_that_are_no_tensors_are_named(weights, tmp_path):
    torch.save({**weights, "epoch": 3}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"\['epoch'\] are no tensors"):
        read_checkpoint(tmp_path / "file.pth")


def write_index(folder: Path, shard: str) -> None:
    index = {"weight_map": {"backbone.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_an_index_that_leads_out_of_its_folder_is_refused(weights, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(weights, tmp_path / "outside.safetensors")
    write_index(folder, "../outside.safetensors")
    with pytest.raises(ValueError, match=r"outside its folder.*\.\./outside"):
        read_checkpoint(folder)


def test_a_shard_that_is_missing_is_named(tmp_path):
    write_index(tmp_path, "model-00001-of-00001.safetensors")
    with pytest.raises(ValueError, match=r"lacks the shard model-00001-of-00001\.safetensors"):
        read_checkpoint(tmp_path)


KINDS = {
    "infinite": (torch.tensor([1.0, torch.inf]), "infinite"),
    "not a number": (torch.tensor([torch.nan, 1.0]), "not a number"),
    "beyond float32": (torch.tensor([1e300], dtype=torch.float64), "beyond float32"),
    "complex": (torch.ones(2, dtype=torch.complex64), "complex64"),
    "whole numbers": (torch.ones(2, dtype=torch.int64), "of type torch.int64"),
    "truth values": (torch.ones(2, dtype=torch.bool), "of type torch.bool"),
    "sparse": (torch.eye(3).to_sparse(), "nested or sparse"),
    "nested": (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested or sparse"),
    "quantised": (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
    "without values": (torch.ones(3, device="meta"), "no values"),
    "expanded": (torch.zeros(1).expand(10**9, 7), "fewer numbers than that"),
    "index of floats": (torch.ones(3), "is an index buffer"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_is_no_weight_is_refused_by_name(kind, tmp_path):
    tensor, message = KINDS[kind]
    name = "blocks.0.relative_position_index" if kind == "index of floats" else "blocks.0.weight"
    torch.save({"model": {"fine": torch.ones(2), name: tensor}}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=rf"file\.pth: the tensor {name}.*{message}"):
        read_checkpoint(tmp_path / "file.pth")


def test_index_buffers_of_whole_numbers_are_read(tmp_path):
    buffers = {"norm.num_batches_tracked": torch.tensor(3), "attn.relative_position_index": torch.arange(4)}
    torch.save(buffers, tmp_path / "file.pth")
    assert_same(read_checkpoint(tmp_path / "file.pth").state_dict, buffers)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    torch.save({"model": {(1, 2): torch.ones(2)}}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"file\.pth has the key \(1, 2\), which is no text"):
        read_checkpoint(tmp_path / "file.pth")


def test_tied_weights_are_read_and_each_gets_its_own_numbers(tmp_path):
    weight = torch.randn(30, 40)
    torch.save({"one": weight, "two": weight}, tmp_path / "file.pth")
    state_dict = read_checkpoint(tmp_path / "file.pth").state_dict
    assert_same(state_dict, {"one": weight, "two": weight})
    assert state_dict["one"].data_ptr() != state_dict["two"].data_ptr()


def test_a_weight_under_thousands_of_names_is_refused(tmp_path):
    weight = torch.randn(300, 400)
    torch.save({f"blocks.{number}.weight": weight for number in range(2000)}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="tensors share their numbers"):
        read_checkpoint(tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "[1, 2]", "holds a list"),
        ("config.json", "[" * 100_000, "nested too deep"),
        ("config.json", '{"image_size": Infinity}', "Infinity is no number"),
        ("config.json", '{"image_size": 32, "image_size": 64}', "'image_size' stands twice"),
        ("config.json", " " * 17 * 2**20, "more than 16,777,216 bytes"),
        ("config.json", b"\xff\xfe", "no text in UTF-8"),
        ("model.safetensors.index.json", "[]", "no weight_map"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 5}}', "no weight_map"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "x\\u0000.safetensors"}}', "outside its folder"),
    ],
)
def test_a_config_or_an_index_that_is_none_is_refused_by_name(file, content, message, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"{tmp_path}/{file}.*{message}"):
        read_checkpoint(tmp_path)
