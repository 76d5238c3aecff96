"""Video transformers at the price of image transformers, native to Hugging Face Transformers.

Importing this package registers its models and its video processor with the Auto classes, and marks them so that a
saved folder carries their code (for `trust_remote_code=True` where the package is not installed). `FAMILIES` lists
them: a tuple (configuration, model, classifier) of classes for each family.
"""

from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification, PreTrainedConfig, PreTrainedModel

# not the one at the top level of transformers, which is a placeholder wherever torchvision is missing
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from .configuration_laps import LAPSConfig
from .configuration_sttm import STTMConfig
from .configuration_tps import TPSConfig
from .configuration_video_shift import VideoShiftConfig
from .configuration_xvit import XViTConfig
from .modeling_laps import LAPSForVideoClassification, LAPSModel, LAPSPreTrainedModel
from .modeling_sttm import (
    STTMClassifierOutput,
    STTMForVideoClassification,
    STTMModel,
    STTMModelOutput,
    STTMPreTrainedModel,
)
from .modeling_tps import TPSForVideoClassification, TPSModel, TPSPreTrainedModel
from .modeling_video_shift import VideoShiftForVideoClassification, VideoShiftModel, VideoShiftPreTrainedModel
from .modeling_xvit import XViTForVideoClassification, XViTModel, XViTPreTrainedModel
from .temporal_shift_plug_in import add_temporal_shift, remove_temporal_shift
from .token_merging import unmerge
from .token_merging_plug_in import add_token_merging, remove_token_merging
from .video_processing_tps import TPSVideoProcessor
from .video_reading import read_video

__version__ = "0.1.0"

FAMILIES: tuple[tuple[type[PreTrainedConfig], type[PreTrainedModel], type[PreTrainedModel]], ...] = (
    (TPSConfig, TPSModel, TPSForVideoClassification),
    (XViTConfig, XViTModel, XViTForVideoClassification),
    (LAPSConfig, LAPSModel, LAPSForVideoClassification),
    (STTMConfig, STTMModel, STTMForVideoClassification),
    (VideoShiftConfig, VideoShiftModel, VideoShiftForVideoClassification),
)


def _register() -> None:
    for config, model, classifier in FAMILIES:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForVideoClassification.register(config, classifier, exist_ok=True)
        AutoVideoProcessor.register(config, TPSVideoProcessor, exist_ok=True)
        config.register_for_auto_class()
        model.register_for_auto_class("AutoModel")
        classifier.register_for_auto_class("AutoModelForVideoClassification")
    TPSVideoProcessor.register_for_auto_class("AutoVideoProcessor")


_register()

__all__ = [
    "FAMILIES",
    "LAPSConfig",
    "LAPSForVideoClassification",
    "LAPSModel",
    "LAPSPreTrainedModel",
    "STTMClassifierOutput",
    "STTMConfig",
    "STTMForVideoClassification",
    "STTMModel",
    "STTMModelOutput",
    "STTMPreTrainedModel",
    "TPSConfig",
    "TPSForVideoClassification",
    "TPSModel",
    "TPSPreTrainedModel",
    "TPSVideoProcessor",
    "VideoShiftConfig",
    "VideoShiftForVideoClassification",
    "VideoShiftModel",
    "VideoShiftPreTrainedModel",
    "XViTConfig",
    "XViTForVideoClassification",
    "XViTModel",
    "XViTPreTrainedModel",
    "add_temporal_shift",
    "add_token_merging",
    "read_video",
    "remove_temporal_shift",
    "remove_token_merging",
    "unmerge",
]
