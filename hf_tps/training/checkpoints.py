"""Checkpoints that are there whole or not at all, whenever the process dies."""

import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object, load
from safetensors import safe_open

from .files import writing
from .manifest import MANIFEST, damage_by_manifest, write_manifest
from .text import first_line

logger = logging.getLogger(__name__)

_COMPLETE = re.compile(r"step_(\d+)$")
_BEGUN = ".incomplete-"
_RANDOM_STATES = "random_states_"


@dataclass
class Progress:
    """How far a run is; saved with each checkpoint through `Accelerator.register_for_checkpointing`.

    Attributes:
        step: optimizer steps done.
        loss_sum, loss_steps: of the epoch that is under way.
        history: what the evaluation of each epoch gave.
        broken: broken videos so far, name to reason.
        fingerprint: what a resumed run must have in common with the one that was broken off.
    """

    step: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    history: list[dict] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    fingerprint: dict = field(default_factory=dict)

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        """Go on where a saved run was.

        Raises:
            ValueError: if the saved run had another fingerprint.
        """
        saved = state["fingerprint"]
        different = sorted(
            name for name in saved.keys() | self.fingerprint.keys() if saved.get(name) != self.fingerprint.get(name)
        )
        if different:
            raise ValueError(
                "This checkpoint belongs to another run and cannot continue bit for bit: "
                + ", ".join(f"{name} was {saved.get(name)}, now {self.fingerprint.get(name)}" for name in different)
                + ". Start a new run from its weights instead."
            )
        for name, value in state.items():
            setattr(self, name, value)


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, keep: int | None = None) -> Path:
    """Save everything that is prepared or registered, and the random states of all processes, as `folder/step_<n>`.

    Written under another name with the checksums of all files, synced to the disk, then renamed. `keep` limits the
    number of checkpoints up to this step.

    Raises:
        OSError: if it cannot be written, on all processes; older checkpoints stay, nothing of this one does.
    """
    complete = Path(folder) / f"step_{step}"
    begun = Path(folder) / f"{_BEGUN}step_{step}"

    def begin() -> None:
        remove_incomplete(folder)
        begun.mkdir(parents=True)

    def finish() -> None:
        write_manifest(begun)
        for path in begun.rglob("*"):
            _sync(path)
        _sync(begun)
        shutil.rmtree(complete, ignore_errors=True)
        begun.rename(complete)
        _sync(complete.parent)
        for old in _up_to(step, folder)[:-keep] if keep is not None else []:
            shutil.rmtree(old)

    main_process = accelerator.is_main_process
    try:
        _together(lambda: begin() if main_process else None, complete)
        _together(lambda: accelerator.save_state(str(begun)), complete)
        _together(lambda: finish() if main_process else None, complete)
    except OSError:
        if main_process:
            shutil.rmtree(begun, ignore_errors=True)
        accelerator.wait_for_everyone()  # all of them are here: see `_together`
        raise
    return complete


def _together(work: Callable[[], object], path: Path) -> None:
    """Each process does its part of writing `path`; where one fails, all raise: none waits for one that is gone."""
    failure = None
    try:
        with writing(path):
            work()
    except OSError as error:
        failure = str(error)
    for reason in gather_object([failure]):
        if reason is not None:
            raise OSError(reason)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    folders = [path for path in Path(folder).glob("step_*") if path.is_dir()]
    found = {int(step[1]): path for path in folders if (step := _COMPLETE.match(path.name))}
    return [found[step] for step in sorted(found)]


def _up_to(step: int, folder: str | Path) -> list[Path]:
    # A damaged newer one must not push out those from which the run went on.
    return [path for path in list_checkpoints(folder) if int(path.name.removeprefix("step_")) <= step]


