"""VideoShift around each image family: against the image model, against the plug-in added by hand, from and to disk."""

import json
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BeitConfig,
    BeitForMaskedImageModeling,
    Dinov2Config,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinForMaskedImageModeling,
    ViTConfig,
    ViTForMaskedImageModeling,
    pipeline,
)

from hf_tps import (
    VideoShiftConfig,
    VideoShiftForVideoClassification,
    VideoShiftModel,
    add_temporal_shift,
    remove_temporal_shift,
)
from hf_tps.configuration_video_shift import BACKBONES
from hf_tps.temporal_shift_plug_in import IMAGE_TRANSFORMERS, SHIFTS, find_image_transformer
from tests import micro_models
from tests.comparison import assert_close_to_spread, assert_gradients_close
from tests.test_image_weights import old_layout
from tests.test_temporal_shift_plug_in import BASES, MODELS, build, caught
from tests.video_files import moving_frames, write_video

FRAMES = 4
CLASSIFIERS = [name for name in MODELS if name not in BASES]
VIT = {**MODELS["vit"][2], "model_type": "vit", "initializer_range": 0.2}


@pytest.fixture
def folder_of(tmp_path):
    """Writes the image model of this name, and gives its folder."""

    def write(name: str, **settings):
        folder = tmp_path / name.replace(" ", "_")
        build(name, **settings).save_pretrained(folder)
        return folder

    return write


def clip_for(name: str = "vit", batch: int = 2, frames: int = FRAMES) -> torch.Tensor:
    side = MODELS[name][2]["image_size"]
    return torch.randn(batch, frames, 3, side, side)


@torch.no_grad()
def answer(model, clip: torch.Tensor) -> torch.Tensor:
    outputs = model(clip)
    return outputs.logits if "logits" in outputs else outputs.pooler_output


def small(**settings) -> VideoShiftForVideoClassification:
    torch.manual_seed(1)
    return VideoShiftForVideoClassification(
        VideoShiftConfig(**{"backbone_config": dict(VIT), "num_frames": FRAMES, "num_labels": 5, **settings})
    ).eval()


def features_of_frames(name: str, outputs) -> torch.Tensor:
    if "swin" in name:
        return outputs.last_hidden_state.mean(dim=1)
    return outputs.pooler_output if "beit" in name else outputs.last_hidden_state[:, 0]


def test_every_family_of_the_plug_in_is_a_backbone_and_is_tested():
    assert set(BACKBONES) == {"vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "swin", "beit"}
    assert {MODELS[name][1].model_type for name in BASES} == set(BACKBONES)
    assert len(BACKBONES) == len(IMAGE_TRANSFORMERS)


@pytest.mark.parametrize("shift", ["patch", "mixing", None])
@pytest.mark.parametrize("name", MODELS)
def test_an_image_checkpoint_gives_the_plug_in_added_by_hand(name, shift, folder_of):
    model = VideoShiftModel.from_image_pretrained(folder_of(name), num_frames=FRAMES, shift=shift)
    base = find_image_transformer(build(name))
    if shift is not None:
        add_temporal_shift(base, FRAMES, shift)
    clip = clip_for(name)
    with torch.no_grad():
        expected = base(clip.flatten(0, 1))
        outputs = model(clip)
    assert not any(module.training for module in model.modules())
    tokens = expected.last_hidden_state.unflatten(0, (2, FRAMES))
    assert_close_to_spread(outputs.last_hidden_state, tokens.flatten(1, 2))
    features = features_of_frames(name, expected).unflatten(0, (2, FRAMES))
    assert_close_to_spread(outputs.pooler_output, features.mean(dim=1))


@pytest.mark.parametrize("shift", ["patch", "channel", None])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_static_clip_gives_the_feature_that_the_image_classifier_reads(name, shift, folder_of):
    model = VideoShiftForVideoClassification.from_image_pretrained(
        folder_of(name, num_labels=7), num_frames=FRAMES, shift=shift, num_labels=3
    )
    image_model = build(name, num_labels=7)
    head = image_model.cls_classifier if "teacher" in name else image_model.classifier
    images = clip_for(name)[:, 0]
    read = caught(head, image_model, images)
    read = (
        read[:, 0] if read.ndim == 3 else read[:, : model.config.hidden_size]
    )  # DINOv2's head reads the patches as well
    static = images[:, None].expand(-1, FRAMES, -1, -1, -1)
    assert answer(model, static).shape == (2, 3)
    assert_close_to_spread(answer(model.video_shift, static), read)


@pytest.mark.parametrize("shift", SHIFTS)
def test_only_patch_and_channel_shift_keep_the_features_of_a_static_clip(shift):
    """The others read zeros beyond the ends of a clip, so that their features of a static clip are not the image's."""
    still = clip_for(batch=1)[:, :1].expand(-1, FRAMES, -1, -1, -1)
    difference = (answer(small(shift=shift), still) - answer(small(shift=None), still)).abs().max()
    assert (difference < 1e-5) == (shift in ("patch", "channel"))


@pytest.mark.parametrize("name", BASES)
def test_saving_and_loading_keeps_everything(name, folder_of, tmp_path):
    model = VideoShiftForVideoClassification.from_image_pretrained(
        folder_of(name), shift="mixing", shift_div=8, layers=(1,), num_frames=FRAMES, num_labels=3
    )
    model.save_pretrained(tmp_path / "saved")
    loaded, report = VideoShiftForVideoClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report.values())
    clip = clip_for(name)
    assert_close_to_spread(answer(loaded, clip), answer(model, clip))
    assert type(loaded.config.backbone_config) is MODELS[name][1]
    assert loaded.config.backbone_config.to_dict() == model.config.backbone_config.to_dict()
    assert (loaded.config.shift, loaded.config.shift_div, list(loaded.config.layers)) == ("mixing", 8, [1])


