import pytest
import torch

from hf_tps.temporal_shift import (
    PATCH_SHIFT_PATTERNS,
    channel_shift,
    mixing_shift,
    neighbour_shift,
    patch_shift,
    periodic_shift,
    resolve_patch_shift_pattern,
    tile_patch_shift_pattern,
    token_shift,
)
from tests import golden_cases

OPS = golden_cases.load("ops")


def windows_as_clips(flat: torch.Tensor, batch: int, frames: int) -> torch.Tensor:
    """(batch * time * windows, heads, 49, head_dim) of the original to (batch * windows, frames, 7, 7, channels)."""
    _, heads, _, head_dim = flat.shape
    clips = flat.view(batch, frames, -1, heads, 7, 7, head_dim).permute(0, 2, 1, 4, 5, 3, 6)
    return clips.reshape(-1, frames, 7, 7, heads * head_dim)


def clips_as_windows(clips: torch.Tensor, batch: int, heads: int) -> torch.Tensor:
    frames = clips.shape[1]
    flat = clips.view(batch, -1, frames, 7, 7, heads, clips.shape[-1] // heads).permute(0, 2, 1, 5, 3, 4, 6)
    return flat.reshape(-1, heads, 49, flat.shape[-1])


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize(
    ("name", "shape"), [("", (16, 1, 49, 1)), ("_batched", (16, 2, 49, 1))], ids=["single", "batched"]
)
def test_patch_shift_moves_every_patch_as_the_released_code(name, shape, inverse):
    golden = OPS[f"tps_patch_shift{name}_{'inverse' if inverse else 'forward'}"]
    given = torch.arange(float(torch.Size(shape).numel())).view(shape)
    clips = windows_as_clips(given, golden["batch"], golden["frames"])
    shifted = patch_shift(clips, PATCH_SHIFT_PATTERNS["C"], inverse=inverse)
    out = clips_as_windows(shifted, golden["batch"], shape[1])
    assert out.flatten().tolist() == golden["output"]


def test_pattern_c_takes_frames_from_the_released_offsets():
    # the golden says where a value comes from, the pattern by how much it is rolled
    offsets = -tile_patch_shift_pattern(PATCH_SHIFT_PATTERNS["C"], 7, 7)
    assert offsets.flatten().tolist() == OPS["tps_pattern_c_source_frame_offset"]["values"]


@pytest.mark.parametrize("head_dim", [12, 16, 24])
def test_channel_shift_moves_every_channel_as_the_released_code(head_dim):
    golden = OPS[f"tps_temporal_shift_head_dim_{head_dim}"]
    windows = torch.arange(6.0 * 2 * head_dim).view(6, 1, 2, head_dim)
    clips = windows.view(2, 3, 2, head_dim)  # batch, frames, places, channels of one head
    assert channel_shift(clips, shift_div=8).flatten().tolist() == golden["output"]


def test_channel_shift_splits_every_head():
    clips = torch.randn(2, 4, 3, 3, 32)
    heads = [channel_shift(head, 8) for head in clips.split(16, dim=-1)]
    assert torch.equal(channel_shift(clips, 8, num_heads=2), torch.cat(heads, dim=-1))


@pytest.mark.parametrize("pattern", sorted(PATCH_SHIFT_PATTERNS))
def test_inverse_patch_shift_restores_the_clip(pattern):
    clips = torch.randn(2, 5, 6, 7, 3)
    tile = PATCH_SHIFT_PATTERNS[pattern]
    shifted = patch_shift(clips, tile)
    assert not torch.equal(shifted, clips)
    assert torch.equal(patch_shift(shifted, tile, inverse=True), clips)


@pytest.mark.parametrize(("pattern", "distinct"), [("A", 3), ("B", 4), ("C", 9), ("D", 16)])
def test_patterns_mix_as_many_frames_as_their_names_say(pattern, distinct):
    offsets = [offset for row in PATCH_SHIFT_PATTERNS[pattern] for offset in row]
    assert len(set(offsets)) == distinct


@pytest.mark.parametrize("shift", [lambda x: patch_shift(x, PATCH_SHIFT_PATTERNS["C"]), lambda x: channel_shift(x, 8)])
def test_a_static_clip_stays_as_it_is(shift):
    frame = torch.randn(1, 1, 7, 7, 16)
    assert torch.equal(shift(frame.expand(1, 6, -1, -1, -1)), frame.expand(1, 6, -1, -1, -1))


@pytest.mark.parametrize("bad", ["E", "", [], [[]], [[0, 1], [2]], [[0.5]], [[True]], 3, None])
def test_what_is_no_pattern_is_refused_with_the_possible_names(bad):
    with pytest.raises(ValueError, match=r"\['A', 'B', 'C', 'D'\]"):
        resolve_patch_shift_pattern(bad)


def counted(shape: tuple[int, ...]) -> torch.Tensor:
    """1, 2, 3, ..., so that no value is the zero that comes in at the ends."""
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)


