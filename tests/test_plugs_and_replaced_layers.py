"""Plugs hold whatever becomes of the layers: adapters, quantisers, copies, before and after the plug was put in."""

import contextlib
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from hf_tps import add_temporal_shift, add_token_merging, remove_temporal_shift, remove_token_merging
from hf_tps.temporal_shift_plug_in import SHIFTS
from tests import test_temporal_shift_plug_in as shifts
from tests import video_transformers
from tests.comparison import assert_close_to_spread
from tests.layer_swaps import SWAPS, lora_config, with_lora

# One model for each way in which a family's attention is written; "token" has no place in Swin.
SHIFTED = [
    *((name, shift) for name in ("vit", "dinov3") for shift in SHIFTS),
    *(("swin", shift) for shift in SHIFTS if shift != "token"),
    *(("beit", shift) for shift in ("patch", "mixing")),
]
BACKBONES = list(video_transformers.MODELS)


class Case:
    """A model, its plug, and a clip; `answer` has one row for each clip."""

    def __init__(self, build, plug, unplug, clip: torch.Tensor, frames: int = 0):
        self.build, self.plug, self.unplug, self.clip, self.frames = build, plug, unplug, clip, frames

    @property
    def reversed_clip(self) -> torch.Tensor:
        if not self.frames:
            return self.clip.flip(1)
        return self.clip.unflatten(0, (-1, self.frames)).flip(1).flatten(0, 1)

    @torch.no_grad()
    def answer(self, model: nn.Module, clip: torch.Tensor | None = None) -> torch.Tensor:
        outputs = model(self.clip if clip is None else clip)
        if not self.frames:
            return outputs.logits.flatten(1)
        # Of single frames: the mean, which a network without time would keep when frames change places.
        return outputs.last_hidden_state.unflatten(0, (-1, self.frames)).mean(1).flatten(1)

    def spread(self, model: nn.Module) -> float:
        return self.answer(model).std().item()

    def time_seen(self, model: nn.Module) -> float:
        """How far the answer moves when the clip is played backwards, against its spread."""
        moved = self.answer(model, self.reversed_clip) - self.answer(model)
        return moved.abs().max().item() / self.spread(model)


def shifted_case(name: str, shift: str) -> Case:
    clips = torch.randn(2 * shifts.FRAMES, 3, *[shifts.MODELS[name][2]["image_size"]] * 2)
    return Case(
        lambda: shifts.build(name),
        lambda model: add_temporal_shift(model, shifts.FRAMES, shift),
        remove_temporal_shift,
        clips,
        frames=shifts.FRAMES,
    )


def merged_case(name: str) -> Case:
    return Case(
        lambda: video_transformers.build(name),
        lambda model: add_token_merging(model, keep_ratio=0.7, size_weight=1.0),
        remove_token_merging,
        video_transformers.clip(name),
    )


