"""Original LAPS and TokShift checkpoints, rebuilt from the goldens, through the real converter and the Auto classes."""

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForVideoClassification
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from conversion import convert_laps
from hf_tps import LAPSForVideoClassification, LAPSModel
from tests import conversion_checks, golden_cases
from tests.comparison import assert_close_to_spread
from tests.conversion_checks import logits_of
from tests.goldens import recipe

MICRO = ["laps_visformer_micro", "laps_visformer_micro_mixed"]
FULL = [
    "laps_visformer_s_8x8",
    "laps_visformer_ps_8x8",
    "laps_visformer_la_8x8",
    "visformer_plain_shift_8x8",
    "visformer_base3d_8x8",
    "visformer_base2d_8x8",
    "laps_vit_b16_8x8",
    "tokshift_b16_8x32",
]
HEADS = ["--num_attention_heads", "3"]  # of the micro cases, whose backbone the release does not list


def convert(checkpoint: Path, output_dir: Path, *flags: str) -> int:
    return convert_laps.main([str(checkpoint), "--output_dir", str(output_dir), *flags])


@pytest.fixture
def micro() -> dict:
    return golden_cases.load("laps_visformer_micro")


assert_refused = partial(conversion_checks.assert_refused, convert_laps.main)


@pytest.mark.parametrize("case", MICRO + FULL)
def test_converted_checkpoint_gives_the_logits_of_the_original_code(case, tmp_path):
    golden = golden_cases.load(case)
    checkpoint, config = golden_cases.write_laps_checkpoint(golden, tmp_path / f"{case}.pth")
    heads = HEADS if case in MICRO else []
    assert convert(checkpoint, tmp_path / "out", "--original_config", str(config), *heads) == 0
    tolerance = golden_cases.MICRO_TOLERANCE if case in MICRO else golden_cases.FULL_TOLERANCE
    difference = (logits_of(tmp_path / "out", golden) - golden_cases.logits(golden)).abs().max().item()
    print(f"{case}: largest difference {difference:.1e}")
    assert difference <= tolerance


@pytest.mark.parametrize("prefix", ["base_model.", ""])
def test_other_prefixes_are_accepted(prefix, micro, tmp_path):
    checkpoint, config = golden_cases.write_laps_checkpoint(micro, tmp_path / "x.pth")
    state_dict = torch.load(checkpoint)["state_dict"]
    torch.save({"state_dict": {k.replace("module.base_model.", prefix): t for k, t in state_dict.items()}}, checkpoint)
    assert convert(checkpoint, tmp_path / "out", "--original_config", str(config), *HEADS) == 0
    assert (logits_of(tmp_path / "out", micro) - golden_cases.logits(micro)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("case", "mean"), [("laps_visformer_s_8x8", (0.486, 0.457, 0.407)), ("tokshift_b16_8x32", (0.5, 0.5, 0.5))]
)
def test_processor_labels_and_views_are_those_of_the_release(case, mean, tmp_path):
    golden = golden_cases.load(case)
    checkpoint, config = golden_cases.write_laps_checkpoint(golden, tmp_path / "x.pth")
    assert convert(checkpoint, tmp_path / "out", "--original_config", str(config)) == 0
    settings = AutoVideoProcessor.from_pretrained(tmp_path / "out").to_dict()
    expected = {
        "sampling": "dense",
        "frame_interval": golden["config"]["SAMPLING_RATE"],
        "index_rule": "linspace",
        "past_end": "loop",
        "clip_placement": "start",
        "num_clips": 10,
        "num_crops": 3,
        "image_mean": mean,
    }
    assert {name: settings[name] for name in expected} == expected
    config = AutoModelForVideoClassification.from_pretrained(tmp_path / "out").config
    assert config.view_aggregation == "logits"
    # the release numbers the classes in an order of its own, not alphabetically
    assert [config.id2label[index] for index in (0, 1)] == ["snowmobiling", "curling hair"]


