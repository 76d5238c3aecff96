"""Original XViT checkpoints, rebuilt from the goldens, through the real converter and the Auto classes."""

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForVideoClassification, ViTConfig, ViTModel
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from conversion import convert_xvit
from tests import conversion_checks, golden_cases
from tests.comparison import assert_close_to_spread
from tests.conversion_checks import logits_of
from tests.goldens import recipe

MICRO = ["xvit_micro", "xvit_micro_seg8", "xvit_micro_112"]
FULL = ["xvit_b16_k600", "xvit_b16_ssv2"]


def convert(checkpoint: Path, output_dir: Path, *flags: str) -> int:
    return convert_xvit.main([str(checkpoint), "--output_dir", str(output_dir), *flags])


def heads_of(golden: dict) -> list[str]:
    """The flag that a backbone needs which the release does not list."""
    facts = golden["config"]["facts"]
    return [] if facts["width"] == 768 else ["--num_attention_heads", str(facts["heads"])]


@pytest.fixture
def micro() -> dict:
    return golden_cases.load("xvit_micro")


assert_refused = partial(conversion_checks.assert_refused, convert_xvit.main)


@pytest.mark.parametrize("case", MICRO + FULL)
def test_converted_checkpoint_gives_the_logits_of_the_original_code(case, tmp_path):
    golden = golden_cases.load(case)
    checkpoint = golden_cases.write_xvit_checkpoint(golden, tmp_path / f"{case}.pth")
    assert convert(checkpoint, tmp_path / "out", *heads_of(golden)) == 0
    tolerance = golden_cases.MICRO_TOLERANCE if case in MICRO else golden_cases.FULL_TOLERANCE
    difference = (logits_of(tmp_path / "out", golden) - golden_cases.logits(golden)).abs().max().item()
    print(f"{case}: largest difference {difference:.1e}")
    assert difference <= tolerance


@pytest.mark.parametrize("wrapper", ["state_dict_ema", "model", None])
def test_the_config_may_come_from_a_file_and_the_weights_under_another_name(wrapper, micro, tmp_path):
    state_dict = golden_cases.tensors(recipe.synth_state_dict(micro["manifest"]))
    torch.save({wrapper: state_dict} if wrapper else state_dict, tmp_path / "x.pth")
    (tmp_path / "x.yaml").write_text(micro["cfg_yaml"])
    flags = ["--original_config", str(tmp_path / "x.yaml"), *heads_of(micro)]
    assert convert(tmp_path / "x.pth", tmp_path / "out", *flags) == 0
    assert (logits_of(tmp_path / "out", micro) - golden_cases.logits(micro)).abs().max() <= 1e-5


SSV2 = {"sampling": "uniform", "num_clips": 2, "num_crops": 3, "num_frames": 16}
KINETICS = {
    "sampling": "dense",
    "frame_interval": 16,
    "index_rule": "linspace",
    "past_end": "clamp",
    "clip_placement": "start",
    "num_clips": 1,
    "num_crops": 3,
}


@pytest.mark.parametrize(("recipe_name", "expected"), [("ssv2", SSV2), ("k600", KINETICS), ("k400", KINETICS)])
def test_processor_and_views_follow_the_data_set(recipe_name, expected, micro, tmp_path):
    checkpoint = golden_cases.write_xvit_checkpoint(micro, tmp_path / "x.pth")
    assert convert(checkpoint, tmp_path / "out", "--recipe", recipe_name, *heads_of(micro)) == 0
    settings = AutoVideoProcessor.from_pretrained(tmp_path / "out").to_dict()
    assert {name: settings[name] for name in expected} == expected
    assert (settings["image_mean"], settings["image_std"]) == ((0.5, 0.5, 0.5),) * 2
    config = AutoModelForVideoClassification.from_pretrained(tmp_path / "out").config
    assert config.view_aggregation == "logits"
    # the mixing is that of the file's own config, whatever the recipe
    assert (config.shift_div, config.segment_length, list(config.mixing_layers)) == (4, None, [0, 2])


@pytest.mark.parametrize(("recipe_name", "mixing"), [("ssv2", (4, None)), ("k600", (8, 8))])
def test_without_a_config_the_recipe_tells_the_mixing(recipe_name, mixing, micro, tmp_path, capsys):
    checkpoint = golden_cases.write_xvit_checkpoint(micro, tmp_path / "x.pth", cfg=None)
    assert_refused(checkpoint, tmp_path, capsys, "no config.*--original_config.*--recipe", *heads_of(micro))
    assert convert(checkpoint, tmp_path / "out", "--recipe", recipe_name, *heads_of(micro)) == 0
    config = AutoModelForVideoClassification.from_pretrained(tmp_path / "out").config
    assert (config.shift_div, config.segment_length, config.mixing_layers) == (*mixing, None)


def test_heads_that_nothing_tells_are_asked_for(micro, tmp_path, capsys):
    checkpoint = golden_cases.write_xvit_checkpoint(micro, tmp_path / "x.pth")
    assert_refused(checkpoint, tmp_path, capsys, "48 channels.*--num_attention_heads")


