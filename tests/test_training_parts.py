"""Recipes, parameter groups, schedules, protocols, metrics and views against what is written or counted by hand."""

import argparse
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from examples import finetune
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
    assert processor.crop_size["height"] == RECIPES[name].settings["crop_size"]
    assert list(processor.image_mean) == RECIPES[name].settings["image_mean"]
    clips = flags.clip_reader(arguments, ["a", "b"], processor, {})
    rounding = "mmcv" if name.startswith("tps") else "slowfast"
    assert (clips.augmentation.rounding, clips.augmentation.antialias) == (rounding, False)
    settings = clips.augmentation.settings
    assert (settings.rand_augment_space, settings.auto_augment) == (
        "imgaug" if name in ("tps-ssv1", "tps-ssv2", "tps-diving48") else "torch",
        "v0" if name.startswith("xvit") else None,
    )
    ranges = {"brightness": (0.5, 2), "saturation": (0.5, 3), "gamma": (0.8, 1.2), "hue": (-0.5, 0.5)}
    assert (settings.jitter_ranges() == ranges) == name.startswith(("laps", "tokshift"))


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
    assert (laps.settings["weight_decay"], laps.settings["lr_milestones"], laps.total_batch_size) == (0, [10, 15], None)
    assert RECIPES["tokshift-k400"].settings["frame_interval"] == 32
    assert RECIPES["laps-vit-384-k400"].settings["crop_short_side"] == [384, 512]


# clips of a GPU, and the learning rate of the released config
VIT_CONFIGS = {"laps-vit-k400": (18, 0.18), "laps-vit-384-k400": (3, 0.03), "tokshift-k400": (24, 0.24)}


@pytest.mark.parametrize("name", VIT_CONFIGS)
def test_the_batches_of_the_vit_recipes_fit_the_formula_of_their_rates(name):
    clips, rate = VIT_CONFIGS[name]
    gpus = RECIPES[name].total_batch_size / (10 * clips)
    assert RECIPES[name].settings["learning_rate"] == rate
    assert RECIPES[name].settings["gradient_accumulation_steps"] == 10
    assert 0.1 / 42 * clips * gpus == pytest.approx(rate, rel=0.05)


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.total_batch_size is None])
def test_a_rate_for_an_unknown_batch_is_not_scaled(name, capsys):
    assert RECIPES[name].network["backbone"] == "visformer"
    with pytest.raises(SystemExit):
        finetune.parse_arguments(["--output_dir", "out", "--recipe", name, "--scale_learning_rate"])
    assert "how many GPUs" in capsys.readouterr().err
    assert "clips" not in flags.describe_recipe(parse("--recipe", name, "--from_image", "laps"), 8)


# --- networks of recipes ---------------------------------------------------------------------------------------------


def folder_of(family: str, folder: Path, **fields) -> str:
    micro_models.config(family, **fields).save_pretrained(folder)
    return str(folder)


def model_of(*argv: str):
    return flags.build_model(parse(*argv), ["a", "b"])[0]


def test_a_recipe_sets_the_network_of_a_config_and_a_flag_overrides_it(tmp_path):
    source = folder_of("xvit", tmp_path, shift_div=2, hidden_size=32)
    config = model_of("--recipe", "xvit-k400", "--config_name", source).config
    assert (config.shift_div, config.segment_length, config.num_temporal_embeddings) == (8, 8, 8)
    assert (config.hidden_size, config.num_frames) == (32, 16)
    argv = ("--recipe", "xvit-k400", "--config_name", source, "--config_overrides", "shift_div=4")
    config = model_of(*argv).config
    assert (config.shift_div, config.segment_length) == (4, 8)
    text = flags.describe_recipe(parse(*argv), 64)
    assert "xvit shift_div = 4  (the recipe: 8)" in text
    assert "xvit segment_length = 8\n" in text


