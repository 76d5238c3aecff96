import math
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_tps import TPSConfig
from hf_tps.modeling_tps import TPSAttention
from hf_tps.temporal_shift import PATCH_SHIFT_PATTERNS
from hf_tps.window_layout import relative_position_index, temporal_resize_matrix, window_grid, window_layout
from tests import golden_cases, slow_twins

OPS = golden_cases.load("ops")
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("suffix", "pattern"), [("", PATCH_SHIFT_PATTERNS["C"]), ("_old", None)], ids=["patch", "channel"]
)
def test_relative_position_index_is_the_released_buffer(suffix, pattern):
    golden = OPS[f"tps_relative_position_index{suffix}"]
    index = relative_position_index(16, (7, 7), 7, pattern, "key_frame_0", CPU)
    assert list(index.shape) == golden["shape"]
    assert index.flatten()[:64].tolist() == golden["first64"]
    assert index[7, 10].tolist() == golden["frame_7_row_10"]
    assert index.sum().item() == golden["sum"]
    assert zlib.crc32(index.numpy().astype("<i8").tobytes()) == golden["crc32_of_int64_little_endian_bytes"]


@pytest.mark.parametrize("case", ["14x14_shift33", "14x21_shift33", "7x14_shift03", "14x7_shift30"])
def test_window_mask_is_the_released_one(case):
    golden = OPS[f"tps_window_mask_{case}"]
    frames, height, width = golden["padded_size"]
    assert list(window_grid(height, width, 7, shifted=True).shift) == golden["shift"][1:]
    mask = window_layout(frames, height, width, 7, True, None, CPU).mask.repeat(frames, 1, 1)
    assert list(mask.shape) == golden["shape"]
    assert (mask != 0).sum((1, 2)).tolist() == golden["masked_pairs_per_window"]
    assert zlib.crc32(mask.numpy().astype("<f4").tobytes()) == golden["crc32_of_float32_little_endian_bytes"]


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (3, 9), (2, 3), (4, 4)], ids=str)
@pytest.mark.parametrize("shifted", [False, True], ids=["plain", "shifted"])
@pytest.mark.parametrize("pattern", [None, *sorted(PATCH_SHIFT_PATTERNS)])
def test_restore_undoes_gather(size, shifted, pattern):
    frames, (height, width) = 5, size
    tile = None if pattern is None else PATCH_SHIFT_PATTERNS[pattern]
    layout = window_layout(frames, height, width, 4, shifted, tile, CPU)
    tokens = torch.arange(frames * height * width)
    padded = torch.cat((tokens, torch.tensor([-1])))
    assert torch.equal(padded[layout.gather][layout.restore], tokens)


ATTENTIONS = {
    "channel": {"temporal_shift": "channel"},
    "patch": {"temporal_shift": "patch"},
    "none": {"temporal_shift": None},
    "channel, same frame": {"temporal_shift": "channel", "relative_position_bias": "same_frame"},
    "patch, same frame": {"temporal_shift": "patch", "relative_position_bias": "same_frame"},
    "patch, not shifted back": {"temporal_shift": "patch", "shift_back": False},
    "patch, bias not shifted": {"temporal_shift": "patch", "shift_position_bias": False},
    "patch, bias not shifted, same frame": {
        "temporal_shift": "patch",
        "shift_position_bias": False,
        "relative_position_bias": "same_frame",
    },
    "patch A": {"temporal_shift": "patch", "shift_pattern": "A"},
    "patch D": {"temporal_shift": "patch", "shift_pattern": "D"},
    "patch, own matrix": {"temporal_shift": "patch", "shift_pattern": [[0, 5, -1]]},
}