@pytest.mark.parametrize(
    "settings",
    [
        {"shift": None},
        {"shift": "patch", "pattern": "A"},
        {"shift": "patch", "pattern": ((0, 1), (-1, 0))},
        {"shift": "patch", "layers": (1,)},
        {"shift": "channel", "shift_div": 4},
        {"shift": "mixing", "segment_length": 2},
        {"shift": "mixing", "temporal_window": 2},
    ],
    ids=str,
)
def test_each_setting_reaches_the_shift_and_survives_saving(settings, tmp_path):
    model, clip = small(**settings), clip_for()
    by_default = small(shift="patch" if settings["shift"] is None else settings["shift"])
    assert (answer(model, clip) - answer(by_default, clip)).abs().max() > 1e-4
    model.save_pretrained(tmp_path)
    loaded = VideoShiftForVideoClassification.from_pretrained(tmp_path)
    assert_close_to_spread(answer(loaded, clip), answer(model, clip))
    if settings["shift"] is not None:
        by_hand = add_temporal_shift(remove_temporal_shift(loaded), FRAMES, **settings)
        assert_close_to_spread(answer(by_hand, clip), answer(model, clip))


def test_classes_and_place_of_the_image_checkpoint_are_left_behind(folder_of, tmp_path):
    folder = folder_of("vit classifier", num_labels=1000)
    model = VideoShiftForVideoClassification.from_image_pretrained(folder, num_labels=3)
    model.save_pretrained(tmp_path / "saved")
    saved = (tmp_path / "saved" / "config.json").read_text()
    assert "LABEL_999" not in saved
    assert str(folder) not in saved
    assert model.config.num_labels == 3


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("name", BASES)
def test_time_is_seen(name, shift):
    backbone = build(name).config
    if shift == "token" and "swin" in name:
        with pytest.raises(ValueError, match="a SwinModel has none"):
            VideoShiftModel(VideoShiftConfig(backbone_config=backbone, shift=shift))
        return
    model = small(backbone_config=backbone, shift=shift)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    clip = clip_for(name)
    assert (answer(model, clip) - answer(model, clip.flip(1))).abs().max() > 1e-4


@pytest.mark.parametrize("name", BASES)
def test_without_a_shift_the_order_of_frames_does_not_matter(name, folder_of):
    model = VideoShiftForVideoClassification.from_image_pretrained(folder_of(name), shift=None, num_frames=FRAMES)
    clip = clip_for(name)
    assert_close_to_spread(answer(model, clip[:, [2, 0, 3, 1]]), answer(model, clip))


def test_another_number_of_frames_needs_loading_for_it(tmp_path):
    model = small()
    long = clip_for(frames=8)
    with pytest.raises(ValueError, match=r"clips of 4 frames; got 8.*num_frames=8"):
        model(long)
    model.config.num_frames = 8  # too late: the shift in the layers is over 4
    with pytest.raises(ValueError, match="clips of 4 frames; got 8"):
        model(long)
    model.save_pretrained(tmp_path)
    loaded = VideoShiftForVideoClassification.from_pretrained(tmp_path, num_frames=8)
    expected = small(num_frames=8)
    expected.load_state_dict(model.state_dict())
    assert_close_to_spread(answer(loaded, long), answer(expected, long))