def test_the_network_of_trained_video_weights_stays_and_the_difference_is_said(tmp_path, caplog):
    model = micro_models.classifier("xvit", num_frames=16, num_temporal_embeddings=8)
    model.save_pretrained(tmp_path)
    argv = ("--recipe", "xvit-k400", "--model_name_or_path", str(tmp_path))
    assert model_of(*argv).config.shift_div == 4
    said = [record.getMessage() for record in caplog.records if "where the recipe xvit-k400" in record.getMessage()]
    assert len(said) == 2
    assert "shift_div=4 where the recipe xvit-k400 has 8" in said[0]
    assert "segment_length=None" in said[1]
    assert "the network is that of the checkpoint" in flags.describe_recipe(parse(*argv), 64)
    caplog.clear()
    assert model_of(*argv, "--config_overrides", "shift_div=2,segment_length=8").config.shift_div == 2
    assert "where the recipe" not in caplog.text


@pytest.mark.parametrize(
    ("recipe", "family", "fields", "found"),
    [
        ("tps-ssv2", "xvit", {}, "'xvit'"),
        ("laps-k400", "laps", micro_models.LAPS_VIT, "'laps on vit'"),
        ("tokshift-k400", "laps", {}, "'laps on visformer'"),
    ],
)
def test_a_model_that_does_not_fit_the_recipe_is_refused_with_both_names(recipe, family, fields, found, tmp_path):
    source = folder_of(family, tmp_path, **fields)
    for flag in ("--config_name", "--model_name_or_path"):
        with pytest.raises(ValueError, match=f"{recipe} trains .*{found}"):
            model_of("--recipe", recipe, flag, source)


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["--from_image", "tps"], "'tps'"),
        (["--sttm_keep_ratio", "0.5"], "'sttm'"),
        (["--from_image", "shift"], "shift"),
    ],
)
def test_what_a_start_becomes_must_fit_the_recipe(argv, found):
    with pytest.raises(ValueError, match=f"xvit-k400 trains .*{found}"):
        model_of("--recipe", "xvit-k400", "--model_name_or_path", "somewhere", *argv)


def image_vit(folder: Path) -> str:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes), add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


def test_image_weights_become_the_network_of_the_recipe(tmp_path):
    source = image_vit(tmp_path)
    config = model_of("--recipe", "tokshift-k400", "--from_image", "laps", "--model_name_or_path", source).config
    assert (config.backbone, config.attention_scope, config.shift, config.shift_div) == ("vit", "frame", "token", 4)
    config = model_of("--recipe", "xvit-k600", "--from_image", "xvit", "--model_name_or_path", source).config
    assert (config.shift_div, config.segment_length) == (8, 8)
    with pytest.raises(ValueError, match="--recipe laps-k400: .*backbone=vit"):
        model_of("--recipe", "laps-k400", "--from_image", "laps", "--model_name_or_path", source)


@pytest.mark.parametrize(
    ("family", "fields", "mean"),
    [
        ("laps", {}, (0.486, 0.457, 0.407)),
        ("laps", micro_models.LAPS_VIT, (0.5, 0.5, 0.5)),
        ("xvit", {}, (0.5, 0.5, 0.5)),
        ("video_shift", {}, (0.5, 0.5, 0.5)),
        ("tps", {}, (0.485, 0.456, 0.406)),
    ],
)
def test_a_start_without_a_processor_has_the_normalisation_of_its_image_model(family, fields, mean):
    processor = load_processor(None, micro_models.config(family, **fields), {})
    assert tuple(processor.image_mean) == mean


@pytest.mark.parametrize(
    ("family", "rounding"), [("tps", "mmcv"), ("xvit", "slowfast"), ("laps", "slowfast"), ("video_shift", "mmcv")]
)
def test_a_start_without_a_processor_rounds_as_the_release_of_its_family(family, rounding):
    assert load_processor(None, micro_models.config(family), {}).rounding == rounding
    assert load_processor(None, micro_models.config(family), {"rounding": "mmcv"}).rounding == "mmcv"


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


def test_the_xvit_recipe_spares_the_biases_of_the_head_alone():
    rates = rates_by_name(micro_models.classifier("xvit"), no_decay=RECIPES["xvit-k400"].settings["no_decay"])
    spared = {name for name, (_, decay) in rates.items() if decay == 0}
    assert spared == {"classifier.bias", "xvit.temporal_head.norm.bias", "xvit.temporal_head.dense.bias"}


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


