"""Work in pieces gives what the whole gives, in values, gradients and in what hooks see."""

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import nn

import hf_tps
from hf_tps import cpu_pieces
from hf_tps.layers import MLP
from hf_tps.modeling_laps import LAPSAttention, VisformerConvMLP
from hf_tps.modeling_tps import TPSAttention
from hf_tps.modeling_xvit import XViTSelfAttention
from tests import micro_models
from tests.comparison import assert_close_to_spread

# The modules whose leaf layers may be called piece after piece
WITH_PIECES = (TPSAttention, XViTSelfAttention, LAPSAttention, MLP, VisformerConvMLP)
# (model_type, settings): every form of network that works in pieces
NETWORKS = {"tps": ("tps", {}), "xvit": ("xvit", {}), "laps": ("laps", {}), "laps-vit": ("laps", micro_models.LAPS_VIT)}


@pytest.fixture(params=NETWORKS)
def model(request) -> nn.Module:
    family, settings = NETWORKS[request.param]
    return spread(micro_models.classifier(family, **settings))


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces so small that micro models need many."""
    monkeypatch.setattr(cpu_pieces, "PIECE_BYTES", 2000)


def as_a_whole():
    """A context in which everything fits into one piece."""
    return mock.patch.object(cpu_pieces, "PIECE_BYTES", 2**40)


def spread(model: nn.Module) -> nn.Module:
    """Norms that are no identity, so that a norm left out or applied twice changes the answer."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            for tensor in (module.weight.data, module.bias.data):
                tensor.uniform_(0.5, 1.5)
    return model


def modules_inside(model: nn.Module) -> set[str]:
    """Names of all modules inside an attention or an MLP."""
    outer = [name for name, module in model.named_modules() if isinstance(module, WITH_PIECES)]
    return {name for name, _ in model.named_modules() if name.startswith(tuple(f"{start}." for start in outer))}


def calls_seen_by_hooks(model: nn.Module, run: Callable[[], object]) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Name, input and output of every call of a module, in the order of the calls."""
    seen, handles = [], []

    def listen(name: str, module: nn.Module):
        def hook(_, inputs: tuple, output):
            output = output[0] if isinstance(output, tuple) else output
            if inputs and isinstance(output, torch.Tensor):
                seen.append((name, inputs[0].detach().clone(), output.detach().clone()))

        handles.append(module.register_forward_hook(hook))

    for name, module in model.named_modules():
        listen(name, module)
    run()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("gradients", [False, True], ids=["no_grad", "gradients"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_only_leaf_layers_see_pieces(model, attention, gradients, training, small_pieces):
    model.set_attn_implementation(attention)
    model.train(training)
    clip, inside = micro_models.clip(model.config), modules_inside(model)

    def run():
        torch.manual_seed(0)  # of dropout
        with torch.set_grad_enabled(gradients):
            model(clip)

    with as_a_whole():
        whole = calls_seen_by_hooks(model, run)
    found = calls_seen_by_hooks(model, run)
    assert len(found) > len(whole), "no layer was called in pieces"
    outside = [call for call in found if call[0] not in inside]
    expected = [call for call in whole if call[0] not in inside]
    assert [name for name, _, _ in outside] == [name for name, _, _ in expected]
    once = [name for name, _, _ in outside if not name.endswith("drop_path")]  # it has two branches to drop
    assert len(set(once)) == len(once)
    for (name, *tensors), (_, *wholes) in zip(outside, expected, strict=True):
        for tensor, as_whole in zip(tensors, wholes, strict=True):
            if not (training and name == "classifier"):  # dropout draws from what comes before it
                assert_close_to_spread(tensor, as_whole)


@pytest.mark.parametrize("kernel", ["eager", "kernel_of_a_plug"])
def test_the_layers_of_an_attention_see_everything_at_once_unless_the_kernel_is_sdpa(model, kernel, small_pieces):
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register("kernel_of_a_plug", sdpa_attention_forward)
    clip = micro_models.clip(model.config)
    projections = [name for name, _ in model.named_modules() if name.endswith(("attention.qkv", "attention.proj"))]

    def calls() -> int:
        with torch.no_grad():
            return sum(call[0] in projections for call in calls_seen_by_hooks(model, lambda: model(clip)))

    model.set_attn_implementation("sdpa")
    assert calls() > len(projections)
    model.set_attn_implementation(kernel)
    assert calls() == len(projections)


class Logits(nn.Module):
    """A model as `torch.jit.trace` takes it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