def test_kinetics400_means_the_order_of_the_release(micro, tmp_path):
    state_dict = golden_cases.tensors(recipe.synth_state_dict(micro["manifest"], integer_fill=0))
    state_dict["module.base_model.head.weight"] = torch.zeros(400, 96)
    state_dict["module.base_model.head.bias"] = torch.zeros(400)
    checkpoint, config = golden_cases.write_laps_checkpoint(micro, tmp_path / "x.pth")
    torch.save({"state_dict": state_dict}, checkpoint)
    flags = ["--original_config", str(config), "--labels", "kinetics400", *HEADS]
    assert convert(checkpoint, tmp_path / "out", *flags) == 0
    assert AutoModelForVideoClassification.from_pretrained(tmp_path / "out").config.id2label[0] == "snowmobiling"


def test_the_weights_alone_are_not_enough(micro, tmp_path, capsys):
    checkpoint, _ = golden_cases.write_laps_checkpoint(micro, tmp_path / "x.pth")
    assert_refused(checkpoint, tmp_path, capsys, "leap levels.*--original_config", *HEADS)


def test_heads_that_nothing_tells_are_asked_for(micro, tmp_path, capsys):
    checkpoint, config = golden_cases.write_laps_checkpoint(micro, tmp_path / "x.pth")
    assert_refused(checkpoint, tmp_path, capsys, "48 channels.*--num_attention_heads", "--original_config", str(config))


