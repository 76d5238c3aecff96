"""Recipes, parameter groups, schedules, protocols, metrics and views against what is written or counted by hand."""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image

from hf_tps.training import arguments as flags
from hf_tps.training import pictures
from hf_tps.training.augmentation import CROPS
from hf_tps.training.data import IGNORED_LABEL
from hf_tps.training.evaluation import predict_views
from hf_tps.training.metrics import confusion_matrix, draw_confusion_matrix, summarize, top_k_accuracy
from hf_tps.training.optimization import (
    layer_depths,
    make_moving_average,
    make_optimizer,
    make_scheduler,
    parameter_groups,
)
from hf_tps.training.protocols import PROTOCOLS, protocol_views
from hf_tps.training.recipes import RECIPES
from hf_tps.training.starting_points import class_order, load_model, load_processor, parse_overrides
from hf_tps.video_processing_tps import TPSVideoProcessor
from tests import micro_models
from tests.comparison import assert_close_to_spread


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    flags.add_data_arguments(parser, training=True)
    flags.add_model_arguments(parser)
    flags.add_clip_arguments(parser)
    flags.add_training_arguments(parser)
    flags.add_augmentation_arguments(parser)
    flags.add_output_arguments(parser)
    return flags.parse_with_recipe(parser, ["--output_dir", "out", *argv])


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_sets_flags_that_exist_and_builds_a_processor(name):
    plain, arguments = vars(parse()), parse("--recipe", name)
    assert set(RECIPES[name].settings) <= set(plain)
    for flag, value in RECIPES[name].settings.items():
        assert getattr(arguments, flag) == value
    assert arguments.crop in CROPS
    assert flags.augmentation_settings(arguments, ["a", "b"]).flip == arguments.flip
    config = micro_models.config("tps")
    processor = load_processor(None, config, flags.processor_overrides(arguments))
    assert processor.crop_size["height"] == 224
    assert list(processor.image_mean) == RECIPES[name].settings["image_mean"]


def test_a_flag_overrides_its_recipe_and_the_description_says_so():
    arguments = parse("--recipe", "tps-ssv2", "--learning_rate", "3e-4")
    assert arguments.learning_rate == 3e-4
    assert arguments.weight_decay == 0.02
    text = flags.describe_recipe(arguments, total_batch_size=16)
    assert "learning_rate = 0.0003  (the recipe: 0.001)" in text
    assert "weight_decay = 0.02\n" in text
    assert "batches of 64 clips, these have 16" in text


@pytest.mark.parametrize(
    ("flag", "value", "read", "reason"),
    [
        ("--no_flip_classes", "violet", lambda a: flags.augmentation_settings(a, ["a"]), "'violet' is no class name"),
        ("--config_overrides", "num_frames", flags.config_overrides, "name=value"),
    ],
    ids=["classes", "overrides"],
)
def test_what_is_wrong_with_a_value_names_its_flag(flag, value, read, reason):
    arguments = parse(flag, value)
    with pytest.raises(ValueError, match=f"{flag}: .*{reason}"):
        read(arguments)


def test_an_unknown_recipe_is_refused_with_the_list(capsys):
    with pytest.raises(SystemExit):
        parse("--recipe", "tps-k900")
    assert "tps-k400" in capsys.readouterr().err


def test_the_published_numbers():
    # facts that a slip in the table would change
    tps, xvit, laps = (RECIPES[name] for name in ("tps-ssv2", "xvit-k400", "laps-k400"))
    assert (tps.settings["learning_rate"], tps.settings["weight_decay"], tps.total_batch_size) == (1e-3, 0.02, 64)
    assert (tps.settings["erasing"], tps.settings["label_smoothing"], tps.settings["warmup_epochs"]) == (0.25, 0.1, 2.5)
    assert (xvit.settings["mixup"], xvit.settings["label_smoothing"], xvit.settings["learning_rate"]) == (
        0.4,
        0.3,
        0.03,
    )
    assert (laps.settings["weight_decay"], laps.settings["lr_milestones"], laps.total_batch_size) == (0, [10, 15], 400)


# --- optimization ----------------------------------------------------------------------------------------------------


def rates_by_name(model, **kwargs) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(model, **{"learning_rate": 1.0, "weight_decay": 0.1, **kwargs})
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == len(list(model.parameters()))
    return {name: found[id(parameter)] for name, parameter in model.named_parameters()}