def operators(model: nn.Module, clip: torch.Tensor, way: str) -> int:
    """How many operators a graph of the model has, or how many calls of modules it takes on another device."""
    if way == "compiled":
        graphs = []
        torch._dynamo.reset()
        torch.compile(model, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)(clip)
        return len(graphs[0].graph.nodes)
    if way == "exported":
        return len(torch.export.export(model, (), {"pixel_values": clip}).graph.nodes)
    if way == "traced":
        return len(list(torch.jit.trace(Logits(model), clip, check_trace=False).inlined_graph.nodes()))
    return len(calls_seen_by_hooks(model.to("meta"), lambda: model(clip.to("meta"))))


@pytest.mark.parametrize("way", ["compiled", "exported", "traced", "on another device"])
def test_nothing_is_cut_where_a_graph_is_made_or_on_another_device(model, way, small_pieces):
    clip = micro_models.clip(model.config)
    with torch.no_grad():
        found = operators(model, clip, way)
        with as_a_whole():
            assert found == operators(model, clip, way)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_in_pieces_equal_those_as_a_whole(model, attention, small_pieces):
    model.set_attn_implementation(attention)
    clip = micro_models.clip(model.config)
    with torch.no_grad():
        with as_a_whole():
            whole = model(clip).logits
        assert_close_to_spread(model(clip).logits, whole)


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.2])
def test_gradients_in_pieces_equal_those_as_a_whole(model, drop_path_rate, small_pieces):
    model = spread(type(model)(type(model.config)(**{**model.config.to_dict(), "drop_path_rate": drop_path_rate})))
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    clip = micro_models.clip(model.config)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(0)  # of stochastic depth
        model(clip).logits.square().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    with as_a_whole():
        whole = gradients()
    rounding = 1e-5 * max(gradient.abs().max().item() for gradient in whole)
    for actual, expected in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=rounding)


def test_rows_are_cut_into_pieces_of_the_given_size(monkeypatch):
    monkeypatch.setattr(cpu_pieces, "PIECE_BYTES", 48)
    seen = []

    def double(rows, others):
        seen.append(rows.shape[0])
        return 2 * rows + others

    rows, others = torch.randn(8, 5), torch.randn(8, 5)
    with torch.no_grad():
        assert torch.equal(cpu_pieces.in_pieces(double, 4, rows, others), 2 * rows + others)
        assert seen == [3, 3, 2]
        cpu_pieces.in_pieces(double, 100, rows, others)
        assert seen[3:] == [1] * 8, "a row that is too large by itself is one piece"
        cpu_pieces.in_pieces(double, 4, rows.bfloat16(), others.bfloat16())
    assert seen[11:] == [6, 2], "half the bytes, twice the rows"


@pytest.mark.parametrize("bias_rows", [1, 4, 8])
def test_a_tensor_of_fewer_rows_is_repeated(bias_rows, monkeypatch):
    monkeypatch.setattr(cpu_pieces, "PIECE_BYTES", 12)
    rows, bias = torch.randn(8, 5), torch.randn(bias_rows, 5, requires_grad=True)
    weights = torch.randn(8, 5)
    output = cpu_pieces.in_pieces(torch.add, 1, rows, bias)
    with torch.no_grad():
        assert torch.equal(cpu_pieces.in_pieces(torch.add, 1, rows, bias), output)
        assert torch.equal(torch.add(*cpu_pieces.repeat_rows((rows, bias))), output)
    assert torch.equal(output, rows + bias.repeat(8 // bias_rows, 1))
    (output * weights).sum().backward()
    torch.testing.assert_close(bias.grad, weights.unflatten(0, (-1, bias_rows)).sum(0))


def test_maps_that_need_padding_work_in_pieces(small_pieces):
    model = hf_tps.TPSModel(micro_models.config("tps", image_size=36)).eval()
    clip = torch.randn(2, 6, 3, 36, 28)
    with torch.no_grad():
        with as_a_whole():
            whole = model(clip).last_hidden_state
        assert_close_to_spread(model(clip).last_hidden_state, whole)


def test_attention_weights_are_whole(model, small_pieces):
    model.set_attn_implementation("eager")
    clip = micro_models.clip(model.config)
    with torch.no_grad():
        with as_a_whole():
            whole = model(clip, output_attentions=True).attentions
        assert len(whole) > 0
        for weights, expected in zip(model(clip, output_attentions=True).attentions, whole, strict=True):
            torch.testing.assert_close(weights, expected)


def test_stochastic_depth_drops_whole_samples_whatever_the_pieces(small_pieces):
    block = hf_tps.TPSModel(micro_models.config("tps", drop_path_rate=1.0)).train().stages[1].blocks[1]
    tokens = torch.randn(24, 3, 4, 4, 32)
    with torch.no_grad():
        assert torch.equal(block(tokens), tokens)
        block.drop_path.rate = 0.5
        kept = (block(tokens) != tokens).flatten(1)
    assert torch.equal(kept.any(1), kept.float().mean(1) > 0.5)
    assert 0 < kept.any(1).sum() < 24
