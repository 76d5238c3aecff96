"""Settings that no model has are refused by name, in every config of the package, from a call and from a file."""

import json
import math

import pytest
from transformers import AutoConfig

from hf_tps import FAMILIES
from tests import micro_models

# Settings of all families, then those of some
WRONG = {
    "hidden_act": ("x", "hidden_act='x' is no activation"),
    "mlp_ratio": (-1.0, "mlp_ratio must be at least 0.01, got -1.0"),
    "drop_path_rate": (math.nan, "drop_path_rate must be at least 0, got nan"),
    "hidden_dropout_prob": (-0.5, "hidden_dropout_prob must be at least 0, got -0.5"),
    "attention_probs_dropout_prob": (1.5, "attention_probs_dropout_prob must be at most 1, got 1.5"),
    "classifier_dropout": (math.inf, "classifier_dropout must be at most 1, got inf"),
    "layer_norm_eps": (-1e-6, "layer_norm_eps must be at least 0"),
    "image_size": (10**6, "image_size must be at most 8,192"),
    "num_frames": (10**9, "num_frames must be at most 4,096"),
    "window_size": (10**9, "window_size must be at most 64"),
    "conv_groups": (0, "conv_groups must be at least 1, got 0"),
    "depths": ((10**9, 1, 1), "depths must be at most 1,024"),
    "num_hidden_layers": (10**9, "num_hidden_layers must be at most 1,024"),
    "hidden_size": (10**9, "hidden_size must be at most 65,536"),
    "temporal_window": (10**9, "temporal_window must be at most 4,096"),
    "temperature": (math.nan, "temperature must be at least 0, got nan"),
    "num_labels": (10**9, "num_labels must be a whole number from 0 to 1,000,000"),
    "view_aggregation": ("mean", "view_aggregation is"),
}
CASES = [
    (config_class.model_type, name)
    for config_class, _, _ in FAMILIES
    for name in WRONG
    if name in config_class.__dataclass_fields__ or name == "num_labels"
]


def test_most_settings_are_tried_in_some_family():
    assert {name for _, name in CASES} == set(WRONG)


@pytest.mark.parametrize(("model_type", "name"), CASES)
def test_a_setting_out_of_its_range_is_refused_by_name(model_type, name, tmp_path):
    value, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        micro_models.config(model_type, **{name: value})
    content = {**micro_models.config(model_type).to_dict(), name: value}
    if name == "num_labels":
        content.pop("id2label")
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"image_size": 10**9}, "image_size must be at most"),
        ({"hidden_act": "x"}, "no activation"),
        ({"num_labels": 10**9}, "num_labels must be"),
    ],
)
@pytest.mark.parametrize("model_type", ["sttm", "video_shift"])
def test_a_setting_of_the_wrapped_model_is_refused_as_well(model_type, setting, message):
    backbone = {**micro_models.SETTINGS[model_type]["backbone_config"], **setting}
    with pytest.raises(ValueError, match=message):
        micro_models.config(model_type, backbone_config=backbone)


@pytest.mark.parametrize("value", ["many", [[]], {"model_type": []}, 1.5])
@pytest.mark.parametrize("model_type", [config.model_type for config, _, _ in FAMILIES])
def test_a_file_with_a_setting_of_another_type_is_refused_with_a_value_error(model_type, value, tmp_path):
    name = "backbone_config" if model_type in ("sttm", "video_shift") else "patch_size"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, name: value}))
    with pytest.raises(ValueError, match=f"{name}|model_type"):
        AutoConfig.from_pretrained(tmp_path)
