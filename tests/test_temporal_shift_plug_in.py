"""The plug-in against this package's own video models and the image model, in and out of every supported model."""

import copy
import io

import pytest
import torch
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitModel,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from hf_tps import LAPSConfig, LAPSModel, TPSConfig, XViTConfig, XViTModel
from hf_tps.temporal_shift import channel_shift, mixing_shift, patch_shift
from hf_tps.temporal_shift_plug_in import HANDLES, IMAGE_TRANSFORMERS, SHIFTS, add_temporal_shift, remove_temporal_shift
from tests.comparison import assert_close_to_spread, assert_gradients_close

FRAMES = 4
SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
BEIT = {**SIZES, "use_relative_position_bias": True, "drop_path_rate": 0.0}
# in training it would stretch the positions at random
DINOV3 = {**SIZES, "num_register_tokens": 3, "pos_embed_rescale": None}
# two stages of 8 x 8 and 4 x 4 patches in windows of 4 x 4, the second block of the first stage with shifted windows
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 32,
    "depths": [2, 1],
    "num_heads": [4, 8],
    "window_size": 4,
    "drop_path_rate": 0.0,
}
MODELS = {
    "vit": (ViTModel, ViTConfig, SIZES),
    "vit classifier": (ViTForImageClassification, ViTConfig, SIZES),
    "deit": (DeiTModel, DeiTConfig, SIZES),
    "deit classifier": (DeiTForImageClassification, DeiTConfig, SIZES),
    "deit teacher": (DeiTForImageClassificationWithTeacher, DeiTConfig, SIZES),
    "dinov2": (Dinov2Model, Dinov2Config, SIZES),
    "dinov2 classifier": (Dinov2ForImageClassification, Dinov2Config, SIZES),
    "dinov2 registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig, SIZES),
    "dinov2 registers classifier": (Dinov2WithRegistersForImageClassification, Dinov2WithRegistersConfig, SIZES),
    "dinov3": (DINOv3ViTModel, DINOv3ViTConfig, DINOV3),
    "swin": (SwinModel, SwinConfig, SWIN),
    "swin padded": (SwinModel, SwinConfig, {**SWIN, "image_size": 36}),
    "swin classifier": (SwinForImageClassification, SwinConfig, SWIN),
    "beit": (BeitModel, BeitConfig, BEIT),
    "beit classifier": (BeitForImageClassification, BeitConfig, BEIT),
}
BASES = [name for name, (model_class, *_) in MODELS.items() if model_class.__name__ in IMAGE_TRANSFORMERS]
# a head reads what the base model gives: one shift tells whether it is found behind the head
PAIRS = [
    (name, shift)
    for name in MODELS
    for shift in (SHIFTS if name in BASES else ["mixing"])
    if not (shift == "token" and "swin" in name)
]


def build(name: str = "vit", attn_implementation: str = "sdpa", **settings):
    model_class, config_class, sizes = MODELS[name]
    torch.manual_seed(1)
    model = model_class._from_config(config_class(**{**sizes, **settings}), attn_implementation=attn_implementation)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def clips_for(name: str = "vit", batch: int = 2) -> torch.Tensor:
    """A moving clip for each of the batch, as the plugged model takes it."""
    side = MODELS[name][2]["image_size"]
    return torch.randn(batch * FRAMES, 3, side, side)


@torch.no_grad()
def answer(model, pixel_values: torch.Tensor) -> torch.Tensor:
    outputs = model(pixel_values=pixel_values)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def count_hooks(model) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def attributes(model) -> list[list[str]]:
    return [sorted(vars(module)) for module in model.modules()]


def test_the_table_of_models_is_tested_whole():
    assert {MODELS[name][0].__name__ for name in BASES} == set(IMAGE_TRANSFORMERS)


@pytest.fixture
def vit_folder(tmp_path):
    build("vit", layer_norm_eps=1e-3).save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
def assert_same_blocks(folder, video_model, **plug):
    clips = torch.randn(2, 6, 3, 32, 32)
    vit = add_temporal_shift(ViTModel.from_pretrained(folder).eval(), num_frames=6, **plug)
    ours = video_model.eval()(clips, output_hidden_states=True)
    theirs = vit(clips.flatten(0, 1), output_hidden_states=True)
    assert len(theirs.hidden_states) == 3
    for block, (mine, plugged) in enumerate(zip(ours.hidden_states, theirs.hidden_states, strict=True)):
        if block < 2 and plug["shift"] != "token":  # the last one is normalised in the one and not in the other
            assert_close_to_spread(plugged, mine)
    assert_close_to_spread(theirs.last_hidden_state, ours.last_hidden_state.unflatten(1, (6, -1)).flatten(0, 1))


