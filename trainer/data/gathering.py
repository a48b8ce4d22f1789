"""Encoded batches -> shards of the cache, in a thread of its own behind the encoder."""

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, NamedTuple

from torch import Tensor
from typing_extensions import Self

from trainer.core.errors import NonFiniteError
from trainer.data.cache import TensorCache

_SHARD_BYTES: Final = 64 * 1024 * 1024
_SHARD_SECONDS: Final = 30.0  # what a kill can cost
_MOST_WAITING: Final = 4  # batches behind the encoder; they keep their memory on its device


class Encoded(NamedTuple):
    """A batch as it comes from the encoder."""

    encoder: str  # for messages: "The autoencoder"
    keys: Sequence[str]
    places: Sequence[str]  # how messages call each of them
    states: Mapping[str, Tensor]  # [B ...] in the cache's number format, on the encoder's device
    finite: Tensor  # [B] bool: whether all numbers of a row are finite
    masks: Sequence[Tensor | None] = ()  # [1 h w] each, on the CPU


class Gatherer:
    """Takes encoded batches, checks them, and writes them in shards of a sensible size.

    What it was given before an error, or before an interruption, is written all the same: leaving the block waits for
    it. `add` waits when the disk cannot follow.
    """

    def __init__(self, cache: TensorCache) -> None:
        self._cache = cache
        self._entries: dict[str, dict[str, Tensor]] = {}
        self._bytes = 0
        self._since = time.monotonic()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cache")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what is left.

        Raises:
            TrainerError: of what was given and not yet looked at, unless the block was left by another error.
        """
        last = self._pool.submit(self._write)
        self._pool.shutdown(wait=True)
        if error is None:
            for future in (*self._waiting, last):
                future.result()

    def add(self, batch: Encoded) -> None:
        """Take a batch.

        Raises:
            NonFiniteError: an earlier batch holds NaN or infinity; names the picture or the words.
            TrainerError: the disk is full, or cannot be written.
        """
        self._waiting.append(self._pool.submit(self._take, batch))
        while self._waiting and (len(self._waiting) > _MOST_WAITING or self._waiting[0].done()):
            self._waiting.popleft().result()

    def known(self, keys: Sequence[str]) -> Iterable[bool]:
        """Which entries are in the cache by now: of this process, and of others as far as was seen."""
        return self._cache.known(keys)

    def _take(self, batch: Encoded) -> None:
        states = {name: state.cpu() for name, state in batch.states.items()}
        finite = batch.finite.cpu().tolist()
        for row, key in enumerate(batch.keys):
            if not finite[row]:
                raise _not_finite(batch.encoder, batch.places[row])
            # Copied out of the batch, which would otherwise stay in memory as a whole.
            entry = {name: state[row].clone() for name, state in states.items()}
            mask = batch.masks[row] if batch.masks else None
            if mask is not None:
                entry["mask"] = mask
            self._entries[key] = entry
            self._bytes += sum(tensor.nbytes for tensor in entry.values())
        if self._bytes >= _SHARD_BYTES or time.monotonic() - self._since >= _SHARD_SECONDS:
            self._write()

    def _write(self) -> None:
        entries, self._entries = self._entries, {}
        self._bytes = 0
        self._cache.write(entries)
        self._cache.refresh()  # so that what another process has encoded meanwhile is not encoded again
        self._since = time.monotonic()


def _not_finite(encoder: str, place: str) -> NonFiniteError:
    return NonFiniteError(
        f"{encoder} gave numbers that are not finite, or beyond what the cache can hold.",
        where=place,
        mend="Set data.cache.dtype=bfloat16, or precision=bfloat16 or float32; if it persists, the weights or the "
        "file are damaged.",
    )