@pytest.mark.parametrize("name", BASES)
def test_every_parameter_is_trained_also_after_loading(name, folder_of, tmp_path):
    """The mask token of DINOv2 and DINOv3 is kept, but as no parameter."""
    start = VideoShiftForVideoClassification.from_image_pretrained(folder_of(name), num_frames=FRAMES)
    start.save_pretrained(tmp_path / "saved")
    for model in (start, VideoShiftForVideoClassification.from_pretrained(tmp_path / "saved")):
        model.train()
        model(clip_for(name), labels=torch.tensor([0, 1])).loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
        tokens = [tensor for key, tensor in model.state_dict().items() if key.endswith("mask_token")]
        assert len(tokens) == ("dino" in name)
        for token in tokens:
            assert torch.equal(token, build(name).embeddings.mask_token)


@pytest.mark.parametrize("name", BASES)
def test_weights_pass_between_base_model_and_classifier(name, folder_of, tmp_path):
    base = VideoShiftModel.from_image_pretrained(folder_of(name), num_frames=FRAMES)
    base.save_pretrained(tmp_path / "base")
    model, report = VideoShiftForVideoClassification.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    model.save_pretrained(tmp_path / "classifier")
    again, report = VideoShiftModel.from_pretrained(tmp_path / "classifier", output_loading_info=True)
    assert not report["missing_keys"]
    clip = clip_for(name)
    assert_close_to_spread(answer(model.video_shift, clip), answer(base, clip))
    assert_close_to_spread(answer(again, clip), answer(base, clip))


@pytest.mark.parametrize(
    ("name", "shift"),
    [*(("vit", shift) for shift in SHIFTS), ("swin", "patch"), ("beit", "mixing"), ("dinov3", "patch")],
)
def test_gradient_checkpointing_gives_the_same_gradients(name, shift, folder_of):
    model = VideoShiftForVideoClassification.from_image_pretrained(folder_of(name), shift=shift, num_frames=FRAMES)
    clip, labels, gradients = clip_for(name), torch.tensor([0, 1]), []
    for checkpointing in (False, True):
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model.train()
        model.zero_grad()
        model(clip, labels=labels).loss.backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.requires_grad})
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert_gradients_close(gradients[1], gradients[0])


sdpa = nn.functional.scaled_dot_product_attention


@pytest.mark.parametrize("name", BASES)
def test_attention_implementation_reaches_the_backbone(name, folder_of, tmp_path):
    model = VideoShiftForVideoClassification.from_image_pretrained(
        folder_of(name), num_frames=FRAMES, attn_implementation="eager"
    )
    clip = clip_for(name)
    attentions = model(clip, output_attentions=True).attentions
    assert len(attentions) == 2  # in Swin one for each stage
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(attentions[0].shape[:-1]))
    model.save_pretrained(tmp_path / "saved")
    for kind in ("eager", "sdpa"):
        loaded = VideoShiftForVideoClassification.from_pretrained(tmp_path / "saved", attn_implementation=kind)
        model.set_attn_implementation(kind)
        for each in (loaded, model):
            assert each.video_shift.backbone.config._attn_implementation == kind
            with mock.patch.object(nn.functional, "scaled_dot_product_attention", wraps=sdpa) as kernel:
                answer(each, clip)
            assert bool(kernel.call_count) == (kind == "sdpa")
        assert_close_to_spread(answer(loaded, clip), answer(model, clip))


def test_a_kernel_that_the_backbone_cannot_use_is_refused():
    config = VideoShiftConfig(backbone_config=build("swin").config)
    with pytest.raises(ValueError, match="SwinModel does not support .*flex_attention"):
        VideoShiftModel._from_config(config, attn_implementation="flex_attention")


def test_hidden_states_are_those_of_the_backbone():
    clip = clip_for("swin")
    swin = small(backbone_config=build("swin").config)
    outputs = swin(clip, output_hidden_states=True)
    assert [tuple(states.shape) for states in outputs.hidden_states] == [(8, 64, 32), (8, 16, 64), (8, 16, 64)]
    vit = small()
    vit.config.output_hidden_states = True
    states = vit.video_shift(clip).hidden_states
    vit.set_attn_implementation("eager")
    vit.config.output_attentions = True
    assert len(vit(clip).attentions) == 2
    assert [tuple(state.shape) for state in states] == [(8, 17, 32)] * 3