def test_decay_spares_norms_biases_positions_and_tables():
    rates = rates_by_name(micro_models.classifier("tps"))
    assert rates["tps.stages.0.blocks.0.attention.qkv.weight"][1] == 0.1
    for name in ("attention.qkv.bias", "norm1.weight", "attention.relative_position_bias_table"):
        assert rates[f"tps.stages.0.blocks.0.{name}"][1] == 0, name
    rates = rates_by_name(micro_models.classifier("xvit"))
    assert rates["xvit.temporal_embeddings"][1] == 0
    assert rates["classifier.weight"][1] == 0.1


def test_the_tps_recipe_gives_the_released_rates():
    settings = RECIPES["tps-ssv2"].settings
    wanted = {name: settings[name] for name in ("backbone_lr_multiplier", "full_lr_names", "no_decay")}
    rates = rates_by_name(micro_models.classifier("tps"), **wanted)
    assert rates["tps.stages.0.blocks.1.attention.relative_position_bias_table"] == (1.0, 0.0)
    assert rates["tps.stages.0.blocks.1.norm1.weight"] == (0.1, 0.1)
    assert rates["classifier.bias"] == (1.0, 0.1)


@pytest.mark.parametrize("family", ["tps", "xvit", "laps"])
def test_layer_decay_falls_from_the_head_to_the_embedding(family):
    model = micro_models.classifier(family)
    names = [name for name, _ in model.named_parameters()]
    depths = layer_depths(names)
    blocks = set(depths.values())
    assert blocks == set(range(max(blocks) + 1))
    rates = rates_by_name(model, layer_decay=0.5)
    assert rates["classifier.weight"][0] == 1.0
    embedding = next(name for name in names if "projection" in name or "stem" in name)
    assert rates[embedding][0] == 0.5 ** max(blocks)
    assert depths[embedding] == 0


def test_names_that_match_nothing_are_refused():
    with pytest.raises(ValueError, match="nonsense"):
        rates_by_name(micro_models.classifier("tps"), full_lr_names=["nonsense"])


def test_multistep_and_cosine_follow_their_formulas():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer("sgd", [{"params": [parameter]}], 1.0)
    scheduler = make_scheduler("multistep", optimizer, warmup_steps=0, total_steps=9, milestones=[3, 6])
    rates = []
    for _ in range(9):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1] * 3 + [0.1] * 3 + [0.01] * 3)
    optimizer = make_optimizer("adamw", [{"params": [parameter]}], 1.0)
    scheduler = make_scheduler("cosine", optimizer, warmup_steps=2, total_steps=10)
    for _ in range(6):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr()[0] == pytest.approx(0.5)


def test_the_moving_average_moves_parameters_and_copies_buffers():
    model = micro_models.classifier("laps")
    average = make_moving_average(model, 0.9)
    before = model.classifier.weight.detach().clone()
    average.update_parameters(model)
    with torch.no_grad():
        model.classifier.weight += 1
    counters = [buffer for name, buffer in model.named_buffers() if name.endswith("num_batches_tracked")]
    counters[0].fill_(5)
    average.update_parameters(model)
    torch.testing.assert_close(average.module.classifier.weight, before + 0.1)
    assert any(int(b) == 5 for n, b in average.module.named_buffers() if n.endswith("num_batches_tracked"))


# --- protocols, views, metrics ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_gives_its_number_of_views(name):
    clips, crops = map(int, name.rsplit("-", 1)[1].split("x"))
    processor = TPSVideoProcessor(num_frames=4, crop_size={"height": 28, "width": 28}, size={"shortest_edge": 30})
    video = torch.randint(256, (20, 3, 40, 60), dtype=torch.uint8)
    views = processor(video, return_tensors="pt", **protocol_views(name, processor)).pixel_values
    wanted = (1, 4, 3, 28, 28) if clips * crops == 1 else (1, clips * crops, 4, 3, 28, 28)
    assert views.shape == wanted


def test_free_protocols_and_unknown_ones():
    processor = TPSVideoProcessor(num_frames=4)
    assert protocol_views("saved", processor) == {}
    assert protocol_views("7x3", processor)["num_clips"] == 7
    assert protocol_views("2x1", processor) == {"num_clips": 2, "num_crops": 1}
    with pytest.raises(ValueError, match="k400-4x3"):
        protocol_views("k400", processor)


@torch.no_grad()
def test_chunks_of_views_give_what_the_model_says_at_once():
    for aggregation in ("probabilities", "logits"):
        model = micro_models.classifier("tps", view_aggregation=aggregation)
        views = torch.stack([micro_models.clip(model.config, 3) for _ in range(2)])
        whole = model(views).logits
        for size in (None, 1, 4, 100):
            assert_close_to_spread(predict_views(model, views, size), whole)


