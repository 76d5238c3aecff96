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
