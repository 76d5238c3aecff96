"""What every registered model must do, run for each family from one list."""

import importlib
import json

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification, Trainer, TrainingArguments

import hf_tps
from hf_tps import modeling_base
from tests import micro_models
from tests.comparison import assert_close_to_spread, assert_gradients_close, unfused_attention

FAMILIES = [config.model_type for config, _, _ in hf_tps.FAMILIES]


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def model(family):
    return micro_models.classifier(family)


@pytest.fixture
def clip(model):
    return micro_models.clip(model.config)


@torch.no_grad()
def logits(model, clip: torch.Tensor, **kwargs) -> torch.Tensor:
    return model(clip, **kwargs).logits


def test_outputs_have_the_promised_shapes(model, clip):
    outputs = model.base_model(clip, output_hidden_states=True)
    hidden = model.config.hidden_size
    assert outputs.last_hidden_state.shape[::2] == (2, hidden)
    assert outputs.pooler_output.shape == (2, model.classifier.in_features)
    assert len(outputs.hidden_states) == model.config.num_hidden_layers + 1
    assert logits(model, clip).shape == (2, 5)


def test_tuple_output_holds_the_same_as_the_named_one(model, clip):
    named = model(clip, output_hidden_states=True)
    plain = model(clip, output_hidden_states=True, return_dict=False)
    assert torch.equal(plain[0], named.logits)
    assert len(plain) == len(named)


def test_eager_and_sdpa_agree_and_eager_gives_attentions(model, clip):
    model.set_attn_implementation("sdpa")
    fast = logits(model, clip)
    model.set_attn_implementation("eager")
    outputs = model(clip, output_attentions=True)
    assert_close_to_spread(outputs.logits, fast)
    assert len(outputs.attentions) > 0
    for weights in outputs.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_the_order_of_a_batch_does_not_matter(model, clip):
    assert_close_to_spread(logits(model, clip.flip(0)), logits(model, clip).flip(0))


def test_time_is_seen(model, clip):
    assert (logits(model, clip) - logits(model, clip.flip(1))).abs().max() > 1e-4


def test_views_are_averaged_as_probabilities_or_logits(family):
    model = micro_models.classifier(family, view_aggregation="probabilities")
    views = torch.stack([micro_models.clip(model.config, 3) for _ in range(2)])
    single = torch.stack([logits(model, views[:, view]) for view in range(3)], dim=1)
    torch.testing.assert_close(logits(model, views).softmax(-1), single.softmax(-1).mean(1))
    model.config.view_aggregation = "logits"
    assert_close_to_spread(logits(model, views), single.mean(1))
    model.config.problem_type = "multi_label_classification"
    torch.testing.assert_close(logits(model, views).sigmoid(), single.sigmoid().mean(1))


def test_one_view_gives_the_logits_of_the_clip(model, clip):
    assert_close_to_spread(logits(model, clip[:, None]), logits(model, clip))


@pytest.mark.parametrize(
    "labels",
    [torch.tensor([1, 4]), torch.tensor([[0.0, 0.3, 0.7, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]])],
    ids=["class ids", "mixup"],
)
def test_every_parameter_is_trained(model, clip, labels):
    model.train()
    outputs = model(clip, labels=labels)
    reference = torch.nn.functional.cross_entropy(outputs.logits, labels)
    torch.testing.assert_close(outputs.loss, reference)
    outputs.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_soft_labels_still_work_after_class_ids(model, clip):
    model(clip, labels=torch.tensor([0, 1]))
    soft = torch.full((2, 5), 0.2)
    outputs = model(clip, labels=soft)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, soft))
    with pytest.raises(ValueError, match=r"\(2, 5\)"):
        model(clip, labels=torch.full((2, 4), 0.25))


def test_multi_label_loss(family):
    model = micro_models.classifier(family, problem_type="multi_label_classification")
    clip, targets = micro_models.clip(model.config), torch.tensor([[0.0, 1, 1, 0, 0], [0, 0, 0, 0, 1]])
    outputs = model(clip, labels=targets)
    reference = torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits, targets)
    torch.testing.assert_close(outputs.loss, reference)


def test_gradient_checkpointing_gives_the_same_gradients(model, clip):
    labels = torch.tensor([1, 4])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        for module in model.modules():  # no randomness, so that both runs compute the same
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "rate"):
                module.rate = 0.0
        model.zero_grad()
        model(clip, labels=labels).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert_gradients_close(gradients[1], gradients[0])


def test_bfloat16_stays_close(model, clip):
    full = logits(model, clip)
    with unfused_attention():
        half = logits(model.to(torch.bfloat16), clip)  # float input is taken, as the pipeline may send it
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).abs().max() < 0.1 * full.std() + 0.02


def test_compiles_as_one_graph(model, clip):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close_to_spread(logits(compiled, clip), logits(model, clip))


