"""Checkpoints that are there whole or not at all, whenever the process dies."""

import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator

_COMPLETE = re.compile(r"step_(\d+)$")
_BEGUN = ".incomplete-"


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

    Written under another name, synced to the disk, then renamed. `keep` limits the number of complete checkpoints.
    """
    complete = Path(folder) / f"step_{step}"
    begun = Path(folder) / f"{_BEGUN}step_{step}"
    if accelerator.is_main_process:
        remove_incomplete(folder)
        begun.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(begun))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for path in begun.rglob("*"):
            _sync(path)
        _sync(begun)
        shutil.rmtree(complete, ignore_errors=True)
        begun.rename(complete)
        _sync(complete.parent)
        if keep is not None:
            for old in list_checkpoints(folder)[:-keep]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return complete


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = {int(step[1]): path for path in Path(folder).glob("step_*") if (step := _COMPLETE.search(path.name))}
    return [found[step] for step in sorted(found)]


def remove_incomplete(folder: str | Path) -> None:
    """Remove what a process left behind that died while it saved."""
    for path in Path(folder).glob(f"{_BEGUN}*"):
        shutil.rmtree(path, ignore_errors=True)


def find_checkpoint(wanted: str, folder: str | Path) -> Path | None:
    """The checkpoint that a run is to continue from.

    Args:
        wanted: a checkpoint's folder, or "latest": the newest complete one, None if there is none yet.

    Raises:
        FileNotFoundError: if there is no such folder, or it holds no checkpoint.
    """
    if wanted == "latest":
        found = list_checkpoints(folder)
        return found[-1] if found else None
    path = Path(wanted)
    if not _COMPLETE.search(path.name) or not path.is_dir():
        there = [str(found) for found in list_checkpoints(folder)]
        raise FileNotFoundError(f"{wanted} is no checkpoint folder (step_<n>); this run has {there or 'none'}.")
    return path


def load_checkpoint(accelerator: Accelerator, path: Path) -> None:
    """Put everything back that `save_checkpoint` saved.

    Raises:
        ValueError: if it was saved by a different number of processes.
    """
    states = sorted(path.glob("random_states_*.pkl"))
    if len(states) != accelerator.num_processes:
        raise ValueError(
            f"{path} was saved by {len(states)} processes, now there are {accelerator.num_processes}: a run continues "
            "with as many."
        )
    accelerator.load_state(str(path))


def epoch_loss(progress: Progress, loss_sum: torch.Tensor, accelerator: Accelerator) -> float:
    """Mean loss of the epoch under way, over all processes."""
    total = accelerator.reduce(loss_sum, reduction="mean").item()
    return total / max(progress.loss_steps, 1)
