"""Each recipe trains two steps on small videos: network, rates, sampling and augmentation are those of the table."""

import dataclasses
from pathlib import Path

import pytest
import torch

from examples import finetune
from hf_tps.training.published import PUBLISHED, PublishedSettings
from hf_tps.training.recipes import RECIPES, Recipe
from tests import micro_models
from tests.test_finetune import here
from tests.test_training_published import recipe_of
from tests.video_folders import write_colour_folders

# What a recipe must change: none of it is as the recipes have it
OTHER_NETWORKS = {
    "tps": {"shift_order": ("patch",), "shift_pattern": "A", "relative_position_bias": "same_frame", "tubelet_size": 1},
    "xvit": {"shift_div": 2, "segment_length": 3, "num_temporal_embeddings": 4},
    "visformer": {"attention_scope": "frame", "shift": "plain", "shift_div": 2},
    "vit": {**micro_models.LAPS_VIT, "attention_scope": "joint", "shift": "plain", "shift_div": 2},
}
# Rate of the classifier in the first step, as the releases have it
FIRST_RATES = {
    "tps-k400": 1e-4,
    "tps-ssv1": 1e-4,
    "tps-ssv2": 1e-4,
    "tps-diving48": 1e-4,
    "xvit-k400": 0.01,
    "xvit-k600": 0.01,
    "xvit-ssv2": 0.003,
    "xvit-ssv2-paper": 0.005,
    "laps-k400": 0.2,
    "laps-320-k400": 0.036,
    "laps-360-k400": 0.036,
    "laps-vit-k400": 0.18,
    "laps-vit-384-k400": 0.03,
    "tokshift-k400": 0.24,
}
# A recipe's settings under the names of `AugmentationSettings`
AUGMENTATION_NAMES = {"crop_scale": "scale", "crop_short_side": "short_side"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    write_colour_folders(folder / "videos", (1, 1, 1))
    for name, fields in OTHER_NETWORKS.items():
        family = "laps" if name in ("visformer", "vit") else name
        micro_models.config(family, **{"initializer_range": 0.02, **fields}).save_pretrained(folder / name)
    return folder


@dataclasses.dataclass
class Watched:
    """A run, and of each of its steps the settings of the classifier's parameters and the shape of the first clips."""

    run: finetune.Run
    steps: list[dict]


def watched_run(name: str, data: Path, output: Path, monkeypatch) -> Watched:
    recipe, found = RECIPES[name], []
    step = finetune.Run.step

    def watched_step(run: finetune.Run, micro_batches) -> torch.Tensor:
        if not found:
            found.append(Watched(run, []))
        classifier = run.plain_model.classifier.weight
        group = next(g for g in run.optimizer.param_groups if any(p is classifier for p in g["params"]))
        batches = [next(micro_batches) for _ in range(run.accelerator.gradient_accumulation_steps)]
        found[0].steps.append({**group, "shape": tuple(batches[0]["pixel_values"].shape)})
        return step(run, iter(batches))

    monkeypatch.setattr(finetune.Run, "step", watched_step)
    start = data / recipe.network.get("backbone", recipe.model_type)
    videos = ["--train_dir", data / "videos", "--train_val_split", 0, "--dataloader_num_workers", 0]
    small = ["--crop_size", 32, "--per_device_train_batch_size", 1, "--max_train_steps", 2]
    if "image_size" in recipe.network:
        small += ["--config_overrides", "image_size=32"]
    end = ["--checkpointing_steps", "no", "--output_dir", output]
    assert here(finetune, "--recipe", name, "--config_name", start, *videos, *small, *end) == 0
    return found[0]


def assert_network(watched: Watched, recipe: Recipe) -> None:
    config, settings = watched.run.plain_model.config, recipe.settings
    network = {field: value for field, value in recipe.network.items() if field != "image_size"}
    assert {field: getattr(config, field) for field in network} == network
    assert config.model_type == recipe.model_type
    for field in ("num_frames", "drop_path_rate", "classifier_dropout"):
        assert field not in settings or getattr(config, field) == settings[field]


def assert_optimization(watched: Watched, name: str) -> None:
    run, settings = watched.run, RECIPES[name].settings
    first, _ = watched.steps
    assert first["lr"] == pytest.approx(FIRST_RATES[name])
    assert first["weight_decay"] == settings["weight_decay"]
    assert run.accelerator.gradient_accumulation_steps == settings.get("gradient_accumulation_steps", 1)
    assert type(run.optimizer.optimizer).__name__.lower() == settings["optimizer"]
    if settings["optimizer"] == "sgd":
        assert (first["momentum"], first["nesterov"]) == (settings["momentum"], settings["nesterov"])
    else:
        assert first["betas"] == (settings["adam_beta1"], settings["adam_beta2"])


def assert_clips(watched: Watched, published: PublishedSettings, settings: dict) -> None:
    clips = watched.run.data.training.clips
    assert watched.steps[0]["shape"] == (1, settings["num_frames"], 3, 32, 32)
    assert published.sampling_settings().items() <= clips.sampling.items()
    for field, value in published.normalisation._asdict().items():
        assert tuple(getattr(clips.processor, field)) == value
    used = dataclasses.asdict(clips.augmentation.settings)
    asked = {AUGMENTATION_NAMES.get(field, field): value for field, value in settings.items()}
    named = used.keys() & asked.keys()
    assert {"crop", "flip"} <= named
    for field in named:
        value = asked[field]
        assert used[field] == (tuple(value) if isinstance(value, list) else value), field


@pytest.mark.parametrize(("model", "data_set"), PUBLISHED)
def test_a_run_of_a_recipe_is_what_the_table_says(model, data_set, data, tmp_path, monkeypatch):
    name = recipe_of(model, data_set)
    watched = watched_run(name, data, tmp_path, monkeypatch)
    assert_network(watched, RECIPES[name])
    assert_optimization(watched, name)
    assert_clips(watched, PUBLISHED[model, data_set], RECIPES[name].settings)


def test_a_visformer_recipe_makes_its_statistics_anew(data, tmp_path, monkeypatch):
    asked_for = []
    monkeypatch.setattr(finetune, "refresh_batch_norms", lambda *_, **settings: asked_for.append(settings))
    watched = watched_run("laps-k400", data, tmp_path, monkeypatch)
    assert len(watched.steps) == 2
    assert [settings["num_batches"] for settings in asked_for] == [200, 200]  # an epoch is one step here
