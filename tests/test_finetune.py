"""finetune.py, finetune_trainer.py and evaluate.py as a user runs them, on three colours."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from transformers import AutoModelForVideoClassification, SwinConfig, SwinModel, ViTConfig, ViTModel

import hf_tps
from examples import classify, evaluate, finetune, finetune_trainer
from hf_tps.training import results as outcome
from hf_tps.training.checkpoints import list_checkpoints
from tests import micro_models, video_transformers
from tests.video_folders import write_colour, write_colour_folders


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """12 videos to train on and 13 to validate with (which no even number of processes divides), and two configs."""
    folder = tmp_path_factory.mktemp("data")
    write_colour_folders(folder / "train", (4, 4, 4))
    write_colour_folders(folder / "val", (5, 4, 4), seed=1000)
    micro_models.config("xvit", num_hidden_layers=2, image_size=32, classifier_dropout=0.0).save_pretrained(
        folder / "xvit"
    )
    return folder


def environment(root: Path) -> dict:
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(root)]))
    return {**os.environ, "PYTHONPATH": path, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def start(root: Path, script: str, *arguments, processes: int = 1) -> subprocess.Popen:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launcher, str(root / "examples" / script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment(root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(root: Path, script: str, *arguments, processes: int = 1) -> str:
    process = start(root, script, *arguments, processes=processes)
    output, _ = process.communicate(timeout=1800)  # against a hang alone
    assert process.returncode == 0, output
    return output


def here(script, *arguments) -> int:
    """The script's `main` in this process: for what needs no process of its own."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        return script.main([str(argument) for argument in arguments])
    finally:
        del os.environ["ACCELERATE_USE_CPU"]


def basics(data: Path, output: Path, model: str = "xvit") -> list:
    train = ["--config_name", data / model, "--train_dir", data / "train", "--validation_dir", data / "val"]
    return [*train, "--output_dir", output, "--learning_rate", "3e-3", "--per_device_train_batch_size", "4"]


def results(output: Path, name: str = "all_results.json") -> dict:
    return json.loads((output / name).read_text())


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model.safetensors")


def assert_trained_alike(actual: Path, expected: Path) -> None:
    """Two runs ended with the same weights and history but for rounding: a step of 3e-3 is 30 times as long."""
    found, wanted = weights(actual), weights(expected)
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        apart = (found[name] - weight).abs()
        if name.endswith("qkv.bias"):
            # Softmax does not see the bias of the keys: its gradient is rounding noise, which AdamW makes into full
            # steps.
            apart = torch.stack(apart.chunk(3))[[0, 2]]
        assert apart.max() < 1e-4, name
    for first, second in zip(results(actual)["history"], results(expected)["history"], strict=True):
        assert first == pytest.approx(second, abs=1e-4)


def test_a_run_learns_and_leaves_all_that_is_promised(data, tmp_path, root):
    flags = ["--num_train_epochs", 12, "--dataloader_num_workers", 1, "--label_smoothing", 0.1, "--weight_decay", 0.01]
    output = run(root, "finetune.py", *basics(data, tmp_path / "out"), *flags, "--cache_frames", tmp_path / "cache")
    assert "eval_top1" in output
    found = results(tmp_path / "out")
    assert found["eval_top1"] == 1.0
    assert found["eval_top5"] == 1.0
    assert found["train_loss"] < found["history"][0]["train_loss"]
    assert (found["step"], found["epoch"], found["eval_videos"]) == (36, 12, 13)
    assert found["eval_per_class"]["blue"] == {"videos": 5, "top1": 1.0}
    assert found["clips_per_second"] > 0
    assert [entry["step"] for entry in found["history"]] == list(range(3, 37, 3))

    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    processor = hf_tps.TPSVideoProcessor.from_pretrained(tmp_path / "out")
    pixel_values = processor(str(data / "val" / "red" / "0.mp4"), return_tensors="pt").pixel_values
    assert model(pixel_values).logits.argmax() == 2
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| eval_top1 | 1 |" in card
    assert "pipeline_tag: video-classification" in card
    assert str(tmp_path) not in card
    assert (tmp_path / "out" / "confusion_matrix.png").stat().st_size > 5000
    assert [path.name for path in list_checkpoints(tmp_path / "out" / "checkpoints")] == ["step_33", "step_36"]
    assert not list((tmp_path / "out").rglob(".*"))


