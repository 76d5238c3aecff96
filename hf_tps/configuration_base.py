# Copyright 2026 The hf_tps authors. Apache-2.0.
"""What every configuration of the package shares: ranges of settings, whatever file they come from."""

from numbers import Integral
from typing import Any, Self

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .plain_text import one_line, printable

LARGEST_NUM_LABELS = 1_000_000
# Smallest and largest value of a setting, by its name in any config of the package or in the backbone that one wraps.
# Beyond them nothing is trained; a file that names them would take the machine's memory.
RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 8192),
    "num_frames": (1, 4096),
    "num_channels": (1, 1024),
    "patch_size": (1, 1024),
    "tubelet_size": (1, 1024),
    "embed_dim": (1, 65536),
    "hidden_size": (1, 65536),
    "depths": (1, 1024),
    "num_hidden_layers": (1, 1024),
    "num_heads": (1, 1024),
    "num_attention_heads": (1, 1024),
    "intermediate_size": (1, 2**20),
    "mlp_ratio": (0.01, 64),
    "window_size": (1, 64),
    "stem_channels": (1, 65536),
    "conv_groups": (1, 65536),
    "layer_norm_eps": (0, 1),
    "batch_norm_eps": (0, 1),
    "initializer_range": (0, 100),
    "hidden_dropout_prob": (0, 1),
    "attention_probs_dropout_prob": (0, 1),
    "drop_path_rate": (0, 1),
    "classifier_dropout": (0, 1),
    "shift_div": (0, 65536),
    "temporal_bias_size": (1, 4096),
    "num_temporal_embeddings": (1, 4096),
    "temporal_window": (1, 4096),
    "segment_length": (1, 4096),
    "temporal_head_layers": (0, 1024),
    "temporal_head_heads": (1, 1024),
    "temporal_head_size": (1, 65536),
    "top_q": (1, 65536),
    "temperature": (0, 1e6),
    "size_weight": (-1e6, 1e6),
    "meta_weight": (-1e6, 1e6),
    "meta_grid": (1, 4096),
    "meta_rounds": (0, 1024),
    "meta_temperature": (0, 1e6),
    "pool_windows": (1, 4096),
}


def check_num_labels(num_labels: Any) -> None:
    """Refuse a number of classes out of range, before a name is made for each of them.

    Raises:
        ValueError: if it is no whole number from 0 to `LARGEST_NUM_LABELS`.
    """
    if not isinstance(num_labels, Integral) or not 0 <= int(num_labels) <= LARGEST_NUM_LABELS:
        raise ValueError(
            f"num_labels must be a whole number from 0 to {LARGEST_NUM_LABELS:,}, got "
            f"{printable(repr(num_labels), 40)}."
        )


def check_ranges(config: PreTrainedConfig) -> None:
    """Refuse settings out of their range.

    Raises:
        ValueError: naming the setting, its value and the range.
    """
    for name, (smallest, largest) in RANGES.items():
        setting = vars(config).get(name)  # fields alone: properties follow from them
        for value in setting if isinstance(setting, list | tuple) else (setting,):
            if isinstance(value, int | float) and not smallest <= value <= largest:
                bound = f"at most {largest:,}" if value > largest else f"at least {smallest:,}"
                raise ValueError(f"{name} must be {bound}, got {printable(setting, 80)}.")
    activation = vars(config).get("hidden_act")
    if isinstance(activation, str) and activation not in ACT2FN:
        raise ValueError(
            f"hidden_act={printable(repr(activation), 40)} is no activation of Transformers, such as 'gelu' or 'silu'."
        )


class VideoConfig(PreTrainedConfig):
    """Base of the configuration of each family."""

    def __post_init__(self, **kwargs: Any) -> None:
        backbone = getattr(self, "backbone_config", None)
        for settings in (kwargs, backbone if isinstance(backbone, dict) else {}):
            if settings.get("num_labels") is not None:
                check_num_labels(settings["num_labels"])
            if not isinstance(settings.get("model_type", ""), str):
                raise ValueError(f"model_type must be a name, got {printable(repr(settings['model_type']), 40)}.")
        super().__post_init__(**kwargs)
        # Here rather than left to @strict, which would wrap the ValueError into an error that is none.
        self.validate_architecture()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """The config that a file holds.

        Raises:
            ValueError: for settings of a wrong type or out of range, and for what is no set of settings at all.
        """
        try:
            return super().from_dict(config_dict, **kwargs)
        except (ValueError, ImportError):
            raise
        except Exception as error:  # @strict has errors of its own, and Transformers takes the types for granted
            cause = one_line(error)
            raise ValueError(f"These settings make no {cls.__name__}: {type(error).__name__}: {cause}") from error

    def validate_architecture(self) -> None:
        """Check that the fields fit together; the model calls it too, since fields can be set one by one."""
        check_ranges(self)
        if self.view_aggregation not in ("probabilities", "logits"):
            raise ValueError(f"view_aggregation is 'probabilities' or 'logits'; got {self.view_aggregation!r}.")
