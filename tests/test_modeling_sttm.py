"""STTM as a model: from the checkpoints of plain video transformers, what it puts out, what it learns."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForVideoClassification,
    PreTrainedModel,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VivitConfig,
)

from hf_tps import STTMConfig, STTMForVideoClassification, STTMModel, XViTConfig, add_token_merging
from hf_tps.token_merging import unmerge
from tests import micro_models, video_transformers
from tests.comparison import assert_close_to_spread

FAMILIES = list(video_transformers.MODELS)


@torch.no_grad()
def logits(model: nn.Module, clip: torch.Tensor) -> torch.Tensor:
    return model(clip).logits.flatten(1)  # VideoPrism's have an axis more


@pytest.fixture(params=FAMILIES)
def name(request) -> str:
    return request.param


@pytest.fixture
def folder(name, tmp_path):
    video_transformers.build(name).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


# --- from a plain checkpoint ---


def test_a_plain_checkpoint_merges_as_the_plugged_model_does_and_nothing_is_new(name, folder):
    model, clip = video_transformers.build(name), video_transformers.clip(name)
    before = logits(model, clip)
    expected = logits(add_token_merging(model, keep_ratio=0.7), clip)
    merging = STTMForVideoClassification.from_video_pretrained(folder, keep_ratio=0.7)
    assert not merging.training
    assert_close_to_spread(logits(merging, clip), expected)
    whole = STTMForVideoClassification.from_video_pretrained(folder, keep_ratio=1.0)
    assert_close_to_spread(logits(whole, clip), before)
    assert not [key for key in merging.state_dict() if "sttm_" in key]
    assert merging.config.id2label == model.config.id2label
    assert str(folder) not in merging.config.to_json_string()


def test_a_merging_model_saves_and_loads_by_the_auto_classes(name, folder, tmp_path):
    clip = video_transformers.clip(name)
    model = STTMForVideoClassification.from_video_pretrained(folder, keep_ratio=0.7)
    model.save_pretrained(tmp_path / "merging")
    loaded, report = AutoModelForVideoClassification.from_pretrained(tmp_path / "merging", output_loading_info=True)
    assert not any(report.values())
    assert_close_to_spread(logits(loaded, clip), logits(model, clip))
    changed = STTMForVideoClassification.from_pretrained(tmp_path / "merging", keep_ratio=1.0)
    plain = video_transformers.build(name)
    assert_close_to_spread(logits(changed, clip), logits(plain, clip))


def test_only_what_is_learned_is_new_and_changes_nothing_at_first(name, folder):
    clip = video_transformers.clip(name)
    learned = ("metric", "gate", "motion", "size_weight", "meta_weight")
    settings = {"keep_ratio": 0.7, "top_q": 4, "meta_grid": (2, 2, 2)}
    plain = STTMForVideoClassification.from_video_pretrained(folder, **settings)
    trained = STTMForVideoClassification.from_video_pretrained(folder, learned=learned, **settings)
    new = set(trained.state_dict()) - set(plain.state_dict())
    assert len(new) == 3 * 7
    assert all(key.startswith("sttm.sttm_stages.") for key in new)
    assert_close_to_spread(logits(trained, clip), logits(plain, clip), share=1e-4)


def test_everything_learned_gets_a_gradient(name, folder):
    learned = ("metric", "gate", "motion", "size_weight", "meta_weight")
    settings = {"keep_ratio": 0.7, "top_q": 4, "meta_weight": 0.1, "meta_grid": (2, 2, 2)}
    model = STTMForVideoClassification.from_video_pretrained(folder, learned=learned, **settings).train()
    model(video_transformers.clip(name), labels=torch.tensor([0, 3])).loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        if "sttm_" in key:
            assert parameter.grad.abs().max() > 0, key


def test_a_pool_of_meta_tokens_trains(tmp_path):
    backbone = video_transformers.MODELS["videomae"][1](**video_transformers.MODELS["videomae"][2])
    config = STTMConfig(
        backbone_config=backbone,
        method="pool",
        merge_layers=(2,),
        pool_windows=2,
        meta_grid=(1, 2, 4),
        learned=("metric", "motion"),
        num_labels=5,
    )
    model = STTMForVideoClassification(config)
    outputs = model(video_transformers.clip("videomae"), labels=torch.tensor([1, 2]))
    assert outputs.token_sizes.shape == (2, 16)
    torch.testing.assert_close(outputs.token_sizes.sum(1), torch.full((2,), 64.0))
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# --- what was loaded is compared with the file ---


BIASES = ("attention.attention.q_bias", "attention.attention.query.bias")


def rename_biases(folder, to: str):
    """Another name for the biases of the queries in the file (Transformers writes one of `BIASES` by version)."""
    renamed = {}
    for key, value in load_file(folder / "model.safetensors").items():
        for name in BIASES:
            key = key.replace(name, to)
        renamed[key] = value
    assert sum(to in key for key in renamed) == 4
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def videomae(tmp_path):
    video_transformers.build("videomae").save_pretrained(tmp_path / "videomae")
    return tmp_path / "videomae"


@pytest.mark.parametrize("name_in_file", BIASES)
def test_a_published_videomae_keeps_its_biases(videomae, name_in_file):
    rename_biases(videomae, name_in_file)
    clip = video_transformers.clip("videomae")
    model = STTMForVideoClassification.from_video_pretrained(videomae, keep_ratio=1.0)
    assert_close_to_spread(logits(model, clip), logits(video_transformers.build("videomae"), clip))


def test_biases_that_transformers_loses_do_not_pass(videomae):
    """A name that no version maps: the loader would give zeros."""
    rename_biases(videomae, "attention.attention.bias_of_queries")
    with pytest.raises(ValueError, match=r"missing \['videomae.encoder.layer.0.attention.attention.query.bias'"):
        STTMForVideoClassification.from_video_pretrained(videomae)


def test_weights_that_change_on_the_way_do_not_pass(videomae, monkeypatch):
    """A loader that reports nothing and still gives other numbers."""
    video_class = type(video_transformers.build("videomae"))
    load = video_class.from_pretrained.__func__

    def careless(cls, *args, **kwargs):
        model, report = load(cls, *args, **kwargs)
        nn.init.zeros_(model.videomae.encoder.layer[2].attention.attention.value.bias)
        return model, report

    monkeypatch.setattr(video_class, "from_pretrained", classmethod(careless))
    with pytest.raises(ValueError, match=r"1 weights of .*layer.2.attention.attention.v"):
        STTMForVideoClassification.from_video_pretrained(videomae)


def test_a_checkpoint_without_a_head_needs_new_classes(tmp_path):
    settings = {**video_transformers.MODELS["videomae"][2], "decoder_hidden_size": 12, "decoder_num_attention_heads": 2}
    settings |= {"decoder_num_hidden_layers": 1, "decoder_intermediate_size": 16}
    pretrained = VideoMAEForPreTraining(VideoMAEConfig(**settings))
    pretrained.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no classifier: give num_labels"):
        STTMForVideoClassification.from_video_pretrained(tmp_path)
    model = STTMForVideoClassification.from_video_pretrained(tmp_path, num_labels=3, keep_ratio=0.75)
    assert logits(model, video_transformers.clip("videomae")).shape == (2, 3)
    source = pretrained.videomae.encoder.layer[1].output.dense.weight
    assert torch.equal(model.sttm.backbone.encoder.layer[1].output.dense.weight, source)
    base = STTMModel.from_video_pretrained(tmp_path, keep_ratio=0.75)
    assert base(video_transformers.clip("videomae")).last_hidden_state.shape == (2, 27, 24)


def test_new_classes_replace_the_head(videomae):
    model = STTMForVideoClassification.from_video_pretrained(videomae, num_labels=3)
    assert model.classifier.out_features == model.config.num_labels == 3
    assert model.sttm.pooler.weight.abs().max() > 0


def test_dtype_and_attention_are_those_asked_for(videomae):
    model = STTMForVideoClassification.from_video_pretrained(
        videomae, dtype=torch.bfloat16, attn_implementation="eager"
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.sttm.backbone.config._attn_implementation == "eager"
    clip = video_transformers.clip("videomae")
    assert len(model(clip, output_attentions=True).attentions) == 4


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"keep": 0.5}, r"\['keep'\] are no fields of STTMConfig"),
        ({"backbone_config": {}}, "comes from the video checkpoint"),
        ({"keep_ratio": 2.0}, r"in \(0, 1\]; got 2.0"),
        ({"merge_layers": [5]}, r"from 1 to 4 here; got \[5\]"),
    ],
)
def test_bad_arguments_are_refused(videomae, kwargs, message):
    with pytest.raises(ValueError, match=message):
        STTMForVideoClassification.from_video_pretrained(videomae, **kwargs)


def test_what_is_no_video_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="use from_video_pretrained"):
        STTMForVideoClassification.from_image_pretrained(tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        STTMForVideoClassification.from_video_pretrained(tmp_path / "nowhere")
    micro_models.classifier("tps").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="windows need whole maps"):
        STTMForVideoClassification.from_video_pretrained(tmp_path)


# --- config and outputs ---


def test_defaults_are_the_setting_that_saves_38_percent():
    config = STTMConfig()
    assert (config.keep_ratio, config.merge_layers, config.method) == (0.72, (3, 6, 9), "match")
    assert (config.num_frames, config.image_size, config.hidden_size) == (16, 224, 768)
    assert STTMConfig(backbone_config=VivitConfig()).keep_ratio == 0.75
    xvit = STTMConfig(backbone_config={"model_type": "xvit", "num_frames": 8})
    assert isinstance(xvit.backbone_config, XViTConfig)
    assert (xvit.method, xvit.size_weight) == ("tube", 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learned": ("speed",)}, "a stage can learn"),
        ({"learned": ("metric",)}, "no gradient with top_q=1"),
        ({"learned": ("gate",), "method": "drop"}, "learns nothing"),
        ({"merge_point": "before"}, "merge_point is no setting any more"),
        ({"view_aggregation": "median"}, "view_aggregation"),
        ({"backbone_config": {"model_type": "vit"}}, "Known are: videomae, vivit"),
    ],
)
def test_configs_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        STTMConfig(**settings)


def test_outputs_tell_where_every_token_went(name, folder):
    model = STTMForVideoClassification.from_video_pretrained(folder, keep_ratio=0.7)
    outputs = model(video_transformers.clip(name), output_hidden_states=True)
    left = outputs.token_sizes.shape[1]
    assert outputs.token_positions.shape == (2, left, 3)
    torch.testing.assert_close(outputs.token_sizes.sum(1), torch.full((2,), 64.0))
    assert outputs.token_source.shape == (2, 64)
    counts = torch.stack([source.bincount(minlength=left) for source in outputs.token_source])
    assert torch.equal(counts.float(), outputs.token_sizes)
    grid = torch.cartesian_prod(*[torch.arange(4.0)] * 3)
    for clip in range(2):  # each token lies in the middle of its members
        members = torch.zeros(left, 3).index_add(0, outputs.token_source[clip], grid)
        centre = members / counts[clip][:, None]
        torch.testing.assert_close(outputs.token_positions[clip], centre)
    spread = unmerge(outputs.token_positions, outputs.token_source)
    assert spread.shape == (2, 64, 3)


def test_views_keep_their_tokens_apart():
    model = micro_models.classifier("sttm")
    views = torch.stack([micro_models.clip(model.config) for _ in range(3)], dim=1)
    outputs = model(views)
    assert outputs.logits.shape == (2, 5)
    assert outputs.token_sizes.shape == (6, 27)


def test_the_keep_ratio_can_rise_and_fall_in_a_training():
    model = micro_models.classifier("sttm", keep_ratio=1.0)
    clip = micro_models.clip(model.config)
    whole = logits(model, clip)
    lengths = []
    for keep_ratio in (0.9, 0.75, 1.0):
        model.set_keep_ratio(keep_ratio)
        lengths.append(model(clip).token_sizes.shape[1])
    assert lengths == [47, 27, 64]
    assert torch.equal(logits(model, clip), whole)
    with pytest.raises(ValueError, match="got 3"):
        model.set_keep_ratio(3)
    assert model.config.keep_ratio == 1.0


def test_a_folder_over_an_own_backbone_opens_without_the_package(tmp_path):
    video_transformers.build("xvit").save_pretrained(tmp_path / "plain")
    clip = video_transformers.clip("xvit")
    model = STTMForVideoClassification.from_video_pretrained(tmp_path / "plain", keep_ratio=0.7)
    model.save_pretrained(tmp_path / "folder")
    torch.save(clip, tmp_path / "clip.pt")
    code = """
