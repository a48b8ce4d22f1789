"""Fill the cache: encode what is not in it yet, and nothing else."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from torch import Tensor

from trainer.batch import Encoders
from trainer.core.errors import DataError, NonFiniteError
from trainer.core.seeds import Seeds
from trainer.data.batches import DataSettings, picture_key, words_key
from trainer.data.buckets import Bucket
from trainer.data.cache import Entry, TensorCache
from trainer.data.captions import captions_needed
from trainer.data.cropping import fit
from trainer.data.decoding import ImageLimits, read_picture
from trainer.data.example import Example, Progress

_PIXELS_AT_ONCE: Final = 512 * 512  # a 512-pixel picture fills a GPU by itself, and more would cost memory
_MOST_AT_ONCE: Final = 16
_SHARD_BYTES: Final = 64 * 1024 * 1024
_SHARD_SECONDS: Final = 30.0  # what a kill can cost

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """What was done and what was there already."""

    encoded_pictures: int
    reused_pictures: int
    encoded_captions: int
    reused_captions: int

    def __str__(self) -> str:
        """The report as a person reads it."""
        pictures = f"{self.encoded_pictures} pictures encoded, {self.reused_pictures} were in the cache"
        captions = f"{self.encoded_captions} captions encoded, {self.reused_captions} were in the cache"
        return f"{pictures}; {captions}."


@dataclass(frozen=True, slots=True)
class _Job:
    """One picture that is not in the cache."""

    key: str
    example: Example
    bucket: Bucket
    mirrored: bool


def fill_cache(
    examples: Sequence[Example],
    settings: DataSettings,
    encoders: Encoders,
    seeds: Seeds,
    progress: Progress | None = None,
) -> CacheReport:
    """Every picture and every text that a run on `examples` can ask for is in the cache, sound and finite.

    Entries that are there are compared with their checksums. Batches have one fixed size a bucket, filled up where
    needed, so that an entry does not depend on what else was missing.

    Raises:
        DataError: a file was changed since the scan, or can no longer be read.
        NonFiniteError: an encoder gave NaN or infinity; names the file or the words.
    """
    tell = progress or _tell_nobody
    pictures = TensorCache(settings.cache.folder, encoders.pictures_identity)
    words = TensorCache(settings.cache.folder, encoders.words_identity)
    jobs = _jobs(examples, settings, encoders)
    missing = [job for job in _watched("checking the cache", jobs, tell) if not pictures.holds(job.key)]
    texts = {
        words_key(text, encoders.words_identity): text
        for text in sorted(captions_needed(examples, settings.captions, seeds))
    }
    unread = [key for key in texts if not words.holds(key)]
    with torch.no_grad():  # not inference_mode: what a network loads in there could never be trained
        _encode_pictures(missing, settings.limits, encoders, pictures, tell)
        _encode_words([(key, texts[key]) for key in unread], encoders, words, tell)
    return CacheReport(
        encoded_pictures=len(missing),
        reused_pictures=len(jobs) - len(missing),
        encoded_captions=len(unread),
        reused_captions=len(texts) - len(unread),
    )


def _jobs(examples: Sequence[Example], settings: DataSettings, encoders: Encoders) -> list[_Job]:
    """Each distinct picture once, ordered by bucket."""
    jobs: dict[str, _Job] = {}
    for example, bucket in zip(examples, settings.buckets_of(examples, encoders.scale), strict=True):
        for mirrored in (False, True) if settings.flip else (False,):
            key = picture_key(example, bucket, mirrored=mirrored, identity=encoders.pictures_identity)
            jobs.setdefault(key, _Job(key, example, bucket, mirrored))
    return sorted(jobs.values(), key=lambda job: job.bucket)


def _encode_pictures(
    jobs: Sequence[_Job], limits: ImageLimits, encoders: Encoders, cache: TensorCache, tell: Progress
) -> None:
    done = 0
    with ExitStack() as stack:
        shards = stack.enter_context(_Shards(cache))
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)))
        decoded = _ahead(pool, lambda job: _pixels_of(job, limits), jobs)
        for piece in _pieces(jobs):
            at_once = _at_once(piece[0].bucket)
            pixels = [next(decoded) for _ in piece]
            filled = torch.stack(pixels + pixels[-1:] * (at_once - len(pixels)))
            posterior = encoders.encode_pictures(filled)
            for job, mean, deviation in zip(piece, posterior.mean, posterior.deviation, strict=False):
                entry = {"mean": mean, "deviation": deviation}
                _check_finite(entry, "The autoencoder", str(job.example.path))
                shards.add(job.key, entry)
            done += len(piece)
            tell("encoding pictures", done, len(jobs))


def _encode_words(texts: Sequence[tuple[str, str]], encoders: Encoders, cache: TensorCache, tell: Progress) -> None:
    with _Shards(cache) as shards:
        for start in range(0, len(texts), _MOST_AT_ONCE):
            piece = texts[start : start + _MOST_AT_ONCE]
            captions = [text for _, text in piece]
            words = encoders.encode_words(captions + captions[-1:] * (_MOST_AT_ONCE - len(captions)))
            for row, (key, text) in enumerate(piece):
                entry = {"tokens": words.tokens[row]}
                if words.pooled is not None:
                    entry["pooled"] = words.pooled[row]
                _check_finite(entry, "The text encoder", f"the caption {text!r}")
                shards.add(key, entry)
            tell("encoding captions", start + len(piece), len(texts))


def _pixels_of(job: _Job, limits: ImageLimits) -> Tensor:
    picture = read_picture(job.example.path, limits)
    if picture.key != job.example.key:
        raise DataError(
            "This file was changed while it was being read.",
            where=str(job.example.path),
            mend="Start again when nothing writes into the folder any more.",
        )
    return fit(picture.image, job.bucket, mirrored=job.mirrored)[0]


def _at_once(bucket: Bucket) -> int:
    return max(1, min(_MOST_AT_ONCE, _PIXELS_AT_ONCE // (bucket.width * bucket.height)))


def _pieces(jobs: Sequence[_Job]) -> Iterator[Sequence[_Job]]:
    """Jobs of one bucket, as many as are encoded at once."""
    start = 0
    while start < len(jobs):
        bucket = jobs[start].bucket
        piece = [job for job in jobs[start : start + _at_once(bucket)] if job.bucket == bucket]
        yield piece
        start += len(piece)


def _check_finite(entry: Entry, encoder: str, where: str) -> None:
    for tensor in entry.values():
        # As it will be stored: what float16 cannot hold is infinite there.
        if not bool(torch.isfinite(tensor.to(torch.float16)).all()):
            raise NonFiniteError(
                f"{encoder} gave numbers that are not finite, or beyond 65,504.",
                where=where,
                mend="Use precision=bfloat16 or float32; if it persists, the weights or the file are damaged.",
            )


def _ahead(pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results in order, computed a little ahead of their use and no further, so that they do not fill the memory."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > 2 * _MOST_AT_ONCE:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _watched(what: str, items: Sequence[Item], tell: Progress) -> Iterator[Item]:
    for number, item in enumerate(items, start=1):
        yield item
        tell(what, number, len(items))


def _tell_nobody(_what: str, _done: int, _total: int) -> None:
    pass


class _Shards:
    """Gathers entries into shards of a sensible size; what is gathered is written even when the work breaks off."""

    def __init__(self, cache: TensorCache) -> None:
        self._cache = cache
        self._entries: dict[str, Mapping[str, Tensor]] = {}
        self._bytes = 0
        self._since = time.monotonic()

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def add(self, key: str, entry: Entry) -> None:
        """Take one entry; write all when they are many or old."""
        # Copied out of the batch, which would otherwise stay in memory as a whole.
        self._entries[key] = {name: tensor.detach().cpu().to(torch.float16).clone() for name, tensor in entry.items()}
        self._bytes += sum(tensor.nbytes for tensor in self._entries[key].values())
        if self._bytes >= _SHARD_BYTES or time.monotonic() - self._since >= _SHARD_SECONDS:
            self._write()

    def _write(self) -> None:
        self._cache.write(self._entries)
        self._entries, self._bytes, self._since = {}, 0, time.monotonic()
