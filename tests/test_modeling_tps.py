import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import SwinConfig, SwinModel

from hf_tps import TPSConfig, TPSForVideoClassification, TPSModel
from hf_tps.modeling_tps import TPSAttention
from tests import golden_cases, micro_models
from tests.comparison import assert_close_to_spread
from tests.goldens import recipe

TINY = {}
BASE = {"depths": (2, 2, 18, 2), "embed_dim": 128, "num_heads": (4, 8, 16, 32)}
LARGE = {"depths": (2, 2, 18, 2), "embed_dim": 192, "num_heads": (6, 12, 24, 48)}


def on_meta(**settings) -> TPSForVideoClassification:
    with torch.device("meta"):
        return TPSForVideoClassification(TPSConfig(**settings)).eval()


@pytest.mark.parametrize(
    ("size", "num_labels", "parameters"),
    [
        (TINY, 400, 28_531_222),
        (TINY, 174, 28_357_428),
        (TINY, 48, 28_260_534),
        (BASE, 400, 89_065_688),
        (BASE, 174, 88_834_038),
        (BASE, 48, 88_704_888),
        (LARGE, 400, 198_478_972),
        (LARGE, 174, 198_131_610),
        (LARGE, 48, 197_937_948),
    ],
)
def test_parameters_are_those_of_the_release(size, num_labels, parameters):
    assert sum(p.numel() for p in on_meta(num_labels=num_labels, **size).parameters()) == parameters


def test_random_weights_spread_as_those_of_the_release():
    torch.manual_seed(0)
    model = TPSForVideoClassification(TPSConfig(num_labels=400))
    embedding = model.tps.embeddings.projection
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert embedding.weight.std().item() == pytest.approx(0.0587, rel=0.02)
    assert embedding.weight.abs().max() <= 96**-0.5  # uniform, as torch makes a convolution that reads 96 values
    assert embedding.bias.abs().max() > 0
    assert model.tps.stages[0].blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_a_new_classifier_of_trained_weights_is_the_only_new_thing(tmp_path):
    model = micro_models.classifier("tps")
    model.save_pretrained(tmp_path)
    settings = {"num_labels": 300, "ignore_mismatched_sizes": True}
    loaded = TPSForVideoClassification.from_pretrained(tmp_path, **settings)
    assert loaded.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    for name, parameter in model.tps.named_parameters():
        assert torch.equal(parameter, loaded.tps.get_parameter(name)), name


