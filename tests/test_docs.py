"""What the documentation shows works: every Python block and example runs, every command has its script and flags."""

import argparse
import ast
import contextlib
import doctest
import importlib
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from transformers import Dinov2Config, Dinov2Model, SwinConfig, SwinModel, VideoMAEImageProcessor, ViTConfig, ViTModel

import hf_tps
from tests import micro_models, video_transformers
from tests.conftest import ROOT
from tests.video_files import moving_frames, write_video

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = [file for folder in ("examples", "conversion") for file in sorted((ROOT / folder).rglob("*.py"))]
MODULES = sorted((ROOT / "hf_tps").rglob("*.py"))
VIT = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SWIN = {"image_size": 32, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def written_by(text: str) -> list[str]:
    """The commands of a shell block, comments and blank lines left out, continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def commands(file: Path) -> list[str]:
    """Commands of a page's shell blocks and of its text, or of the docstring at the head of a script."""
    starts = r"(?:python|accelerate launch|make) "
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        head = ast.get_docstring(ast.parse(text)) or ""
        return [
            line
            for line in written_by(head.replace("'", ""))
            if re.match(starts + r"\S*examples|" + starts + r"conv", line)
        ]
    inline = (found.replace("\n", " ") for found in re.findall(rf"`({starts}[^`]+)`", text))
    return [line for block in [*blocks(file, "bash"), *inline] for line in written_by(block)]


PYTHON_PAGES = [page for page in PAGES if blocks(page, "python")]
COMMANDS = sorted({command for file in [*PAGES, *SCRIPTS] for command in commands(file)})
EXAMPLES = [file for file in MODULES if ">>> " in file.read_text(encoding="utf-8")]


# --- Python ---


@pytest.fixture
def reader(tmp_path, monkeypatch) -> Path:
    """A folder with what the texts name, small; a checkpoint of the Hub is a folder of its name, and is read as one."""
    monkeypatch.chdir(tmp_path)
    for name in ("clip.mp4", "a.mp4"):
        write_video(Path(name), moving_frames(40))
    tps = micro_models.classifier("tps")
    tps.save_pretrained("tps-t-k400")
    micro_models.processor(tps.config).save_pretrained("tps-t-k400")
    hf_tps.TPSVideoProcessor(num_frames=32).save_pretrained("org/tps-swin-b-ssv2")
    SwinModel(SwinConfig(**SWIN)).save_pretrained("microsoft/swin-tiny-patch4-window7-224")
    ViTModel(ViTConfig(**VIT, intermediate_size=64)).save_pretrained("google/vit-base-patch16-224-in21k")
    Dinov2Model(Dinov2Config(**VIT)).save_pretrained("facebook/dinov2-base")
    video_transformers.build("videomae", num_frames=16).save_pretrained("MCG-NJU/videomae-base-finetuned-kinetics")
    side = {"height": 32, "width": 32}
    VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size=side).save_pretrained(
        "MCG-NJU/videomae-base-finetuned-kinetics"
    )
    return tmp_path


def what_a_reader_has() -> dict:
    """The names that texts use for things of the reader's own."""
    return {
        "clips": torch.randn(2, 8, 3, 32, 32),
        "frames": moving_frames(40),
        "another_model": video_transformers.build("videomae"),
    }


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run_one_after_another(page, reader):
    names = what_a_reader_has()
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_of_docstrings_give_what_they_show(file, reader):
    module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    found = doctest.DocTestFinder().find(module, globs={**vars(module), **what_a_reader_has()})
    for example in found:
        runner.run(example)
    assert runner.tries > 0
    assert runner.failures == 0


# --- commands ---


class Parsed(BaseException):
    """Raised once a script has parsed its flags, in place of its work."""


def parse(script: ModuleType, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a script parse its flags and do nothing else.

    Raises:
        SystemExit: for flags that it does not have.
    """
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, *args: list[str] | None) -> None:
        parse_args(parser, *args)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr("sys.argv", [script.__file__, *arguments])
    with contextlib.suppress(Parsed):
        script.parse_arguments(arguments) if hasattr(script, "parse_arguments") else script.main()


def check_script(path: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ROOT / path).is_file(), path
    script = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    if arguments:
        parse(script, arguments, monkeypatch)


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, is_variable, _ = word.partition("=")
        assert re.search(rf"^{name} \?=" if is_variable else rf"^{name}:", makefile, re.MULTILINE), word


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_its_script_and_its_flags(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(re.sub(r"[][]", "", command))
    if program == "make":
        check_make(words)
    elif (program, words[0]) == ("accelerate", "launch"):
        launch = launch_command_parser().parse_args([*words[1:], *([] if ".py" in command else ["none.py"])])
        if ".py" in command:
            check_script(launch.training_script, launch.training_script_args, monkeypatch)
    elif (program, *words[:2]) == ("python", "-m", "pytest"):
        assert (ROOT / words[2]).is_file(), words[2]
        assert not words[3:] or words[4] in (ROOT / words[2]).read_text(encoding="utf-8")
    else:
        assert program == "python", f"{command}: no test knows {program}"
        check_script(words[0], words[1:], monkeypatch)


def test_the_documentation_was_found():
    assert len(PYTHON_PAGES) >= 6
    assert len(EXAMPLES) >= 6
    assert len(COMMANDS) >= 30
