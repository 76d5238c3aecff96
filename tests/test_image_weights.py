"""From image checkpoints of every layout to TPS: the same weights, whatever they are called."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SwinConfig, SwinForImageClassification, ViTConfig, ViTModel

from hf_tps import TPSForVideoClassification, TPSModel
from hf_tps.image_weights import resize_bias_table

SIZES = {"image_size": 32, "embed_dim": 8, "depths": (2, 2, 1), "num_heads": (1, 2, 4), "window_size": 4}


@pytest.fixture
def swin() -> SwinForImageClassification:
    swin = SwinForImageClassification(SwinConfig(num_labels=3, layer_norm_eps=1e-4, **SIZES)).eval()
    for parameter in swin.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return swin


@pytest.fixture
def folder(swin, tmp_path) -> Path:
    swin.save_pretrained(tmp_path / "swin")
    return tmp_path / "swin"


@pytest.fixture
def reference(folder) -> dict[str, torch.Tensor]:
    """Our weights from the layout that the installed Transformers writes."""
    return TPSModel.from_image_pretrained(folder, num_frames=4).state_dict()


NEW_TO_OLD = [  # Transformers before 5.10
    ("attention.q_proj", "attention.self.query"),
    ("attention.k_proj", "attention.self.key"),
    ("attention.v_proj", "attention.self.value"),
    ("attention.relative_position_bias.relative_position_bias_table", "attention.self.relative_position_bias_table"),
    ("attention.o_proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
]


def old_layout(state_dict: dict) -> dict:
    renamed = {}
    for key, tensor in state_dict.items():
        for new, old in NEW_TO_OLD:
            key = key.replace(new, old)
        renamed[key] = tensor
    renamed["swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"] = torch.zeros(16, 16).long()
    return renamed


def microsoft_layout(state_dict: dict) -> dict:
    renamed = {}
    for key, tensor in old_layout(state_dict).items():
        for old, new in [
            ("swin.embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("swin.embeddings.norm", "patch_embed.norm"),
            ("swin.encoder.", ""),
            ("swin.layernorm", "norm"),
            ("classifier", "head"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("attention.self.", "attn."),
            ("attention.output.dense", "attn.proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
        ]:
            key = key.replace(old, new)
        renamed[key] = tensor
    for key in [key for key in renamed if ".attn.query." in key]:
        parts = [renamed.pop(key.replace("query", part)) for part in ("query", "key", "value")]
        renamed[key.replace("query", "qkv")] = torch.cat(parts)
    renamed["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)  # 2 x 2 windows of 4 x 4 patches of 4 pixels
    return renamed


def timm_layout(state_dict: dict) -> dict:
    renamed = {key.replace("head.", "head.fc."): tensor for key, tensor in microsoft_layout(state_dict).items()}
    return {
        re.sub(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", key): tensor
        for key, tensor in renamed.items()
    }


@pytest.mark.parametrize("layout", [dict, old_layout], ids=["from 5.10 on", "before 5.10"])
def test_both_layouts_of_transformers_give_the_same_model(layout, swin, folder, reference):
    # written by hand, since Transformers itself chooses which of the two it saves
    weights = layout(swin.state_dict())
    wanted = "attention.q_proj" if layout is dict else "attention.self.query"
    assert f"swin.encoder.layers.0.blocks.0.{wanted}.weight" in weights
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, folder / "model.safetensors")
    assert_same(TPSModel.from_image_pretrained(folder, num_frames=4), reference)


@pytest.mark.parametrize("layout", [microsoft_layout, timm_layout])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_single_files_of_the_original_releases_give_the_same_model(layout, suffix, swin, reference, tmp_path):
    weights = layout(swin.state_dict())
    file = tmp_path / f"swin{suffix}"
    if suffix == ".pth":
        torch.save({"model": weights, "epoch": 300}, file)
    else:
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, file)
    model = TPSModel.from_image_pretrained(str(file), num_frames=4)
    assert_same(model, reference)
    assert model.config.image_size == 32


def assert_same(model, reference: dict[str, torch.Tensor]) -> None:
    state_dict = model.state_dict()
    assert state_dict.keys() == reference.keys()
    for name, tensor in reference.items():
        assert torch.equal(state_dict[name], tensor), name


def test_settings_of_the_image_model_come_along_and_keywords_win(folder):
    config = TPSModel.from_image_pretrained(folder, num_frames=6, drop_path_rate=0.3).config
    assert config.layer_norm_eps == 1e-4
    assert (config.embed_dim, list(config.depths), list(config.num_heads)) == (8, [2, 2, 1], [1, 2, 4])
    assert (config.image_size, config.window_size) == (32, 4)
    assert (config.num_frames, config.tubelet_size, config.temporal_bias_size) == (6, 2, 3)
    assert config.drop_path_rate == 0.3


def test_the_classifier_is_new_and_of_the_size_asked_for(folder):
    model = TPSForVideoClassification.from_image_pretrained(
        folder, num_frames=4, id2label={0: "a", 1: "b", 2: "c", 3: "d"}
    )
    assert model.classifier.out_features == 4
    assert model.config.id2label[3] == "d"
    assert model.classifier.weight.std() > 0
    assert (
        TPSForVideoClassification.from_image_pretrained(folder, num_frames=4, num_labels=7).classifier.out_features == 7
    )


def test_another_window_resizes_the_bias_tables(folder, reference):
    model = TPSModel.from_image_pretrained(folder, num_frames=4, window_size=7)
    key = "stages.0.blocks.0.attention.relative_position_bias_table"
    flat = reference[key][:49]
    torch.testing.assert_close(model.state_dict()[key], resize_bias_table(flat, 7).repeat(3, 1))
    constant = torch.full((49, 2), 0.25)
    torch.testing.assert_close(resize_bias_table(constant, 12), torch.full((23 * 23, 2), 0.25))


def test_weights_in_another_dtype_are_loaded_as_asked(folder):
    assert TPSModel.from_image_pretrained(folder, num_frames=4, dtype=torch.bfloat16).dtype == torch.bfloat16


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


BLOCK = "swin.encoder.layers.1.blocks.0."


def refused_cases(folder: Path) -> dict:
    return {
        "missing weight": (lambda w: w.pop("swin.layernorm.bias"), {}, r"missing \['norm.bias'\]"),
        "left over": (
            lambda w: w.update({"swin.neck.weight": torch.zeros(1)}),
            {},
            r"unexpected \['swin.neck.weight'\]",
        ),
        "query without key": (
            lambda w: [w.pop(k) for k in list(w) if "k_proj" in k or "self.key" in k],
            {},
            "not the key and value",
        ),
        "position embeddings": (
            lambda w: w.update({"swin.embeddings.position_embeddings": torch.zeros(1, 64, 8)}),
            {},
            "absolute position embeddings",
        ),
        "no field": (lambda w: None, {"num_frame": 8}, r"\['num_frame'\] are no fields of TPSConfig"),
        "other width": (lambda w: None, {"embed_dim": 16}, "embed_dim=8, which comes with its weights"),
        "impossible": (lambda w: None, {"num_frames": 0}, "num_frames must be at least 1"),
    }


@pytest.mark.parametrize("case", refused_cases(Path()))
def test_a_checkpoint_or_setting_that_does_not_fit_is_refused_by_name(case, folder):
    change, settings, message = refused_cases(folder)[case]
    edit_weights(folder, change)
    with pytest.raises(ValueError, match=message):
        TPSModel.from_image_pretrained(folder, **{"num_frames": 4, **settings})


def test_another_image_model_is_refused(tmp_path):
    ViTModel(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'vit' checkpoint; TPS starts from 'swin'"):
        TPSModel.from_image_pretrained(tmp_path)
