"""Precise batch norm: against means taken by hand, and in both training scripts."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from examples import finetune, finetune_trainer
from hf_tps.training.batch_norm import batch_norms, check_batch_norms, refresh_batch_norms
from hf_tps.training.data import BrokenVideos, VideoDataset, collate
from tests import micro_models
from tests.comparison import assert_close_to_spread
from tests.test_finetune import here, run, weights
from tests.video_folders import write_colour_folders

STATISTICS = ("running_mean", "running_var")


class Clips(VideoDataset):
    """Twelve clips of noise whose mean differs from clip to clip; `seen` lists what was asked for."""

    def __init__(self):
        self.seen = []

    def __len__(self) -> int:
        return 12

    def __getitem__(self, key) -> dict:
        index, seed = key
        self.seen.append(key)
        generator = torch.Generator().manual_seed(seed)
        clip = torch.randn(8, 3, 32, 32, generator=generator) * (1 + index / 6) + index / 4
        return {"pixel_values": clip, "labels": index % 5, "index": index, "broken": []}


def refresh(model, clips: Clips, num_batches: int = 3, step: int = 7, batch_size: int = 2) -> None:
    refresh_batch_norms(
        model,
        clips,
        Accelerator(cpu=True),
        num_batches=num_batches,
        batch_size=batch_size,
        seed=3,
        step=step,
        num_workers=0,
        broken=BrokenVideos("skip"),
    )


def statistics(model) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith(STATISTICS)}


def statistics_by_hand(model, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mean over batches of the mean and variance of what each norm reads, in training mode."""
    sums: dict[str, torch.Tensor] = {}

    def note(name: str):
        def hook(module: nn.Module, inputs: tuple) -> None:
            values = inputs[0].transpose(0, 1).flatten(1)
            for statistic, value in zip(STATISTICS, (values.mean(1), values.var(1)), strict=True):
                sums[f"{name}.{statistic}"] = sums.get(f"{name}.{statistic}", 0) + value / len(batches)

        return hook

    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(note(name)) for name, norm in norms]
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(pixel_values=batch)
    for handle in handles:
        handle.remove()
    return sums


