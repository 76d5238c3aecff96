"""Each case in a process of its own, with a memory cap and a time limit; how it ended is one word.

The process is a fork of this one: what takes seconds to import is there already. torch has one thread here, since a
fork has none of its parent's threads.
"""

import enum
import faulthandler
import json
import os
import resource
import selectors
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

MEGABYTE = 2**20
# Address space that is reserved and never touched: stacks of threads, arenas of the allocator.
RESERVED_MEGABYTES = 2048


class Outcome(enum.StrEnum):
    """How a case ended. Only the first three may occur."""

    RIGHT = "right"
    WARNED = "right with a warning"
    CLEAR_ERROR = "clear error"
    WRONG = "wrong answer"
    UNCLEAR_ERROR = "unclear error"
    TRACEBACK = "traceback"
    HANG = "hang"
    CRASH = "crash"
    MEMORY = "beyond the memory bound"


ALLOWED = frozenset((Outcome.RIGHT, Outcome.WARNED, Outcome.CLEAR_ERROR))


@dataclass(frozen=True)
class Case:
    """One thing that is broken, and what must come of it.

    Attributes:
        name: what was broken, with all that is needed to make it again.
        check: run in the process of the case, in an empty folder that is removed afterwards (also its working folder);
            gives the outcome and a word about it. Anything that it raises is a `TRACEBACK`.
        seconds: time limit.
        megabytes: resident memory above that at its start.
    """

    name: str
    check: Callable[[Path], tuple[Outcome, str]]
    seconds: float = 60.0
    megabytes: float = 500.0


@dataclass(frozen=True)
class Result:
    """How a case ended, what it said, its peak of resident memory (0 if it died) and its wall-clock time."""

    name: str
    outcome: Outcome
    detail: str
    megabytes: float
    seconds: float


@dataclass
class _Running:
    case: Case
    process: int
    folder: Path
    pipe: int
    started: float
    received: bytes = b""


def run_cases(cases: Iterable[Case], jobs: int = 1) -> Iterator[Result]:
    """Run the cases, `jobs` at a time, and give each result as it comes."""
    torch.set_num_threads(1)
    waiting, running = iter(cases), {}
    more = True
    with selectors.DefaultSelector() as selector:
        while more or running:
            while more and len(running) < jobs:
                case = next(waiting, None)
                if case is None:
                    more = False
                    break
                started = _start(case)
                running[started.pipe] = started
                selector.register(started.pipe, selectors.EVENT_READ)
            for key, _ in selector.select(timeout=0.05):
                one = running[key.fd]
                chunk = os.read(key.fd, 65536)
                one.received += chunk
                if not chunk:
                    selector.unregister(key.fd)
                    yield _finished(running.pop(key.fd), timed_out=False)
            for pipe, one in list(running.items()):
                if time.monotonic() - one.started > one.case.seconds:
                    selector.unregister(pipe)
                    yield _finished(running.pop(pipe), timed_out=True)


def _start(case: Case) -> _Running:
    folder = Path(tempfile.mkdtemp(prefix="fault-"))
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        os.close(writing)
        return _Running(case, process, folder, reading, time.monotonic())
    os.close(reading)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before = _memory("VmRSS")
    try:
        answer = _check(case, folder)
    except BaseException:  # whatever it is, it must not run on in the copy of the parent
        answer = (Outcome.TRACEBACK, traceback.format_exc())
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(json.dumps([*answer, _memory("VmHWM") - before]).encode())
    os._exit(0)


def _check(case: Case, folder: Path) -> tuple[Outcome, str]:
    faulthandler.disable()  # that of pytest would write into pytest's own output
    os.setpgid(0, 0)  # what the case starts ends with it
    os.chdir(folder)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    with open(folder.with_suffix(".output"), "wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int((case.megabytes + RESERVED_MEGABYTES) * MEGABYTE)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        return case.check(folder)
    except MemoryError:
        return Outcome.MEMORY, traceback.format_exc()


def _finished(one: _Running, timed_out: bool) -> Result:
    os.close(one.pipe)
    if timed_out:
        try:
            os.killpg(one.process, signal.SIGKILL)
        except ProcessLookupError:  # it has no group of its own yet
            os.kill(one.process, signal.SIGKILL)
    _, status = os.waitpid(one.process, 0)
    seconds = time.monotonic() - one.started
    output_file = one.folder.with_suffix(".output")
    output = output_file.read_text(encoding="utf-8", errors="replace")[-2000:] if output_file.exists() else ""
    output_file.unlink(missing_ok=True)
    shutil.rmtree(one.folder, ignore_errors=True)
    megabytes = 0.0
    if timed_out:
        outcome, detail = Outcome.HANG, f"not done after {one.case.seconds} s\n{output}"
    elif os.waitstatus_to_exitcode(status) != 0 or not one.received:
        outcome, detail = Outcome.CRASH, f"ended with status {os.waitstatus_to_exitcode(status)}\n{output}"
    else:
        name, detail, megabytes = json.loads(one.received)
        outcome = Outcome(name)
    if outcome in ALLOWED and megabytes > one.case.megabytes:
        outcome, detail = Outcome.MEMORY, f"{megabytes:.0f} MB above {one.case.megabytes:.0f}; {detail}"
    return Result(one.case.name, outcome, detail, megabytes, seconds)


def _memory(which: str) -> float:
    """MB of this process: "VmRSS" (resident now) or "VmHWM" (the most so far)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{which}:"))
    return int(line.split()[1]) / 1024


def counts(results: Iterable[Result]) -> str:
    """One line: how many cases ended how."""
    number = Counter(result.outcome for result in results)
    return ", ".join(f"{number[outcome]} {outcome}" for outcome in Outcome if outcome in ALLOWED or number[outcome])


def failures(results: Iterable[Result]) -> str:
    """What must not have happened, a paragraph each; empty if nothing did."""
    wrong = [result for result in results if result.outcome not in ALLOWED]
    return "\n\n".join(f"{result.name}: {result.outcome}\n{result.detail}" for result in wrong)
