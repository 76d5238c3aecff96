"""What adapters and quantisers do to the layers of a model, and what copying does to the model."""

import copy
import io
import pickle
from collections.abc import Callable

import torch
from optimum.quanto import freeze, qint8, quantize
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_


def torchao_weight_only(model: nn.Module) -> nn.Module:
    quantize_(model, Int8WeightOnlyConfig())
    return model


def torchao_dynamic(model: nn.Module) -> nn.Module:
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def quanto(model: nn.Module) -> nn.Module:
    quantize(model, weights=qint8)
    freeze(model)
    return model


def quantize_dynamic(model: nn.Module) -> nn.Module:
    """torch's own: copies the model, replaces its layers, and carries their hooks over."""
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved_whole(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def lora_config(model: nn.Module) -> LoraConfig:
    """On every linear layer that a classifier is made of, not zero at the start."""
    targets = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    left_out = ("classifier", "predictor")
    targets = [name for name in targets if not any(part in name.split(".") for part in left_out)]
    return LoraConfig(r=4, target_modules=targets, init_lora_weights=False)


def with_lora(model: nn.Module) -> PeftModel:
    torch.manual_seed(3)
    return get_peft_model(model, lora_config(model))


SWAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "LoRA": with_lora,
    "torchao weight-only": torchao_weight_only,
    "torchao dynamic": torchao_dynamic,
    "quanto": quanto,
    "quantize_dynamic": quantize_dynamic,
    "deepcopy": copy.deepcopy,
    "pickle": pickled,
    "torch.save": saved_whole,
}