def remove_incomplete(folder: str | Path) -> None:
    """Remove what a process left behind that died while it saved."""
    for path in Path(folder).glob(f"{_BEGUN}*"):
        shutil.rmtree(path, ignore_errors=True)


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if it is whole.

    Every file is compared with the checksum that was written with it. A checkpoint of an older version of this package
    has no checksums: whether its files can be read at all is what can be known, and a warning says so.
    """
    try:
        return _first_damage(path)
    except OSError as error:  # the disk itself
        return first_line(error)


def _first_damage(path: Path) -> str | None:
    if (path / MANIFEST).exists():
        damage = damage_by_manifest(path)
        if damage is not None:
            return damage
    elif any(path.iterdir()):
        logger.warning("%s has no %s: its files cannot be checked for damage.", path, MANIFEST)
    if not any(path.glob(f"{_RANDOM_STATES}*.pkl")):
        return f"{_RANDOM_STATES}0.pkl is missing"
    # Accelerate goes on without a word where random states cannot be read, and unpickles what is registered with it:
    # here everything is read once as data alone, without bringing tensors into memory.
    for file in sorted([*path.glob("*.bin"), *path.glob("*.pkl")]):
        try:
            load(file, map_location="cpu", mmap=True)
        except Exception as error:
            return f"{file.name} cannot be read ({first_line(error)})"
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except Exception as error:
            return f"{file.name} cannot be read ({first_line(error)})"
    return None


def find_checkpoint(wanted: str, folder: str | Path) -> Path | None:
    """The checkpoint that a run is to continue from, its files checked; the same on all processes.

    Args:
        wanted: a checkpoint's folder, or "latest": the newest whole one, None if there is none at all yet. A warning
            names those that are damaged and passed over.

    Raises:
        FileNotFoundError: if there is no such folder, or it holds no checkpoint.
        ValueError: if the wanted one is damaged, or every one is; names file, checkpoint, and the newest whole one.
    """
    # The main process looks, the others hear of it: they decide alike, and read each file once.
    answer: list[Any] = [None]
    if PartialState().is_main_process:
        try:
            answer = [_whole_checkpoint(wanted, Path(folder))]
        except (ValueError, OSError) as error:
            answer = [error]
    broadcast_object_list(answer)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def _whole_checkpoint(wanted: str, folder: Path) -> Path | None:
    there = list_checkpoints(folder)
    if wanted == "latest":
        if not there:
            return None
        whole, damaged = _newest_whole(there)
        if whole is None:
            listed = "; ".join(f"{name}: {damage}" for name, damage in damaged.items())
            raise ValueError(f"No checkpoint in {folder} is whole ({listed}). Start anew with --overwrite_output_dir.")
        for name, damage in damaged.items():
            logger.warning("checkpoint %s is damaged (%s) and passed over: continuing from %s", name, damage, whole)
        return whole
    path = Path(wanted)
    if not _COMPLETE.match(path.name) or not path.is_dir():
        names = [str(found) for found in there]
        raise FileNotFoundError(f"{wanted} is no checkpoint folder (step_<n>); this run has {names or 'none'}.")
    wrong = find_damage(path)
    if wrong is None:
        return path
    whole, _ = _newest_whole([other for other in list_checkpoints(path.parent) if other.name != path.name])
    remedy = "No other checkpoint of the run is whole." if whole is None else f"The newest whole checkpoint is {whole}."
    raise ValueError(f"The checkpoint {path} is damaged: {wrong}. {remedy}")


def _newest_whole(checkpoints: list[Path]) -> tuple[Path | None, dict[str, str]]:
    """The newest whole one of these (oldest first), and what is wrong with those after it, by name."""
    damaged: dict[str, str] = {}
    for path in reversed(checkpoints):
        damage = find_damage(path)
        if damage is None:
            return path, damaged
        damaged[path.name] = damage
    return None, damaged


def load_checkpoint(accelerator: Accelerator, path: Path) -> None:
    """Put everything back that `save_checkpoint` saved, from a folder that `find_checkpoint` gave.

    Raises:
        ValueError: if it was saved by a different number of processes, or does not fit what is prepared.
    """
    states = sorted(path.glob(f"{_RANDOM_STATES}*.pkl"))
    if len(states) != accelerator.num_processes:
        raise ValueError(
            f"{path} was saved by {len(states)} processes, now there are {accelerator.num_processes}: a run continues "
            "with as many."
        )
    try:
        accelerator.load_state(str(path))
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(
            f"{path} does not fit this run ({first_line(error)}): a run continues with the model and the settings that "
            "it began with."
        ) from error


def epoch_loss(progress: Progress, loss_sum: torch.Tensor, accelerator: Accelerator) -> float:
    """Mean loss of the epoch under way, over all processes."""
    total = accelerator.reduce(loss_sum, reduction="mean").item()
    return total / max(progress.loss_steps, 1)