@pytest.mark.parametrize(
    "settings", [{}, {"shift_div": 8}, {"segment_length": 3}, {"segment_length": 4}, {"temporal_window": 2}], ids=str
)
def test_mixing_in_a_vit_equals_xvit(settings, vit_folder):
    xvit = XViTModel.from_image_pretrained(vit_folder, num_frames=6, **settings)
    assert_same_blocks(vit_folder, xvit, shift="mixing", **settings)


def test_mixing_in_one_layer_equals_xvit_with_one_mixing_layer(vit_folder):
    xvit = XViTModel.from_image_pretrained(vit_folder, num_frames=6, mixing_layers=(1,))
    assert_same_blocks(vit_folder, xvit, shift="mixing", layers=[1])


@pytest.mark.parametrize("shift_div", [4, 8])
@pytest.mark.parametrize("shift", ["periodic", "plain", "token"])
def test_shift_in_a_vit_equals_laps(shift, shift_div, vit_folder):
    laps = LAPSModel.from_image_pretrained(
        vit_folder, num_frames=6, attention_scope="frame", shift=shift, shift_div=shift_div
    )
    assert_same_blocks(vit_folder, laps, shift=shift, shift_div=shift_div)


def test_defaults_are_those_of_our_own_models():
    assert SHIFTS["channel"].shift_div == TPSConfig().shift_div
    assert SHIFTS["mixing"].shift_div == XViTConfig().shift_div
    for shift in ("periodic", "plain", "token"):
        assert SHIFTS[shift].shift_div == LAPSConfig().shift_div
    clips = clips_for()
    given = answer(add_temporal_shift(build(), FRAMES, "patch", pattern=TPSConfig().shift_pattern), clips)
    assert_close_to_spread(answer(add_temporal_shift(build(), FRAMES), clips), given)


@pytest.mark.parametrize("shift", ["patch", "channel"])
@pytest.mark.parametrize("name", MODELS)
def test_a_static_clip_keeps_the_features_of_the_image_model(name, shift):
    model = build(name)
    images = clips_for(name)[:2]
    expected = answer(model, images).repeat_interleave(FRAMES, dim=0)
    add_temporal_shift(model, FRAMES, shift)
    assert_close_to_spread(answer(model, images.repeat_interleave(FRAMES, dim=0)), expected)


@pytest.mark.parametrize(("name", "shift"), PAIRS)
def test_a_moving_clip_changes_and_removal_gives_the_image_model_back_to_the_bit(name, shift):
    model = build(name)
    clips = clips_for(name)
    before, hooks, names = answer(model, clips), count_hooks(model), attributes(model)
    assert add_temporal_shift(model, FRAMES, shift) is model
    during = answer(model, clips)
    assert during.shape == before.shape
    assert (during - before).abs().max() > 1e-4
    # a clip is not mixed with its neighbour in the batch
    assert_close_to_spread(answer(model, clips[:FRAMES]), during[:FRAMES])
    assert remove_temporal_shift(model) is model
    assert torch.equal(answer(model, clips), before)
    assert (count_hooks(model), attributes(model)) == (hooks, names)


@pytest.mark.parametrize(("name", "shift"), [pair for pair in PAIRS if pair[0] in ("vit", "swin", "beit")])
def test_eager_and_sdpa_agree(name, shift):
    clips = clips_for(name)
    eager, sdpa = (answer(add_temporal_shift(build(name, kind), FRAMES, shift), clips) for kind in ("eager", "sdpa"))
    assert_close_to_spread(eager, sdpa)


def caught(module, model, clips, kind: str = "input") -> torch.Tensor:
    """What a sub-module reads or gives during a call, behind all hooks that were there before."""
    seen = []
    if kind == "input":
        handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    else:
        handle = module.register_forward_hook(lambda _, args, output: seen.append(output.clone()))
    answer(model, clips)
    handle.remove()
    return seen[0]


