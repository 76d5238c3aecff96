import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError

from hf_tps import TPSConfig, TPSModel


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"depths": (2, 2)}, "one entry for each stage"),
        ({"depths": ()}, "one entry for each stage"),
        ({"num_heads": (5, 6, 12, 24)}, "Stage 0 has 96 channels.*5 heads"),
        ({"shift_order": ("channel", "time")}, "'channel', 'patch' or None"),
        ({"shift_order": (("channel",), ("time",), None, None)}, "'channel', 'patch' or None"),
        ({"shift_order": (("channel",), None)}, "each of the 4 stages"),
        ({"shift_pattern": "E"}, r"\['A', 'B', 'C', 'D'\]"),
        ({"shift_pattern": [[0, 1], [2]]}, "rectangular matrix"),
        ({"shift_div": 1}, "at least 2"),
        ({"relative_position_bias": "paper"}, "'key_frame_0' .* or 'same_frame'"),
        ({"temporal_bias_size": 0}, "temporal_bias_size must be at least 1"),
        ({"view_aggregation": "mean"}, "'probabilities' or 'logits'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_what_is_possible(settings, message):
    with pytest.raises(ValueError, match=message):
        TPSConfig(**settings)


def test_a_setting_of_the_wrong_type_is_refused():
    with pytest.raises(StrictDataclassFieldValidationError):
        TPSConfig(depths="2, 2, 6, 2")


def test_the_model_checks_settings_that_were_changed_after_the_config_was_made():
    config = TPSConfig()
    config.shift_pattern = "Z"
    with pytest.raises(ValueError, match="Unknown patch shift pattern 'Z'"):
        TPSModel(config)


def test_temporal_rows_belong_to_the_number_of_frames_and_stay_when_it_changes(tmp_path):
    config = TPSConfig(num_frames=20)
    assert (config.num_temporal_positions, config.temporal_bias_size) == (10, 10)
    config.save_pretrained(tmp_path)
    changed = TPSConfig.from_pretrained(tmp_path, num_frames=7)
    assert (changed.num_temporal_positions, changed.temporal_bias_size) == (4, 10)


def test_an_own_pattern_and_a_missing_shift_survive_saving(tmp_path):
    config = TPSConfig(shift_pattern=[[0, 1], [-1, 0]], shift_order=("patch", None))
    config.save_pretrained(tmp_path)
    loaded = TPSConfig.from_pretrained(tmp_path)
    assert loaded.shift_pattern == [[0, 1], [-1, 0]]
    assert [loaded.shift_of_block(3, index) for index in range(3)] == ["patch", None, "patch"]
    assert [TPSConfig(shift_order=order).shift_of_block(0, 1) for order in (None, ())] == [None, None]


def test_each_stage_may_have_an_order_of_its_own(tmp_path):
    TPSConfig(shift_order=(("patch",), None, ("channel", "patch", None), ())).save_pretrained(tmp_path)
    loaded = TPSConfig.from_pretrained(tmp_path)
    shifts = [[loaded.shift_of_block(stage, block) for block in range(4)] for stage in range(4)]
    assert shifts == [["patch"] * 4, [None] * 4, ["channel", "patch", None, "channel"], [None] * 4]
