"""Trainings and conversions that are killed, or whose disk is full, at random moments: what is left, what comes of it.

After each kill the checkpoints are whole, and the resumed training ends with the weights of one that was never killed,
bit for bit. After each full disk there is one sentence, and nothing half-written.
"""

import atexit
import contextlib
import functools
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from tqdm import tqdm

from conversion import convert_xvit
from examples import evaluate, finetune
from hf_tps.training.checkpoints import find_damage, list_checkpoints
from tests import golden_cases, micro_models
from tests.faults.sandbox import Case, Outcome
from tests.video_folders import write_colour_folders

# Everything that is drawn by chance or kept between steps: dropout, mixing, moving average, momentum, schedule.
FLAGS = [
    *("--learning_rate", "3e-3", "--num_train_epochs", "4", "--per_device_train_batch_size", "1"),
    *("--gradient_accumulation_steps", "2", "--checkpointing_steps", "1", "--checkpoints_total_limit", "3"),
    *("--ema_decay", "0.9", "--warmup_epochs", "1", "--mixup", "0.4", "--cutmix", "1.0", "--rand_augment_ops", "2"),
    *("--erasing", "0.5", "--classifier_dropout", "0.5", "--drop_path_rate", "0.2", "--max_grad_norm", "1"),
    *("--resume_from_checkpoint", "latest"),
]
STEPS = 12
SIGNALS = (signal.SIGKILL, signal.SIGTERM)


@dataclass(frozen=True)
class Work:
    """What is run and what it gives when nobody disturbs it.

    Attributes:
        main: the script's function; the arguments are followed by the output folder.
        seconds: how long it takes.
        expected: the output folder.
    """

    main: Callable[[list[str]], int]
    arguments: tuple[str, ...]
    seconds: float
    expected: Path

    def command(self, output: Path, *more: str) -> list[str]:
        return [*self.arguments, *more, "--output_dir", str(output)]


def kill_cases(seed: int, number: int) -> Iterator[Case]:
    """As many kills from this seed: of each four, three of a training and one of a conversion."""
    for place in range(number):
        if place % 4 == 3:
            kind, check = "conversion", functools.partial(_killed_conversion, _conversion())
        else:
            kind, check = "training", functools.partial(_killed_training, _training())
        yield _case(f"killed {kind}", check, seed, place)


def full_disk_cases(seed: int, number: int) -> Iterator[Case]:
    """As many disks from this seed that are full: of each three, one in a checkpoint, one at a training's end, one in
    an evaluation.
    """
    for place in range(number):
        kind = ("checkpoint", "training", "evaluation")[place % 3]
        work = _evaluation() if kind == "evaluation" else _training()
        yield _case(f"full disk in a {kind}", functools.partial(_full_disk, work, kind), seed, place)


def _case(name: str, check: Callable[[str, Path], tuple[Outcome, str]], seed: int, place: int) -> Case:
    check = functools.partial(check, f"{seed}-{place}")
    return Case(f"{name}, seed {seed}, number {place}", check, seconds=300, megabytes=1500)


# --- kills -----------------------------------------------------------------------------------------------------------


def _killed_training(training: Work, seed: str, folder: Path) -> tuple[Outcome, str]:
    rng, output = random.Random(seed), folder / "out"
    command = training.command(output)
    moments = []
    for _ in range(rng.randint(1, 2)):
        process = _forked(training.main, command)
        if rng.random() < 0.5:
            step = rng.randint(1, STEPS)
            begun = output / "checkpoints" / f".incomplete-step_{step}"
            alive = _wait_for(process, begun.exists, training.seconds * 20)
            pause = rng.uniform(0, 0.01) if alive else 0.0
            moments.append(f"in the checkpoint of step {step}")
        else:
            pause = rng.uniform(0, training.seconds)
            moments.append(f"after {pause:.2f} s")
        time.sleep(pause)
        _kill(process, rng.choice(SIGNALS))
        damaged = {path.name: find_damage(path) for path in list_checkpoints(output / "checkpoints")}
        if any(damaged.values()):
            return Outcome.WRONG, f"killed {moments}: {damaged}"
    # the number of workers must not matter
    code, text = _run(training.main, [*command, "--dataloader_num_workers", str(rng.randint(0, 1))])
    if code != 0:
        return Outcome.WRONG, f"killed {moments}, then not resumed: {text}"
    return _compare(training.expected, output, ", ".join(moments))


def _killed_conversion(conversion: Work, seed: str, folder: Path) -> tuple[Outcome, str]:
    rng, output = random.Random(seed), folder / "out"
    process, pause = _forked(conversion.main, conversion.command(output)), rng.uniform(0, conversion.seconds)
    if rng.random() < 0.5:  # while it writes
        _wait_for(process, lambda: any(folder.glob(".out-*")), conversion.seconds * 20)
        pause = rng.uniform(0, conversion.seconds / 2)
    time.sleep(pause)
    _kill(process, rng.choice(SIGNALS))
    if output.exists() and (wrong := _difference(conversion.expected, output)):
        return Outcome.WRONG, f"a half-written folder: {wrong}"
    code, text = _run(conversion.main, conversion.command(output, "--overwrite"))
    if code != 0:
        return Outcome.WRONG, f"not converted after a kill: {text}"
    return _compare(conversion.expected, output, f"{pause:.2f} s")


def _compare(expected: Path, output: Path, detail: str) -> tuple[Outcome, str]:
    wrong = _difference(expected, output)
    left = [path.name for path in output.parent.glob(".*")]
    if wrong or left:
        return Outcome.WRONG, f"{detail}: {wrong or left}"
    return Outcome.RIGHT, detail


