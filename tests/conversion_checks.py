"""What the tests of all converters do: convert, compare logits, and see a refusal that leaves nothing behind."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForVideoClassification

from tests import golden_cases


def logits_of(folder: Path, golden: dict) -> torch.Tensor:
    """What a converted folder answers to the clip of a golden."""
    model = AutoModelForVideoClassification.from_pretrained(folder)
    with torch.no_grad():
        return model(golden_cases.pixel_values(golden)).logits


def assert_refused(
    main: Callable[[list[str]], int], checkpoint: Path, tmp_path: Path, capsys, message: str, *flags: str
) -> None:
    """The converter ends with 1 and one line that says `message`, and the folder holds what it held before."""
    before = sorted(tmp_path.iterdir())
    assert main([str(checkpoint), "--output_dir", str(tmp_path / "out"), *flags]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, errors
    assert re.search(message, errors[0]), errors[0]
    assert sorted(tmp_path.iterdir()) == before, "a failed conversion left something behind"