def test_two_processes_train_and_test_as_one_does(data, tmp_path, root):
    flags = ["--num_train_epochs", 2, "--no_augmentation", "--checkpointing_steps", "no", "--dataloader_num_workers", 0]
    run(root, "finetune.py", *basics(data, tmp_path / "one"), *flags)
    two = [*basics(data, tmp_path / "two"), *flags, "--per_device_train_batch_size", 2]
    run(root, "finetune.py", *two, processes=2)
    assert_trained_alike(tmp_path / "two", tmp_path / "one")

    tested = ["--model_name_or_path", tmp_path / "one", "--validation_dir", data / "val", "--protocol", "ssv2-2x3"]
    run(root, "evaluate.py", *tested, "--output_dir", tmp_path / "test2", "--batch_size", 3, processes=2)
    assert here(evaluate, *tested, "--output_dir", tmp_path / "test1", "--view_batch_size", 5) == 0
    single, shared = (results(tmp_path / name, "results.json") for name in ("test1", "test2"))
    assert {**single, "videos_per_second": 0} == {**shared, "videos_per_second": 0}
    tables = [list(csv.reader((tmp_path / name / "scores.csv").open())) for name in ("test1", "test2")]
    assert [row[:3] for row in tables[0]] == [row[:3] for row in tables[1]]
    assert len(tables[0]) == 14
    for first, second in zip(tables[0][1:], tables[1][1:], strict=True):
        assert list(map(float, first[3:])) == pytest.approx(list(map(float, second[3:])), abs=1e-5)
    right = sum(row[1] == row[2] for row in tables[0][1:])
    assert single["top1"] == pytest.approx(right / 13)
    assert (single["num_clips"], single["num_crops"], single["videos"]) == (2, 3, 13)


def test_the_trainer_version_learns_too(data, tmp_path, root):
    flags = [
        "--num_train_epochs",
        12,
        "--dataloader_num_workers",
        0,
        "--report_to",
        "none",
        "--mixup",
        0.2,
        "--use_cpu",
    ]
    run(root, "finetune_trainer.py", *basics(data, tmp_path / "out"), *flags)
    assert results(tmp_path / "out")["eval_top1"] == 1.0
    assert AutoModelForVideoClassification.from_pretrained(tmp_path / "out").config.label2id["green"] == 1