def heads_last(flat: torch.Tensor, frames: int) -> torch.Tensor:
    """(batch * time, heads, tokens, head_dim) of the originals to (batch, time, tokens, heads * head_dim)."""
    return flat.unflatten(0, (-1, frames)).transpose(2, 3).flatten(-2)


def heads_first(clip: torch.Tensor, heads: int) -> torch.Tensor:
    return clip.unflatten(-1, (heads, -1)).transpose(2, 3).flatten(0, 1)


@pytest.mark.parametrize("case", ["seg4_div8", "seg4_div4", "seg2_div4"])
def test_mixing_shift_moves_every_channel_as_xvits_released_code(case):
    golden = OPS[f"xvit_temporal_shift_{case}"]
    shape = (8, 2, 1, 8) if case == "seg2_div4" else (8, 2, 2, 8)
    clip = heads_last(counted(shape), 8)
    mixed = mixing_shift(clip, golden["n_div"], golden["n_segment"])
    assert heads_first(mixed, 2).flatten().tolist() == golden["output"]


def test_periodic_shift_moves_every_channel_as_the_released_code():
    clip = heads_last(counted((8, 2, 2, 8)), 4)
    shifted = periodic_shift(clip, shift_div=4, num_heads=2)
    assert heads_first(shifted, 2).flatten().tolist() == OPS["laps_periodic_shift"]["output"]


def test_plain_shift_moves_every_channel_as_the_released_code():
    clip = counted((8, 8, 1, 2)).unflatten(0, (2, 4)).movedim(2, -1)  # batch, time, height, width, channels
    shifted = periodic_shift(clip, shift_div=4, num_heads=1)
    assert shifted.movedim(-1, 2).flatten().tolist() == OPS["visformer_plain_shift"]["output"]


def test_token_shift_moves_the_class_token_alone_as_the_released_code():
    shifted = token_shift(counted((8, 3, 8)).unflatten(0, (2, 4)), shift_div=4)
    assert shifted.flatten().tolist() == OPS["tokshift_shift"]["output"]


def test_a_wider_temporal_window_shares_the_same_channels_among_four_frames():
    clip = counted((1, 5, 1, 8))
    shifted = neighbour_shift(clip, fold=2, window=2)
    middle = clip[0, :, 0]
    expected = [middle[3, 0], middle[1, 1], middle[4, 2], middle[0, 3], *middle[2, 4:]]
    assert shifted[0, 2, 0].tolist() == [value.item() for value in expected]
    assert shifted[0, 0, 0, [1, 3]].tolist() == [0, 0]
    assert neighbour_shift(clip[:, :1], fold=2, window=2)[0, 0, 0, :4].tolist() == [0, 0, 0, 0]


def test_a_last_segment_that_is_shorter_ends_in_zeros_too():
    clip = torch.randn(2, 7, 3, 8)
    mixed = mixing_shift(clip, shift_div=4, segment_length=3)
    parts = [mixing_shift(part, shift_div=4) for part in clip.split(3, dim=1)]
    assert torch.equal(mixed, torch.cat(parts, dim=1))
