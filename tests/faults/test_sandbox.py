"""The sandbox itself: each way to fail is told from the others."""

import os
import time

import pytest

from tests.faults.sandbox import Case, Outcome, counts, failures, run_cases


def hang(folder):
    while True:
        time.sleep(1)


def crash(folder):
    os.abort()


def wants_memory(folder):
    size = len(bytearray(300 * 2**20))
    return Outcome.RIGHT, str(size)


def wants_more_than_there_is(folder):
    return Outcome.RIGHT, str(len(bytearray(10**11)))


def right(folder):
    (folder / "file").write_text("x")
    return Outcome.RIGHT, ""


def raises(folder):
    raise KeyError("what nobody expected")


@pytest.mark.parametrize(
    ("check", "outcome"),
    [
        (right, Outcome.RIGHT),
        (hang, Outcome.HANG),
        (crash, Outcome.CRASH),
        (wants_memory, Outcome.MEMORY),
        (wants_more_than_there_is, Outcome.MEMORY),
        (raises, Outcome.TRACEBACK),
    ],
)
def test_each_way_to_fail_has_its_name(check, outcome):
    (result,) = run_cases([Case(check.__name__, check, seconds=2, megabytes=100)])
    assert result.outcome == outcome
    assert bool(failures([result])) == (outcome != Outcome.RIGHT)


def test_several_at_a_time_are_all_counted():
    results = list(run_cases([Case(f"case {number}", right) for number in range(7)], jobs=3))
    assert sorted(result.name for result in results) == [f"case {number}" for number in range(7)]
    assert counts(results) == "7 right, 0 right with a warning, 0 clear error"