@pytest.mark.parametrize("size", [(8, 8), (6, 9), (3, 6), (2, 3)], ids=["whole", "padded", "one axis small", "small"])
@pytest.mark.parametrize("shifted", [False, True], ids=["plain", "shifted"])
@pytest.mark.parametrize("case", ATTENTIONS)
def test_gathered_attention_equals_its_slow_twin_in_values_and_gradients(case, shifted, size):
    settings = dict(ATTENTIONS[case])
    temporal_shift = settings.pop("temporal_shift")
    config = TPSConfig(num_frames=3, tubelet_size=1, window_size=4, shift_div=4, **settings)
    config._attn_implementation = "sdpa"
    attention = TPSAttention(config, channels=16, num_heads=2, shifted=shifted, temporal_shift=temporal_shift).double()
    torch.nn.init.normal_(attention.relative_position_bias_table)
    maps = torch.randn(2, 3, *size, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, *size, 16, dtype=torch.float64)
    watched = [maps, *attention.parameters()]

    fast, _ = attention(maps)
    slow = slow_twins.tps_attention(attention, maps)
    torch.testing.assert_close(fast, slow)
    for ours, theirs in zip(
        torch.autograd.grad((fast * weight).sum(), watched),
        torch.autograd.grad((slow * weight).sum(), watched),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_cached_tables_can_be_used_for_training_after_an_evaluation_in_inference_mode():
    with torch.inference_mode():
        layout = window_layout(3, 11, 13, 5, True, None, CPU)
        index = relative_position_index(3, (5, 5), 5, None, "key_frame_0", CPU)
    assert not layout.gather.is_inference()
    assert not index.is_inference()
    assert window_layout(3, 11, 13, 5, True, None, CPU).gather is layout.gather


@pytest.mark.parametrize(("source", "target"), [(16, 8), (8, 16), (4, 3), (5, 1), (1, 3)])
def test_temporal_resize_keeps_offset_zero_and_the_longest_offsets(source, target):
    resize = temporal_resize_matrix(source, target, CPU)
    offsets = torch.arange(-(source - 1.0), source)
    resized = resize @ offsets
    assert resized[target - 1] == 0
    if target > 1:
        assert resized[0] == -(source - 1)
        assert resized[-1] == source - 1
        # linear in between
        torch.testing.assert_close(resized, torch.linspace(-(source - 1), source - 1, 2 * target - 1))


def test_temporal_resize_to_the_same_size_changes_nothing():
    assert torch.equal(temporal_resize_matrix(6, 6, CPU), torch.eye(11))


# --- properties ------------------------------------------------------------------------------------------------------


LAYOUTS = {
    "frames": st.integers(1, 6),
    "height": st.integers(1, 20),
    "width": st.integers(1, 20),
    "window_size": st.integers(1, 8),
    "shifted": st.booleans(),
}


@given(**LAYOUTS, pattern=st.sampled_from([None, *PATCH_SHIFT_PATTERNS.values()]))
def test_every_token_is_in_exactly_one_place_of_the_windows(frames, height, width, window_size, shifted, pattern):
    layout = window_layout(frames, height, width, window_size, shifted, pattern, CPU)
    tokens = frames * height * width
    grid = window_grid(height, width, window_size, shifted)
    assert len(layout.gather) == frames * math.prod(grid.num_windows) * math.prod(grid.window)
    taken = torch.bincount(layout.gather, minlength=tokens + 1)
    assert (taken[:tokens] == 1).all()
    assert taken[tokens] == len(layout.gather) - tokens  # the padding
    assert torch.equal(layout.gather[layout.restore], torch.arange(tokens))


@given(**LAYOUTS)
def test_places_see_each_other_where_their_tokens_are_neighbours(frames, height, width, window_size, shifted):
    layout = window_layout(frames, height, width, window_size, shifted, None, CPU)
    grid = window_grid(height, width, window_size, shifted)
    windows = layout.gather.view(frames, math.prod(grid.num_windows), math.prod(grid.window))
    inside = windows < frames * height * width
    rows, columns = windows // width % height, windows % width
    near = (rows[..., :, None] - rows[..., None, :]).abs() < grid.window[0]
    near &= (columns[..., :, None] - columns[..., None, :]).abs() < grid.window[1]
    seen = torch.ones_like(near) if layout.mask is None else (layout.mask == 0).expand_as(near)
    both = inside[..., :, None] & inside[..., None, :]
    assert torch.equal(seen & both, near & both)
