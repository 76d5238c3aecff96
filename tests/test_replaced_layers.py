"""The package's own models after adapters, quantisers and copies: they compute what they did, and still see time."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_tps import cpu_pieces
from tests import micro_models
from tests.comparison import assert_close_to_spread
from tests.layer_swaps import SWAPS, with_lora

# (model_type, settings). At 16 channels torchao leaves a layer as it is.
NETWORKS = {
    "tps": ("tps", {"embed_dim": 32}),
    "xvit": ("xvit", {"hidden_size": 32, "intermediate_size": 64, "temporal_head_size": 24}),
    "laps": ("laps", {"embed_dim": 64, "stem_channels": 8}),
    "laps-vit": ("laps", {**micro_models.LAPS_VIT, "embed_dim": 32}),
}
QUANTISERS = ["torchao weight-only", "torchao dynamic", "quanto", "quantize_dynamic"]
COPIES = ["deepcopy", "pickle", "torch.save"]


@pytest.fixture(params=NETWORKS)
def model(request) -> nn.Module:
    """With weights, biases and tables that all make a difference."""
    family, settings = NETWORKS[request.param]
    model = micro_models.classifier(family, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # the statistics of the next clip alone
        model.train()(micro_models.clip(model.config))
    return model.eval()


@pytest.fixture
def clip(model) -> torch.Tensor:
    return micro_models.clip(model.config)


@torch.no_grad()
def logits(model: nn.Module, clip: torch.Tensor) -> torch.Tensor:
    return model(clip).logits


def assert_time_is_seen_as_before(model: nn.Module, original: nn.Module, clip: torch.Tensor):
    """A reversed clip moves the logits as it moved those of the original: half of it at least, that way."""
    expected = logits(original, clip.flip(1)) - logits(original, clip)
    moved = logits(model, clip.flip(1)) - logits(model, clip)
    assert expected.abs().max() > 1e-2 * logits(original, clip).std(), "the original does not see time"
    assert (moved - expected).abs().max() < 0.5 * expected.abs().max()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_a_quantised_model_sees_time_as_before(model, clip, quantiser):
    quantised = SWAPS[quantiser](copy.deepcopy(model))
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    layers = [quantised.get_submodule(name) for name in names]
    assert not [layer for layer in layers if type(layer) is nn.Linear and type(layer.weight.data) is torch.Tensor]
    # a Visformer of few channels loses much to int8
    assert_close_to_spread(logits(quantised, clip), logits(model, clip), share=0.6)
    assert not torch.equal(logits(quantised, clip), logits(model, clip))
    assert_time_is_seen_as_before(quantised, model, clip)


class WithoutWeight(nn.Module):
    """A layer in the place of another one, with none of its attributes."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.replaced = layer

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.replaced(inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_leaf_layers_are_asked_for_nothing_but_their_outputs(model, clip, dtype):
    model.to(dtype)
    expected = logits(model, clip)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, WithoutWeight(module))
    assert torch.equal(logits(model, clip), expected)


def lora(targets: str) -> LoraConfig:
    """Adapters that change the model from the start."""
    modules = {"all": ["qkv", "proj", "fc1", "fc2"], "all-linear": "all-linear"}.get(targets, [targets])
    return LoraConfig(r=4, lora_alpha=8, target_modules=modules, init_lora_weights=False)


@pytest.mark.parametrize("piece_bytes", [2000, 2**23], ids=["in pieces", "as a whole"])
@pytest.mark.parametrize("targets", ["qkv", "proj", "fc1", "fc2", "all", "all-linear"])
def test_an_adapter_does_what_its_merged_weights_do(model, clip, targets, piece_bytes, monkeypatch):
    monkeypatch.setattr(cpu_pieces, "PIECE_BYTES", piece_bytes)
    model, clip = model.double(), clip.double()
    before = logits(model, clip)
    adapted = get_peft_model(copy.deepcopy(model), lora(targets)).eval()
    found = logits(adapted, clip)
    assert (found - before).abs().max() > 1e-2 * before.std(), "the adapter changes nothing"
    with adapted.disable_adapter():
        assert_close_to_spread(logits(adapted, clip), before, share=1e-6)
    merged = copy.deepcopy(adapted).merge_and_unload()
    assert_close_to_spread(logits(merged, clip), found, share=1e-6)
    moved, expected = (logits(network, clip.flip(1)) - logits(network, clip) for network in (adapted, merged))
    assert expected.abs().max() > 1e-2 * found.std()
    assert_close_to_spread(moved, expected, share=1e-6)


def test_every_adapter_is_trained(model, clip):
    adapted = get_peft_model(model, lora("all")).eval()  # a training drops whole branches by chance
    adapted(clip, labels=torch.tensor([0, 1])).loss.backward()
    adapters = {name for name, _ in adapted.named_parameters() if "lora_" in name}
    assert len(adapters) > 4
    for name, parameter in adapted.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().max() > 0) == (name in adapters), name


def test_adapters_of_transformers_come_go_and_come_back_from_a_folder(model, clip, tmp_path):
    plain = copy.deepcopy(model)
    before = logits(plain, clip)
    model.add_adapter(lora("all"), adapter_name="one")
    found = logits(model.eval(), clip)
    assert (found - before).abs().max() > 1e-2 * before.std()
    assert (logits(model, clip.flip(1)) - found).abs().max() > 1e-2 * found.std(), "time is not seen"
    model.disable_adapters()
    assert_close_to_spread(logits(model, clip), before)
    model.enable_adapters()
    assert_close_to_spread(logits(model, clip), found)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists(), "more than the adapter was saved"
    plain.load_adapter(str(tmp_path))
    assert_close_to_spread(logits(plain.eval(), clip), found)


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "LoRA"])
@pytest.mark.parametrize("way", COPIES)
def test_a_copy_answers_as_its_original(model, clip, way, adapted):
    if adapted:
        model = with_lora(model).eval()
    copied = SWAPS[way](model)
    assert_close_to_spread(logits(copied, clip), logits(model, clip))
    assert_time_is_seen_as_before(copied, model, clip)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert logits(model, clip).abs().max() > 0, "copy and original share their weights"