@pytest.mark.parametrize(("size", "giga_macs"), [(TINY, 72), (BASE, 247)], ids=["tiny", "base"])
def test_macs_are_those_of_the_paper(size, giga_macs):
    with FlopCounterMode(display=False) as counter:
        on_meta(num_labels=400, **size)(torch.zeros(1, 32, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2 == pytest.approx(giga_macs * 1e9, rel=0.01)


@pytest.mark.parametrize(("kind", "temporal_shift"), [("psm", "patch"), ("tsm", "channel")])
def test_attention_of_one_window_equals_the_released_one(kind, temporal_shift):
    golden = golden_cases.load("ops")[f"tps_window_attention_{kind}"]
    config = TPSConfig()
    config._attn_implementation = "sdpa"
    attention = TPSAttention(config, channels=8, num_heads=2, shifted=False, temporal_shift=temporal_shift)
    shapes = {name: tuple(tensor.shape) for name, tensor in attention.state_dict().items()}
    attention.load_state_dict(
        {name: torch.from_numpy(recipe.synth_tensor(f"ops.{kind}.{name}", shape)) for name, shape in shapes.items()}
    )
    windows = torch.from_numpy(recipe.synth_input(f"ops_window_attention_{kind}", (16, 49, 8)))
    with torch.no_grad():
        out = attention(windows.view(1, 16, 7, 7, 8))[0].flatten()
    expected = golden["output"]
    torch.testing.assert_close(out[:8], torch.tensor(expected["first8"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(out[-8:], torch.tensor(expected["last8"]), atol=1e-6, rtol=0)
    assert out.mean().item() == pytest.approx(expected["mean"], abs=1e-7)
    assert out.std(correction=0).item() == pytest.approx(expected["std"], abs=1e-7)


def test_paper_config_takes_the_papers_side_in_every_fork():
    config = TPSConfig.paper(num_labels=7)
    assert (tuple(config.shift_order), config.relative_position_bias) == (("patch", "channel"), "same_frame")
    assert config.num_labels == 7
    assert (tuple(TPSConfig().shift_order), TPSConfig().relative_position_bias) == (("channel", "patch"), "key_frame_0")
    assert tuple(TPSConfig.paper(shift_order=("patch",)).shift_order) == ("patch",)


def logits_of(clip: torch.Tensor, seed: int = 0, **settings) -> torch.Tensor:
    torch.manual_seed(seed)
    model = micro_models.classifier("tps", initializer_range=0.1, **settings)
    for module in model.modules():
        if isinstance(module, TPSAttention):
            torch.nn.init.normal_(module.relative_position_bias_table)
    with torch.no_grad():
        return model(clip).logits


@pytest.mark.parametrize(
    "fork",
    [
        {"shift_order": ("patch", "channel")},
        {"shift_order": ("patch",)},
        {"shift_order": ("channel",)},
        {"shift_order": (None, "patch")},
        {"shift_order": None},
        {"shift_pattern": "A"},
        {"shift_pattern": [[0, 1], [-1, 0], [2, 2]]},
        {"shift_div": 8},
        {"relative_position_bias": "same_frame"},
        {"shift_order": (("channel", "patch"), None)},
        {"shift_order": (None, ("channel", "patch"))},
        {"shift_back": False},
        {"shift_position_bias": False},
    ],
    ids=str,
)
def test_every_fork_changes_what_is_computed(fork):
    clip = torch.randn(1, 6, 3, 32, 32)
    assert (logits_of(clip, **fork) - logits_of(clip)).abs().max() > 1e-4


def test_without_shifts_nothing_tells_the_frames_apart():
    clip = torch.randn(1, 6, 3, 32, 32)
    shuffled = clip[:, [4, 0, 5, 1, 3, 2]]
    off = {"shift_order": None, "tubelet_size": 1}
    assert_close_to_spread(logits_of(shuffled, **off), logits_of(clip, **off))
    on = {"tubelet_size": 1}
    assert (logits_of(shuffled, **on) - logits_of(clip, **on)).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("num_frames", "tubelet_size", "window_size", "height", "width"),
    [(6, 2, 4, 32, 32), (5, 2, 4, 30, 45), (3, 1, 7, 20, 36), (1, 1, 3, 9, 9), (2, 2, 2, 1, 50), (7, 3, 5, 64, 4)],
)
def test_any_size_runs_and_padding_frames_and_pixels_are_zeros(num_frames, tubelet_size, window_size, height, width):
    config = micro_models.config("tps", num_frames=num_frames, tubelet_size=tubelet_size, window_size=window_size)
    model = TPSModel(config).eval()
    clip = torch.randn(1, num_frames, 3, height, width)
    full = torch.nn.functional.pad(clip, (0, -width % 4, 0, -height % 4, 0, 0, 0, -num_frames % tubelet_size))
    with torch.no_grad():
        out = model(clip).last_hidden_state
        assert_close_to_spread(model(full).last_hidden_state, out)
    rows, columns = (-(-size // 4) for size in (height, width))
    assert out.shape == (1, config.num_temporal_positions * -(-rows // 2) * -(-columns // 2), 32)


def test_a_trained_checkpoint_changes_its_number_of_frames_by_interpolating_the_temporal_rows(tmp_path):
    model = micro_models.classifier("tps", num_frames=16)
    for module in model.modules():
        if isinstance(module, TPSAttention):  # a bias that is linear in time, the same for all places
            steps = torch.arange(-7.0, 8.0).repeat_interleave(49)
            module.relative_position_bias_table.data = steps[:, None].repeat(1, module.num_heads)
    model.save_pretrained(tmp_path)
    shorter = TPSForVideoClassification.from_pretrained(tmp_path, num_frames=8)
    assert (shorter.config.num_temporal_positions, shorter.config.temporal_bias_size) == (4, 8)
    attention = shorter.tps.stages[0].blocks[0].attention  # channel shift: query frame f against key frame 0
    bias = attention.position_bias(frames=4, window=(4, 4))[:, 0, 0, 0]
    # 4 positions over the time of 8: offsets 0..3 become 0, 7/3, 14/3, 7
    torch.testing.assert_close(bias, torch.tensor([0, 7 / 3, 14 / 3, 7]))
    clip = torch.randn(1, 8, 3, 32, 32)
    with torch.no_grad():
        before = shorter(clip).logits
    shorter.save_pretrained(tmp_path / "again")
    again = TPSForVideoClassification.from_pretrained(tmp_path / "again")
    assert again.config.num_frames == 8
    with torch.no_grad():
        assert_close_to_spread(again(clip).logits, before)
    with pytest.raises(ValueError, match="num_frames=8"):
        shorter(torch.randn(1, 16, 3, 32, 32))


def random_swin(**settings) -> SwinModel:
    torch.manual_seed(1)
    config = SwinConfig(
        **{"image_size": 64, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, **settings}
    )
    swin = SwinModel(config).eval()
    for parameter in swin.parameters():  # biases and tables that are not all zero
        torch.nn.init.normal_(parameter, std=0.1)
    return swin


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"window_size": 7, "image_size": 112},
        {"window_size": 5},
        {"layer_norm_eps": 1e-2},
        {"qkv_bias": False},
        {"mlp_ratio": 2.0},
        {"hidden_act": "relu"},
        {"depths": (2, 1, 3), "num_heads": (1, 2, 8)},
    ],
    ids=str,
)
@pytest.mark.parametrize("shift_order", [None, ("channel", "patch")], ids=["shifts off", "shifts on"])
def test_a_static_clip_has_the_features_of_its_frame_in_the_image_model(settings, shift_order, tmp_path):
    swin = random_swin(**settings)
    swin.save_pretrained(tmp_path)
    model = TPSModel.from_image_pretrained(tmp_path, num_frames=6, shift_order=shift_order).eval()
    image = torch.randn(2, 3, swin.config.image_size, swin.config.image_size)
    with torch.no_grad():
        expected = swin(image)
        outputs = model(image[:, None].expand(-1, 6, -1, -1, -1))
    for frame in outputs.last_hidden_state.unflatten(1, (3, -1)).unbind(1):
        assert_close_to_spread(frame, expected.last_hidden_state)
    assert_close_to_spread(outputs.pooler_output, expected.pooler_output)


@pytest.mark.parametrize("kernel", ["flash_attention_2", "flex_attention"])
def test_kernels_that_cannot_add_the_bias_are_refused(kernel):
    with pytest.raises((ValueError, ImportError)):
        micro_models.classifier("tps").set_attn_implementation(kernel)
