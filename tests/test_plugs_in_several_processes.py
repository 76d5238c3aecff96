"""Plugged models in two processes, as DDP and FSDP2 wrap them: the same answers as in one, and gradients for all."""

import os
import socket
import warnings

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

from hf_tps import STTMConfig, STTMForVideoClassification, add_temporal_shift
from tests import test_temporal_shift_plug_in as shifts
from tests import video_transformers
from tests.comparison import assert_close_to_spread

LEARNED = ("metric", "gate", "motion", "size_weight", "meta_weight")


def merging_model(name: str) -> STTMForVideoClassification:
    _, config_class, settings = video_transformers.MODELS[name]
    torch.manual_seed(0)
    config = STTMConfig(
        backbone_config=config_class(**settings), keep_ratio=0.7, top_q=4, meta_grid=(2, 2, 2), learned=LEARNED
    )
    return STTMForVideoClassification(config).eval()


def check_merging(name: str, wrap: str) -> None:
    clip, labels = video_transformers.clip(name), torch.tensor([0, 1])
    expected = merging_model(name)(clip).logits
    model = merging_model(name)
    if wrap == "DDP":
        wrapped = nn.parallel.DistributedDataParallel(model)
    else:
        for block in model.sttm.backbone.get_submodule(model.config.backbone.blocks):
            fully_shard(block)
        wrapped = fully_shard(model)
    for _ in range(2):  # a parameter without a gradient stops DDP in the second step
        outputs = wrapped(clip, labels=labels)
        outputs.loss.backward()
    assert_close_to_spread(outputs.logits, expected)


def check_shift(shift: str, plug_first: bool) -> None:
    torch.manual_seed(0)
    clips = shifts.clips_for("vit")
    expected = shifts.answer(add_temporal_shift(shifts.build("vit"), shifts.FRAMES, shift), clips)
    model = shifts.build("vit")
    if plug_first:
        add_temporal_shift(model, shifts.FRAMES, shift)
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    if not plug_first:
        add_temporal_shift(model, shifts.FRAMES, shift)
    answer = model(pixel_values=clips).last_hidden_state
    answer.square().sum().backward()
    assert_close_to_spread(answer, expected)


def run(rank: int, port: int, checks: list[tuple]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    for check, *arguments in checks:
        check(*arguments)
    distributed.barrier()
    distributed.destroy_process_group()
    # Without the interpreter's end: gloo's threads may outlive what they use then, and once in a while torch aborts.
    os._exit(0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


CHECKS = {
    "merging, DDP": [(check_merging, name, "DDP") for name in video_transformers.MODELS],
    "merging, FSDP2": [(check_merging, name, "FSDP2") for name in video_transformers.MODELS],
    "shifts, FSDP2": [
        (check_shift, shift, plug_first)
        for shift in ("patch", "mixing", "periodic", "token")
        for plug_first in (True, False)
    ],
}


@pytest.mark.parametrize("checks", CHECKS)
def test_two_processes_answer_as_one(checks):
    multiprocessing.spawn(run, args=(free_port(), CHECKS[checks]), nprocs=2)
