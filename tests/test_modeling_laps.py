import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig, ViTModel

from hf_tps import LAPSConfig, LAPSForVideoClassification, LAPSModel
from tests import micro_models
from tests.comparison import assert_close_to_spread

BASE2D = {"attention_scope": "frame", "shift": None}
BASE3D = {"attention_scope": "joint", "shift": None}
VIT = micro_models.LAPS_VIT


def on_meta(**settings) -> LAPSForVideoClassification:
    with torch.device("meta"):
        return LAPSForVideoClassification(LAPSConfig(num_labels=400, **settings)).eval()


@pytest.mark.parametrize("settings", [{}, BASE2D, BASE3D], ids=["LAPS", "Base2D", "Base3D"])
def test_parameters_of_visformer_s_are_those_of_the_model_zoo(settings):
    assert sum(p.numel() for p in on_meta(**settings).parameters()) == 39_758_192


@pytest.mark.parametrize(
    ("settings", "giga_macs"), [(BASE2D, 39.07), (BASE3D, 46.5), ({}, 40.1)], ids=["Base2D", "Base3D", "LAPS"]
)
def test_macs_are_those_of_the_model_zoo(settings, giga_macs):
    with FlopCounterMode(display=False) as counter:
        on_meta(**settings)(torch.zeros(1, 8, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2 == pytest.approx(giga_macs * 1e9, rel=0.01)


def test_the_defaults_are_the_two_networks_of_the_release():
    visformer, vit = LAPSConfig(), LAPSConfig(backbone="vit")
    assert (visformer.embed_dim, visformer.depths, visformer.num_heads) == (384, (7, 4, 4), 6)
    assert (visformer.hidden_size, visformer.num_hidden_layers) == (768, 3)
    assert (vit.embed_dim, vit.depths, vit.num_heads, vit.patch_size) == (768, (12,), 12, 16)
    assert (vit.hidden_size, vit.num_hidden_layers) == (768, 12)
    assert [vit.level_of_block(0, block) for block in range(6)] == [1, 2, 3, 1, 1, 2]
    assert [visformer.level_of_block(2, block) for block in range(4)] == [2, 3, 1, 2]


def test_random_weights_of_a_visformer_spread_as_those_of_the_release():
    """Kaiming, fan-out: sqrt(2 / (channels out * kernel area)), for the 1 x 1 convolutions too."""
    torch.manual_seed(0)
    model = LAPSForVideoClassification(LAPSConfig(num_labels=400))
    stds = {name: parameter.std().item() for name, parameter in model.named_parameters() if parameter.ndim > 1}
    backbone = "laps.backbone."
    wanted = {
        f"{backbone}stem.conv.weight": 0.0357,
        f"{backbone}stages.1.embedding.projection.weight": 0.0361,  # 384 channels, 2 x 2 pixels
        f"{backbone}stages.1.blocks.0.attention.proj.weight": 0.0722,
        f"{backbone}stages.1.blocks.0.mlp.fc2.weight": 0.0722,
        f"{backbone}stages.2.blocks.3.attention.proj.weight": 0.0510,
        f"{backbone}stages.2.blocks.3.mlp.fc1.weight": 0.0255,  # 3072 channels
        f"{backbone}stages.0.blocks.2.mlp.conv2.weight": 0.0241,  # 384 channels, 3 x 3 pixels
        "classifier.weight": 0.02,
    }
    assert {name: stds[name] for name in wanted} == pytest.approx(wanted, rel=0.02)
    vit = LAPSForVideoClassification(LAPSConfig(**{**micro_models.SETTINGS["laps"], **VIT, "embed_dim": 64}))
    assert vit.laps.backbone.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.13, rel=0.1)


def logits_of(clip: torch.Tensor, **settings) -> torch.Tensor:
    torch.manual_seed(0)
    model = micro_models.classifier("laps", **settings)
    with torch.no_grad():
        return model(clip).logits


@pytest.mark.parametrize(
    "fork",
    [
        {"attention_scope": "frame"},
        {"attention_scope": "joint"},
        {"leap_levels": ((2, 3), (2, None))},
        {"leap_levels": ((None, None), (None, None))},
        {"shift": "plain"},
        {"shift": None},
        {"shift_div": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("backbone", [{}, VIT], ids=["visformer", "vit"])
def test_every_setting_changes_what_is_computed(fork, backbone):
    clip = torch.randn(1, 8, 3, 32, 32)
    if backbone and "leap_levels" in fork:
        fork = {"leap_levels": fork["leap_levels"][0]}
    assert (logits_of(clip, **{**backbone, **fork}) - logits_of(clip, **backbone)).abs().max() > 1e-4


def test_tokshift_changes_what_is_computed_and_sees_time():
    clip = torch.randn(1, 8, 3, 32, 32)
    settings = {**VIT, "attention_scope": "frame", "shift": "token"}
    assert (logits_of(clip, **settings) - logits_of(clip, **{**settings, "shift": None})).abs().max() > 1e-4
    assert (logits_of(clip.flip(1), **settings) - logits_of(clip, **settings)).abs().max() > 1e-4


@pytest.mark.parametrize("settings", [BASE2D, BASE3D], ids=["Base2D", "Base3D"])
@pytest.mark.parametrize("backbone", [{}, VIT], ids=["visformer", "vit"])
def test_the_baselines_do_not_depend_on_the_order_of_the_frames(settings, backbone):
    clip = torch.randn(1, 8, 3, 32, 32)
    shuffled = clip[:, [3, 5, 0, 7, 1, 6, 4, 2]]
    both = {**backbone, **settings}
    assert_close_to_spread(logits_of(shuffled, **both), logits_of(clip, **both))


@pytest.mark.parametrize(("frames", "height", "width"), [(4, 64, 32), (12, 32, 96), (5, 32, 32)])
@pytest.mark.parametrize(
    "backbone", [{"leap_levels": ((1, 2), (2, None))}, {**VIT, "leap_levels": (1, 2)}], ids=["visformer", "vit"]
)
def test_other_numbers_of_frames_and_image_sizes_run(backbone, frames, height, width):
    model = micro_models.classifier("laps", **backbone)
    with torch.no_grad():
        outputs = model.laps(torch.randn(2, frames, 3, height, width))
    per_frame = 1 + height // 8 * (width // 8) if model.config.backbone == "vit" else height // 32 * (width // 32)
    assert outputs.last_hidden_state.shape == (2, frames * per_frame, model.config.hidden_size)


def test_the_vit_network_does_what_all_models_do():
    """The shared tests run the Visformer; what depends on the backbone, once more for the ViT."""
    model = micro_models.classifier("laps", **VIT)
    clip = torch.randn(2, 8, 3, 32, 32)
    with torch.no_grad():
        outputs = model(clip, output_hidden_states=True)
        assert [tuple(states.shape) for states in outputs.hidden_states] == [(16, 17, 16)] * 5
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_close_to_spread(compiled(clip).logits, outputs.logits)
        model.set_attn_implementation("eager")
        eager = model(clip, output_attentions=True)
    assert_close_to_spread(eager.logits, outputs.logits)
    assert [weights.shape[-1] for weights in eager.attentions] == [34, 34, 34, 17]
    model.gradient_checkpointing_enable()
    model.train()
    model(clip, labels=torch.tensor([0, 1])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_vit_network_survives_saving(tmp_path):
    model = micro_models.classifier("laps", **{**VIT, "shift": "token", "attention_scope": "frame"})
    model.save_pretrained(tmp_path)
    loaded, report = LAPSForVideoClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    clip = torch.randn(1, 8, 3, 32, 32)
    with torch.no_grad():
        assert_close_to_spread(loaded(clip).logits, model(clip).logits)


@pytest.mark.parametrize("backbone", ["visformer", "vit"])
def test_a_clip_that_the_levels_cannot_pair_is_refused(backbone):
    model = micro_models.classifier("laps", **(VIT if backbone == "vit" else {}))
    with pytest.raises(ValueError, match="Leap level .* of a clip of 6 without partner; possible levels are"):
        model(torch.randn(1, 6, 3, 32, 32))


def test_images_that_are_too_small_or_no_multiple_of_the_patch_are_refused():
    with pytest.raises(ValueError, match="at least 32 pixels; got 24 x 32"):
        micro_models.classifier("laps")(torch.randn(1, 8, 3, 24, 32))
    with pytest.raises(ValueError, match="multiples of the patch of 8 pixels; got 36 x 32"):
        micro_models.classifier("laps", **VIT)(torch.randn(1, 8, 3, 36, 32))


def test_the_360_pixel_visformer_of_the_release_can_be_made():
    model = on_meta(image_size=360, num_frames=32, leap_levels=((1, 2, 3, 4), (5, 1, 2, 3)))
    positions = [tuple(stage.position_embeddings.shape[2:]) for stage in model.laps.backbone.stages]
    assert positions == [(45, 45), (22, 22), (11, 11)]
    small = micro_models.classifier("laps", image_size=72)  # 9, 4 and 2 places
    maps = []
    hook = torch.nn.functional.interpolate
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "interpolate", lambda *a, **k: maps.append(1) or hook(*a, **k))
        assert small(torch.randn(1, 8, 3, 72, 72)).logits.isfinite().all()
    assert maps == [], "positions made for this image size were interpolated"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "swin"}, r"backbone is one of \['visformer', 'vit'\]"),
        ({"attention_scope": "all"}, "attention_scope is one of"),
        ({"shift": "patch"}, "shift is one of"),
        ({"shift": "token"}, "only backbone='vit' has"),
        ({"view_aggregation": "mean"}, "view_aggregation is 'probabilities' or 'logits'"),
        ({"depths": (12,)}, "depths of a visformer has 3 numbers"),
        ({"backbone": "vit", "depths": (7, 4, 4)}, "depths of a vit has 1 numbers"),
        ({"num_heads": 7}, "multiple of num_heads=7"),
        ({"image_size": 16}, "image_size must be at least 32"),
        ({"backbone": "vit", "image_size": 100}, "multiple of patch_size=16"),
        ({"shift_div": 1}, "shift_div must be at least 2"),
        ({"leap_levels": (1, 2)}, "one tuple for the second and one for the third"),
        ({"leap_levels": ((1,), ())}, "one tuple for the second and one for the third"),
        ({"backbone": "vit", "leap_levels": ((1,), (2,))}, "one tuple such as"),
        ({"leap_levels": ((1,), (4,))}, "Leap level 4"),
        ({"num_frames": 6}, "without partner"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LAPSConfig(**settings)


def test_a_vit_checkpoint_starts_a_model_whose_static_clips_have_its_features(tmp_path):
    torch.manual_seed(1)
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    vit = ViTModel(ViTConfig(intermediate_size=32, layer_norm_eps=1e-5, **sizes)).eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    vit.save_pretrained(tmp_path)
    # leap attention over two equal frames is attention inside one; the shift's zeros at the ends are not
    model = LAPSModel.from_image_pretrained(tmp_path, num_frames=8, shift=None).eval()
    assert (model.config.backbone, model.config.attention_scope, model.config.layer_norm_eps) == ("vit", "leap", 1e-5)
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = vit(image).last_hidden_state
        tokens = model(image[:, None].expand(-1, 8, -1, -1, -1)).last_hidden_state
    for frame in tokens.unflatten(1, (8, -1)).unbind(1):
        assert_close_to_spread(frame, expected)
    with pytest.raises(ValueError, match="num_heads=2, which comes with its weights"):
        LAPSModel.from_image_pretrained(tmp_path, num_heads=4)
