"""Pictures decoded ahead of the encoder: in threads where they are few, in processes where they are many."""

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillWaiting
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Final

from typing_extensions import override

from trainer.core.errors import TrainerError
from trainer.core.threads import worker_threads
from trainer.data.decoder import Decoder, PictureWork, Piece

_BYTES_AHEAD: Final = 1 << 30  # what decoding may hold, so that pictures of 64 million pixels do not fill the memory
_WORKS_AHEAD: Final = 16  # beside those that are being decoded, so that the encoder finds a batch ready
_WORKS_A_TASK: Final = 16
_BYTES_A_TASK: Final = 32 * 1024 * 1024  # about three pictures of a megapixel
_PATIENCE: Final = 2.0  # seconds in which the pool notices by itself that one of its processes was killed
_IDLE_SECONDS: Final = 60.0  # after which a process that is given nothing ends; also one whose owner was killed

Pieces = list[Piece]
Submit = Callable[[Sequence[PictureWork]], Future[list[Pieces]]]


def decode_ahead(decoder: Decoder, works: Iterable[PictureWork], *, processes: bool) -> Generator[Pieces, None, None]:
    """What `decoder` makes of each, in order, ahead of its use as far as `_BYTES_AHEAD` allow.

    An error of any that is ready comes out at once, before the results that stand before it.

    Args:
        decoder: what decodes.
        works: what to decode.
        processes: whether in processes of their own, which take a second to start; then they cost the encoder neither
            the interpreter's lock nor its place in the processor's caches.

    Raises:
        DataError: as the decoder.
        TrainerError: a process was killed.
    """
    waiting: deque[tuple[Future[list[Pieces]], int]] = deque()
    workers = max(1, worker_threads() - 1)  # one processor is the encoder's
    tasks = _tasks(works) if processes else ([work] for work in works)
    ahead = 3 * workers if processes else _WORKS_AHEAD + 2 * workers
    held = 0
    with _in_processes(decoder, workers) if processes else _in_threads(decoder, workers) as submit:
        try:
            for task in tasks:
                weight = sum(work.bytes for work in task)
                while waiting and (held + weight > _BYTES_AHEAD or len(waiting) >= ahead):
                    _raise_first_error(future for future, _ in waiting)
                    first, freed = waiting.popleft()
                    yield from first.result()
                    held -= freed
                waiting.append((submit(task), weight))
                held += weight
            while waiting:
                _raise_first_error(future for future, _ in waiting)
                yield from waiting.popleft()[0].result()
        except BrokenProcessPool as error:
            raise TrainerError(
                "A process that decodes pictures was killed, or could not be started.",
                where=f"one of {workers}",
                mend="Most often the memory was full: close other programs. What was encoded is in the cache: start "
                "again to go on.",
            ) from error


def _tasks(works: Iterable[PictureWork]) -> Iterator[list[PictureWork]]:
    """Works that are sent to a process together; to send small pictures one by one costs as much as to decode them."""
    task: list[PictureWork] = []
    held = 0
    for work in works:
        if task and (len(task) == _WORKS_A_TASK or held + work.bytes > _BYTES_A_TASK):
            yield task
            task, held = [], 0
        task.append(work)
        held += work.bytes
    if task:
        yield task


def _raise_first_error(futures: Iterable[Future[list[Pieces]]]) -> None:
    for future in futures:
        if future.done():
            future.result()


@contextmanager
def _in_threads(decoder: Decoder, workers: int) -> Generator[Submit, None, None]:
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        yield lambda task: pool.submit(_decode, decoder, task)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _in_processes(decoder: Decoder, workers: int) -> Generator[Submit, None, None]:
    """In threads until the first process has started, so that the encoder need not wait for it."""
    # loky: its processes are neither forks of this one, whose threads and GPU a fork would break, nor do they run a
    # script that uses us as a library again, as those of multiprocessing do.
    from loky.process_executor import ProcessPoolExecutor

    pool = ProcessPoolExecutor(
        max_workers=workers,
        timeout=_IDLE_SECONDS,
        initializer=_begin,
        initargs=(decoder,),
        env={"OMP_NUM_THREADS": "1"},
    )
    try:
        started = pool.submit(_decode_here, ())
        with _in_threads(decoder, workers) as meanwhile:
            yield lambda task: _Watched(pool, task) if started.done() else meanwhile(task)
    finally:
        pool.shutdown(wait=True, kill_workers=True)  # nothing is lost with them: they write nothing


class _Watched(Future[list[Pieces]]):
    """A result of a pool of processes, for which nobody waits for ever."""

    def __init__(self, pool: Any, task: Sequence[PictureWork]) -> None:  # Any: loky types nothing
        super().__init__()
        self._pool = pool
        self._within: Future[list[Pieces]] = pool.submit(_decode_here, task)

    @override
    def done(self) -> bool:
        return self._within.done()

    @override
    def result(self, timeout: float | None = None) -> list[Pieces]:
        while True:
            try:
                return self._within.result(_PATIENCE if timeout is None else timeout)
            except StillWaiting:
                if timeout is not None:
                    raise
                if any(process.exitcode for process in list(self._pool._processes.values())):
                    self._end_message()

    def _end_message(self) -> None:
        """A process killed while it tells its result leaves half a message, whose rest the pool would await for ever.

        We write the rest: the pool finds that it says nothing, and then sees that the process is gone.
        """
        pipe = self._pool._result_queue._writer.fileno()
        os.set_blocking(pipe, False)
        try:
            while not self._within.done():
                os.write(pipe, bytes(4096))
        except OSError:  # full: it is being read; or closed: the pool has noticed
            return


_decoders: list[Decoder] = []  # of this process, where it is one of those that only decode: one


def _begin(decoder: Decoder) -> None:
    _decoders.append(decoder)
    for number in (signal.SIGINT, signal.SIGTERM):  # the owner hears them too, and ends its processes
        signal.signal(number, signal.SIG_IGN)


def _decode_here(task: Sequence[PictureWork]) -> list[Pieces]:
    return _decode(_decoders[0], task)


def _decode(decoder: Decoder, task: Sequence[PictureWork]) -> list[Pieces]:
    return [decoder(work) for work in task]