import sys
sys.modules["hf_tps"] = None
import torch
from transformers import AutoModelForVideoClassification
model, report = AutoModelForVideoClassification.from_pretrained(
    "folder", trust_remote_code=True, output_loading_info=True
)
assert not any(report.values()), report
print(model(torch.load("clip.pt")).logits.tolist())
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert_close_to_spread(torch.tensor(json.loads(answer.stdout)), logits(model, clip))


# --- what users of Transformers expect ---


def test_hidden_states_and_attentions_can_be_asked_for_in_the_config(name):
    settings = video_transformers.MODELS[name]
    config = STTMConfig(backbone_config=settings[1](**settings[2]), keep_ratio=0.7, num_labels=5)
    model = STTMForVideoClassification._from_config(config, attn_implementation="eager").eval()
    model.config.output_hidden_states = model.config.output_attentions = True
    outputs = model(video_transformers.clip(name))
    assert len(outputs.hidden_states) == model.config.num_hidden_layers + 1
    assert len(outputs.attentions) > 0


def test_weights_that_no_file_has_are_initialised_as_in_a_new_model(name, monkeypatch):
    """Each module draws from the same seed: only what initialisation forgets, or does in another way, can differ."""
    initialize = PreTrainedModel._initialize_weights

    def seeded(self, module, *args, **kwargs):
        torch.manual_seed(0)
        return initialize(self, module, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "_initialize_weights", seeded)
    settings = video_transformers.MODELS[name]
    config = STTMConfig(
        backbone_config=settings[1](**settings[2]), keep_ratio=0.7, top_q=2, learned=("motion", "size_weight")
    )
    new = STTMForVideoClassification(copy.deepcopy(config)).state_dict()
    loaded = STTMForVideoClassification.from_pretrained(None, config=config, state_dict={}).state_dict()
    assert [key for key in new if not torch.equal(new[key], loaded[key])] == []