def test_exports_with_any_batch_size_and_leaves_the_model_as_it_was(model, clip):
    before = logits(model, clip)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (), {"pixel_values": clip}, dynamic_shapes={"pixel_values": {0: batch}})
    bigger = torch.cat((clip, clip.flip(0), clip))
    exported = program.module()(pixel_values=bigger).logits
    assert_close_to_spread(exported, logits(model, bigger))
    assert torch.equal(logits(model, clip), before)


def test_trains_after_an_evaluation_in_inference_mode(model, clip):
    with torch.inference_mode():
        model(clip)
    model.train()
    model(clip, labels=torch.tensor([0, 1])).loss.backward()


def test_saved_model_loads_through_the_auto_classes(model, clip, tmp_path):
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    loaded, report = AutoModelForVideoClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_close_to_spread(logits(loaded, clip), logits(model, clip))
    base, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    with torch.no_grad():
        assert_close_to_spread(base(clip).pooler_output, model.base_model(clip).pooler_output)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForVideoClassification"}


def test_base_weights_load_into_a_classifier_and_only_the_head_is_new(model, tmp_path):
    model.base_model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert loaded.classifier.out_features == 3


def test_a_new_number_of_classes_needs_ignore_mismatched_sizes(model, clip, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        type(model).from_pretrained(tmp_path, num_labels=3)
    loaded = type(model).from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert logits(loaded, clip).shape == (2, 3)


def test_loads_with_device_map_auto(model, clip, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, device_map="auto")
    # perhaps on an accelerator, whose convolutions round more
    assert_close_to_spread(logits(loaded, clip.to(loaded.device)).cpu(), logits(model, clip), share=2e-4)


def test_weights_are_initialised_when_loading_finds_none(family):
    """Transformers builds on the meta device: a tensor that `_init_weights` forgets would be raw memory."""
    config = micro_models.config(family)
    model_class = type(micro_models.classifier(family))
    torch.manual_seed(3)
    model = model_class.from_pretrained(None, config=config, state_dict={})
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert tensor.isfinite().all(), name
        assert tensor.abs().max() < 10, name


def test_config_survives_saving(family, tmp_path):
    config = micro_models.config(family)
    config.save_pretrained(tmp_path)
    assert type(config).from_pretrained(tmp_path).to_dict() == config.to_dict()


BAD_PIXELS = {
    "no batch": (lambda clip: clip[0], r"\(batch, num_frames, channels, height, width\) or \(batch, views, num_frames"),
    "one axis too many": (lambda clip: clip[None, None], r"got shape \(1, 1, 2"),
    "channels second": (lambda clip: clip.transpose(1, 2), r"3 channels at the third axis"),
    "views, channels second": (lambda clip: clip[:, None].transpose(2, 3), r"being \(batch, views.* \(2, 1, 3, "),
    "channels last": (lambda clip: clip.movedim(2, -1), r"3 channels at the third axis"),
    "uint8": (lambda clip: clip.to(torch.uint8), r"normalised floats.*torch\.uint8"),
    "empty": (lambda clip: clip[:0], r"empty axis"),
}


@pytest.mark.parametrize("views", [(), (None,)], ids=["clips", "views"])
def test_clips_are_checked_once_and_views_once_more_before_they_are_folded(family, model, clip, views, monkeypatch):
    checked = []
    for module in (modeling_base, importlib.import_module(f"hf_tps.modeling_{family}")):
        monkeypatch.setattr(
            module, "check_pixel_values", lambda pixel_values, *_, **__: checked.append(pixel_values.ndim)
        )
    logits(model, clip[(slice(None), *views)])
    assert checked == ([6, 5] if views else [5])


@pytest.mark.parametrize("case", BAD_PIXELS)
def test_bad_pixels_are_refused_with_what_is_needed(model, clip, case):
    spoil, message = BAD_PIXELS[case]
    with pytest.raises(ValueError, match=message):
        model(spoil(clip))


def test_the_trainer_trains_and_resumes(model, clip, tmp_path):
    data = [{"pixel_values": clip[index % 2], "labels": index % 2} for index in range(4)]
    arguments = TrainingArguments(
        tmp_path,
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    Trainer(model, arguments, train_dataset=data).train()
    assert (tmp_path / "checkpoint-2" / "configuration_tps.py").exists() or model.config.model_type != "tps"
    arguments.max_steps = 3
    result = Trainer(model, arguments, train_dataset=data).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert result.global_step == 3


def test_the_trainer_resumes_with_the_weights_of_its_checkpoint(model, clip, tmp_path):
    data = [{"pixel_values": clip[index], "labels": index} for index in range(2)]
    arguments = TrainingArguments(
        tmp_path, max_steps=1, save_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
    )
    Trainer(model, arguments, train_dataset=data).train()
    other = type(model)(model.config)
    Trainer(other, arguments, train_dataset=data).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
