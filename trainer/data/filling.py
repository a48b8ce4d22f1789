"""Fill the cache: encode what is not in it yet, and nothing else."""

import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.batch import Encoders
from trainer.core.seeds import Seeds
from trainer.data.batches import DataSettings, words_key
from trainer.data.cache import TensorCache
from trainer.data.captions import captions_needed
from trainer.data.decoder import PictureWork
from trainer.data.encoding import Encoding, WordsWork, words_at_once
from trainer.data.example import Progress
from trainer.data.examples import ExampleTable
from trainer.data.gathering import Gatherer
from trainer.data.opened import OpenSources
from trainer.data.planning import Counts, Known, PicturePlan, Share

_BYTES_CHECKED: Final = 2_000_000_000  # seconds of reading
_FEWEST_FOR_PROCESSES: Final = 500  # entries; fewer are decoded sooner than the processes have started
_TURN: Final = 256  # texts whose presence is looked at again together, right before they are encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """What was done and what was there already."""

    encoded_pictures: int = 0
    reused_pictures: int = 0
    encoded_captions: int = 0
    reused_captions: int = 0

    def __str__(self) -> str:
        """The report as a person reads it."""
        pictures = f"{self.encoded_pictures} pictures encoded, {self.reused_pictures} were in the cache"
        captions = f"{self.encoded_captions} captions encoded, {self.reused_captions} were in the cache"
        return f"{pictures}; {captions}."

    def __add__(self, other: "CacheReport") -> "CacheReport":
        """Both together."""
        return CacheReport(
            encoded_pictures=self.encoded_pictures + other.encoded_pictures,
            reused_pictures=self.reused_pictures + other.reused_pictures,
            encoded_captions=self.encoded_captions + other.encoded_captions,
            reused_captions=self.reused_captions + other.reused_captions,
        )


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a run asks of the cache."""

    examples: ExampleTable
    settings: DataSettings
    encoders: Encoders
    seeds: Seeds
    batch: int = 1  # examples at once in one process: small buckets may move into larger ones
    words: bool = True  # whether texts are encoded beforehand; not where the text encoders are trained

    @cached_property
    def encoding(self) -> Encoding:
        """How entries are made."""
        return encoding_of(self.settings, self.encoders)

    def caches(self) -> tuple[TensorCache, TensorCache]:
        """The cache of pictures and that of text states, as they are now."""
        return caches_of(self.settings, self.encoders)

    def plan(self, share: Share) -> PicturePlan:
        """The entries of pictures."""
        return PicturePlan(self.examples, self.settings, self.encoders, self.batch, share)

    def texts(self) -> list[WordsWork]:
        """Each distinct text that a run of any length can ask for; none where the run encodes its words itself."""
        if not self.words:
            return []
        needed = captions_needed(self.examples, self.settings.rules_of, self.seeds)
        identity, dtype = self.encoders.words_identity, self.settings.cache.dtype
        return [WordsWork(words_key(text, identity, dtype), text) for text in sorted(needed)]


class Checked:
    """Whether entries are there, and, for the first gigabytes, whether they are still as they were written.

    So a cache of usual size is sound before a run begins. To read a huge one whenever a run starts would take longer
    than what it finds is worth: there each row is compared with its checksum when it is used, as always, and
    `trainer cache --verify` reads all of them. The same holds for a cache beyond a network.
    """

    def __init__(self, cache: TensorCache) -> None:
        self._cache = cache
        entries = len(cache) * _BYTES_CHECKED // max(cache.bytes, _BYTES_CHECKED)  # of the usual size
        self._left = entries if cache.is_near else 0

    def __call__(self, keys: Sequence[str]) -> Sequence[bool]:
        """For each key, whether there is a sound entry; damaged ones are warned of and forgotten."""
        there = self._cache.known(keys).tolist()
        return [known and self._is_sound(key) for key, known in zip(keys, there, strict=True)]

    def _is_sound(self, key: str) -> bool:
        self._left -= 1
        return self._left < 0 or self._cache.holds(key)


def encoding_of(settings: DataSettings, encoders: Encoders) -> Encoding:
    """How entries are made."""
    return Encoding(
        sources=OpenSources(settings.parts),
        limits=settings.limits,
        encoders=encoders,
        dtype=torch.bfloat16 if settings.cache.dtype == "bfloat16" else torch.float16,
    )


def caches_of(settings: DataSettings, encoders: Encoders) -> tuple[TensorCache, TensorCache]:
    """The cache of pictures and that of text states, as they are now."""
    cache = settings.cache
    return (
        TensorCache(cache.folder, encoders.pictures_identity, dtype=cache.dtype, shared=cache.elsewhere),
        TensorCache(cache.folder, encoders.words_identity, dtype=cache.dtype, shared=cache.elsewhere),
    )


def fill_cache(  # noqa: PLR0913 - each is needed, and a run has all of them at hand
    examples: ExampleTable,
    settings: DataSettings,
    encoders: Encoders,
    seeds: Seeds,
    *,
    batch: int = 1,
    words: bool = True,
    share: Share | None = None,
    progress: Progress | None = None,
) -> CacheReport:
    """Every picture and every text that a run on `examples` can ask for is in the cache, and finite.

    Pictures are decoded ahead, in threads or, where they are many, in processes; encoded on the device; and written
    behind. What was encoded before an error, or before an interruption, is in the cache; after a kill, the next filling
    takes it up (`journal.py`).

    Args:
        examples: all that are trained on.
        settings: how.
        encoders: what encodes; loaded only where something is missing.
        seeds: of the run, which decide the words of its captions.
        batch: examples at once in one process of the run.
        words: whether texts are encoded too; not for a run that trains the text encoders.
        share: which part is this process's, where several fill the cache; the others' part may still be missing then.
        progress: told how far it is.

    Raises:
        DataError: a file was changed since it was looked at, or can no longer be read; or a mask is lost in the crop.
        NonFiniteError: an encoder gave NaN or infinity; names the picture or the words.
        TrainerError: the cache cannot be written.
    """
    needs = Needs(examples=examples, settings=settings, encoders=encoders, seeds=seeds, batch=batch, words=words)
    tell = progress or _tell_nobody
    share = share or Share()
    picture_cache, word_cache = needs.caches()
    for cache in (picture_cache, word_cache):
        cache.take_up_journals()
    pictures = _fill_pictures(needs, picture_cache, share, tell)
    captions = _fill_words(needs, word_cache, share, tell)
    return CacheReport(
        encoded_pictures=pictures.missing,
        reused_pictures=pictures.needed - pictures.missing,
        encoded_captions=captions.missing,
        reused_captions=captions.needed - captions.missing,
    )


def needed_keys(needs: Needs) -> dict[str, set[str]]:
    """All keys that a run can ask for, by the identity of their encoder; the others can be pruned."""
    encoders = needs.encoders
    needed: dict[str, set[str]] = {encoders.pictures_identity: set(), encoders.words_identity: set()}
    needed[encoders.pictures_identity].update(needs.plan(Share()).keys())
    needed[encoders.words_identity].update(work.key for work in needs.texts())
    return needed


def encode_again(
    settings: DataSettings,
    encoders: Encoders,
    *,
    pictures: Sequence[PictureWork] = (),
    words: Sequence[WordsWork] = (),
) -> None:
    """Make some entries anew, whatever is in the cache: the way out of a run that finds one damaged.

    Whoever reads sees them after a `refresh`. Loads the encoder that is needed.

    Raises:
        TrainerError: as `fill_cache`.
    """
    encode_all(encoding_of(settings, encoders), caches_of(settings, encoders), pictures, words)


def encode_all(
    encoding: Encoding,
    caches: tuple[TensorCache, TensorCache],
    pictures: Iterable[PictureWork],
    words: Iterable[WordsWork],
) -> tuple[int, int]:
    """Encode these into the caches of pictures and of text states; gives how many entries of each were made.

    Raises:
        TrainerError: as `fill_cache`.
    """
    done = Counter[str]()
    with Gatherer(caches[0]) as gatherer:
        encoding.pictures(pictures, gatherer, lambda count: done.update(pictures=count))
    with Gatherer(caches[1]) as gatherer:
        encoding.words(words, gatherer, lambda count: done.update(words=count))
    return done["pictures"], done["words"]


def missing_words(texts: Sequence[WordsWork], known: Known, share: Share) -> tuple[list[WordsWork], Counts]:
    """The texts of this process's share that are not in the cache."""
    mine = share.takes(np.arange(len(texts)) // words_at_once())
    own = [work for work, taken in zip(texts, mine.tolist(), strict=True) if taken]
    there = known([work.key for work in own])
    missing = [work for work, known_already in zip(own, there, strict=True) if not known_already]
    return missing, Counts(len(own), len(missing))


def _fill_pictures(needs: Needs, cache: TensorCache, share: Share, tell: Progress) -> Counts:
    """Gives what was needed and what was encoded."""
    plan = needs.plan(share)
    positions, counts = plan.missing(Checked(cache), lambda done, total: tell("checking the cache", done, total))
    tally = _Tally("encoding pictures", counts.missing, tell)
    if counts.missing:
        with Gatherer(cache) as gatherer:
            works = plan.works(_turned(positions), gatherer.known)
            needs.encoding.pictures(works, gatherer, tally, processes=counts.missing >= _FEWEST_FOR_PROCESSES)
        cache.save_index()
    return counts._replace(missing=tally.done)


def _fill_words(needs: Needs, cache: TensorCache, share: Share, tell: Progress) -> Counts:
    missing, counts = missing_words(needs.texts(), Checked(cache), share)
    tally = _Tally("encoding captions", counts.missing, tell)
    if missing:
        with Gatherer(cache) as gatherer:
            needs.encoding.words(_still_missing(missing, gatherer.known), gatherer, tally)
        cache.save_index()
    return counts._replace(missing=tally.done)


def _turned(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same in a circle, begun anywhere.

    So, of two processes that a person has started side by side, each soon does what the other then finds done. An entry
    does not depend on the order in which it is made.
    """
    return np.roll(positions, secrets.randbelow(len(positions)))


def _still_missing(works: Sequence[WordsWork], known: Known) -> Iterator[WordsWork]:
    """The same, begun anywhere, without those that are known when their turn comes."""
    order = _turned(np.arange(len(works))).tolist()
    for start in range(0, len(order), _TURN):
        turn = [works[place] for place in order[start : start + _TURN]]
        there = known([work.key for work in turn])
        yield from (work for work, known_by_now in zip(turn, there, strict=True) if not known_by_now)


class _Tally:
    """Counts what was encoded, and tells how far that is."""

    def __init__(self, title: str, total: int, tell: Progress) -> None:
        self.done = 0
        self._title, self._total, self._tell = title, total, tell

    def __call__(self, count: int) -> None:
        self.done += count
        self._tell(self._title, self.done, self._total)


def _tell_nobody(_what: str, _done: int, _total: int) -> None:
    pass