def test_the_trainer_version_freezes_the_backbone_and_keeps_decoded_frames(data, tmp_path):
    begin = micro_models.classifier("xvit", num_labels=3, image_size=32)
    begin.save_pretrained(tmp_path / "begin")
    flags = [
        "--model_name_or_path",
        tmp_path / "begin",
        "--train_dir",
        data / "train",
        "--output_dir",
        tmp_path / "out",
    ]
    flags += ["--freeze_backbone", "--cache_frames", tmp_path / "cache", "--max_steps", 1, "--learning_rate", 0.1]
    flags += ["--dataloader_num_workers", 0, "--report_to", "none", "--use_cpu", "--train_val_split", 0]
    assert here(finetune_trainer, *flags) == 0
    assert list((tmp_path / "cache").glob("frames-*"))
    before, after = weights(tmp_path / "begin"), weights(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


@pytest.fixture
def saved(tmp_path) -> Path:
    names = dict(enumerate(("blue", "green", "red")))
    model = micro_models.classifier("xvit", num_labels=3, id2label=names, label2id={n: i for i, n in names.items()})
    model.save_pretrained(tmp_path / "model")
    micro_models.processor(model.config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# --- data ------------------------------------------------------------------------------------------------------------


QUICK = ["--max_train_steps", 1, "--dataloader_num_workers", 0, "--checkpointing_steps", "no"]


def model_flags(data: Path, output: Path) -> list:
    return ["--config_name", data / "xvit", "--output_dir", output, *QUICK, "--per_device_train_batch_size", 2]


def test_lists_are_trained_on_with_names_for_their_numbers(data, tmp_path):
    (tmp_path / "names.txt").write_text("rot\ngrün\n")
    (tmp_path / "train.txt").write_text("red/0.mp4 0\ngreen/0.mp4 1\nred/1.mp4 0\n")
    (tmp_path / "val.csv").write_text("path,label\ngreen/1.mp4,grün\n")
    lists = ["--train_file", tmp_path / "train.txt", "--validation_file", tmp_path / "val.csv"]
    lists += ["--video_dir", data / "train", "--label_names", tmp_path / "names.txt"]
    assert here(finetune, *model_flags(data, tmp_path / "out"), *lists) == 0
    assert results(tmp_path / "out")["train_videos"] == 3
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {"0": "rot", "1": "grün"}


@pytest.fixture(scope="module")
def hub_data(data, tmp_path_factory) -> Path:
    """A data set as the Hub has it: parquet files with the bytes of the videos."""
    from datasets import ClassLabel, Dataset, Features, Video

    folder = tmp_path_factory.mktemp("hub_data")
    features = Features({"video": Video(decode=False), "label": ClassLabel(names=["blue", "green", "red"])})
    for split, part in (("train", "train"), ("validation", "val")):
        paths = sorted((data / part).rglob("*.mp4"))
        rows = {
            "video": [{"path": path.name, "bytes": path.read_bytes()} for path in paths],
            "label": [features["label"].names.index(path.parent.name) for path in paths],
        }
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_data_set_is_trained_on(streaming, data, hub_data, tmp_path):
    flags = ["--dataset_name", hub_data, "--cache_dir", tmp_path / "cache", "--max_eval_samples", 5]
    flags += ["--streaming"] if streaming else []
    assert here(finetune, *model_flags(data, tmp_path / "out"), *flags) == 0
    found = results(tmp_path / "out")
    assert found["eval_videos"] == 5
    assert found["train_videos"] == (None if streaming else 12)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label2id"]["red"] == 2


def test_a_part_is_split_off_where_no_validation_is_given(data, tmp_path):
    flags = ["--train_dir", data / "train", "--train_val_split", 0.25]
    assert here(finetune, *model_flags(data, tmp_path / "out"), *flags) == 0
    assert results(tmp_path / "out")["train_videos"] == 9
    assert results(tmp_path / "out")["eval_videos"] == 3


@pytest.mark.parametrize("policy", ["skip", "error"])
def test_broken_videos_are_counted_or_stop_the_run(policy, data, tmp_path, capsys):
    write_colour_folders(tmp_path / "videos", (1, 1, 1))
    for name in ("blue/x.mp4", "red/x.mp4"):
        (tmp_path / "videos" / name).write_text("no video")
    flags = ["--train_dir", tmp_path / "videos", "--validation_dir", tmp_path / "videos", "--max_train_steps", 3]
    done = here(finetune, *model_flags(data, tmp_path / "out"), *flags, "--on_broken_video", policy)
    if policy == "error":
        assert done == 1
        assert "x.mp4" in capsys.readouterr().err
        assert not (tmp_path / "out" / "all_results.json").exists()
    else:
        assert done == 0
        assert results(tmp_path / "out")["broken_videos"] == 2
        assert results(tmp_path / "out")["eval_videos"] == 3
        assert "red/x.mp4\t" in (tmp_path / "out" / "broken_videos.txt").read_text()


def test_a_broken_video_has_an_empty_line_in_the_scores(data, tmp_path):
    config = micro_models.config("xvit", num_labels=3, id2label={0: "red", 1: "green", 2: "blue"})
    hf_tps.XViTForVideoClassification(config).save_pretrained(tmp_path / "model")
    write_colour(tmp_path / "videos" / "red" / "a.mp4", "red", 0)
    (tmp_path / "videos" / "red" / "b.mp4").write_text("no video")
    flags = ["--model_name_or_path", tmp_path / "model", "--validation_dir", tmp_path / "videos", "--protocol", "1x1"]
    assert here(evaluate, *flags, "--output_dir", tmp_path / "out", "--dataloader_num_workers", 0) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert [row["video"] for row in rows] == ["red/a.mp4", "red/b.mp4"]
    assert sum(float(rows[0][name]) for name in ("red", "green", "blue")) == pytest.approx(1, abs=1e-4)
    assert set(rows[1].values()) == {"red/b.mp4", ""}
    found = results(tmp_path / "out", "results.json")
    assert found["videos"] == 1
    assert list(found["broken_videos"]) == ["red/b.mp4"]


def test_a_test_of_nothing_but_broken_videos_is_no_result(saved, tmp_path, capsys):
    for name in ("red", "blue"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        (tmp_path / "videos" / name / "a.mp4").write_text("no video")
    flags = ["--model_name_or_path", saved, "--validation_dir", tmp_path / "videos", "--protocol", "1x1"]
    assert here(evaluate, *flags, "--output_dir", tmp_path / "out", "--dataloader_num_workers", 0) == 1
    assert re.search("None of 2 videos can be read; one of them: (red|blue)/a.mp4: ", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


# The first batch is of two clips: two passes over few videos, or the limit and the rest of a pass.
@pytest.mark.parametrize(("broken", "named"), [(10, 20), (130, 130)])
def test_a_stream_of_nothing_but_broken_videos_ends_the_run(broken, named, data, tmp_path, capsys):
    from datasets import ClassLabel, Dataset, Features, Video

    features = Features({"video": Video(decode=False), "label": ClassLabel(names=["blue", "green", "red"])})
    rows = {"video": [{"path": "x.mp4", "bytes": b"no video"}] * broken, "label": [0] * broken}
    (tmp_path / "data").mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "train.parquet")
    flags = ["--dataset_name", tmp_path / "data", "--cache_dir", tmp_path / "cache", "--streaming"]
    assert here(finetune, *model_flags(data, tmp_path / "out"), *flags, "--validation_split", "train") == 1
    assert f"None of {named} videos in a row can be read" in capsys.readouterr().err


# --- starts and bad input --------------------------------------------------------------------------------------------


def test_an_image_checkpoint_starts_a_video_model_that_evaluate_reads(data, tmp_path):
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(tmp_path / "vit")
    flags = ["--model_name_or_path", tmp_path / "vit", "--from_image", "xvit", "--train_dir", data / "train"]
    flags += [
        "--num_frames",
        4,
        "--config_overrides",
        "temporal_head_heads=2,temporal_head_size=8",
        "--train_val_split",
        0,
    ]
    done = here(finetune, *flags, "--output_dir", tmp_path / "out", *QUICK, "--per_device_train_batch_size", 2)
    assert done == 0
    assert "eval_top1" not in results(tmp_path / "out")
    processor = hf_tps.TPSVideoProcessor.from_pretrained(tmp_path / "out")
    assert (processor.num_frames, processor.image_mean[0], processor.crop_size["height"]) == (4, 0.5, 32)
    flags = ["--model_name_or_path", tmp_path / "out", "--validation_dir", data / "val", "--max_eval_samples", 2]
    assert here(evaluate, *flags, "--output_dir", tmp_path / "test", "--dataloader_num_workers", 0) == 0
    assert results(tmp_path / "test", "results.json")["videos"] == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to train on"),
        (["--train_dir", "absent"], "no folder absent"),
        (["--train_dir", "{train}", "--train_file", "x.txt"], "exclude each other"),
        (["--train_dir", "{train}", "--validation_dir", "{other}"], "'yellow'"),
        (["--train_dir", "{train}", "--train_val_split", "0.01"], "at least one"),
        (["--train_dir", "{train}", "--no_flip_classes", "violet"], "'violet'"),
        (["--train_dir", "{train}", "--eval_protocol", "k1"], "Unknown protocol"),
        (["--train_dir", "{train}", "--resume_from_checkpoint", "absent"], "no checkpoint folder"),
        (["--train_dir", "{train}", "--streaming"], "--streaming needs"),
        (["--train_dir", "{train}", "--learning_rate", "1e30", "--max_train_steps", "4"], "lower --learning_rate"),
        (["--train_dir", "{train}", "--push_to_hub"], "--push_to_hub"),
        (["--train_dir", "{train}", "--report_to", "carrier_pigeon"], "--report_to: no tracker 'carrier_pigeon'"),
        (["--train_dir", "{train}", "--lr_scheduler_type", "zigzag"], "zigzag"),
    ],
)
def test_bad_input_is_one_clear_line(flags, message, data, tmp_path, capsys):
    (tmp_path / "val" / "yellow").mkdir(parents=True)
    (tmp_path / "val" / "yellow" / "a.mp4").write_bytes(b"x")
    flags = [flag.format(train=data / "train", other=tmp_path / "val") for flag in flags]
    assert here(finetune, *model_flags(data, tmp_path / "out"), *flags) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "out" / "all_results.json").exists()