SPOILED = {
    "missing": (
        lambda s: s.pop("base_model.blocks.1.mlp.fc2.bias"),
        r"missing key base_model\.blocks\.1\.mlp\.fc2\.bias",
    ),
    "missing head": (lambda s: s.pop("consensus.mlp_head.4.bias"), r"missing key consensus\.mlp_head\.4\.bias"),
    "missing hidden layer": (
        lambda s: s.pop("consensus.mlp_head.1.weight"),
        r"missing key consensus\.mlp_head\.1\.weight",
    ),
    "missing time": (lambda s: s.pop("base_model.temp_embed"), r"missing key base_model\.temp_embed"),
    "unknown": (lambda s: s.update({"base_model.neck": torch.zeros(2)}), r"unknown key base_model\.neck"),
    "unknown part": (lambda s: s.update({"neck": torch.zeros(2)}), r"unknown key neck"),
    "wrong shape": (
        lambda s: s.update({"base_model.norm.bias": torch.zeros(5)}),
        r"base_model\.norm\.bias has shape \(5,\)",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(case, micro, tmp_path, capsys):
    change, message = SPOILED[case]
    state_dict = golden_cases.tensors(recipe.synth_state_dict(micro["manifest"]))
    change(state_dict)
    checkpoint = golden_cases.write_xvit_checkpoint(micro, tmp_path / "x.pth", model_state=state_dict)
    assert_refused(checkpoint, tmp_path, capsys, message, *heads_of(micro))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['true']", "no plain YAML"),
        ("- 1", "no settings"),
        ("XVIT: {SHIFT_DIV: 4}", "XVIT.NUM_SEGMENTS"),
    ],
)
def test_a_config_that_is_none_is_refused(text, message, micro, tmp_path, capsys):
    checkpoint = golden_cases.write_xvit_checkpoint(micro, tmp_path / "x.pth")
    (tmp_path / "x.yaml").write_text(text)
    assert_refused(
        checkpoint, tmp_path, capsys, message, "--original_config", str(tmp_path / "x.yaml"), *heads_of(micro)
    )


def test_another_familys_checkpoint_names_its_converter(tmp_path, capsys):
    golden = golden_cases.load("tps_micro")
    checkpoint = golden_cases.write_checkpoint(golden, tmp_path / "tps.pth")
    assert_refused(checkpoint, tmp_path, capsys, "convert_tps.py")


def test_dead_weights_are_left_out_with_a_word(micro, tmp_path, capsys):
    checkpoint = golden_cases.write_xvit_checkpoint(micro, tmp_path / "x.pth")
    assert convert(checkpoint, tmp_path / "out", *heads_of(micro)) == 0
    assert "new_fc" in capsys.readouterr().out
    assert "new_fc" in (tmp_path / "out" / "README.md").read_text()


def test_a_timm_image_file_starts_a_model_with_the_features_of_its_frames(tmp_path):
    settings = {"image_size": 32, "patch_size": 8, "num_hidden_layers": 2, "intermediate_size": 64}
    torch.manual_seed(2)
    vit = ViTModel(ViTConfig(hidden_size=32, num_attention_heads=4, layer_norm_eps=1e-6, **settings)).eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(timm_layout(vit.state_dict()), tmp_path / "vit.pth")
    flags = ["--num_labels", "4", "--num_frames", "5", "--num_attention_heads", "4"]
    assert convert(tmp_path / "vit.pth", tmp_path / "out", *flags) == 0
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "out")
    assert model.classifier.out_features == 4
    model.xvit.blocks.apply(lambda module: setattr(module, "mixes", False))
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        tokens = model.xvit(image[:, None].expand(-1, 5, -1, -1, -1)).last_hidden_state
        expected = vit(image).last_hidden_state
    for frame in tokens.unflatten(1, (5, -1)).unbind(1):
        assert_close_to_spread(frame, expected)


def timm_layout(state_dict: dict) -> dict:
    renamed = {
        "head.weight": torch.zeros(9, 32),
        "head.bias": torch.zeros(9),
        "pre_logits.fc.weight": torch.zeros(32, 32),
    }
    for key, tensor in state_dict.items():
        for ours, theirs in (
            ("embeddings.cls_token", "cls_token"),
            ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("encoder.layer.", "blocks."),
            ("layers.", "blocks."),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("attention.attention.", "attn."),
            ("attention.output.dense", "attn.proj"),
            ("attention.o_proj", "attn.proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
            ("layernorm.", "norm."),
            ("attention.q_proj", "attn.query"),
            ("attention.k_proj", "attn.key"),
            ("attention.v_proj", "attn.value"),
        ):
            key = key.replace(ours, theirs)
        if not key.startswith("pooler"):
            renamed[key] = tensor
    for key in [key for key in renamed if ".attn.query." in key]:
        parts = [renamed.pop(key.replace("query", part)) for part in ("query", "key", "value")]
        renamed[key.replace("query", "qkv")] = torch.cat(parts)
    return renamed
