"""A few kills and full disks with a fixed seed; `make faults` runs many."""

import pytest

from tests.faults.kills import full_disk_cases, kill_cases
from tests.faults.sandbox import failures, run_cases


@pytest.mark.parametrize("cases", [kill_cases, full_disk_cases])
def test_what_was_broken_off_is_taken_up_again_bit_for_bit_or_leaves_nothing(cases):
    results = list(run_cases(cases(seed=1, number=4)))
    assert len(results) == 4
    assert not failures(results), failures(results)
