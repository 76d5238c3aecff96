import pytest
import torch

from hf_tps import LAPSConfig
from hf_tps.leap_attention import leap_order, leap_pairs
from hf_tps.modeling_laps import LAPSAttention
from hf_tps.temporal_shift import periodic_shift
from tests import golden_cases

OPS = golden_cases.load("ops")
CPU = torch.device("cpu")


@pytest.mark.parametrize("row", OPS["laps_leap_pairs"]["rows"], ids=lambda row: f"{row['n_seg']} at {row['level']}")
def test_pairs_are_those_of_the_released_code(row):
    pairs = leap_pairs(row["n_seg"], row["level"])
    assert [list(pair) for pair in pairs] == row["pairs"]
    first, second = zip(*pairs, strict=True)
    assert [*first, *second] == row["order"]


@pytest.mark.parametrize(("frames", "level"), [(8, 1), (8, 2), (12, 2), (7, 1), (5, 2), (2, 1)])
def test_the_inverse_brings_every_frame_back(frames, level):
    order, inverse = leap_order(frames, level, CPU)
    assert order[inverse].tolist() == list(range(frames))


def test_groups_of_tokens_are_those_of_the_released_code():
    golden = OPS["laps_video_2_pair_small"]
    given = torch.arange(8.0 * 2 * 3 * 2).view(8, 2, 3, 2)  # batch * time, heads, tokens, head_dim
    clip = given.unflatten(0, (2, 4))
    order, _ = leap_order(4, 1, CPU)
    pairs = clip.index_select(1, order).unflatten(1, (-1, 2)).transpose(2, 3).flatten(3, 4).flatten(0, 1)
    assert list(pairs.shape) == golden["output_shape"]
    assert pairs.flatten().tolist() == golden["output"]


@pytest.mark.parametrize(("frames", "level"), [(8, 0), (8, 4), (10, 2), (6, 3), (1, 1), (3, 2), (8, -1)])
def test_levels_that_leave_a_frame_without_partner_are_refused(frames, level):
    with pytest.raises(ValueError, match=f"Leap level {level} .*possible levels are"):
        leap_pairs(frames, level)


def test_the_last_of_an_odd_number_of_frames_attends_alone():
    assert leap_pairs(5, 1) == [(0, 2), (1, 3), (4, 4)]


@pytest.mark.parametrize("shift", ["periodic", "plain", None])
@pytest.mark.parametrize("frames", [8, 5])
@pytest.mark.parametrize("scope", [("leap", 1), ("leap", 2), ("frame", None), ("joint", None)], ids=str)
def test_gathered_attention_equals_a_loop_over_pairs_in_values_and_gradients(scope, frames, shift):
    config = LAPSConfig(embed_dim=16, num_heads=2, attention_scope=scope[0], shift=shift)
    config._attn_implementation = "sdpa"
    attention = LAPSAttention(config, 16, scope[1], bias=False).double()
    tokens = torch.randn(2 * frames, 3, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2 * frames, 3, 16, dtype=torch.float64)
    watched = [tokens, *attention.parameters()]

    fast, _ = attention(tokens, frames)
    slow = loop_over_groups(attention, tokens, frames)
    torch.testing.assert_close(fast, slow)
    for ours, theirs in zip(
        torch.autograd.grad((fast * weight).sum(), watched),
        torch.autograd.grad((slow * weight).sum(), watched),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def loop_over_groups(attention: LAPSAttention, tokens: torch.Tensor, frames: int) -> torch.Tensor:
    """One group of frames after the other, and the attention written out."""
    if attention.level is not None:
        groups = [sorted(set(pair)) for pair in leap_pairs(frames, attention.level)]
    else:
        groups = [list(range(frames))] if attention.joint else [[frame] for frame in range(frames)]
    clip = tokens.unflatten(0, (-1, frames))
    attended = torch.zeros_like(clip)
    for group in groups:
        joined = clip[:, group].flatten(1, 2)
        query, key, value = (
            part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in attention.qkv(joined).chunk(3, -1)
        )
        weights = (query @ key.transpose(-1, -2) * attention.scaling).softmax(-1)
        answer = (weights @ value).transpose(1, 2).flatten(-2).unflatten(1, (len(group), -1))
        attended[:, group] = answer
    if attention.heads_of_shift is not None:
        attended = periodic_shift(attended, attention.config.shift_div, attention.heads_of_shift)
    return attention.proj(attended.flatten(0, 1))