@pytest.mark.parametrize("flag", ["--per_device_train_batch_size", "--num_train_epochs", "--checkpointing_steps"])
def test_zero_is_refused_by_the_parser(flag, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        here(finetune, *model_flags(data, tmp_path / "out"), flag, 0)
    assert flag in capsys.readouterr().err


def test_an_older_run_is_not_mixed_with_a_new_one(data, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "all_results.json").write_text("{}")
    flags = [*model_flags(data, tmp_path / "out"), "--train_dir", data / "train", "--train_val_split", 0]
    assert here(finetune, *flags) == 1
    assert "--overwrite_output_dir" in capsys.readouterr().err
    assert results(tmp_path / "out") == {}
    assert here(finetune, *flags, "--overwrite_output_dir") == 0
    assert results(tmp_path / "out")["step"] == 1


def test_a_checkpoint_of_another_run_is_refused(data, tmp_path, capsys):
    flags = [*model_flags(data, tmp_path / "out"), "--train_dir", data / "train", "--train_val_split", 0]
    flags += ["--checkpointing_steps", 1]
    assert here(finetune, *flags) == 0
    resume = ["--resume_from_checkpoint", "latest", "--seed", 7]
    assert here(finetune, *flags, *resume) == 1
    assert "seed was 42, now 7" in capsys.readouterr().err


def test_evaluate_names_classes_that_the_model_does_not_know(data, tmp_path, capsys):
    micro_models.classifier("xvit").save_pretrained(tmp_path / "model")
    flags = [
        "--model_name_or_path",
        tmp_path / "model",
        "--validation_dir",
        data / "val",
        "--output_dir",
        tmp_path / "out",
    ]
    assert here(evaluate, *flags) == 1
    assert "'blue'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pushing_leaves_checkpoints_behind(tmp_path, monkeypatch):
    calls = {}

    class Api:
        def create_repo(self, repo_id, **kwargs):
            calls["create"] = (repo_id, kwargs["private"])
            return type("Repo", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, **kwargs):
            calls["upload"] = kwargs

    monkeypatch.setattr(outcome, "HfApi", Api)
    assert outcome.push_to_hub(tmp_path, "model", private=True) == "me/model"
    assert calls["create"] == ("model", True)
    assert calls["upload"]["repo_id"] == "me/model"
    assert "checkpoints/*" in calls["upload"]["ignore_patterns"]


@pytest.mark.parametrize(
    ("start", "overrides"),
    [
        ("tps", "num_frames=4,window_size=4"),
        ("xvit", "num_frames=4,temporal_head_heads=2"),
        ("laps", "num_frames=4"),
        ("shift", "num_frames=4,shift=mixing"),
    ],
)
def test_training_begins_from_an_image_checkpoint(start, overrides, data, tmp_path):
    if start == "tps":
        image_model = SwinModel(
            SwinConfig(image_size=32, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4, num_labels=2)
        )
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        image_model = ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes), add_pooling_layer=False)
    image_model.save_pretrained(tmp_path / "image")
    arguments = basics(data, tmp_path / "out")[2:]
    begin = ["--model_name_or_path", tmp_path / "image", "--from_image", start, "--config_overrides", overrides]
    assert here(finetune, *begin, *arguments, "--max_train_steps", "2", "--checkpointing_steps", "no") == 0
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "out")
    assert type(model).__name__.lower().startswith({"shift": "videoshift"}.get(start, start))
    assert model.config.num_frames == 4
    assert sorted(model.config.id2label.values()) == ["blue", "green", "red"]