def test_backbone_takes_the_dtype_of_the_classifier(folder_of):
    folder = folder_of("swin")
    half = VideoShiftForVideoClassification.from_image_pretrained(folder, num_frames=FRAMES, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert answer(half, clip_for("swin")).dtype == torch.bfloat16  # from float32 pixels, as a processor gives them
    config = VideoShiftConfig(backbone_config=ViTConfig(**{**MODELS["vit"][2], "dtype": "bfloat16"}))
    assert {parameter.dtype for parameter in VideoShiftForVideoClassification(config).parameters()} == {torch.float32}


def test_larger_images_where_the_backbone_interpolates():
    clip = torch.randn(1, FRAMES, 3, 48, 48)
    assert small().video_shift(clip, interpolate_pos_encoding=True).last_hidden_state.shape == (1, FRAMES * 37, 32)
    with pytest.raises(ValueError, match="48"):
        small()(clip)


def test_swin_loads_for_another_image_size(folder_of, tmp_path):
    model = VideoShiftModel.from_image_pretrained(folder_of("swin"), num_frames=FRAMES)
    still = torch.randn(1, 1, 3, 48, 48).expand(-1, FRAMES, -1, -1, -1)
    with pytest.raises(ValueError, match="maps of 8 x 8 patches; images of 48 x 48"):
        model(still)
    model.save_pretrained(tmp_path / "saved")
    loaded = VideoShiftModel.from_pretrained(tmp_path / "saved", backbone_config={"image_size": 48})
    assert loaded.config.image_size == 48
    with torch.no_grad():
        expected = build("swin")(still[:, 0]).pooler_output
    assert_close_to_spread(answer(loaded, still), expected)


def test_checkpoints_of_older_layouts_load(folder_of):
    folder = folder_of("swin classifier")
    clip = clip_for("swin")
    expected = answer(VideoShiftModel.from_image_pretrained(folder, num_frames=FRAMES), clip)
    weights = folder / "model.safetensors"
    save_file(
        {key: tensor.clone() for key, tensor in old_layout(load_file(weights)).items()}, weights, {"format": "pt"}
    )
    assert_close_to_spread(answer(VideoShiftModel.from_image_pretrained(folder, num_frames=FRAMES), clip), expected)


def test_left_over_poolers_do_not_matter(folder_of):
    folder = folder_of("vit")
    assert any("pooler" in key for key in load_file(folder / "model.safetensors"))
    model = VideoShiftModel.from_image_pretrained(folder, num_frames=FRAMES)
    assert not [key for key in model.state_dict() if "pooler" in key]


@pytest.mark.parametrize(
    ("pretrained", "config"),
    [
        (ViTForMaskedImageModeling, ViTConfig(**{**MODELS["vit"][2], "encoder_stride": 8})),
        (SwinForMaskedImageModeling, SwinConfig(**MODELS["swin"][2])),
        (BeitForMaskedImageModeling, BeitConfig(**{**MODELS["beit"][2], "use_mask_token": True})),
    ],
)
def test_a_model_pretrained_with_masks_is_an_image_model(pretrained, config, tmp_path):
    masked = pretrained(config).eval()
    masked.save_pretrained(tmp_path)
    model = VideoShiftModel.from_image_pretrained(tmp_path, num_frames=FRAMES, shift=None)
    side = config.image_size
    clip = torch.randn(1, FRAMES, 3, side, side)
    with torch.no_grad():
        expected = masked.base_model(clip[0]).last_hidden_state
        assert_close_to_spread(model(clip).last_hidden_state[0].unflatten(0, (FRAMES, -1)), expected)


@pytest.mark.parametrize("name", BASES)
def test_a_state_dict_loads_under_the_names_of_today_and_of_files(name, folder_of, tmp_path):
    """Trainer resumes by the latter."""
    for model_class in (VideoShiftModel, VideoShiftForVideoClassification):
        model = model_class.from_image_pretrained(folder_of(name), num_frames=FRAMES)
        model.save_pretrained(tmp_path / "saved")
        in_file = load_file(tmp_path / "saved" / "model.safetensors")
        assert in_file.keys() != model.state_dict().keys()
        for state_dict in (in_file, model.state_dict()):
            fresh = model_class(model.config)
            fresh.load_state_dict(state_dict)
            for key, tensor in fresh.state_dict().items():
                assert torch.equal(tensor, model.state_dict()[key]), key


def lose(tensors: dict, key: str):
    del tensors[key]


def invent(tensors: dict, key: str):
    tensors[key + "_scale"] = torch.ones(1)


def cut(tensors: dict, key: str):
    tensors[key] = torch.ones(3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(lose, r"missing \['.*NORM'\]"), (invent, r"unexpected \['.*NORM_scale'\]"), (cut, r"other shapes \[.*NORM'")],
)
@pytest.mark.parametrize("name", ["vit", "vit classifier", "dinov2", "dinov3", "swin classifier", "beit"])
def test_weights_that_do_not_fit_are_named(name, spoil, message, folder_of):
    folder = folder_of(name)
    norm = "norm2.weight" if "dino" in name else "layernorm_after.weight"
    tensors = load_file(folder / "model.safetensors")
    spoil(tensors, next(key for key in tensors if key.endswith(norm)))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=message.replace("NORM", norm.replace(".", r"\."))):
        VideoShiftForVideoClassification.from_image_pretrained(folder)


