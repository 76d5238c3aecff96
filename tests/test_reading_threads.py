"""Items of several threads: all of them, no thread left behind, the first error raised."""

import itertools
import threading

import pytest

from hf_tps.reading_threads import items_of_threads


def test_all_items_of_a_shared_iterator_come_once():
    waiting = iter(range(100))
    assert sorted(items_of_threads(lambda: (number * number for number in waiting), 4)) == [n * n for n in range(100)]


def test_an_error_in_one_thread_is_raised_and_ends_the_others():
    begun = itertools.count()

    def work():
        if next(begun) == 0:
            raise KeyError("mine")
        while True:
            yield 1

    before = threading.active_count()
    with pytest.raises(KeyError, match="mine"):
        sum(items_of_threads(work, 3))
    assert threading.active_count() == before


def test_no_thread_is_left_where_the_items_are_not_taken_to_the_end():
    before = threading.active_count()
    items = items_of_threads(lambda: iter(range(10**9)), 3)
    assert next(items) == 0
    items.close()
    assert threading.active_count() == before


def test_threads_work_at_the_same_time():
    together = threading.Barrier(3, timeout=10)

    def work():
        together.wait()
        yield 1

    assert list(items_of_threads(work, 3)) == [1, 1, 1]
