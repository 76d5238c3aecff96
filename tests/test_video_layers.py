"""Layers that every family uses: what runs in pieces gives what it gives as a whole."""

import micro_models
import pytest
import torch

import hf_tps
from hf_tps import video_layers

FAMILIES = ["tps", "xvit", "laps"]


@pytest.fixture
def pieces(monkeypatch) -> list[int]:
    """Makes pieces so small that micro models need many; lists how many rows each call of the function took."""
    monkeypatch.setattr(video_layers, "PIECE_ELEMENTS", 500)
    rows, add = [], torch.nn.LayerNorm.forward

    def counting(self, tokens):
        rows.append(tokens.shape[:-1].numel())
        return add(self, tokens)

    monkeypatch.setattr(torch.nn.LayerNorm, "forward", counting)
    return rows


def test_rows_are_cut_into_pieces_that_hold_the_given_number_of_elements(monkeypatch):
    monkeypatch.setattr(video_layers, "PIECE_ELEMENTS", 12)
    seen = []

    def double(rows, others):
        seen.append(rows.shape[0])
        return 2 * rows + others

    rows, others = torch.randn(8, 5), torch.randn(8, 5)
    with torch.no_grad():
        assert torch.equal(video_layers.in_pieces(double, 4, rows, others), 2 * rows + others)
        assert seen == [3, 3, 2]
        video_layers.in_pieces(double, 100, rows, others)
    assert seen[3:] == [1] * 8, "a row that is too large by itself is one piece"


def test_a_gradient_goes_through_one_call(monkeypatch):
    monkeypatch.setattr(video_layers, "PIECE_ELEMENTS", 1)
    seen = []
    video_layers.in_pieces(lambda rows: seen.append(rows.shape[0]), 1, torch.randn(8, 5))
    assert seen == [8]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_in_pieces_equal_those_as_a_whole(family, attention, pieces):
    model = micro_models.classifier(family)
    model.set_attn_implementation(attention)
    clip = micro_models.clip(model.config)
    whole = model(clip).logits.detach()  # with gradients: one piece
    largest, calls = max(pieces, default=0), len(pieces)
    with torch.no_grad():
        torch.testing.assert_close(model(clip).logits, whole, atol=1e-6, rtol=1e-5)
    if family != "laps":  # a Visformer has other norms
        assert len(pieces) - calls > calls
        assert min(pieces[calls:]) < largest / 4


def test_maps_that_need_padding_work_in_pieces(pieces):
    model = hf_tps.TPSModel(micro_models.config("tps", image_size=36)).eval()
    clip = torch.randn(2, 6, 3, 36, 28)
    whole = model(clip).last_hidden_state.detach()
    with torch.no_grad():
        torch.testing.assert_close(model(clip).last_hidden_state, whole, atol=1e-6, rtol=1e-5)


def test_attentions_are_whole_without_gradients(pieces):
    model = micro_models.classifier("tps")
    model.set_attn_implementation("eager")
    clip = micro_models.clip(model.config)
    whole = model(clip, output_attentions=True).attentions
    with torch.no_grad():
        for weights, expected in zip(model(clip, output_attentions=True).attentions, whole, strict=True):
            torch.testing.assert_close(weights, expected)


def test_stochastic_depth_drops_whole_samples_without_gradients_too(pieces):
    block = hf_tps.TPSModel(micro_models.config("tps", drop_path_rate=1.0)).train().stages[1].blocks[1]
    tokens = torch.randn(6, 3, 4, 4, 32)
    with torch.no_grad():
        assert torch.equal(video_layers.feed_forward(block, tokens), tokens)
    assert pieces == [tokens[..., 0].numel()]
