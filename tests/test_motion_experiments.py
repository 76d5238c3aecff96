"""The rows of evidence.py and ablations.py, and how their models are tested on the motion benchmark."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForVideoClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    VivitForVideoClassification,
    VivitModel,
)
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

import hf_tps
from examples.experiments import ablations, evidence
from examples.experiments import motion_experiments as experiments
from examples.experiments.image_start import inflate_to_vivit, still_pictures, train_image_start
from examples.experiments.make_motion_dataset import (
    CLASSES,
    MotionSettings,
    opposite_class,
    sprite_poses,
    write_dataset,
)
from hf_tps import TPSVideoProcessor
from hf_tps.frame_sampling import sample_frame_indices
from hf_tps.video_processing_tps import SAMPLING_SETTINGS
from tests.comparison import assert_close_to_spread

CLASSIFIERS = {config.model_type: classifier for config, _, classifier in hf_tps.FAMILIES}


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    torch.manual_seed(0)  # made before the seed of the first test is set
    ViTForImageClassification(ViTConfig(**evidence.IMAGE_MODEL)).save_pretrained(folder)
    return folder


def model_of(row, time_off, image_model):
    fields = {"num_frames": 8, "num_labels": 12, **row.fields, **(row.off if time_off else {})}
    if row.start == "image":
        model = CLASSIFIERS[row.model_type].from_image_pretrained(image_model, **fields)
    else:
        model = AutoModelForVideoClassification.from_config(AutoConfig.for_model(row.model_type, **fields))
    with torch.no_grad():  # what begins at zero, such as temporal embeddings, must not hide behind it
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


@pytest.mark.parametrize(
    "row", [row for row in evidence.ROWS if row.model_type in CLASSIFIERS], ids=lambda row: row.name
)
def test_the_twin_is_blind_to_the_order_of_the_frames_and_the_model_is_not(row, image_model):
    twin, model = model_of(row, True, image_model), model_of(row, False, image_model)
    experiments.check_blind(twin, row.image_size)
    with pytest.raises(RuntimeError, match="sees the order of the frames"):
        experiments.check_blind(model, row.image_size)
    macs = [experiments.count_macs(network.config, row.image_size) for network in (twin, model)]
    # leap attention, over two frames at a time, costs a little more than attention inside each
    assert 0.9 * macs[1] <= macs[0] <= macs[1]


@pytest.mark.parametrize("row", ablations.ROWS, ids=lambda row: row.name)
def test_every_ablation_but_none_sees_time_and_has_the_same_size(row):
    fields = {"num_frames": 16, "num_labels": 12, **row.fields}
    model = AutoModelForVideoClassification.from_config(AutoConfig.for_model(row.model_type, **fields)).eval()
    if row.name == "none":
        experiments.check_blind(model, 32)
    else:
        with pytest.raises(RuntimeError, match="sees the order of the frames"):
            experiments.check_blind(model, 32)
    standard = AutoConfig.for_model("tps", **{**fields, "shift_order": None})
    assert experiments.count_macs(model.config, 32) == experiments.count_macs(standard, 32)


class Reader:
    """Answers with the class whose index is the brightness of the first frame; its opposite for the last frame's."""

    class Config:
        id2label = dict(enumerate(CLASSES))

    config = Config()

    def __call__(self, pixel_values):
        index = pixel_values[:, 0].amax((1, 2, 3)).round().long()
        return type("Output", (), {"logits": torch.nn.functional.one_hot(index, len(CLASSES)).float()})


def test_the_test_moves_the_frames_and_compares_with_the_right_classes(tmp_path):
    """Clips whose first frame tells the class and whose last frame tells the opposite one."""
    benchmark = experiments.Benchmark(tmp_path)
    for index, label in enumerate(CLASSES):
        clip = torch.full((4, 3, 8, 8), 0, dtype=torch.uint8)
        clip[0], clip[-1] = index, CLASSES.index(opposite_class(label))
        benchmark.frames.append(clip)
        benchmark.labels.append(label)
    processor = hf_tps.TPSVideoProcessor(
        do_sample_frames=False, do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False
    )

    def found(move):
        return experiments.answers(Reader(), processor, benchmark, move)

    opposite = [opposite_class(label) for label in benchmark.labels]
    assert experiments.share(found(lambda clip: clip), benchmark.labels) == 100
    assert experiments.share(found(lambda clip: clip.flip(0)), opposite) == 100
    assert experiments.share(found(experiments.shuffled()), benchmark.labels) < 70
    assert found(experiments.shuffled()) == found(experiments.shuffled())


def test_a_row_is_trained_once_on_all_frames_in_their_order(tmp_path):
    settings = MotionSettings(num_frames=4)
    benchmark = experiments.prepare_benchmark(tmp_path / "videos", settings, {"train": 12, "validation": 12}, seed=0)
    fields = {**experiments.SMALL_TPS, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1)}
    row = experiments.Row("micro", "micro", "tps", fields, experiments.TrainingSettings(1, 1e-3, batch_size=12))
    results = experiments.run_rows([(row, False)], benchmark, tmp_path, seeds=[0])
    assert [figures["row"] for figures in results] == ["micro"]
    assert {"top1", "shuffled", "reversed", "macs", "training_seconds"} <= set(results[0])
    folder = experiments.model_folder(tmp_path, "micro", 0)
    processor = AutoVideoProcessor.from_pretrained(folder)
    for training in (False, True):
        indices = sample_frame_indices(
            4, num_frames=4, training=training, **{name: getattr(processor, name) for name in SAMPLING_SETTINGS}
        )
        assert indices.tolist() == [[0, 1, 2, 3]]
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert experiments.run_rows([(row, False)], benchmark, tmp_path, seeds=[0]) == results
    assert (folder / "model.safetensors").stat().st_mtime_ns == written, "trained again"