def test_the_predictor_of_vjepa2_is_no_part_of_the_model(tmp_path):
    video_transformers.build("vjepa2").save_pretrained(tmp_path / "plain")
    model = STTMForVideoClassification.from_video_pretrained(tmp_path / "plain", keep_ratio=0.7)
    assert [key for key in model.state_dict() if "predictor" in key] == []
    model.save_pretrained(tmp_path / "merging")
    # as the first release saved it
    file = tmp_path / "merging" / "model.safetensors"
    save_file({**load_file(file), "sttm.backbone.predictor.mask_tokens": torch.zeros(3)}, file, {"format": "pt"})
    loaded, report = STTMForVideoClassification.from_pretrained(tmp_path / "merging", output_loading_info=True)
    assert not any(report.values())
    clip = video_transformers.clip("vjepa2")
    assert_close_to_spread(logits(loaded, clip), logits(model, clip))


# config.json of a folder that version 0.1.0 saved: STTM over a micro VideoMAE
FIRST_RELEASE = """
{
  "architectures": ["STTMForVideoClassification"],
  "auto_map": {
    "AutoConfig": "configuration_sttm.STTMConfig",
    "AutoModel": "modeling_sttm.STTMModel",
    "AutoModelForVideoClassification": "modeling_sttm.STTMForVideoClassification"
  },
  "backbone_config": {
    "hidden_size": 24, "image_size": 32, "intermediate_size": 32, "model_type": "videomae", "num_attention_heads": 2,
    "num_frames": 8, "num_hidden_layers": 4, "patch_size": 8, "tubelet_size": 2, "use_mean_pooling": true
  },
  "classifier_dropout": 0.0,
  "dtype": "float32",
  "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2", "3": "LABEL_3", "4": "LABEL_4"},
  "initializer_range": 0.02,
  "keep_ratio": 0.7,
  "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2, "LABEL_3": 3, "LABEL_4": 4},
  "learned": ["size_weight", "meta_weight", "motion"],
  "merge_layers": [1, 2, 3],
  "merge_point": "after_block",
  "merges_per_stage": null,
  "meta_grid": [2, 2, 2],
  "meta_rounds": 2,
  "meta_temperature": 0.1,
  "meta_weight": 0.1,
  "method": "match",
  "model_type": "sttm",
  "pool_windows": null,
  "size_weight": 1.0,
  "temperature": 0.05,
  "temporal_share": 0.5,
  "top_q": 4,
  "transformers_version": "5.23.0",
  "view_aggregation": "logits"
}
"""


