"""Folders of the package open where it is not installed, with `trust_remote_code=True`: a fresh process each."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForVideoClassification, pipeline
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

import hf_tps
from tests import micro_models
from tests.comparison import assert_close_to_spread
from tests.video_files import moving_frames, write_video

FAMILIES = [config.model_type for config, _, _ in hf_tps.FAMILIES]

# `None` in sys.modules makes an import fail, as if the package were not there
CHILD = """
import json, sys
sys.modules["hf_tps"] = None
try:
    import torchvision
except Exception:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules["torchvision"] = None
import torch
from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification, pipeline
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

folder, video, saved = sys.argv[1:]
trust = {"trust_remote_code": True}


def answers(folder):
    model, report = AutoModelForVideoClassification.from_pretrained(folder, output_loading_info=True, **trust)
    assert not any(report.values()), report
    processor = AutoVideoProcessor.from_pretrained(folder, **trust)
    base = AutoModel.from_pretrained(folder, **trust)
    pixels = processor(video, return_tensors="pt").pixel_values
    with torch.no_grad():
        logits = model(pixels).logits[0]
        pooled = base(pixels.reshape(-1, *pixels.shape[-4:])).pooler_output
    scores = pipeline("video-classification", model=folder, **trust)(video, top_k=5)
    return model, processor, {
        "logits": logits.tolist(),
        "pooled": pooled.mean(0).tolist(),
        "scores": {score["label"]: score["score"] for score in scores},
        "module": type(model).__module__,
    }


model, processor, first = answers(folder)
model.save_pretrained(saved)
processor.save_pretrained(saved)
_, _, second = answers(saved)
print("ANSWER" + json.dumps([first, second]))
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_works_without_the_package_and_again_after_saving_there(family, tmp_path):
    model = micro_models.classifier(family)
    processor = micro_models.processor(model.config, num_crops=3)
    folder, video, saved = tmp_path / "folder", tmp_path / "clip.mp4", tmp_path / "saved"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_video(video, moving_frames(20))

    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(video), str(saved)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
    )
    assert child.returncode == 0, child.stderr
    answers = json.loads(child.stdout.split("ANSWER")[1])

    pixels = processor(str(video), return_tensors="pt").pixel_values
    assert pixels.ndim == 6
    with torch.no_grad():
        logits = model(pixels).logits[0]
        pooled = model.base_model(pixels.flatten(0, 1)).pooler_output.mean(0)
    for answer in answers:
        assert answer["module"].startswith("transformers_modules.")
        assert_close_to_spread(torch.tensor(answer["logits"]), logits)
        assert_close_to_spread(torch.tensor(answer["pooled"]), pooled)
        probabilities = logits.softmax(-1)
        for index, label in model.config.id2label.items():
            assert answer["scores"][label] == pytest.approx(probabilities[index].item(), abs=1e-6)

    # and what that process saved opens here, with this package's classes
    again = AutoModelForVideoClassification.from_pretrained(saved)
    assert type(again) is type(model)
    with torch.no_grad():
        assert_close_to_spread(again(pixels).logits[0], logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_loading_and_saving_with_the_package_keeps_the_folder_complete(family, tmp_path):
    model = micro_models.classifier(family)
    size = model.config.image_size
    processor = micro_models.processor(model.config, size={"height": size, "width": size})
    first, second = tmp_path / "first", tmp_path / "second"
    model.save_pretrained(first)
    processor.save_pretrained(first)
    AutoModelForVideoClassification.from_pretrained(first).save_pretrained(second)
    AutoVideoProcessor.from_pretrained(first).save_pretrained(second)
    assert {file.name for file in first.iterdir()} == {file.name for file in second.iterdir()}

    write_video(tmp_path / "clip.mp4", moving_frames(9))
    video = str(tmp_path / "clip.mp4")
    answers = [pipeline("video-classification", model=str(folder))(video) for folder in (first, second)]
    scores = [{answer["label"]: answer["score"] for answer in each} for each in answers]
    assert scores[1] == pytest.approx(scores[0], abs=1e-6)


READERS_OF_IMAGE_FILES = {"tps", "xvit", "laps", "sttm"}  # STTM merges the tokens of XViT and LAPS too


@pytest.mark.parametrize("family", FAMILIES)
def test_only_families_that_read_image_files_carry_the_names_of_their_weights(family, tmp_path):
    micro_models.classifier(family).save_pretrained(tmp_path)
    carried = {file.name for file in tmp_path.glob("*.py")}
    assert f"modeling_{family}.py" in carried
    assert ("image_weights.py" in carried) == (family in READERS_OF_IMAGE_FILES)