def test_a_benchmark_with_other_settings_is_refused(tmp_path):
    settings, clips = MotionSettings(num_frames=4), {"train": 12, "validation": 12}
    write_dataset(tmp_path / "videos", settings, clips)
    benchmark = experiments.prepare_benchmark(tmp_path / "videos", settings, clips, seed=0)
    assert benchmark.num_frames == 4
    benchmark.load_validation()
    assert sorted(benchmark.labels) == sorted(CLASSES)
    for other in ((MotionSettings(), clips, 0), (settings, {**clips, "train": 24}, 0), (settings, clips, 1)):
        with pytest.raises(ValueError, match="other settings"):
            experiments.prepare_benchmark(tmp_path / "videos", *other)


def test_the_image_start_learns_from_stills_and_opens_as_an_image_model(tmp_path):
    settings = MotionSettings(num_frames=2)
    frames, cells, turns = still_pictures(settings, 0, 12)
    assert frames.shape == (12, 2, 3, 32, 32)
    centres, angles = sprite_poses(settings, 0, "train", 7)
    row, column = centres[1] // 4
    assert cells[7, 1] == row * 8 + column
    assert turns[7, 1] == np.degrees(angles[1]) % 360 // 45
    config = ViTConfig(**{**evidence.IMAGE_MODEL, "hidden_size": 16, "num_hidden_layers": 1})
    accuracy = train_image_start(tmp_path / "image", config, settings, 0, clips=12, steps=2, batch_size=4)
    assert 0 <= accuracy <= 1
    model = hf_tps.XViTForVideoClassification.from_image_pretrained(tmp_path / "image", num_frames=2)
    assert model.config.hidden_size == 16


def test_the_vivit_start_embeds_one_frame_of_each_tubelet_as_the_image_model_does(image_model, tmp_path):
    inflate_to_vivit(image_model, tmp_path / "vivit", num_frames=4, tubelet_size=2)
    video = VivitModel.from_pretrained(tmp_path / "vivit", add_pooling_layer=False).eval()
    image = ViTModel.from_pretrained(image_model, add_pooling_layer=False).eval()
    clip = torch.randn(1, 4, 3, 32, 32)
    with torch.no_grad():
        patches = video.embeddings.patch_embeddings(clip).unflatten(1, (2, 64))[0]
        assert_close_to_spread(patches, image.embeddings.patch_embeddings(clip[0, ::2]))
        answers = [video(pixel_values=frames).last_hidden_state[:, 0] for frames in (clip, clip.flip(1))]
    assert (answers[0] - answers[1]).abs().max() > 1e-3, "the order of the frames means nothing"


def test_the_tables_show_means_and_mark_what_misses_its_target():
    figures = {"parameters": 1e6, "macs": 5e7, "training_clips": 9600, "training_seconds": 120.0}
    runs = [
        {"row": "tps", "time_off": False, "seed": 0, "top1": 94, "shuffled": 30, "reversed": 93, **figures},
        {"row": "tps", "time_off": False, "seed": 1, "top1": 98, "shuffled": 32, "reversed": 97, **figures},
        {"row": "tps", "time_off": True, "seed": 0, "top1": 56, "shuffled": 56, "reversed": 56, **figures},
    ]
    lines = evidence.table(runs, evidence.ROWS).splitlines()
    assert lines[3] == "| TPS | 1.00 M | 50 M | 9600 | 2.0 | 96.0 | **56.0** | 31.0 | 95.0 |"
    assert len(lines) == 4
    runs = [{**run, "row": "both", "time_off": False} for run in runs[:2]]
    assert "| patch and channel shift, the release's bias | 96.0 ± 2.0 |" in ablations.table(runs).splitlines()[2]


@pytest.mark.parametrize("name", list(evidence.MERGING))
def test_ways_of_merging_are_compared_at_equal_cost(name, image_model, tmp_path):
    row = next(row for row in evidence.ROWS if row.name == name)
    benchmark = experiments.prepare_benchmark(
        tmp_path / "videos", MotionSettings(), {"train": 12, "validation": 12}, seed=0
    )
    if row.start == "vivit":
        inflate_to_vivit(image_model, tmp_path / "vivit", 8, evidence.TUBELET)
        model = VivitForVideoClassification.from_pretrained(tmp_path / "vivit", num_labels=12).eval()
    else:
        model = model_of(row, False, image_model)
    model.config.id2label = dict(enumerate(CLASSES))
    processor = TPSVideoProcessor(num_frames=8, sampling="dense", frame_interval=1, size=32, crop_size=32)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    found = evidence.test_merging(row, [tmp_path / "model"] * 2, benchmark)
    untouched, *ways = found
    assert len(ways) == 2 * len(evidence.MERGING[name])
    plain = experiments.motion_figures(model, processor, benchmark, ("top1", "reversed"))
    assert {figure: untouched[figure] for figure in plain} == plain
    for kept, share in ((ways[: len(ways) // 2], 0.7), (ways[len(ways) // 2 :], 0.6)):
        tokens, macs = ([figures[figure] for figures in kept] for figure in ("tokens", "macs"))
        # whole numbers for each frame: in space alone one token more may stay
        assert np.abs(np.diff(tokens, axis=0)).max() <= 1
        assert max(macs) < share * untouched["macs"]
    lines = evidence.merging_table(found).splitlines()
    assert len(lines) == 2 + len(found)
    assert lines[2].startswith(f"| {row.title} | untouched | ")
