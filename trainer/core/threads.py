"""Work in threads whose results come in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST: Final = 16  # more threads would hold each other up: what they do between pictures is Python


def worker_threads() -> int:
    """How many threads decode at once: one a processor, shared with the run's other processes on this machine."""
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")  # as torchrun and accelerate say
    return max(1, min(_MOST, (os.cpu_count() or 1) // max(1, int(beside) if beside.isdigit() else 1)))


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    known: Callable[[Item], Result | None] = lambda _: None,
    threads: int | None = None,
    ahead: int = 32,
) -> Iterator[Result]:
    """`work` of each item, in the order of the items, done in threads a little ahead of its use and no further.

    So neither items nor results fill the memory, however many they are. An error of `work` comes out where its result
    would; what has not begun by then is given up. Where `known` gives a result, no thread is asked, which costs more
    than a look into a table.
    """
    waiting: deque[Callable[[], Result]] = deque()
    pool = ThreadPoolExecutor(max_workers=threads or worker_threads())
    try:
        for item in items:
            there = known(item)
            waiting.append(pool.submit(work, item).result if there is None else partial(_same, there))
            while waiting and (len(waiting) > ahead or isinstance(waiting[0], partial)):
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _same(result: Result) -> Result:
    return result