def attended_keys(model, clips) -> list[torch.Tensor]:
    """The keys (images or windows, tokens, channels) that each layer's attention works with, whatever made them."""
    seen = []
    forward = torch.nn.functional.scaled_dot_product_attention

    def look(query, key, value, **kwargs):
        seen.append(key.transpose(1, 2).flatten(2))
        return forward(query, key, value, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", look)
        answer(model, clips)
    return seen


def hand_made_windows(tokens: torch.Tensor, side: int, shifted: bool) -> torch.Tensor:
    """(images, rows * columns, channels) of a square map to (batch, frames, windows [2], places [2], channels)."""
    rows = round(tokens.shape[1] ** 0.5)
    maps = tokens.unflatten(1, (rows, rows)).unflatten(0, (-1, FRAMES))
    if shifted:
        maps = maps.roll((-(side // 2), -(side // 2)), dims=(2, 3))
    return maps.unflatten(3, (-1, side)).unflatten(2, (-1, side)).transpose(3, 4)


@pytest.mark.parametrize("shift", ["patch", "channel", "mixing"])
@pytest.mark.parametrize("block", [0, 1], ids=["plain windows", "shifted windows"])
def test_in_swin_a_window_exchanges_with_the_same_window_of_other_frames(block, shift):
    """By hand, window by window: a wrong order of clip, frame and window would pass every test of shapes."""
    model = build("swin")
    layer = model.encoder.layers[0].blocks[block]
    clips = clips_for("swin")
    options = {"pattern": "C"} if shift == "patch" else {"shift_div": 4}
    add_temporal_shift(model, FRAMES, shift, layers=[block], **options)
    normed = caught(layer.layernorm_before, model, clips, "output")
    windows = hand_made_windows(normed, 4, shifted=block == 1)
    reads = caught(layer.attention.q_proj, model, clips)
    expected = torch.empty_like(windows)
    for down in range(2):
        for across in range(2):
            window = windows[:, :, down, across]
            if shift == "patch":
                window = patch_shift(window, ((-4, 1, 2), (-1, 0, 3), (-2, -3, 4)))
            elif shift == "channel":
                window = channel_shift(window, 4, num_heads=4)
            expected[:, :, down, across] = window
    assert_close_to_spread(reads, expected.flatten(4, 5).flatten(0, 3))
    if shift == "mixing":
        keys = attended_keys(model, clips)[block]
        with torch.no_grad():
            unmixed = torch.nn.functional.linear(windows, layer.attention.k_proj.weight, layer.attention.k_proj.bias)
        assert_close_to_spread(keys, mixing_shift(unmixed, 4).flatten(4, 5).flatten(0, 3))


@pytest.mark.parametrize(
    ("name", "prefix"), [("vit", 1), ("deit", 2), ("dinov2 registers", 5), ("dinov3", 4), ("beit", 1)]
)
def test_only_patches_patch_shift_and_come_back_to_their_frame(name, prefix):
    model = add_temporal_shift(build(name), FRAMES, "patch", pattern=[[0, 1], [-1, 2]])
    layer = next(module for module in model.modules() if type(module).__name__.endswith("Layer"))
    norm = layer.norm1 if hasattr(layer, "norm1") else layer.layernorm_before
    clips = clips_for(name)
    tokens = caught(norm, model, clips, "output").unflatten(0, (-1, FRAMES))
    reads = caught(layer.attention.v_proj, model, clips).unflatten(0, (-1, FRAMES))
    assert torch.equal(reads[:, :, :prefix], tokens[:, :, :prefix])
    maps = tokens[:, :, prefix:].unflatten(2, (4, 4))
    assert torch.equal(reads[:, :, prefix:], patch_shift(maps, ((0, 1), (-1, 2))).flatten(2, 3))

    # values instead of attention: what comes before the output projection lies again where it came from
    with torch.no_grad():
        layer.attention.v_proj.weight.copy_(torch.eye(32))
        if layer.attention.v_proj.bias is not None:
            layer.attention.v_proj.bias.zero_()
    forward = torch.nn.functional.scaled_dot_product_attention
    try:
        torch.nn.functional.scaled_dot_product_attention = lambda query, key, value, **kwargs: value
        back = caught(layer.attention.o_proj, model, clips).unflatten(0, (-1, FRAMES))
    finally:
        torch.nn.functional.scaled_dot_product_attention = forward
    assert_close_to_spread(back, tokens)


@pytest.mark.parametrize("settings", [{"shift_div": 4}, {"shift_div": 5}, {"temporal_window": 2}], ids=str)
def test_keys_are_mixed_as_they_are_before_their_rotary_embedding(settings):
    """In a DINOv3, against hooks on the projections themselves: heads that move whole, and in part."""
    mixed = add_temporal_shift(build("dinov3"), FRAMES, "mixing", **settings)
    by_hand = build("dinov3")
    shift_div, window = settings.get("shift_div", 4), settings.get("temporal_window", 1)

    def mix(projection, args, output):
        return mixing_shift(output.unflatten(0, (-1, FRAMES)), shift_div, window=window).flatten(0, 1)

    for layer in by_hand.model.layer:
        layer.attention.k_proj.register_forward_hook(mix)
        layer.attention.v_proj.register_forward_hook(mix)
    clips = clips_for("dinov3")
    assert_close_to_spread(answer(mixed, clips), answer(by_hand, clips))


@pytest.mark.parametrize("shift", ["channel", "periodic"])
def test_class_and_register_tokens_take_part_in_the_shifts_of_channels(shift):
    model = add_temporal_shift(build("dinov3"), FRAMES, shift, layers=[0])
    attention = model.model.layer[0].attention
    module = attention.q_proj if shift == "channel" else attention.o_proj
    clips = clips_for("dinov3")
    clips[0] = 0.0
    reads = caught(module, model, clips)
    remove_temporal_shift(model)
    moved = (reads - caught(module, model, clips)).abs().amax(-1)
    if shift == "periodic":
        assert (moved[:, :4] > 1e-5).all()
    else:  # all frames have the same class and register tokens in the first layer
        assert (moved[:, :4] < 1e-6).all()
        assert (moved[:, 4:] > 1e-5).any()


@pytest.mark.parametrize(("name", "shift"), [pair for pair in PAIRS if pair[0] in BASES])
def test_gradients_reach_all_parameters(name, shift):
    model = add_temporal_shift(build(name), FRAMES, shift)
    names = {}
    for checkpointing in (False, True):
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
            model.train()
        model.zero_grad()
        torch.manual_seed(0)
        outputs = model(clips_for(name))
        (outputs.last_hidden_state.square().sum() + outputs.pooler_output.square().sum()).backward()
        names[checkpointing] = {
            key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.grad is not None
        }
    untouched = {key for key, _ in model.named_parameters()} - names[False].keys()
    assert {key for key in untouched if "mask_token" not in key} == set()
    for key, gradient in names[False].items():
        # a key's bias is the same for all queries, so that softmax takes it out, unless it is mixed in time
        assert gradient.abs().max() > 0 or key.endswith("k_proj.bias"), key
    assert_gradients_close(names[True], names[False])


def test_class_token_shift_gradients_are_those_of_laps(vit_folder):
    """The shift before the MLP writes into an activation; autograd must know."""
    laps = LAPSModel.from_image_pretrained(vit_folder, num_frames=FRAMES, attention_scope="frame", shift="token").eval()
    vit = add_temporal_shift(ViTModel.from_pretrained(vit_folder).eval(), FRAMES, "token")
    clips = clips_for()
    vit(clips).last_hidden_state.square().sum().backward()
    laps(clips.unflatten(0, (-1, FRAMES))).last_hidden_state.square().sum().backward()
    for layer, block in zip(vit.layers, laps.backbone.blocks, strict=True):
        assert_close_to_spread(layer.mlp.fc1.weight.grad, block.mlp.fc1.weight.grad)
        assert_close_to_spread(layer.layernorm_before.weight.grad, block.norm1.weight.grad)


@pytest.mark.parametrize(("name", "shift"), [*(("vit", shift) for shift in SHIFTS), ("swin", "patch")])
def test_a_plugged_model_compiles_without_a_graph_break(name, shift):
    torch._dynamo.reset()
    model = add_temporal_shift(build(name, **({"num_hidden_layers": 1} if name == "vit" else {})), FRAMES, shift)
    clips = clips_for(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close_to_spread(answer(compiled, clips), answer(model, clips))


@pytest.mark.parametrize("shift", ["patch", "token"])
def test_a_copy_of_a_plugged_model_is_plugged_on_its_own(shift):
    model = add_temporal_shift(build(), FRAMES, shift)
    clips = clips_for()
    plugged = answer(model, clips)
    twin = copy.deepcopy(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (twin, loaded):
        assert_close_to_spread(answer(other, clips), plugged)
        remove_temporal_shift(other)
        assert_close_to_spread(answer(other, clips), answer(build(), clips))
    assert torch.equal(answer(model, clips), plugged)


def test_hidden_states_shift_by_position_and_by_keyword():
    attention = add_temporal_shift(build(), FRAMES, "channel", shift_div=4).layers[0].attention
    tokens = torch.randn(2 * FRAMES, 17, 32)
    with torch.no_grad():
        by_position, by_keyword = attention(tokens)[0], attention(hidden_states=tokens)[0]
        unplugged = build().layers[0].attention(tokens)[0]
    assert torch.equal(by_keyword, by_position)
    assert (by_position - unplugged).abs().max() > 1e-3


def test_parameters_and_config_are_those_of_the_image_model(tmp_path):
    model = add_temporal_shift(build(), FRAMES, "mixing")
    model.save_pretrained(tmp_path)
    clips = clips_for()
    assert_close_to_spread(answer(ViTModel.from_pretrained(tmp_path), clips), answer(build(), clips))


def test_other_image_sizes_work_where_the_map_of_patches_is_plain():
    clips = torch.randn(FRAMES, 3, 48, 48)
    model = add_temporal_shift(build("dinov3"), FRAMES, "patch")
    assert answer(model, clips).shape == (FRAMES, 4 + 36, 32)
    with pytest.raises(ValueError, match=r"image_size=\(48, 64\)"):
        model(torch.randn(FRAMES, 3, 48, 64))
    with pytest.raises(ValueError, match=r"image_size=\(16, 64\)"):  # as many patches as 4 x 4, but 2 x 8
        model(torch.randn(FRAMES, 3, 16, 64))
    remove_temporal_shift(model)
    add_temporal_shift(model, FRAMES, "channel")
    assert answer(model, torch.randn(FRAMES, 3, 48, 64)).shape == (FRAMES, 4 + 48, 32)


def test_a_map_that_is_not_square_shifts_by_its_own_rows():
    model = add_temporal_shift(build("dinov3"), FRAMES, "patch", image_size=(16, 64), pattern=[[0, 0], [1, 1]])
    clips = torch.randn(FRAMES, 3, 16, 64)
    layer = model.model.layer[0]
    tokens, reads = caught(layer.norm1, model, clips, "output"), caught(layer.attention.q_proj, model, clips)
    assert torch.equal(reads[:, : 4 + 8], tokens[:, : 4 + 8])
    assert torch.equal(reads[:, 4 + 8 :], tokens.roll(1, dims=0)[:, 4 + 8 :])
    with pytest.raises(ValueError, match=r"maps of 2 x 8 patches; images of 32 x 32 pixels have 4 x 4"):
        model(torch.randn(FRAMES, 3, 32, 32))


@pytest.mark.parametrize("shift", ["patch", "mixing"])
def test_swin_takes_another_image_size_when_told(shift):
    model = add_temporal_shift(build("swin"), FRAMES, shift)
    clips = torch.randn(2 * FRAMES, 3, 44, 60)
    with pytest.raises(ValueError, match=r"image_size=\(44, 60\)"):
        model(clips)
    remove_temporal_shift(model)
    static = clips[:2].repeat_interleave(FRAMES, dim=0)
    expected, before = answer(model, static), answer(model, clips)
    add_temporal_shift(model, FRAMES, shift, image_size=(44, 60))
    if shift == "patch":
        assert_close_to_spread(answer(model, static), expected)
    assert (answer(model, clips) - before).abs().max() > 1e-3
    assert_close_to_spread(answer(model, clips)[:FRAMES], answer(model, clips[:FRAMES]))


@pytest.mark.parametrize("pixels", [(6, 3, 32, 32), (1, FRAMES, 3, 32, 32)], ids=str)
@pytest.mark.parametrize("name", ["vit", "vit classifier", "swin classifier"])
def test_a_batch_that_is_not_whole_clips_is_refused(name, pixels):
    model = add_temporal_shift(build(name), FRAMES)
    for call in (lambda: model(torch.zeros(pixels)), lambda: model(pixel_values=torch.zeros(pixels))):
        with pytest.raises(ValueError, match=r"takes \(batch \* 4, channels, height, width\)"):
            call()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vit", {"num_frames": 0}, "num_frames must be an integer of at least 1, got 0"),
        ("vit", {"num_frames": 2.0}, "num_frames must be an integer"),
        ("vit", {"shift": "sideways"}, "Unknown shift 'sideways': give one of 'patch', 'channel'"),
        ("vit", {"pattern": "E"}, "Unknown patch shift pattern 'E'"),
        ("vit", {"pattern": [[0, 1], [2]]}, "rectangular"),
        ("vit", {"shift": "mixing", "pattern": "A"}, "pattern is a setting of shift='patch', not of 'mixing'"),
        ("vit", {"shift_div": 4}, "shift_div is a setting of shift='channel' or"),
        ("vit", {"shift": "channel", "segment_length": 2}, "segment_length is a setting of shift='mixing'"),
        ("vit", {"shift": "mixing", "segment_length": 0}, "segment_length must be an integer of at least 1"),
        ("vit", {"shift": "mixing", "temporal_window": 0}, "temporal_window must be an integer of at least 1"),
        ("vit", {"shift": "mixing", "shift_div": 1}, "shift_div must be an integer of at least 2, got 1"),
        ("vit", {"shift": "channel", "shift_div": 9}, "would move nothing in layer 0: shift_div=9 of 8 channels"),
        ("vit", {"shift": "mixing", "shift_div": 32, "temporal_window": 2}, "in a temporal window of 2"),
        ("vit", {"layers": [0, 2]}, r"layers names \[2\]; there are layers 0 to 1"),
        ("vit", {"layers": [-1]}, r"layers names \[-1\]"),
        ("vit", {"layers": []}, "layers names none"),
        ("vit", {"layers": 1}, "layers is a list of layer numbers, or None for all; got 1"),
        ("vit", {"image_size": 4}, "image_size must be an integer of at least 8"),
        ("swin", {"shift": "token"}, "a SwinModel has none"),
        ("swin", {"layers": [3]}, r"layers names \[3\]; there are layers 0 to 2"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_and_leave_the_model_untouched(name, settings, message):
    model = build(name)
    hooks, names = count_hooks(model), attributes(model)
    with pytest.raises(ValueError, match=message):
        add_temporal_shift(model, **{"num_frames": FRAMES, **settings})
    assert (count_hooks(model), attributes(model)) == (hooks, names)


def test_models_that_are_not_in_the_table_are_refused():
    resnet = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    for call in (lambda: add_temporal_shift(resnet, 2), lambda: remove_temporal_shift(resnet)):
        with pytest.raises(ValueError, match=r"ViTModel, DeiTModel, Dinov2Model, .* ResNetModel is or has none"):
            call()
    with pytest.raises(ValueError, match="ModuleList has 2 of them"):
        add_temporal_shift(torch.nn.ModuleList([build(), build()]), 2)


def test_a_layout_of_another_transformers_version_is_refused():
    model = build()
    model.layers[1].attention.query = model.layers[1].attention.q_proj
    del model.layers[1].attention.q_proj
    with pytest.raises(ValueError, match=r"ViTLayer of this ViTModel lacks attention\.q_proj"):
        add_temporal_shift(model, 2)
    del model.layers[:]
    with pytest.raises(ValueError, match="has no ViTLayer"):
        add_temporal_shift(model, 2)


def test_plugging_twice_and_unplugging_twice_are_refused():
    model = add_temporal_shift(build("vit classifier"), FRAMES, "mixing")
    for again in (model, model.vit):
        with pytest.raises(ValueError, match="has a temporal shift already"):
            add_temporal_shift(again, FRAMES)
    remove_temporal_shift(model.vit)
    assert not hasattr(model.vit, HANDLES)
    with pytest.raises(ValueError, match="has no temporal shift to remove"):
        remove_temporal_shift(model)


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("swin", "flash_attention_2"), ("swin", "flex_attention"), ("beit", "flash_attention_3"), ("vit", "paged|sdpa")],
)
def test_kernels_that_cannot_work_are_refused(name, implementation):
    model = build(name)
    model.config._attn_implementation_internal = implementation
    with pytest.raises(ValueError, match="cannot work .* take 'sdpa' or 'eager'"):
        add_temporal_shift(model, FRAMES)
