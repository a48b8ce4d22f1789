"""Pictures and words -> entries of the cache: decoded ahead in threads, encoded on the device, written behind."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple, TypeVar

import torch
from torch import Tensor

from trainer.batch import Encoders
from trainer.core.errors import DataError
from trainer.core.threads import worker_threads
from trainer.data.buckets import Bucket
from trainer.data.cropping import Cut, counts_nowhere, fit, fit_mask, place
from trainer.data.decoding import ImageLimits
from trainer.data.example import Example
from trainer.data.gathering import Encoded, Gatherer
from trainer.data.opened import OpenSources

_PIXELS_AT_ONCE: Final = 512 * 512  # a 512-pixel picture fills a GPU by itself, and more would cost memory
_MOST_AT_ONCE: Final = 16
_BYTES_AHEAD: Final = 1 << 30  # what decoding may hold, so that pictures of 64 million pixels do not fill the memory

Item = TypeVar("Item")
Result = TypeVar("Result")
Count = Callable[[int], None]
"""Told how many entries have been encoded since it was told last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureWork:
    """A picture in its bucket, and the entries that are to be made of it: it is decoded once for all of them."""

    example: Example
    bucket: Bucket
    cuts: tuple[Cut, ...]
    keys: tuple[str, ...]  # one a cut

    @property
    def bytes(self) -> int:
        """About what it holds in memory while it waits to be encoded."""
        width, height = self.example.size
        decoded = 8 * width * height  # Pillow's four bytes a pixel, twice where it is turned upright
        return decoded + len(self.cuts) * 12 * self.bucket.width * self.bucket.height


class WordsWork(NamedTuple):
    """A text, and the key of the entry that is to be made of it."""

    key: str
    text: str


class Piece(NamedTuple):
    """One cut of a decoded picture."""

    key: str
    where: str  # how messages call the picture
    pixels: Tensor  # [3 H W] in -1 .. 1
    mask: Tensor | None  # [1 h w] in 0 .. 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How entries are made: the one way for training, `trainer cache`, several processes and a cluster."""

    sources: OpenSources
    limits: ImageLimits
    encoders: Encoders
    dtype: torch.dtype  # of the entries

    def pictures(self, works: Iterable[PictureWork], into: Gatherer, count: Count) -> None:
        """Encode pictures into the cache; those of one bucket are best given one after the other.

        Batches have one fixed size a bucket, filled up where needed, so that an entry does not depend on what else was
        to be done. An error of any picture ends the work at once.

        Raises:
            DataError: a file was changed or is gone since it was looked at, or nothing of its mask is left.
            NonFiniteError: the autoencoder gave NaN or infinity; names the picture.
        """
        with closing(_ahead(self.decode, works, lambda work: work.bytes)) as decoded, torch.no_grad():
            # no_grad, not inference_mode: what a network loads in there could never be trained
            for batch in _batches(chain.from_iterable(decoded)):
                into.add(self.encode(batch))
                count(len(batch))

    def words(self, works: Iterable[WordsWork], into: Gatherer, count: Count) -> None:
        """Encode texts into the cache.

        Raises:
            NonFiniteError: the text encoder gave NaN or infinity; names the text.
        """
        with torch.no_grad():
            for batch in _grouped(works):
                texts = [work.text for work in batch]
                words = self.encoders.encode_words(texts + texts[-1:] * (_MOST_AT_ONCE - len(texts)))
                states = {"tokens": words.tokens} | ({} if words.pooled is None else {"pooled": words.pooled})
                named = [(work.key, f"the caption {work.text!r}") for work in batch]
                into.add(_encoded("The text encoder", named, states, self.dtype))
                count(len(batch))

    def decode(self, work: PictureWork) -> list[Piece]:
        """All wanted cuts of one picture.

        Raises:
            DataError: its file was changed or is gone, or nothing of its mask is left after cutting.
        """
        example, bucket = work.example, work.bucket
        least = place(example.size, bucket, work.cuts[0]).resized  # the same for every cut
        picture = self.sources.picture(example, self.limits, least)
        mask = self.sources.mask(example, picture, self.limits)
        where = self.sources.where(example)
        pieces: list[Piece] = []
        for cut, key in zip(work.cuts, work.keys, strict=True):
            pixels, _ = fit(picture.image, bucket, cut, example.size)
            kept = None if mask is None else fit_mask(mask, bucket, cut, self.encoders.scale, example.size)
            if kept is not None and counts_nowhere(kept):
                raise _nothing_left(where, bucket)
            pieces.append(Piece(key, where, pixels, kept))
        return pieces

    def encode(self, batch: Sequence[Piece]) -> Encoded:
        """Entries of pieces of one size, at most as many as are encoded at once."""
        pixels = [piece.pixels for piece in batch]
        filled = torch.stack(pixels + pixels[-1:] * (_at_once(pixels[0]) - len(pixels)))
        posterior = self.encoders.encode_pictures(filled)
        named = [(piece.key, piece.where) for piece in batch]
        states = {"mean": posterior.mean, "deviation": posterior.deviation}
        encoded = _encoded("The autoencoder", named, states, self.dtype)
        return encoded._replace(masks=tuple(piece.mask for piece in batch))