def test_training_with_token_merging_and_evaluation_of_a_plain_model_with_it(data, tmp_path):
    plain = video_transformers.build("videomae", num_labels=5)
    plain.save_pretrained(tmp_path / "plain")
    arguments = basics(data, tmp_path / "out")[2:]
    begin = ["--model_name_or_path", tmp_path / "plain", "--sttm_keep_ratio", "0.75"]
    learn = ["--config_overrides", 'top_q=2,learned=["motion"]']
    assert here(finetune, *begin, *learn, *arguments, "--max_train_steps", "2", "--checkpointing_steps", "no") == 0
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "out")
    assert (model.config.model_type, model.config.keep_ratio, model.config.top_q) == ("sttm", 0.75, 2)
    assert model.classifier.out_features == 3
    assert model.sttm.sttm_stages[0].motion.weight.abs().max() > 0

    for name, ratio in (("whole", "1.0"), ("merged", "0.5")):
        arguments = [
            "--model_name_or_path",
            tmp_path / "out",
            "--validation_dir",
            data / "val",
            "--sttm_keep_ratio",
            ratio,
        ]
        assert here(evaluate, *arguments, "--output_dir", tmp_path / name) == 0
    scores = [(tmp_path / name / "scores.csv").read_text() for name in ("whole", "merged")]
    assert scores[0] != scores[1]


