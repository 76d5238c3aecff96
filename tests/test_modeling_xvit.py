import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeiTConfig, DeiTModel, ViTConfig, ViTModel

from hf_tps import XViTConfig, XViTForVideoClassification, XViTModel
from hf_tps.temporal_shift import mixing_shift
from tests import micro_models
from tests.comparison import assert_close_to_spread


def on_meta(**settings) -> XViTForVideoClassification:
    with torch.device("meta"):
        return XViTForVideoClassification(XViTConfig(**settings)).eval()


@pytest.mark.parametrize(("num_labels", "parameters"), [(400, 93_790_864), (600, 93_944_664), (174, 93_617_070)])
def test_parameters_are_those_of_the_release_without_its_dead_layer(num_labels, parameters):
    assert sum(p.numel() for p in on_meta(num_labels=num_labels).parameters()) == parameters


def test_macs_are_those_of_the_paper():
    with FlopCounterMode(display=False) as counter:
        on_meta(num_labels=400)(torch.zeros(1, 16, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2 == pytest.approx(283e9, rel=0.01)


def test_paper_config_takes_the_papers_side_in_every_fork():
    config = XViTConfig.paper(num_frames=12)
    assert (config.num_temporal_embeddings, config.segment_length) == (12, None)
    assert XViTConfig().num_temporal_embeddings == 8


def logits_of(clip: torch.Tensor, **settings) -> torch.Tensor:
    torch.manual_seed(0)
    model = micro_models.classifier("xvit", **settings)
    torch.nn.init.normal_(model.xvit.temporal_embeddings)
    with torch.no_grad():
        return model(clip).logits


@pytest.mark.parametrize(
    "fork",
    [
        {"shift_div": 8},
        {"shift_div": 0},
        {"segment_length": 3},
        {"mixing_layers": (1,)},
        {"temporal_window": 2},
        {"summary_token": True},
        {"num_temporal_embeddings": 3},
        {"temporal_head_layers": 0},
        {"temporal_head_layers": 3},
    ],
    ids=str,
)
def test_every_setting_changes_what_is_computed(fork):
    clip = torch.randn(1, 6, 3, 32, 32)
    assert (logits_of(clip, **fork) - logits_of(clip)).abs().max() > 1e-4


def test_mixing_equals_the_slow_form_frame_by_frame():
    """Keys and values of frame t, put together by hand from its neighbours."""
    attention = micro_models.classifier("xvit", segment_length=4).xvit.blocks[0].attention.double()
    tokens = torch.randn(2 * 6, 17, 16, dtype=torch.float64)
    with torch.no_grad():
        fast, _ = attention(tokens, 6)
        query, key, value = attention.qkv(tokens).unflatten(0, (2, 6)).chunk(3, dim=-1)
        key, value = (mixing_shift(part, 4, 4) for part in (key, value))
        for frame in range(6):
            heads = [part[:, frame].unflatten(-1, (2, 8)).transpose(1, 2) for part in (query, key, value)]
            weights = (heads[0] @ heads[1].transpose(-1, -2) * 8**-0.5).softmax(-1)
            slow = attention.proj((weights @ heads[2]).transpose(1, 2).flatten(-2))
            torch.testing.assert_close(fast.unflatten(0, (2, 6))[:, frame], slow)


def test_the_summary_token_lets_every_frame_see_all_frames():
    model = micro_models.classifier("xvit", shift_div=0, num_hidden_layers=1, summary_token=True).xvit
    clip = torch.randn(1, 6, 3, 32, 32)
    changed = clip.clone()
    changed[:, 5] = torch.randn(3, 32, 32)
    with torch.no_grad():
        moved = (
            (model(clip).last_hidden_state - model(changed).last_hidden_state)
            .unflatten(1, (6, -1))
            .abs()
            .amax((0, 2, 3))
        )
    assert (moved > 1e-6).all()


def test_without_mixing_time_embedding_and_head_nothing_tells_the_frames_apart():
    model = micro_models.classifier("xvit", shift_div=0, temporal_head_layers=0)
    clip = torch.randn(1, 6, 3, 32, 32)
    with torch.no_grad():
        assert_close_to_spread(model(clip[:, [3, 5, 0, 1, 4, 2]]).logits, model(clip).logits)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 32, 32), (11, 32, 32), (6, 48, 24)])