def _difference(expected: Path, output: Path) -> str:
    """What one folder has that the other has not, or has otherwise; the clock's figures and the cards do not count."""
    listed = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (expected, output)]
    if listed[0] != listed[1]:
        return f"other files: {sorted(set(listed[0]) ^ set(listed[1]))}"
    for name in listed[0]:
        files = [folder / name for folder in (expected, output)]
        if name == "all_results.json":
            same = len({json.dumps(json.loads(file.read_text()) | {"clips_per_second": 0}) for file in files}) == 1
        elif name.startswith("checkpoints") or name == "README.md" or files[0].is_dir():
            same = True  # a checkpoint holds what an interrupted run knows less of; its damage is looked for above
        else:
            same = files[0].read_bytes() == files[1].read_bytes()
        if not same:
            return f"another {name}"
    return ""


# --- full disks ------------------------------------------------------------------------------------------------------


def _full_disk(work: Work, kind: str, seed: str, folder: Path) -> tuple[Outcome, str]:
    rng, output = random.Random(seed), folder / "out"
    checkpoints = kind == "checkpoint"
    written = (work.expected / "checkpoints" if checkpoints else work.expected).glob("**/*" if checkpoints else "*")
    limit = rng.randrange(max(1, rng.choice(sorted(path.stat().st_size for path in written if path.is_file()))))
    more = ["--checkpointing_steps", "no"] if kind == "training" else []
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        code = _here(work.main, work.command(output, *more))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    said = [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]
    detail = f"limit {limit}: {said}"
    parts = [str(path) for path in folder.rglob(".*")]
    parts += [str(path) for path in list_checkpoints(output / "checkpoints") if find_damage(path)]
    if parts:
        return Outcome.WRONG, f"{detail} left {parts}"
    if code == 0:
        return Outcome.RIGHT, detail
    if code != 1 or len(said) != 1 or "out" not in said[0] or "Traceback" in errors.getvalue():
        return Outcome.UNCLEAR_ERROR, f"{detail}\n{errors.getvalue()}"
    return Outcome.CLEAR_ERROR, detail


# --- what is run -----------------------------------------------------------------------------------------------------


@functools.cache
def _folder() -> Path:
    """Data, models and checkpoints of all cases, removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_colour_folders(folder / "train", (2, 2, 2))
    write_colour_folders(folder / "val", (1, 1, 1), seed=1000)
    micro_models.config("xvit", num_hidden_layers=2).save_pretrained(folder / "config")
    return folder


@functools.cache
def _training() -> Work:
    folder = _folder()
    data = ("--train_dir", str(folder / "train"), "--validation_dir", str(folder / "val"))
    begin = ("--config_name", str(folder / "config"), "--dataloader_num_workers", "0")
    return _undisturbed(finetune.main, (*begin, *data, *FLAGS), folder / "trained")


@functools.cache
def _evaluation() -> Work:
    model = _training().expected
    data = ("--validation_dir", str(_folder() / "val"), "--dataloader_num_workers", "0")
    return _undisturbed(evaluate.main, ("--model_name_or_path", str(model), *data), _folder() / "evaluated")


@functools.cache
def _conversion() -> Work:
    golden = golden_cases.load("xvit_micro")
    checkpoint = golden_cases.write_xvit_checkpoint(golden, _folder() / "original.pth")
    heads = str(golden["config"]["facts"]["heads"])
    arguments = (str(checkpoint), "--num_attention_heads", heads)
    return _undisturbed(convert_xvit.main, arguments, _folder() / "converted")


def _undisturbed(main: Callable[[list[str]], int], arguments: tuple[str, ...], output: Path) -> Work:
    started = time.monotonic()
    code, text = _run(main, [*arguments, "--output_dir", str(output)])
    if code != 0:
        raise RuntimeError(f"{main.__module__} does not even run undisturbed:\n{text}")
    return Work(main, arguments, time.monotonic() - started, output)


# --- processes -------------------------------------------------------------------------------------------------------


def _here(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """A script's `main` in this process, as the first thing that it does."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    # The bars' own lock is shared with the parent and its other forks: one that is killed while it has it keeps it.
    tqdm.set_lock(threading.RLock())
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    logging.getLogger().handlers.clear()  # those of pytest, which write elsewhere
    return main(arguments)


def _forked(main: Callable[[list[str]], int], arguments: list[str], output: Path | None = None) -> int:
    """The same in a fork of this process, where the libraries are imported already; its number."""
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        with (
            open(output or os.devnull, "w") as file,
            contextlib.redirect_stderr(file),
            contextlib.redirect_stdout(file),
        ):
            try:
                code = _here(main, arguments)
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)


def _run(main: Callable[[list[str]], int], arguments: list[str]) -> tuple[int, str]:
    """Exit code and output of an undisturbed run."""
    with tempfile.NamedTemporaryFile() as file:
        process = _forked(main, arguments, Path(file.name))
        _, status = os.waitpid(process, 0)
        return os.waitstatus_to_exitcode(status), Path(file.name).read_text()


def _wait_for(process: int, moment: Callable[[], bool], seconds: float) -> bool:
    """Whether the moment came before the process ended, or so much time passed."""
    deadline = time.monotonic() + seconds
    while not moment():
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) or time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    return True


def _kill(process: int, number: signal.Signals) -> None:
    os.kill(process, number)
    os.waitpid(process, 0)