CASES = {f"{name} {shift}": (shifted_case, name, shift) for name, shift in SHIFTED}
CASES |= {f"{name} merged": (merged_case, name) for name in BACKBONES}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    make, *arguments = CASES[request.param]
    return make(*arguments)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """`work` in so many threads at once, each with its number, to their end."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("swap", SWAPS)
def test_a_plug_acts_alike_before_and_after_layers_were_replaced(case, swap):
    plugged_first = SWAPS[swap](case.plug(case.build()))
    plugged_last = case.plug(SWAPS[swap](case.build()))
    assert_close_to_spread(case.answer(plugged_first), case.answer(plugged_last))
    untouched = SWAPS[swap](case.build())
    assert (case.answer(plugged_last) - case.answer(untouched)).abs().max() > 1e-3 * case.spread(untouched)
    # the same network, as far as int8 goes, and not one that has lost its sense of time
    before = case.time_seen(case.plug(case.build()))
    assert before > 1e-3
    assert case.time_seen(plugged_first) > 0.3 * before
    case.unplug(plugged_first)
    assert_close_to_spread(case.answer(plugged_first), case.answer(untouched))


def test_an_adapter_says_what_the_merged_model_says(case):
    model = case.plug(case.build())
    plain = case.answer(model)
    adapted = with_lora(model)
    answer = case.answer(adapted)
    assert (answer - plain).abs().max() > 1e-2 * plain.std()
    with adapted.disable_adapter():
        assert_close_to_spread(case.answer(adapted), plain)
    merged = adapted.merge_and_unload()
    assert_close_to_spread(case.answer(merged), answer)


def test_adapters_through_transformers_own_methods(case, tmp_path):
    model = case.plug(case.build())
    plain = case.answer(model)
    torch.manual_seed(3)
    model.add_adapter(lora_config(model))
    answer = case.answer(model)
    assert (answer - plain).abs().max() > 1e-2 * plain.std()
    model.save_pretrained(tmp_path)
    model.disable_adapters()
    assert_close_to_spread(case.answer(model), plain)
    other = case.plug(case.build())
    other.load_adapter(str(tmp_path))
    assert_close_to_spread(case.answer(other), answer)


@pytest.mark.parametrize("swap", ["LoRA", "quanto"])
@pytest.mark.parametrize("name", ["vit mixing", "vit token", "timesformer merged", "vivit merged"])
def test_a_model_compiles_and_exports_right_after_its_layers_were_replaced(name, swap):
    make, *arguments = CASES[name]
    case = make(*arguments)
    expected = case.answer(SWAPS[swap](case.plug(case.build())))
    model = SWAPS[swap](case.plug(case.build()))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close_to_spread(case.answer(compiled), expected)
    model = SWAPS[swap](case.plug(case.build()))
    if swap == "LoRA":
        exported = torch.export.export(model.get_base_model(), (case.clip,)).module()
        assert_close_to_spread(case.answer(exported), expected)


@pytest.mark.parametrize("name", ["vit patch", "vit token", "timesformer merged", "vjepa2 merged"])
def test_plugging_from_many_threads_leaves_no_hook_behind(name):
    make, *arguments = CASES[name]
    case = make(*arguments)
    model = case.build()
    expected, hooks = case.answer(model), shifts.count_hooks(model)
    refused = []

    def in_and_out(number: int) -> None:
        for _ in range(20):
            for change in (case.plug, case.unplug):
                try:
                    change(model)
                except ValueError as error:  # another thread was faster
                    refused.append(str(error))

    in_threads(8, in_and_out)
    assert all("already" in message or "remove" in message for message in refused)
    with contextlib.suppress(ValueError):  # the last change may have put it in
        case.unplug(model)
    assert shifts.count_hooks(model) == hooks
    assert torch.equal(case.answer(model), expected)


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("merged")])
def test_threads_share_a_model_and_get_their_own_answers(name):
    """8 threads, 50 calls each, clips of two batch sizes: what one call knows of its tokens is not another's."""
    case = merged_case(name.split()[0])
    model = case.plug(case.build())
    torch.manual_seed(0)
    clips = [torch.randn(batch, *case.clip.shape[1:]) for batch in (1, 2, 1, 3)]
    expected = [case.answer(model, clip) for clip in clips]
    wrong: list[str] = []

    def call(first: int) -> None:
        for number in range(50):
            which = (first + number) % len(clips)
            try:
                assert_close_to_spread(case.answer(model, clips[which]), expected[which])
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}"[:200])

    in_threads(8, call)
    assert wrong == []


@pytest.mark.parametrize("name", ["videomae", "vivit", "timesformer", "laps"])
def test_threads_train_a_checkpointed_model_at_once(name):
    """The backward pass computes blocks again: with the tokens of its own forward pass, in its own thread."""
    case = merged_case(name)
    model = case.plug(case.build())
    model.gradient_checkpointing_enable()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.manual_seed(0)
    clips = [torch.randn_like(case.clip) for _ in range(4)]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradient(clip: torch.Tensor) -> torch.Tensor:
        loss = model(clip).logits.square().sum()
        parts = torch.autograd.grad(loss, parameters, allow_unused=True)
        return torch.cat([part.flatten() for part in parts if part is not None])

    expected = [gradient(clip) for clip in clips]
    wrong: list[str] = []

    def train(number: int) -> None:
        for step in range(5):
            which = (number + step) % len(clips)
            try:
                assert_close_to_spread(gradient(clips[which]), expected[which], share=1e-4)
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}"[:200])

    in_threads(4, train)
    assert wrong == []