# --- damaged files ---------------------------------------------------------------------------------------------------


def flip_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" + file.read_bytes()[1:])


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def rename_tensor(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b"classifier.weight", b"classifier.wejght"))


def change_config(folder: Path, **fields) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


DAMAGE = {
    "a header that cannot be read": flip_header,
    "weights cut off": cut_weights,
    "a tensor by another name": rename_tensor,
    "weights that are none": lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "a config cut off": lambda folder: (folder / "config.json").write_text('{"model_type": "xv'),
    "a list for a config": lambda folder: (folder / "config.json").write_text("[]"),
    "a config of bytes": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"),
    "an unknown model": lambda folder: change_config(folder, model_type="nonsense"),
    "a size of another type": lambda folder: change_config(folder, hidden_size="wide"),
    "a size of another number": lambda folder: change_config(folder, hidden_size=24),
    "labels of another type": lambda folder: change_config(folder, id2label=[1, 2]),
    "a processor cut off": lambda folder: (folder / "video_preprocessor_config.json").write_text('{"size": '),
    "a list for a processor": lambda folder: (folder / "video_preprocessor_config.json").write_text("[]"),
}


def assert_one_line(code: int, capsys) -> None:
    assert code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("script", [finetune, finetune_trainer, evaluate, classify])
def test_a_damaged_model_is_one_line_for_every_script(script, damage, data, saved, tmp_path, capsys):
    DAMAGE[damage](saved)
    if script is classify:
        command = [data / "val" / "red" / "0.mp4", "--model", saved]
    else:
        command = ["--model_name_or_path", saved, "--validation_dir", data / "val", "--output_dir", tmp_path / "out"]
    if script in (finetune, finetune_trainer):
        command += [
            "--train_dir",
            data / "train",
            "--max_steps" if script is finetune_trainer else "--max_train_steps",
            1,
        ]
    assert_one_line(here(script, *command), capsys)


@pytest.mark.parametrize("script", [finetune, finetune_trainer])
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer", "scheduler", "state"])
def test_a_damaged_checkpoint_is_one_line(file, script, data, tmp_path, capsys):
    flags = ["--config_name", data / "xvit", "--train_dir", data / "train", "--train_val_split", 0, "--output_dir"]
    flags += [tmp_path, "--dataloader_num_workers", 0]
    if script is finetune:
        flags += ["--max_train_steps", 2, "--checkpointing_steps", 1]
    else:
        flags += ["--max_steps", 2, "--save_steps", 1, "--report_to", "none", "--use_cpu"]
    assert here(script, *flags) == 0
    checkpoint = tmp_path / ("checkpoints/step_1" if script is finetune else "checkpoint-1")
    damaged = [path for path in checkpoint.iterdir() if file in path.name]
    assert damaged
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-20])
    capsys.readouterr()
    code = here(script, *flags, "--resume_from_checkpoint", checkpoint)
    assert_one_line(code, capsys)


@pytest.mark.parametrize("script", [finetune, finetune_trainer, evaluate])
@pytest.mark.parametrize(
    ("given", "meant"), [("--epochs", "num_train_epochs"), ("--model_name_or_pth", "model_name_or_path")]
)
def test_a_flag_that_is_not_there_is_answered_with_the_one_that_may_be_meant(script, given, meant, tmp_path, capsys):
    if script is evaluate and meant == "num_train_epochs":
        meant = None  # no flag of a test
    needed = ["--output_dir", tmp_path, "--model_name_or_path", "x"]
    with pytest.raises(SystemExit) as stopped:
        here(script, *needed, given, "3")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert f"unrecognized arguments: {given}" in error
    assert ("did you mean" in error) == (meant is not None)
    assert meant is None or f"did you mean --{meant} for {given}?" in error


def rename_classes(data: Path, folder: Path) -> Path:
    """The colours under names that tell a direction."""
    for colour, name in (("red", "pan_left"), ("green", "pan_right"), ("blue", "zoom_in")):
        shutil.copytree(data / "train" / colour, folder / name)
    return folder