CONFIGS = {
    "other network": ({"NET": "X3D"}, "'X3D'; known are"),
    "network of the other backbone": ({"NET": "TokShift"}, "TokShift.*weights are those of a visformer"),
    "no divisor": ({"FOLD_DIV": None}, "FOLD_DIV"),
    "no levels": ({"S3_SKIP_LEVEL": None}, "S3_SKIP_LEVEL"),
    "level of no list": ({"S2_SKIP_LEVEL": 3}, "x.yaml: S2_SKIP_LEVEL is 3; a list is needed"),
    "divisor of no number": ({"FOLD_DIV": "four"}, "x.yaml: FOLD_DIV is 'four'; a whole number"),
    "level that cannot be": ({"S2_SKIP_LEVEL": [4]}, "Leap level 4.*possible levels are"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_does_not_fit_is_refused(case, micro, tmp_path, capsys):
    change, message = CONFIGS[case]
    checkpoint, config = golden_cases.write_laps_checkpoint(micro, tmp_path / "x.pth")
    sections = yaml.safe_load(config.read_text())
    sections["MODEL"].update(change)
    config.write_text(yaml.safe_dump(sections))
    assert_refused(checkpoint, tmp_path, capsys, message, "--original_config", str(config), *HEADS)


BASE = "module.base_model."
SPOILED = {
    "missing": (
        lambda s: s.pop(f"{BASE}stage2.1.attn.proj.weight"),
        r"missing key module\.base_model\.stage2\.1\.attn\.proj\.weight",
    ),
    "missing norm": (
        lambda s: s.pop(f"{BASE}stem.1.bn.weight"),
        r"missing key module\.base_model\.stem\.1\.bn\.weight",
    ),
    "missing head": (lambda s: s.pop(f"{BASE}head.bias"), r"missing key module\.base_model\.head\.bias"),
    "unknown": (lambda s: s.update({f"{BASE}neck": torch.zeros(2)}), r"unknown key module\.base_model\.neck"),
    "unknown part": (lambda s: s.update({"module.neck": torch.zeros(2)}), r"unknown key neck"),
    "wrong shape": (
        lambda s: s.update({f"{BASE}norm.bn.bias": torch.zeros(5)}),
        r"module\.base_model\.norm\.bn\.bias has shape \(5,\)",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(case, micro, tmp_path, capsys):
    change, message = SPOILED[case]
    checkpoint, config = golden_cases.write_laps_checkpoint(micro, tmp_path / "x.pth")
    loaded = torch.load(checkpoint)
    change(loaded["state_dict"])
    torch.save(loaded, checkpoint)
    assert_refused(checkpoint, tmp_path, capsys, message, "--original_config", str(config), *HEADS)


@pytest.mark.parametrize("case", ["tps_micro", "xvit_micro"])
def test_another_familys_checkpoint_names_its_converter(case, tmp_path, capsys):
    golden = golden_cases.load(case)
    state_dict = golden_cases.tensors(recipe.synth_state_dict(golden["manifest"]))
    torch.save({"state_dict": state_dict}, tmp_path / "x.pth")
    assert_refused(tmp_path / "x.pth", tmp_path, capsys, f"convert_{case.split('_')[0]}.py")


def image_file(micro: dict, path: Path) -> Path:
    state_dict = golden_cases.tensors(recipe.synth_state_dict(micro["manifest"], integer_fill=0))
    torch.save({"model": {key.removeprefix(BASE): tensor for key, tensor in state_dict.items()}}, path)
    return path


def test_num_labels_that_contradicts_the_head_is_an_error(micro, tmp_path, capsys):
    checkpoint, config = golden_cases.write_laps_checkpoint(micro, tmp_path / "x.pth")
    flags = ["--original_config", str(config), "--num_labels", "7", *HEADS]
    assert_refused(checkpoint, tmp_path, capsys, "head for 9 classes.*ignore_mismatched_sizes", *flags)


def test_an_image_visformer_starts_a_model_whose_static_clips_have_its_frames_features(micro, tmp_path):
    file = image_file(micro, tmp_path / "visformer.pth")
    assert convert(file, tmp_path / "out", "--num_labels", "4", *HEADS) == 0
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "out")
    assert model.classifier.out_features == 4
    assert (model.config.attention_scope, model.config.shift) == ("leap", "periodic")
    # pairs of equal frames attend as one frame does; the shift's zeros at the ends are the one thing that differs
    settings = {"num_heads": 3, "num_frames": 4, "leap_levels": ((1, 2), (2,)), "shift": None}
    leap = LAPSModel.from_image_pretrained(file, **settings).eval()
    frame = LAPSModel.from_image_pretrained(file, **{**settings, "attention_scope": "frame"}).eval()
    image = torch.randn(1, 1, 3, 96, 96)
    with torch.no_grad():
        clip = leap(image.expand(-1, 4, -1, -1, -1)).last_hidden_state
        single = frame(image).last_hidden_state
    for tokens in clip.unflatten(1, (4, -1)).unbind(1):
        assert_close_to_spread(tokens, single)


def test_positions_are_resized_for_another_image_size(micro, tmp_path):
    checkpoint, config = golden_cases.write_laps_checkpoint(micro, tmp_path / "x.pth")
    flags = ["--original_config", str(config), "--image_size", "128", *HEADS]
    assert convert(checkpoint, tmp_path / "out", *flags) == 0
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "out")
    assert [tuple(stage.position_embeddings.shape[2:]) for stage in model.laps.backbone.stages] == [
        (16, 16),
        (8, 8),
        (4, 4),
    ]
    # the same as what the original size interpolates for such a clip
    assert convert(checkpoint, tmp_path / "small", "--original_config", str(config), *HEADS) == 0
    small = AutoModelForVideoClassification.from_pretrained(tmp_path / "small")
    clip = torch.randn(1, 8, 3, 128, 128)
    with torch.no_grad():
        assert_close_to_spread(model(clip).logits, small(clip).logits)


def test_the_counted_batches_of_the_norms_are_kept(micro, tmp_path):
    checkpoint, config = golden_cases.write_laps_checkpoint(micro, tmp_path / "x.pth")
    assert convert(checkpoint, tmp_path / "out", "--original_config", str(config), *HEADS) == 0
    model = LAPSForVideoClassification.from_pretrained(tmp_path / "out")
    counted = {buffer.item() for name, buffer in model.named_buffers() if name.endswith("num_batches_tracked")}
    assert counted == {7}