def rates_of(name: str, steps_per_epoch: int) -> list[float]:
    """The learning rate of each step of a recipe's run."""
    arguments = parse("--recipe", name)
    optimizer = make_optimizer("sgd", [{"params": [torch.nn.Parameter(torch.zeros(1))]}], arguments.learning_rate)
    scheduler = finetune.schedule_of(
        arguments, optimizer, steps_per_epoch, arguments.num_train_epochs * steps_per_epoch
    )
    rates = []
    for _ in range(arguments.num_train_epochs * steps_per_epoch):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def cosine(part: float) -> float:
    return (1 + math.cos(math.pi * part)) / 2


def released_rate_of_tps(epoch: float) -> float:
    """mmcv: the cosine of whole epochs; the warm-up takes a share off it, at every iteration."""
    missing = (1 - epoch / 2.5) * (1 - 0.1) if epoch < 2.5 else 0.0
    return 1e-3 * cosine(math.floor(epoch + 1e-9) / 30) * (1 - missing)


def released_rate_of_xvit(epoch: float, epochs: int, start: float) -> float:
    """SlowFast: a straight line from the warm-up's own rate to that of the cosine at its end."""
    if epoch >= 5:
        return 0.03 * cosine(epoch / epochs)
    return start + (0.03 * cosine(5 / epochs) - start) * epoch / 5


RELEASED_RATES = {
    "tps-k400": released_rate_of_tps,
    "tps-ssv2": released_rate_of_tps,
    "xvit-k400": lambda epoch: released_rate_of_xvit(epoch, 30, 0.01),
    "xvit-k600": lambda epoch: released_rate_of_xvit(epoch, 30, 0.01),
    "xvit-ssv2": lambda epoch: released_rate_of_xvit(epoch, 35, 0.003),
    "laps-k400": lambda epoch: 0.2 * 0.1 ** ((epoch >= 10) + (epoch >= 15)),
    "laps-360-k400": lambda epoch: 0.036 * 0.1 ** ((epoch >= 10) + (epoch >= 15)),
    "tokshift-k400": lambda epoch: 0.24 * 0.1 ** ((epoch >= 10) + (epoch >= 15)),
}
# Read off the released schedules, to the digits that are written here
RATES_AT_EPOCHS = {
    "tps-ssv2": {0: "1.00e-04", 1: "4.59e-04", 2.5: "9.89e-04", 5: "9.33e-04", 20: "2.50e-04"},
    "xvit-k400": {0: "1.00e-02", 1: "1.36e-02", 2.5: "1.90e-02", 5: "2.80e-02", 20: "7.50e-03"},
    "xvit-ssv2": {0: "3.00e-03", 1: "8.10e-03", 2.5: "1.58e-02", 5: "2.85e-02", 20: "1.17e-02"},
}


@pytest.mark.parametrize("name", RELEASED_RATES)
def test_every_learning_rate_of_a_recipe_is_the_releases(name):
    wanted = [RELEASED_RATES[name](step / 4) for step in range(4 * RECIPES[name].settings["num_train_epochs"])]
    assert rates_of(name, 4) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name", RATES_AT_EPOCHS)
def test_learning_rates_against_those_written_down(name):
    rates = rates_of(name, 4)
    assert {epoch: f"{rates[round(4 * epoch)]:.2e}" for epoch in RATES_AT_EPOCHS[name]} == RATES_AT_EPOCHS[name]


def test_a_warm_up_may_begin_above_zero_before_the_schedule():
    optimizer = make_optimizer("sgd", [{"params": [torch.nn.Parameter(torch.zeros(1))]}], 1.0)
    settings = {"warmup_steps": 2, "total_steps": 6, "warmup_start_factor": 0.5, "update_every": 2}
    scheduler = make_scheduler("linear", optimizer, **settings)
    rates = []
    for _ in range(6):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.5, 0.75, 1, 1, 0.5, 0.5])


@pytest.mark.parametrize(
    ("name", "rule", "message"), [("cosine", "over", "must be one of"), ("reduce_lr_on_plateau", "join", "no function")]
)
def test_a_warm_up_that_cannot_be_is_refused(name, rule, message):
    optimizer = make_optimizer("sgd", [{"params": [torch.nn.Parameter(torch.zeros(1))]}], 1.0)
    with pytest.raises(ValueError, match=message):
        make_scheduler(name, optimizer, warmup_steps=1, total_steps=4, warmup_rule=rule)


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