def test_what_was_silent_is_said(data, tmp_path, caplog):
    """Mirrored directions, clips of another size, a line for steps without a terminal, and a result like a guess."""
    caplog.set_level("INFO")
    train = rename_classes(data, tmp_path / "train")
    micro_models.config("tps").save_pretrained(tmp_path / "tps")
    flags = ["--config_name", tmp_path / "tps", "--train_dir", train, "--validation_dir", train, "--crop_size", "48"]
    flags += ["--output_dir", tmp_path / "out", "--learning_rate", "1e-9", "--dataloader_num_workers", "0"]
    assert here(finetune, *flags, "--max_train_steps", "2", "--logging_steps", "1") == 0
    said = caplog.text
    assert re.search("2 classes name a direction, and --flip 0.5 mirrors .*pan_left.*pan_right.*--flip 0", said)
    assert "clips of 48 x 48 pixels go into a model made for 32 x 32: about 2.2 times the work" in said
    assert re.search(r"step 1 of 2, loss \d\.\d+, rate \d.\d\de-\d+, .* clips/s, .* s left", said)
    assert re.search(r"top-1 .* is little more than always guessing one class \(33.3%\)", said)
    assert re.search(r"Of its own training videos it knows \d+.\d%:\n  1. the learning rate", said)


def test_a_result_that_is_no_guess_needs_no_advice():
    summary = {"videos": 10, "per_class": {"a": {"videos": 6}, "b": {"videos": 4}}}
    assert outcome.guess(summary) == 0.6
    assert outcome.is_near_guess(0.65, 0.6)
    assert not outcome.is_near_guess(0.7, 0.6)
    assert "by heart" in outcome.weak_result(0.2, 0.17, 0.9)
    assert "training videos it knows" not in outcome.weak_result(0.2, 0.17, None)


def scripted_top1(monkeypatch, scores: list[float]) -> list[dict]:
    """Evaluations that find these scores, one after the other; the weights that each of them saw."""
    seen = []
    summarize = finetune.summarize

    def found(*arguments):
        summary = summarize(*arguments)
        return {**summary, "top1": scores[len(seen) - 1] if len(seen) <= len(scores) else 0.0}

    predict = finetune.predict

    def watched(model, dataset, *arguments, **options):
        if options.get("description") is None:
            seen.append({name: weight.clone() for name, weight in model.state_dict().items()})
        return predict(model, dataset, *arguments, **options)

    monkeypatch.setattr(finetune, "summarize", found)
    monkeypatch.setattr(finetune, "predict", watched)
    return seen


def test_the_best_epoch_is_kept_and_patience_ends(data, tmp_path, monkeypatch):
    flags = [*basics(data, tmp_path / "out"), "--num_train_epochs", 9, "--dataloader_num_workers", 0]
    seen = scripted_top1(monkeypatch, [0.5, 0.8, 0.6, 0.8, 0.7])
    assert here(finetune, *flags, "--keep_best", "--early_stopping_patience", 2) == 0
    found = results(tmp_path / "out")
    assert [entry["eval_top1"] for entry in found["history"]] == [0.5, 0.8, 0.6, 0.8]
    assert found["best_epoch"] == 2
    assert len(seen) == 5  # once more with the weights that are kept
    kept = weights(tmp_path / "out")
    for name, weight in kept.items():
        assert torch.equal(weight, seen[1][name])
        assert torch.equal(weight, seen[4][name])
    assert any(not torch.equal(kept[name], seen[3][name]) for name in kept)


def test_a_resumed_run_that_had_lost_patience_ends_as_it_did(data, tmp_path, monkeypatch):
    flags = [*basics(data, tmp_path / "out"), "--num_train_epochs", 9, "--dataloader_num_workers", 0]
    flags += ["--keep_best", "--early_stopping_patience", 1]
    scripted_top1(monkeypatch, [0.5, 0.4])
    assert here(finetune, *flags) == 0
    first = weights(tmp_path / "out")
    seen = scripted_top1(monkeypatch, [0.5])
    assert here(finetune, *flags, "--resume_from_checkpoint", "latest") == 0
    assert len(seen) == 1
    assert results(tmp_path / "out")["step"] == 6
    assert all(torch.equal(first[name], weight) for name, weight in weights(tmp_path / "out").items())


@pytest.mark.parametrize("flag", [["--keep_best"], ["--early_stopping_patience", "3"]])
def test_the_best_epoch_needs_a_validation(flag, data, tmp_path, capsys):
    flags = ["--config_name", data / "xvit", "--train_dir", data / "train", "--output_dir", tmp_path / "out", *flag]
    assert here(finetune, *flags, "--train_val_split", 0) == 1
    assert "need validation videos" in capsys.readouterr().err