def test_a_folder_of_the_first_release_opens(tmp_path):
    """It names the place of merging, and what was learned of sizes and meta tokens has no axis."""
    (tmp_path / "config.json").write_text(FIRST_RELEASE)
    config = STTMConfig.from_pretrained(tmp_path)
    assert "merge_point" not in config.to_dict()
    torch.manual_seed(0)
    model = STTMForVideoClassification(config).eval()
    numbers = ("size_weight", "meta_weight")
    with torch.no_grad():
        for stage in model.sttm.sttm_stages:
            for number in numbers:
                getattr(stage, number).fill_(0.37)
    weights = {
        key: tensor.reshape(()) if key.endswith(numbers) else tensor for key, tensor in model.state_dict().items()
    }
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, report = AutoModelForVideoClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert loaded.sttm.sttm_stages[0].size_weight.tolist() == pytest.approx([0.37])
    clip = video_transformers.clip("videomae")
    assert_close_to_spread(logits(loaded.eval(), clip), logits(model, clip))
    loaded.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors")["sttm.sttm_stages.0.size_weight"].shape == (1,)


@pytest.mark.parametrize(
    "settings", [{"top_q": 2}, {"top_q": 4, "learned": ("metric",)}, {"learned": ("size_weight",)}], ids=str
)
def test_reentrant_checkpointing_is_refused_where_it_would_lose_gradients(settings):
    model = micro_models.classifier("sttm", **settings).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    clip, labels = micro_models.clip(model.config), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="'use_reentrant': False"):
        model(clip, labels=labels)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(clip, labels=labels).loss.backward()
    plain = micro_models.classifier("sttm").train()
    plain.gradient_checkpointing_enable({"use_reentrant": True})
    plain(clip, labels=labels).loss.backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())
