"""Layers that every family uses: what runs in pieces gives what it gives as a whole."""

from unittest import mock

import pytest
import torch

import hf_tps
from hf_tps import layers
from hf_tps.modeling_laps import LAPSAttention, VisformerConvMLP
from hf_tps.modeling_xvit import XViTMixingAttention
from tests import micro_models

FAMILIES = ["tps", "xvit", "laps"]


def assert_equal_up_to_rounding(actual: torch.Tensor, expected: torch.Tensor):
    assert (actual - expected).abs().max() < 3e-5 * expected.abs().max()


@pytest.fixture
def pieces(monkeypatch) -> list[int]:
    """Makes pieces so small that micro models need many; lists how many rows each call of the function took."""
    monkeypatch.setattr(layers, "PIECE_BYTES", 2000)
    rows, add = [], torch.nn.LayerNorm.forward

    def counting(self, tokens):
        rows.append(tokens.shape[:-1].numel())
        return add(self, tokens)

    monkeypatch.setattr(torch.nn.LayerNorm, "forward", counting)
    return rows


def as_a_whole():
    """A context in which everything fits into one piece."""
    return mock.patch.object(layers, "PIECE_BYTES", 2**40)


def test_rows_are_cut_into_pieces_of_the_given_size(monkeypatch):
    monkeypatch.setattr(layers, "PIECE_BYTES", 48)
    seen = []

    def double(rows, others):
        seen.append(rows.shape[0])
        return 2 * rows + others

    rows, others = torch.randn(8, 5), torch.randn(8, 5)
    with torch.no_grad():
        assert torch.equal(layers.in_pieces(double, 4, rows, others), 2 * rows + others)
        assert seen == [3, 3, 2]
        layers.in_pieces(double, 100, rows, others)
        assert seen[3:] == [1] * 8, "a row that is too large by itself is one piece"
        layers.in_pieces(double, 4, rows.bfloat16(), others.bfloat16())
    assert seen[11:] == [6, 2], "half the bytes, twice the rows"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_in_pieces_equal_those_as_a_whole(family, attention, pieces):
    model = micro_models.classifier(family)
    model.set_attn_implementation(attention)
    clip = micro_models.clip(model.config)
    with torch.no_grad(), as_a_whole():
        whole = model(clip).logits
    largest, calls = max(pieces, default=0), len(pieces)
    with torch.no_grad():
        assert_equal_up_to_rounding(model(clip).logits, whole)
    if family != "laps":  # a Visformer has other norms
        assert len(pieces) - calls > calls
        assert min(pieces[calls:]) < largest / 4


@pytest.mark.parametrize("fields", [{}, {"drop_path_rate": 0.2}])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_in_pieces_equal_those_as_a_whole(family, fields, pieces):
    model = micro_models.classifier(family, **fields).train()
    clip = micro_models.clip(model.config)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(0)  # of stochastic depth
        model(clip).logits.square().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    with as_a_whole():
        whole = gradients()
    calls = len(pieces)
    rounding = 1e-6 * max(gradient.abs().max().item() for gradient in whole)
    for actual, expected in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=rounding)
    if family != "laps":
        assert len(pieces) - calls > calls


@pytest.mark.parametrize("attention_class", [XViTMixingAttention, LAPSAttention])
def test_attention_takes_clip_by_clip_unless_somebody_listens(attention_class, pieces, monkeypatch):
    model = micro_models.classifier("xvit" if attention_class is XViTMixingAttention else "laps")
    clip = micro_models.clip(model.config)
    seen, attend = [], attention_class.attend_in_clips

    def counting(self, clips, **kwargs):
        seen.append(clips.shape[0])
        return attend(self, clips, **kwargs)

    monkeypatch.setattr(attention_class, "attend_in_clips", counting)
    layers = [module for module in model.modules() if isinstance(module, attention_class)]
    batch = clip.shape[0]
    assert batch > 1
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        model(clip)
        assert seen == [1] * batch * len(layers)
        heard = []
        layers[0].qkv.register_forward_hook(lambda module, inputs, output: heard.append(output.numel()))
        seen.clear()
        model(clip)
        assert seen == [batch] + [1] * batch * (len(layers) - 1)
        assert len(heard) == 1
        model.set_attn_implementation("eager")
        seen.clear()
        assert model(clip, output_attentions=True).attentions[0].shape[0] % batch == 0
        assert seen == [batch] * len(layers)


def test_convolutions_take_clip_by_clip_unless_their_norm_looks_at_the_batch(pieces, monkeypatch):
    model = micro_models.classifier("laps")
    clip = micro_models.clip(model.config)
    randomise_norms(model)
    frames, seen, convolve = clip.shape[1], [], VisformerConvMLP.forward

    def counting(self, maps):
        seen.append(maps.shape[0])
        return convolve(self, maps)

    monkeypatch.setattr(VisformerConvMLP, "forward", counting)
    with torch.no_grad():
        found = model(clip).logits
        assert set(seen) == {frames}
        with as_a_whole():
            assert_equal_up_to_rounding(found, model(clip).logits)
        seen.clear()
        model.train()(clip)
        assert set(seen) == {clip.shape[0] * frames}


@pytest.mark.parametrize("bias_rows", [1, 4, 8])
def test_a_tensor_of_fewer_rows_is_repeated(bias_rows, monkeypatch):
    monkeypatch.setattr(layers, "PIECE_BYTES", 12)
    rows, bias = torch.randn(8, 5), torch.randn(bias_rows, 5, requires_grad=True)
    weights = torch.randn(8, 5)
    output = layers.in_pieces(torch.add, 1, rows, bias)
    with torch.no_grad():
        assert torch.equal(layers.in_pieces(torch.add, 1, rows, bias), output)
    assert torch.equal(output, rows + bias.repeat(8 // bias_rows, 1))
    (output * weights).sum().backward()
    torch.testing.assert_close(bias.grad, weights.unflatten(0, (-1, bias_rows)).sum(0))


def randomise_norms(model: torch.nn.Module):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)


def test_maps_that_need_padding_work_in_pieces(pieces):
    model = hf_tps.TPSModel(micro_models.config("tps", image_size=36)).eval()
    clip = torch.randn(2, 6, 3, 36, 28)
    with torch.no_grad():
        with as_a_whole():
            whole = model(clip).last_hidden_state
        assert_equal_up_to_rounding(model(clip).last_hidden_state, whole)


def test_attentions_are_whole_without_gradients(pieces):
    model = micro_models.classifier("tps")
    model.set_attn_implementation("eager")
    clip = micro_models.clip(model.config)
    with torch.no_grad():
        with as_a_whole():
            whole = model(clip, output_attentions=True).attentions
        for weights, expected in zip(model(clip, output_attentions=True).attentions, whole, strict=True):
            torch.testing.assert_close(weights, expected)


def test_stochastic_depth_drops_whole_samples_without_gradients_too(pieces):
    block = hf_tps.TPSModel(micro_models.config("tps", drop_path_rate=1.0)).train().stages[1].blocks[1]
    tokens = torch.randn(6, 3, 4, 4, 32)
    with torch.no_grad():
        assert torch.equal(layers.feed_forward(block, tokens), tokens)
    assert len(pieces) > 1
    assert sum(pieces) == tokens[..., 0].numel()
