"""Original checkpoints, rebuilt from the goldens, through the real converter and the Auto classes."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForVideoClassification, pipeline
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from conversion import convert_tps
from tests import conversion_checks, golden_cases
from tests.conversion_checks import logits_of
from tests.goldens import recipe
from tests.video_files import moving_frames, write_video

MICRO = ["tps_micro", "tps_micro_4stage", "tps_micro_pad", "tps_micro_pad4"]
FULL = ["tps_tiny_k400", "tps_tiny_sthv2", "tps_base_sthv2"]
WRITTEN = {
    "README.md",
    "config.json",
    "configuration_tps.py",
    "model.safetensors",
    "modeling_tps.py",
    "video_preprocessor_config.json",
    "video_processing_tps.py",
}


def convert(checkpoint: Path, output_dir: Path, *flags: str) -> int:
    return convert_tps.main([str(checkpoint), "--output_dir", str(output_dir), *flags])


assert_refused = partial(conversion_checks.assert_refused, convert_tps.main)


@pytest.fixture(scope="module")
def micro() -> dict:
    return golden_cases.load("tps_micro")


@pytest.fixture
def micro_file(micro, tmp_path) -> Path:
    return golden_cases.write_checkpoint(micro, tmp_path / "micro.pth")


@pytest.mark.parametrize("case", MICRO + FULL)
def test_converted_checkpoint_gives_the_logits_of_the_original_code(case, tmp_path):
    golden = golden_cases.load(case)
    checkpoint = golden_cases.write_checkpoint(golden, tmp_path / f"{case}.pth")
    assert convert(checkpoint, tmp_path / "out") == 0
    tolerance = golden_cases.MICRO_TOLERANCE if case in MICRO else golden_cases.FULL_TOLERANCE
    difference = (logits_of(tmp_path / "out", golden) - golden_cases.logits(golden)).abs().max().item()
    print(f"{case}: largest difference {difference:.1e}")
    assert difference <= tolerance


def test_inflated_swin_gives_the_logits_of_the_original_code(tmp_path):
    golden = golden_cases.load("swin_inflation_tiny")
    image = golden_cases.tensors(recipe.synth_state_dict(golden["image_manifest"], integer_fill=0))
    torch.save({"model": image}, tmp_path / "swin_tiny.pth")
    assert convert(tmp_path / "swin_tiny.pth", tmp_path / "out", "--num_labels", "400") == 0

    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "out")
    head = {
        name: recipe.synth_tensor(f"cls_head.fc_cls.{name}", t.shape)
        for name, t in model.classifier.state_dict().items()
    }
    model.classifier.load_state_dict(golden_cases.tensors(head))
    with torch.no_grad():
        logits = model(golden_cases.pixel_values(golden)).logits
    difference = (logits - golden_cases.logits(golden)).abs().max().item()
    print(f"swin_inflation_tiny: largest difference {difference:.1e}")
    assert difference <= golden_cases.FULL_TOLERANCE


def test_a_window_of_12_is_kept_or_resized_to_7_as_the_original_does(tmp_path):
    golden = golden_cases.load("swin_inflation_tiny")
    expected = golden["window_12"]
    manifest = [
        [key, [529, *shape[1:]] if key.endswith("bias_table") else shape, dtype]
        for key, shape, dtype in golden["image_manifest"]
        if not key.endswith(("relative_position_index", "attn_mask"))
    ]
    torch.save({"model": golden_cases.tensors(recipe.synth_state_dict(manifest))}, tmp_path / "swin_w12.pth")
    assert convert(tmp_path / "swin_w12.pth", tmp_path / "as12", "--num_labels", "9", "--num_frames", "4") == 0
    kept = AutoModelForVideoClassification.from_pretrained(tmp_path / "as12").config
    assert (kept.window_size, kept.image_size) == (12, 384)

    assert convert(tmp_path / "swin_w12.pth", tmp_path / "as7", "--num_labels", "9", "--window_size", "7") == 0
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "as7")
    table = model.tps.stages[1].blocks[0].attention.relative_position_bias_table.detach()
    assert list(table.shape) == expected["inflated"]["shape"]
    torch.testing.assert_close(table[:169, 0], torch.tensor(expected["first_169_rows_head_0"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(table.flatten()[-8:], torch.tensor(expected["inflated"]["last8"]), atol=1e-6, rtol=0)


def test_the_written_folder_is_complete_and_says_where_it_comes_from(micro, micro_file, tmp_path, capsys):
    assert convert(micro_file, tmp_path / "out", "--license", "apache-2.0", "--recipe", "diving48") == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} >= WRITTEN
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "micro.pth" in card
    assert "pipeline" in card
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForVideoClassification"}
    assert (config["embed_dim"], config["depths"], config["num_heads"]) == (24, [2, 2, 2], [1, 2, 4])
    assert (config["num_frames"], config["tubelet_size"], config["window_size"]) == (32, 2, 7)
    assert "without a missing, unexpected or changed tensor" in capsys.readouterr().out
    assert oct((tmp_path / "out").stat().st_mode & 0o777) == oct(0o777 & ~current_umask())


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def rewritten(file: Path, change) -> Path:
    """The checkpoint file after `change(state_dict)`."""
    loaded = torch.load(file, weights_only=True)
    change(loaded["state_dict"])
    torch.save(loaded, file)
    return file


def with_classes(file: Path, count: int) -> Path:
    def change(state_dict):
        state_dict["cls_head.fc_cls.weight"] = torch.zeros(count, 96)
        state_dict["cls_head.fc_cls.bias"] = torch.zeros(count)

    return rewritten(file, change)


K400 = {
    "sampling": "dense",
    "frame_interval": 2,
    "index_rule": "stride",
    "past_end": "loop",
    "num_clips": 4,
    "num_crops": 3,
}
UNIFORM = {"sampling": "uniform", "num_clips": 1, "num_crops": 3}


@pytest.mark.parametrize(
    ("classes", "flags", "expected", "first_label"),
    [
        (400, [], K400, "abseiling"),
        (174, [], UNIFORM, "Approaching something with your camera"),
        (174, ["--recipe", "ssv1"], UNIFORM, "0"),
        (48, ["--recipe", "diving48"], UNIFORM, "0"),
        (10, ["--recipe", "k400"], K400, "0"),
        (10, [], UNIFORM, "0"),
    ],
)
def test_recipe_and_names_follow_the_data_set(classes, flags, expected, first_label, micro_file, tmp_path, capsys):
    assert convert(with_classes(micro_file, classes), tmp_path / "out", *flags) == 0
    settings = AutoVideoProcessor.from_pretrained(tmp_path / "out").to_dict()
    assert {name: settings[name] for name in expected} == expected
    assert settings["antialias"] is False
    assert settings["num_frames"] == 32
    assert settings["size"] == {"shortest_edge": 224}
    config = AutoModelForVideoClassification.from_pretrained(tmp_path / "out").config
    assert config.id2label[0] == first_label
    assert config.label2id[first_label] == 0
    assert config.num_labels == classes
    assert ("warning" in capsys.readouterr().err) == (first_label == "0")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "\n".join(f"class {i}" for i in range(10)) + "\n"),
        ("names.json", json.dumps([f"class {i}" for i in range(10)])),
        ("names.json", json.dumps({str(i): f"class {i}" for i in reversed(range(10))})),
        ("names.json", json.dumps({f"class {i}": i for i in range(10)})),
    ],
    ids=["txt", "json list", "json by id", "json by name"],
)
def test_class_names_come_from_a_file(name, content, micro_file, tmp_path):
    (tmp_path / name).write_text(content)
    assert convert(micro_file, tmp_path / "out", "--labels", str(tmp_path / name)) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {str(i): f"class {i}" for i in range(10)}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("a\nb\nc\n", "3 names.*10 classes"),
        ("a\n\n" + "\n".join("cdefghij"), "empty one"),
        ("\n".join("aacdefghij"), "more than once.*'a'"),
        (None, "neither a file nor one of"),
    ],
    ids=["wrong length", "empty name", "repeated name", "no such list"],
)
def test_bad_class_names_are_an_error(labels, message, micro_file, tmp_path, capsys):
    if labels is not None:
        (tmp_path / "names.txt").write_text(labels)
    assert_refused(micro_file, tmp_path, capsys, message, "--labels", str(tmp_path / "names.txt"))


SPOILED = {
    "missing": (
        lambda s: s.pop("backbone.layers.1.blocks.0.mlp.fc2.bias"),
        r"missing key backbone\.layers\.1\.blocks\.0\.mlp\.fc2\.bias",
    ),
    "missing head": (lambda s: s.pop("cls_head.fc_cls.bias"), r"missing key cls_head\.fc_cls\.bias"),
    "missing embedding": (lambda s: s.pop("backbone.patch_embed.proj.weight"), r"patch_embed\.proj\.weight"),
    "missing block": (
        lambda s: [s.pop(key) for key in list(s) if key.startswith("backbone.layers.1.blocks.0.")],
        r"layers\.1\.blocks\.0\.attn\.relative_position_bias_table",
    ),
    "unknown": (lambda s: s.update({"backbone.neck.weight": torch.zeros(2)}), r"unknown key backbone\.neck\.weight"),
    "unknown part": (lambda s: s.update({"neck.weight": torch.zeros(2)}), r"unknown key neck\.weight"),
    "wrong shape": (
        lambda s: s.update({"backbone.norm.bias": torch.zeros(5)}),
        r"backbone\.norm\.bias has shape \(5,\) where \(96,\) is needed",
    ),
    "other index": (
        lambda s: s["backbone.layers.0.blocks.1.attn.relative_position_index"].add_(1),
        r"layers\.0\.blocks\.1\.attn\.relative_position_index is not the index of the released TPS",
    ),
    "video swin": (
        lambda s: s.update({"backbone.layers.0.blocks.0.attn.relative_position_index": torch.zeros(784, 784).long()}),
        "Video Swin",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(case, micro_file, tmp_path, capsys):
    change, message = SPOILED[case]
    assert_refused(rewritten(micro_file, change), tmp_path, capsys, message)


FOREIGN = {
    "xvit": ({"base_model.temp_embed": 1, "base_model.blocks.0.attn.qkv.weight": 1}, "convert_xvit.py"),
    "visformer": (
        {"module.base_model.patch_embed1.proj.weight": 1, "module.base_model.stage1.0.mlp.conv1.weight": 1},
        "convert_laps.py",
    ),
    "laps vit": ({"module.base_model.blocks.0.attn.qkv.weight": 1}, "convert_laps.py"),
    "image vit": ({"cls_token": 1, "blocks.0.attn.qkv.weight": 1}, "ViT image checkpoint.*convert_xvit.py"),
    "resnet": ({"layer1.0.conv1.weight": 1}, "no checkpoint of a known family.*layer1.0.conv1.weight"),
    "nothing": ({}, "empty"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_another_familys_checkpoint_names_its_converter(case, tmp_path, capsys):
    keys, message = FOREIGN[case]
    torch.save({"state_dict": {key: torch.zeros(1) for key in keys}}, tmp_path / "foreign.pth")
    assert_refused(tmp_path / "foreign.pth", tmp_path, capsys, message)


class RunsCode:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"backbone.norm.weight": torch.ones(1)}, "hook": RunsCode()}, tmp_path / "evil.pth")
    assert_refused(tmp_path / "evil.pth", tmp_path, capsys, r"posix\.system.*could run code.*strip")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(RunsCode()))
    assert_refused(tmp_path / "plain.pth", tmp_path, capsys, "error")
    assert not (tmp_path / "pwned").exists()


def test_numpy_scalars_in_a_training_checkpoint_are_read(micro, tmp_path):
    extra = {"optimizer": {"lr": np.float64(0.1), "steps": np.int64(3)}, "best": np.float32(0.5)}
    file = golden_cases.write_checkpoint(micro, tmp_path / "training.pth", **extra)
    assert convert(file, tmp_path / "out") == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or no torch checkpoint"),
        (b"hello, I am text", "no checkpoint|no torch checkpoint"),
        (None, "no file"),
    ],
    ids=["empty", "text", "absent"],
)
def test_what_is_no_checkpoint_file_is_refused(content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / "file.pth").write_bytes(content)
    assert_refused(tmp_path / "file.pth", tmp_path, capsys, message)


def test_a_truncated_checkpoint_is_refused(micro_file, tmp_path, capsys):
    micro_file.write_bytes(micro_file.read_bytes()[: micro_file.stat().st_size // 2])
    assert_refused(micro_file, tmp_path, capsys, "damaged or no torch checkpoint|no checkpoint that torch can read")


def test_a_folder_that_is_not_empty_needs_overwrite(micro_file, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert_refused(micro_file, tmp_path, capsys, "not empty.*--overwrite")
    assert convert(micro_file, tmp_path / "out", "--overwrite") == 0
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    AutoModelForVideoClassification.from_pretrained(tmp_path / "out")


def test_a_failure_while_writing_leaves_nothing_behind(micro_file, tmp_path, capsys, monkeypatch):
    def broken(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(convert_tps.TPSForVideoClassification, "save_pretrained", broken)
    assert_refused(micro_file, tmp_path, capsys, "disk full")


def test_the_index_buffers_and_the_wrapper_may_be_missing(micro, tmp_path):
    state_dict = {
        k: t for k, t in golden_cases.original_state_dict(micro).items() if "relative_position_index" not in k
    }
    torch.save({f"module.{key}": tensor for key, tensor in state_dict.items()}, tmp_path / "flat.pth")
    assert convert(tmp_path / "flat.pth", tmp_path / "out") == 0
    difference = (logits_of(tmp_path / "out", micro) - golden_cases.logits(micro)).abs().max()
    assert difference <= golden_cases.MICRO_TOLERANCE


def test_modelscopes_file_averages_logits_and_the_github_release_probabilities(micro, micro_file, tmp_path):
    torch.save({"state_dict": golden_cases.original_state_dict(micro)}, tmp_path / "pytorch_model.pt")
    for file, expected in ((tmp_path / "pytorch_model.pt", "logits"), (micro_file, "probabilities")):
        assert convert(file, tmp_path / file.stem) == 0
        assert AutoModelForVideoClassification.from_pretrained(tmp_path / file.stem).config.view_aggregation == expected


def test_another_number_of_frames_interpolates_the_trained_rows(micro_file, tmp_path):
    assert convert(micro_file, tmp_path / "out", "--num_frames", "16", "--image_size", "112") == 0
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "out")
    assert (model.config.num_frames, model.config.temporal_bias_size, model.config.image_size) == (16, 16, 112)
    with torch.no_grad():
        assert model(torch.randn(1, 16, 3, 112, 112)).logits.isfinite().all()
    processor = AutoVideoProcessor.from_pretrained(tmp_path / "out")
    assert processor.num_frames == 16
    assert dict(processor.crop_size) == {"height": 112, "width": 112}


def test_an_image_checkpoint_needs_a_number_of_classes(tmp_path, capsys):
    golden = golden_cases.load("swin_inflation_tiny")
    image = golden_cases.tensors(recipe.synth_state_dict(golden["image_manifest"], integer_fill=0))
    torch.save({"model": image}, tmp_path / "swin.pth")
    assert_refused(tmp_path / "swin.pth", tmp_path, capsys, "--num_labels")
    heads = []
    for folder in ("one", "two"):  # the new head is seeded
        assert convert(tmp_path / "swin.pth", tmp_path / folder, "--num_labels", "3") == 0
        heads.append(AutoModelForVideoClassification.from_pretrained(tmp_path / folder).classifier.weight)
    assert torch.equal(*heads)
    assert heads[0].std() > 0
    assert "classifier is new" in (tmp_path / "one" / "README.md").read_text()


def test_num_labels_that_contradicts_the_head_is_an_error(micro_file, tmp_path, capsys):
    assert_refused(micro_file, tmp_path, capsys, "head for 10 classes.*ignore_mismatched_sizes", "--num_labels", "7")


def test_runs_as_a_program_from_any_folder(micro_file, tmp_path, root):
    command = [sys.executable, str(root / "conversion" / "convert_tps.py"), str(micro_file), "--output_dir", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "written to out" in done.stdout
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 1
    assert "error: --output_dir out is not empty" in again.stderr


def test_push_to_hub_uploads_the_finished_folder(micro_file, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("conversion.common.HfApi.create_repo", lambda self, name, **kw: calls.append(("create", name)))
    monkeypatch.setattr(
        "conversion.common.HfApi.upload_folder",
        lambda self, repo_id, folder_path, **kw: calls.append(
            (repo_id, {file.name for file in Path(folder_path).iterdir()})
        ),
    )
    assert convert(micro_file, tmp_path / "out", "--push_to_hub", "org/tps") == 0
    assert calls[0] == ("create", "org/tps")
    assert calls[1][0] == "org/tps"
    assert calls[1][1] >= WRITTEN
    shutil.rmtree(tmp_path / "out")


def test_the_pipeline_runs_on_the_converted_folder(micro_file, tmp_path):
    assert convert(micro_file, tmp_path / "out", "--image_size", "112") == 0
    write_video(tmp_path / "clip.mp4", moving_frames(20))
    answers = pipeline("video-classification", model=str(tmp_path / "out"))(str(tmp_path / "clip.mp4"), top_k=3)
    assert len(answers) == 3
    assert {answer["label"] for answer in answers} <= {str(i) for i in range(10)}
    scores = pipeline("video-classification", model=str(tmp_path / "out"))(str(tmp_path / "clip.mp4"), top_k=10)
    assert sum(answer["score"] for answer in scores) == pytest.approx(1, abs=1e-5)