def test_statistics_are_the_mean_over_batches_of_clips():
    model, clips = micro_models.classifier("laps"), Clips()
    refresh(model, clips)
    found = statistics(model)
    assert len(clips.seen) == 6
    pairs = [clips.seen[start : start + 2] for start in (0, 2, 4)]
    wanted = statistics_by_hand(model, [collate([clips[key] for key in pair])["pixel_values"] for pair in pairs])
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_nothing_but_the_statistics_changes_and_the_same_step_gives_the_same():
    model, clips = micro_models.classifier("laps", hidden_dropout_prob=0.3), Clips()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    refresh(model, clips)
    first = statistics(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not model.training
    assert {norm.momentum for norm in batch_norms(model)} == {0.1}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.endswith(STATISTICS), name
    torch.rand(5)  # whatever the random state is
    refresh(model.train(), clips)
    assert model.training
    assert all(torch.equal(tensor, first[name]) for name, tensor in statistics(model).items())
    refresh(model, clips, step=8)
    assert not all(torch.equal(tensor, first[name]) for name, tensor in statistics(model).items())


def test_no_more_batches_than_an_epoch_has():
    clips = Clips()
    refresh(micro_models.classifier("laps"), clips, num_batches=200)
    assert sorted(index for index, _ in clips.seen) == list(range(12))


def test_a_model_trained_in_bfloat16_says_the_same_in_float32():
    """Statistics gathered in training belong to older weights: the logits of a test are then far off."""
    torch.manual_seed(0)
    model, clips = micro_models.classifier("laps", classifier_dropout=0.0), Clips()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    model.train()
    batches = [collate([clips[index, index + step] for index in range(12)]) for step in range(6)]
    for batch in batches:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(pixel_values=batch["pixel_values"]).logits
        nn.functional.cross_entropy(logits.float(), batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    pixel_values = batches[-1]["pixel_values"]

    @torch.no_grad()
    def logits_of(training: bool, half: bool) -> torch.Tensor:
        model.train(training)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            return model(pixel_values=pixel_values).logits.float()

    def distance(other: torch.Tensor) -> float:
        return ((other - wanted).std() / wanted.std()).item()

    stale = logits_of(training=False, half=False)
    refresh(model, clips, num_batches=200, batch_size=12)
    float32, bfloat16 = logits_of(training=False, half=False), logits_of(training=False, half=True)
    wanted = logits_of(training=True, half=False)  # by the statistics of the clips themselves
    assert distance(float32) < 1
    assert distance(stale) > 5
    assert_close_to_spread(bfloat16, float32, share=0.1)


def test_statistics_of_nothing_are_refused():
    with pytest.raises(ValueError, match="XViTForVideoClassification has no batch norms"):
        check_batch_norms(micro_models.classifier("xvit"), 200)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        check_batch_norms(micro_models.classifier("laps"), -1)
    check_batch_norms(micro_models.classifier("xvit"), 0)


# --- in the training scripts -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("precise")
    write_colour_folders(folder / "train", (4, 4, 4))
    write_colour_folders(folder / "val", (1, 1, 1), seed=1000)
    micro_models.config("laps").save_pretrained(folder / "config")
    return folder


def begin(data: Path, output: Path) -> list:
    videos = ["--train_dir", data / "train", "--validation_dir", data / "val", "--dataloader_num_workers", 0]
    precise = ["--precise_bn_batches", 200, "--num_train_epochs", 2, "--learning_rate", 0.01]
    return ["--config_name", data / "config", *videos, "--output_dir", output, *precise]


BATCHES_OF_4 = ["--per_device_train_batch_size", 4]


def test_a_resumed_run_ends_with_the_same_bits(data, tmp_path):
    assert here(finetune, *begin(data, tmp_path / "whole"), *BATCHES_OF_4) == 0
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "step_3", tmp_path / "resumed" / "checkpoints" / "step_3")
    resumed = [*begin(data, tmp_path / "resumed"), "--resume_from_checkpoint", "latest"]
    assert here(finetune, *resumed, *BATCHES_OF_4) == 0
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_two_processes_have_the_statistics_of_one_with_their_batches(data, tmp_path, root):
    same = ["--optimizer", "sgd", "--per_device_train_batch_size", 2, "--no_augmentation"]
    one = [*begin(data, tmp_path / "one"), *same, "--gradient_accumulation_steps", 2]
    assert here(finetune, *one) == 0
    run(root, "finetune.py", *begin(data, tmp_path / "two"), *same, processes=2)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        if name.endswith(STATISTICS):
            torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=1e-3, msg=name)


def test_the_trainer_version_saves_statistics_of_its_last_weights(data, tmp_path):
    flags = ["--report_to", "none", "--use_cpu", "--save_strategy", "epoch", *BATCHES_OF_4]
    assert here(finetune_trainer, *begin(data, tmp_path / "out"), *flags) == 0
    saved = weights(tmp_path / "out")
    at_the_end = weights(tmp_path / "out" / "checkpoint-6")
    assert all(torch.equal(tensor, at_the_end[name]) for name, tensor in saved.items())
    assert here(finetune_trainer, *begin(data, tmp_path / "plain"), *flags, "--precise_bn_batches", 0) == 0
    plain = weights(tmp_path / "plain")
    changed = {name for name, tensor in saved.items() if not torch.equal(tensor, plain[name])}
    assert changed == {name for name in saved if name.endswith(STATISTICS)}
    # the stem reads normalised pixels, whatever was trained: its own mean over the clips, not a tenth of each batch
    assert not np.allclose(saved["laps.backbone.stem.norm.running_var"], plain["laps.backbone.stem.norm.running_var"])