def at_once(bucket: Bucket) -> int:
    """How many pictures of a bucket are encoded in one batch: always the same number."""
    return max(1, min(_MOST_AT_ONCE, _PIXELS_AT_ONCE // (bucket.width * bucket.height)))


def words_at_once() -> int:
    """How many texts are encoded in one batch: always the same number."""
    return _MOST_AT_ONCE


def _at_once(pixels: Tensor) -> int:
    height, width = pixels.shape[-2:]
    return at_once(Bucket(width, height))


def _encoded(
    encoder: str, named: Sequence[tuple[str, str]], states: Mapping[str, Tensor], dtype: torch.dtype
) -> Encoded:
    """The first rows of what an encoder gave, in the cache's number format, still on its device."""
    rows = {name: state[: len(named)].to(dtype) for name, state in states.items()}
    # As it will be stored: what float16 cannot hold is infinite there.
    finite = torch.stack([torch.isfinite(state).flatten(1).all(1) for state in rows.values()]).all(0)
    keys, places = zip(*named, strict=True)
    return Encoded(encoder=encoder, keys=keys, places=places, states=rows, finite=finite)


def _nothing_left(where: str, bucket: Bucket) -> DataError:
    return DataError(
        f"Nothing of this picture's mask is left after cutting it to {bucket.width} x {bucket.height} pixels.",
        where=where,
        mend="Enlarge the mask, or take the picture out; or train without masks, or with data.crops.places=1.",
    )


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Successive pieces of one size, as many as are encoded at once."""
    batch: list[Piece] = []
    for piece in pieces:
        if batch and piece.pixels.shape != batch[0].pixels.shape:
            yield batch
            batch = []
        batch.append(piece)
        if len(batch) == _at_once(piece.pixels):
            yield batch
            batch = []
    if batch:
        yield batch


def _grouped(works: Iterable[WordsWork]) -> Iterator[list[WordsWork]]:
    group: list[WordsWork] = []
    for work in works:
        group.append(work)
        if len(group) == _MOST_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _ahead(
    work: Callable[[Item], Result], items: Iterable[Item], weigh: Callable[[Item], int]
) -> Generator[Result, None, None]:
    """Results in order, worked out in threads ahead of their use, as far as `_BYTES_AHEAD` allow.

    An error of any result that is ready comes out at once, before the results that stand before it.
    """
    waiting: deque[tuple[Future[Result], int]] = deque()
    threads = max(1, worker_threads() - 1)  # one processor is the encoder's
    held = 0
    pool = ThreadPoolExecutor(max_workers=threads)
    try:
        for item in items:
            weight = weigh(item)
            while waiting and (held + weight > _BYTES_AHEAD or len(waiting) >= _MOST_AT_ONCE + 2 * threads):
                _raise_first_error(future for future, _ in waiting)
                first, freed = waiting.popleft()
                yield first.result()
                held -= freed
            waiting.append((pool.submit(work, item), weight))
            held += weight
        while waiting:
            _raise_first_error(future for future, _ in waiting)
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _raise_first_error(futures: Iterable[Future[Result]]) -> None:
    for future in futures:
        if future.done():
            future.result()