def test_metrics_by_hand():
    scores = np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.1, 0.6, 0.3], [0.9, 0.1, 0.0]])
    labels = np.array([0, 2, 1, IGNORED_LABEL])
    assert top_k_accuracy(scores, labels, 1) == pytest.approx(2 / 3)
    assert top_k_accuracy(scores, labels, 2) == 1
    assert confusion_matrix(scores, labels).tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    summary = summarize(scores, labels, ["a", "b", "c"])
    assert summary["videos"] == 3
    assert summary["mean_class_accuracy"] == pytest.approx(2 / 3)
    assert summary["per_class"]["c"] == {"videos": 1, "top1": 0.0}
    assert summarize(scores, np.array([0, 0, 0, 0]), ["a", "b", "c"])["per_class"]["b"]["top1"] is None


def test_the_confusion_matrix_is_drawn(tmp_path):
    draw_confusion_matrix(np.array([[3, 1], [0, 4]]), ["left", "right"], tmp_path / "c.png")
    assert len(np.unique(np.asarray(Image.open(tmp_path / "c.png").convert("L")))) > 20


def test_the_confusion_matrix_tells_top1_and_count_and_its_zeros_are_faint(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: drawn.append(figure))
    draw_confusion_matrix(np.array([[3, 1], [0, 4]]), ["left", "right"], tmp_path / "c.png")
    axes = drawn[0].axes[0]
    assert axes.get_title() == "top-1 87.5% of 8 videos"
    assert {text.get_text(): text.get_color() == pictures.FAINT for text in axes.texts} == {
        "3": False,
        "1": False,
        "0": True,
        "4": False,
    }


# --- starting points -------------------------------------------------------------------------------------------------


def test_overrides_are_read_as_values():
    text = "depths=[2, 2], shift=None,num_frames=8,rate=0.5,mode=dense,flag=True"
    wanted = {"depths": [2, 2], "shift": None, "num_frames": 8, "rate": 0.5, "mode": "dense", "flag": True}
    assert parse_overrides(text) == wanted
    assert parse_overrides(None) == {}
    with pytest.raises(ValueError, match="name=value"):
        parse_overrides("num_frames")


def test_a_checkpoint_keeps_its_classifier_for_its_own_classes_only(tmp_path):
    model = micro_models.classifier("xvit")
    model.save_pretrained(tmp_path)
    names = [model.config.id2label[number] for number in range(5)]
    same = load_model(names, model_name_or_path=str(tmp_path))
    assert torch.equal(same.classifier.weight, model.classifier.weight)
    other = load_model(["a", "b"], model_name_or_path=str(tmp_path))
    assert other.config.id2label == {0: "a", 1: "b"}
    assert other.classifier.out_features == 2
    kept = dict(other.named_parameters())["xvit.embeddings.projection.weight"]
    assert torch.equal(kept, model.xvit.embeddings.projection.weight)


def test_the_order_of_a_checkpoint_is_kept_for_the_same_classes_only():
    assert class_order(["a", "b", "c"], ["c", "a", "b"]) == ["c", "a", "b"]
    assert class_order(["a", "b"], ["c", "a", "b"]) == ["a", "b"]
    assert class_order(["a", "b"], None) == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "model_name_or_path"),
        ({"config_name": "x", "model_name_or_path": "y"}, "either"),
        ({"model_name_or_path": "x", "from_image": "swin"}, "must be one of"),
        ({"config_name": "x", "from_image": "tps"}, "needs model_name_or_path"),
        ({"config_name": "x", "sttm_keep_ratio": 0.6}, "video checkpoint"),
    ],
)
def test_contradictions_about_the_start_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_model(["a", "b"], **arguments)


def test_unknown_config_fields_are_refused(tmp_path):
    micro_models.config("tps").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'shift_dvi'"):
        load_model(["a", "b"], config_name=str(tmp_path), config_overrides={"shift_dvi": 4})


def test_a_processor_of_transformers_is_read_for_its_normalisation(tmp_path):
    config = micro_models.config("tps", image_size=64)
    config.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 1.0, 1.0], "size": 224, "crop_size": 224}'
    )
    processor = load_processor(str(tmp_path), config, {"sampling": "dense"})
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    assert dict(processor.crop_size) == {"height": 64, "width": 64}
    assert (processor.num_frames, processor.sampling) == (6, "dense")