def test_any_number_of_frames_and_image_size_runs(frames, height, width):
    model = micro_models.classifier("xvit", segment_length=4)
    with torch.no_grad():
        outputs = model.xvit(torch.randn(2, frames, 3, height, width))
    assert outputs.last_hidden_state.shape == (2, frames * (1 + height // 8 * (width // 8)), 16)


def test_an_image_that_is_no_multiple_of_the_patch_is_refused():
    with pytest.raises(ValueError, match="multiples of the patch of 8 pixels; got 30 x 32"):
        micro_models.classifier("xvit")(torch.randn(1, 2, 3, 30, 32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 0}, "num_frames must be at least 1"),
        ({"hidden_size": 100}, "multiple of num_attention_heads=12"),
        ({"temporal_head_heads": 5}, "multiple of temporal_head_heads=5"),
        ({"image_size": 100}, "multiple of patch_size"),
        ({"shift_div": 1}, "shift_div must be 0"),
        ({"segment_length": 0}, "segment_length must be at least 1"),
        ({"mixing_layers": (3, 12)}, r"names \[12\]"),
        ({"temporal_head_layers": -1}, "temporal_head_layers"),
        ({"view_aggregation": "mean"}, "'probabilities' or 'logits'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        XViTConfig(**settings)


SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
}


def random_image_model(model_class, config):
    torch.manual_seed(1)
    model = model_class(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize(
    "settings", [{}, {"layer_norm_eps": 1e-2}, {"qkv_bias": False}, {"hidden_act": "relu"}], ids=str
)
def test_without_mixing_a_static_clip_has_the_features_of_its_frame_in_the_image_model(settings, tmp_path):
    vit = random_image_model(ViTModel, ViTConfig(**{**SIZES, **settings}))
    vit.save_pretrained(tmp_path)
    model = XViTModel.from_image_pretrained(tmp_path, num_frames=5, shift_div=0).eval()
    assert model.config.num_attention_heads == 4
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = vit(image).last_hidden_state
        tokens = model(image[:, None].expand(-1, 5, -1, -1, -1)).last_hidden_state
    for frame in tokens.unflatten(1, (5, -1)).unbind(1):
        assert_close_to_spread(frame, expected)


def test_both_key_layouts_of_transformers_give_the_same_model(tmp_path):
    from safetensors.torch import save_file

    vit = random_image_model(ViTModel, ViTConfig(**SIZES))
    vit.save_pretrained(tmp_path)
    reference = XViTModel.from_image_pretrained(tmp_path).state_dict()
    new = {f"vit.{key}": tensor.contiguous() for key, tensor in vit.state_dict().items()}
    if not any("q_proj" in key for key in new):
        pytest.fail("this Transformers has another layout: look at its names")
    old = {}
    for key, tensor in new.items():
        for ours, theirs in (
            ("vit.layers.", "vit.encoder.layer."),
            (".q_proj", ".attention.query"),
            (".k_proj", ".attention.key"),
            (".v_proj", ".attention.value"),
            (".attention.o_proj", ".attention.output.dense"),
            (".mlp.fc1", ".intermediate.dense"),
            (".mlp.fc2", ".output.dense"),
        ):
            key = key.replace(ours, theirs)
        old[key] = tensor
    for layout in (new, old):
        save_file(layout, tmp_path / "model.safetensors")
        model = XViTModel.from_image_pretrained(tmp_path)
        for name, tensor in model.state_dict().items():
            if not name.startswith("temporal_head."):
                assert torch.equal(tensor, reference[name]), name


def test_a_deit_starts_a_model_without_its_distillation_token(tmp_path):
    deit = random_image_model(DeiTModel, DeiTConfig(**SIZES))
    deit.save_pretrained(tmp_path)
    model = XViTModel.from_image_pretrained(tmp_path)
    positions = model.embeddings.position_embeddings
    assert torch.equal(positions[:, 1:], deit.embeddings.position_embeddings[:, 2:])
    assert torch.equal(positions[:, 0], deit.embeddings.position_embeddings[:, 0])


def test_positions_are_resized_for_another_image_size_and_the_head_is_new(tmp_path):
    random_image_model(ViTModel, ViTConfig(**SIZES)).save_pretrained(tmp_path)
    model = XViTForVideoClassification.from_image_pretrained(tmp_path, image_size=48, num_labels=7)
    assert model.xvit.embeddings.position_embeddings.shape == (1, 37, 16)
    assert model.classifier.out_features == 7
    assert model.xvit.temporal_embeddings.abs().max() == 0  # paper: initialised with zeros
    with pytest.raises(ValueError, match="hidden_size=16, which comes with its weights"):
        XViTModel.from_image_pretrained(tmp_path, hidden_size=32)
