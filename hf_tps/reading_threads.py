# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Several iterators at work at a time, each in a thread of its own, their items as they come."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")

_END = object()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def items_of_threads(begin: Callable[[], Iterator[Item]], threads: int) -> Iterator[Item]:
    """Items of as many iterators as there are threads, in no order; a few are made ahead.

    The first exception of any of them ends all and is raised. No thread is left behind, also where the items are not
    taken to the end.

    Args:
        begin: makes an iterator; called in each thread, which then runs it.
        threads: how many.
    """
    items: queue.Queue[Any] = queue.Queue(maxsize=2 * threads)
    stop = threading.Event()

    def work() -> None:
        try:
            for item in begin():
                if stop.is_set():
                    return
                items.put(item)
        except BaseException as error:  # whatever it is, it belongs to the thread that waits
            items.put(_Failure(error))
        finally:
            items.put(_END)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    failure: BaseException | None = None
    ended = 0
    try:
        while ended < threads:
            item = items.get()
            if item is _END:
                ended += 1
            elif isinstance(item, _Failure):
                failure = failure or item.error
                stop.set()
            elif failure is None:
                yield item
    finally:
        stop.set()
        while ended < threads:
            ended += items.get() is _END
        for worker in workers:
            worker.join()
    if failure is not None:
        raise failure
