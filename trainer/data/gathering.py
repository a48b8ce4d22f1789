"""Encoded batches -> shards of the cache, in threads of its own behind the encoder."""

import errno
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, NamedTuple

from torch import Tensor
from typing_extensions import Self

from trainer.core.errors import NonFiniteError, TrainerError
from trainer.data.cache import TensorCache
from trainer.data.journal import Content, Contents, Journal

_SHARD_BYTES: Final = 64 * 1024 * 1024
_SHARD_SECONDS: Final = 30.0  # what a failing power can cost, and what others do not see yet
_MOST_WAITING: Final = 2  # batches behind an encoder on a device, so that it never waits for us; a kill takes them
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


class Encoded(NamedTuple):
    """A batch as it comes from the encoder."""

    encoder: str  # for messages: "The autoencoder"
    keys: Sequence[str]
    places: Sequence[str]  # how messages call each of them
    states: Mapping[str, Tensor]  # [B ...] in the cache's number format, on the encoder's device
    finite: Tensor  # [B] bool: whether all numbers of a row are finite
    masks: Sequence[Tensor | None] = ()  # [1 h w] each, on the CPU


class Gatherer:
    """Takes encoded batches, checks them, keeps them from a kill, and writes them in shards of a sensible size.

    What it was given before an error, or before an interruption, is written all the same: leaving the block waits for
    it. `add` waits until the batch would outlive a kill, or on a device until few are behind it; and when the disk
    cannot follow.
    """

    def __init__(self, cache: TensorCache) -> None:
        self._cache = cache
        self._contents: dict[str, Content] = {}
        self._bytes = 0
        self._since = time.monotonic()
        self._journal = cache.journal()
        self._behind = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cache")
        self._waiting: deque[Future[None]] = deque()
        # In a thread of its own: batches come into the next journal while a shard is flushed.
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard")
        self._shard: Future[None] | None = None  # the last that was begun

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what is left.

        Raises:
            TrainerError: of what was given and not yet looked at, unless the block was left by another error.
        """
        self._behind.shutdown(wait=True)
        before = self._shard
        if self._contents:
            self._write_behind()
        self._disk.shutdown(wait=True)
        if error is None:
            for future in (*self._waiting, before, self._shard):
                if future is not None:
                    future.result()

    def add(self, batch: Encoded) -> None:
        """Take a batch.

        Raises:
            NonFiniteError: an earlier batch holds NaN or infinity; names the picture or the words.
            TrainerError: the disk is full, or cannot be written.
        """
        self._waiting.append(self._behind.submit(self._take, batch))
        most = 0 if batch.finite.device.type == "cpu" else _MOST_WAITING
        while self._waiting and (len(self._waiting) > most or self._waiting[0].done()):
            self._waiting.popleft().result()

    def known(self, keys: Sequence[str]) -> Iterable[bool]:
        """Which entries are in the cache by now: of this process, and of others as far as was seen."""
        return self._cache.known(keys)

    def _take(self, batch: Encoded) -> None:
        states = {name: state.cpu() for name, state in batch.states.items()}
        finite = batch.finite.cpu().tolist()
        sound = finite.index(False) if False in finite else len(finite)
        contents = dict(zip(batch.keys[:sound], self._contents_of(batch, states)[:sound], strict=True))
        self._journal.append(contents)
        self._contents |= contents
        self._bytes += sum(map(len, contents.values()))
        if sound < len(finite):
            raise _not_finite(batch.encoder, batch.places[sound])
        due = self._bytes >= _SHARD_BYTES or time.monotonic() - self._since >= _SHARD_SECONDS
        if self._shard is not None and (due or self._shard.done()):  # one waits for the disk, and no more
            self._shard.result()
        if due:
            self._write_behind()

    def _contents_of(self, batch: Encoded, states: Mapping[str, Tensor]) -> list[Content]:
        """The entries as they stand in a shard, where those without masks are made together."""
        if all(mask is None for mask in batch.masks):
            return self._cache.contents_of(states)
        return [self._cache.content_of(_entry(batch, states, row)) for row in range(len(batch.keys))]

    def _write_behind(self) -> None:
        """Let what was gathered become a shard, and begin anew."""
        contents, journal = self._contents, self._journal
        self._contents, self._bytes, self._journal = {}, 0, journal.next()
        self._since = time.monotonic()
        self._shard = self._disk.submit(self._write, contents, journal)

    def _write(self, contents: Contents, journal: Journal) -> None:
        try:
            self._cache.write_contents(contents)
        except TrainerError as error:
            if not _lacks_room(error):
                journal.leave()
                raise
            journal.end()  # it takes the room that the shard needs
            self._cache.write_contents(contents)
        journal.end()
        self._cache.take_up_journals()  # so that what others have encoded meanwhile is not encoded again


def _entry(batch: Encoded, states: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    entry = {name: state[row] for name, state in states.items()}
    mask = batch.masks[row]
    return entry if mask is None else entry | {"mask": mask}


def _lacks_room(error: TrainerError) -> bool:
    reason = error.__cause__
    return isinstance(reason, OSError) and reason.errno in _NO_ROOM


def _not_finite(encoder: str, place: str) -> NonFiniteError:
    return NonFiniteError(
        f"{encoder} gave numbers that are not finite, or beyond what the cache can hold.",
        where=place,
        mend="Set data.cache.dtype=bfloat16, or precision=bfloat16 or float32; if it persists, the weights or the "
        "file are damaged.",
    )