def test_from_image_pretrained_refuses_what_it_cannot_use(folder_of, tmp_path):
    folder = folder_of("vit")
    start = VideoShiftForVideoClassification.from_image_pretrained
    with pytest.raises(ValueError, match=r"\['frames'\] are no fields of VideoShiftConfig; it has .*'num_frames'"):
        start(folder, frames=8)
    with pytest.raises(ValueError, match="backbone_config comes from the image checkpoint"):
        start(folder, backbone_config={"model_type": "vit"})
    with pytest.raises(
        ValueError, match="is a single file; this model starts from an image checkpoint of Transformers"
    ):
        start(folder / "model.safetensors")
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path / "resnet")
    with pytest.raises(ValueError, match=r"model_type='resnet'; a temporal shift can be plugged into .*vit"):
        start(tmp_path / "resnet")
    with pytest.raises(ValueError, match=r"layers names \[9\]"):
        start(folder, layers=[9])
    with pytest.raises(OSError, match="absent"):
        start(str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone_config": {"model_type": "resnet"}}, "'resnet'; a temporal shift can be plugged into .*dinov2"),
        ({"backbone_config": {"hidden_size": 32}}, "model_type=None; a temporal shift"),
        ({"backbone_config": ResNetConfig()}, "'resnet'; a temporal shift can be plugged into"),
        ({"hidden_size": 32}, r"\['hidden_size'\] are fields of the backbone: set them in backbone_config"),
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"shift": "sideways"}, "Unknown shift 'sideways': give one of 'patch'"),
        ({"pattern": "E"}, "Unknown patch shift pattern 'E'"),
        ({"shift_div": 4}, "shift_div is a setting of shift='channel' or"),
        ({"shift": "mixing", "shift_div": 1}, "shift_div must be an integer of at least 2, got 1"),
        ({"shift": "mixing", "segment_length": 0}, "segment_length must be at least 1"),
        ({"shift": "mixing", "temporal_window": 0}, "temporal_window must be at least 1"),
        ({"shift": None, "layers": [0]}, r"\['layers'\] are settings of a shift, and shift=None has none"),
        ({"view_aggregation": "votes"}, "view_aggregation is 'probabilities' or 'logits'; got 'votes'"),
    ],
    ids=str,
)
def test_bad_configs_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VideoShiftConfig(**settings)


def test_a_setting_that_went_wrong_later_is_refused_by_the_model():
    config = VideoShiftConfig(backbone_config=dict(VIT))
    config.num_frames = 0
    with pytest.raises(ValueError, match="num_frames must be at least 1"):
        VideoShiftModel(config)


def test_config_speaks_for_its_backbone():
    assert isinstance(VideoShiftConfig().backbone_config, ViTConfig)
    config = VideoShiftConfig(backbone_config=Dinov2Config(hidden_size=48, image_size=56, patch_size=14))
    assert (config.hidden_size, config.image_size, config.patch_size, config.num_channels) == (48, 56, 14, 3)
    assert config.num_hidden_layers == 12
    assert json.loads(config.to_json_string())["backbone_config"]["model_type"] == "dinov2"


def test_the_pipeline_classifies_a_file(folder_of, tmp_path):
    model = VideoShiftForVideoClassification.from_image_pretrained(folder_of("dinov2"), num_frames=FRAMES, num_labels=3)
    processor = micro_models.processor(model.config)
    write_video(tmp_path / "clip.mp4", moving_frames(12))
    for part in (model, processor):
        part.save_pretrained(tmp_path / "saved")
    scores = pipeline("video-classification", model=str(tmp_path / "saved"))(str(tmp_path / "clip.mp4"), top_k=3)
    pixels = processor(str(tmp_path / "clip.mp4"), return_tensors="pt").pixel_values
    assert pixels.shape == (1, FRAMES, 3, 32, 32)
    expected = answer(model, pixels).softmax(-1)[0]
    for score in scores:
        index = model.config.label2id[score["label"]]
        assert score["score"] == pytest.approx(expected[index].item(), abs=1e-6)
