"""Examples -> batches, out of the cache: filled once, then read in any order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor

from trainer.batch import Batch, Conditioning, Encoders, Geometry, Posterior
from trainer.core.errors import DataError
from trainer.core.seeds import Seeds
from trainer.core.settings import Settings
from trainer.data.account import OnReject
from trainer.data.buckets import AssignedBuckets, Bucket, BucketRules, assign_all, bucket_table
from trainer.data.cache import CacheSettings, TensorCache, cache_key
from trainer.data.captions import NO_WORDS, CaptionRules, caption_of, is_dropped
from trainer.data.cropping import CROP_RULE, CropRules, Cut, cuts_of, place
from trainer.data.decoder import PictureWork
from trainer.data.decoding import DECODER_VERSION, ImageLimits
from trainer.data.encoding import WordsWork
from trainer.data.example import Example
from trainer.data.examples import ExampleTable
from trainer.data.sampler import BucketSampler
from trainer.data.sources import AnySource
from trainer.data.sources.base import Source

_NOT_CACHED: Final = (
    "Run `trainer cache RECIPE --verify` and then `trainer cache RECIPE`, which encode what is missing or damaged; a "
    "run that has begun goes on with --resume."
)


Mend = Callable[[Sequence[PictureWork], Sequence[WordsWork]], None]
"""Makes entries of the cache anew."""


class DataSettings(Settings):
    """Pictures and captions, and how they become batches."""

    sources: tuple[AnySource, ...] = Field(min_length=1)
    """Where pictures and captions come from."""
    captions: CaptionRules = CaptionRules()
    """How captions become what the text encoder reads."""
    resolution: PositiveInt = 512
    """Side of the square bucket in pixels; the other buckets have about as many pixels."""
    buckets: BucketRules = BucketRules()
    """Which shapes there are beside the square."""
    crops: CropRules = CropRules()
    """Where pictures are cut that do not have the shape of their bucket."""
    flip: bool = False
    """Whether pictures are also shown mirrored, half of the time; not for faces and writing."""
    limits: ImageLimits = ImageLimits()
    """How large a picture may be."""
    on_reject: OnReject = "stop"
    """What to do when files cannot be used: stop and name them, or skip them."""
    cache: CacheSettings = CacheSettings()
    """Where encoded pictures and words are kept."""

    @cached_property
    def parts(self) -> tuple[Source, ...]:
        """The sources, lists of sources taken apart; `Example.source` counts these.

        Raises:
            DataError: a list of sources cannot be read.
        """
        return tuple(part for source in self.sources for part in source.parts())

    @cached_property
    def rules(self) -> tuple[CaptionRules, ...]:
        """How the captions of each part are treated."""
        return tuple(_merged(part.captions, self.captions) for part in self.parts)

    def rules_of(self, example: Example) -> CaptionRules:
        """How this picture's captions are treated: as its source says, and else as the recipe does."""
        return self.rules[example.source]

    def flips(self, example: Example) -> bool:
        """Whether this picture is also shown mirrored."""
        own = self.parts[example.source].flip
        return self.flip if own is None else own

    def asks_base(self, example: Example) -> bool:
        """Whether this picture's target is the base model's own answer."""
        return self.parts[example.source].target == "base"

    def resolution_of(self, source: int) -> int:
        """The resolution of part number `source`."""
        return self.parts[source].resolution or self.resolution

    def cuts_of(self, example: Example, bucket: Bucket) -> tuple[Cut, ...]:
        """Every way in which this picture is cut."""
        return cuts_of(example.size, bucket, self.crops, flip=self.flips(example))

    def buckets_of(self, examples: ExampleTable, scale: int, batch: int = 1) -> AssignedBuckets:
        """The bucket of each example.

        Args:
            examples: all that are trained on together: small buckets may move into larger ones.
            scale: pixels a latent column.
            batch: examples at once in one process.
        """
        sources = examples.numbers("source")
        sizes = np.stack((examples.numbers("width"), examples.numbers("height")), axis=1)
        showings = examples.numbers("repeats")
        resolutions = np.array([self.resolution_of(source) for source in range(len(self.parts))])[sources]
        parts: list[tuple[NDArray[np.integer], AssignedBuckets]] = []
        for resolution in np.unique(resolutions):
            places = np.flatnonzero(resolutions == resolution)
            table = bucket_table(int(resolution), self.buckets, scale)
            parts.append((places, assign_all(sizes[places], showings[places], table, batch)))
        return AssignedBuckets.joined(parts)


def _merged(own: CaptionRules | None, general: CaptionRules) -> CaptionRules:
    """The general rules, with what a source says itself laid over them."""
    if own is None:
        return general
    return general.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})


def picture_key(example: Example, bucket: Bucket, cut: Cut, identity: str, dtype: str) -> str:
    """The key of a picture's latents: its bytes, and everything that is done to them."""
    placed = place(example.size, bucket, cut)
    where = (*placed.resized, placed.top, placed.left, cut.mirrored)
    content = (example.key, example.mask_key)
    return cache_key("picture", DECODER_VERSION, CROP_RULE, *content, *bucket, *where, identity, dtype)


def words_key(caption: str, identity: str, dtype: str) -> str:
    """The key of a caption's text states."""
    return cache_key("words", caption, identity, dtype)


@dataclass(eq=False)
class CachedBatches:
    """The batches of a run, each a pure function of its number, out of a cache that `fill_cache` has filled.

    Raises:
        DataError: there are no examples.
    """

    examples: ExampleTable
    settings: DataSettings
    encoders: Encoders  # asked for their identities alone; none is loaded
    seeds: Seeds
    batch: int  # examples at once in each process
    world: int = 1  # processes
    rank: int = 0  # which of them this is
    mend: Mend | None = None  # makes an entry that was found damaged anew; without it, damage ends the run
    live_words: bool = False  # whether batches hold the words themselves, for text encoders that are trained

    def __post_init__(self) -> None:
        """Open the cache and plan the order."""
        if not self.examples:
            raise DataError(
                "There are no pictures to train on.", where="data.sources", mend="Add a source of pictures."
            )
        self._buckets = self.settings.buckets_of(self.examples, self.encoders.scale, self.batch * self.world)
        self._sampler = BucketSampler(
            self._buckets.numbers,
            self.batch,
            self.seeds,
            repeats=self.examples.numbers("repeats"),
            world=self.world,
            rank=self.rank,
        )
        cache = self.settings.cache
        place, shared = cache.folder, cache.elsewhere
        self._pictures = TensorCache(place, self.encoders.pictures_identity, cache.memory // 2, shared=shared)
        self._words = TensorCache(place, self.encoders.words_identity, cache.memory // 2, shared=shared)

    @property
    def batches_per_epoch(self) -> int:
        """How many batches show every picture as often as its repeats say."""
        return self._sampler.batches_per_epoch

    @property
    def largest(self) -> int:
        """The number of a batch that needs the most memory."""
        return self._sampler.largest([bucket.width * bucket.height for bucket in self._buckets.shapes])

    def starting_at(self, number: int) -> Iterator[Batch]:
        """Batch `number` of the run and all that follow; there is no end."""
        while True:
            yield self.numbered(number)
            number += 1

    def numbered(self, number: int) -> Batch:
        """This process's part of the run's batch `number`.

        Raises:
            DataError: an entry of the cache was damaged after the run began.
        """
        plan = self._sampler.batch(number)
        examples = [self.examples[index] for index in plan.examples]
        bucket = self._buckets[plan.examples[0]]
        cuts = [self._cut(example, bucket, number, slot) for example, slot in zip(examples, plan.slots, strict=True)]
        self._pictures.fetch([self._key(example, bucket, cut) for example, cut in zip(examples, cuts, strict=True)])
        rows = [self._row(example, bucket, cut) for example, cut in zip(examples, cuts, strict=True)]
        posterior = Posterior(
            mean=torch.stack([row["mean"] for row in rows]),
            deviation=torch.stack([row["deviation"] for row in rows]),
        )
        draw = self.seeds.normal("posterior", number, plan.slots, posterior.mean.shape[1:])
        weights = [
            example.weight if slot < plan.total else 0.0 for example, slot in zip(examples, plan.slots, strict=True)
        ]
        captions = self._captions(examples, number, plan.slots)
        return Batch(
            number=number,
            slots=plan.slots,
            latents=posterior.sample(draw),
            words=captions if self.live_words else self._conditioning(captions, examples),
            geometry=geometry_of(examples, bucket, cuts),
            weight=torch.tensor(weights, dtype=torch.float32),
            total=plan.total,
            keys=tuple(example.key for example in examples),
            mask=masks_of(rows),
            from_base=tuple(row for row, example in enumerate(examples) if self.settings.asks_base(example)),
        )

    def _cut(self, example: Example, bucket: Bucket, number: int, slot: int) -> Cut:
        """How the picture in this slot is cut: mirrored half of the time, at one of its places."""
        cuts = self.settings.cuts_of(example, bucket)
        mirrored = self.settings.flips(example) and self.seeds.uniform("flip", number, slot) < 0.5
        places = [cut for cut in cuts if cut.mirrored == mirrored]
        if len(places) == 1:
            return places[0]
        return places[int(self.seeds.uniform("place", number, slot) * len(places))]

    def _key(self, example: Example, bucket: Bucket, cut: Cut) -> str:
        return picture_key(example, bucket, cut, self.encoders.pictures_identity, self.settings.cache.dtype)

    def _row(self, example: Example, bucket: Bucket, cut: Cut) -> dict[str, Tensor]:
        key = self._key(example, bucket, cut)
        row = self._pictures.read(key)
        if row is None and self.mend is not None:
            self.mend([PictureWork(example=example, bucket=bucket, cuts=(cut,), keys=(key,))], [])
            self._pictures.refresh()
            row = self._pictures.read(key)
        if row is None:
            raise DataError("This picture is not in the cache.", where=example.name, mend=_NOT_CACHED)
        return row

    def _captions(self, examples: Sequence[Example], number: int, slots: Sequence[int]) -> tuple[str, ...]:
        """What each slot of the batch is called this time."""
        epoch = number // self.batches_per_epoch
        captions: list[str] = []
        for example, slot in zip(examples, slots, strict=True):
            rules = self.settings.rules_of(example)
            dropped = is_dropped(rules, self.seeds, number, slot, epoch)
            captions.append(NO_WORDS if dropped else caption_of(example, rules, self.seeds, epoch))
        return tuple(captions)

    def _conditioning(self, captions: Sequence[str], examples: Sequence[Example]) -> Conditioning:
        self._words.fetch([self._words_key(caption) for caption in captions])
        rows = [self._states(caption, example) for caption, example in zip(captions, examples, strict=True)]
        pooled = torch.stack([row["pooled"] for row in rows]) if "pooled" in rows[0] else None
        return Conditioning(tokens=torch.stack([row["tokens"] for row in rows]), pooled=pooled)

    def _words_key(self, caption: str) -> str:
        return words_key(caption, self.encoders.words_identity, self.settings.cache.dtype)

    def _states(self, caption: str, example: Example) -> dict[str, Tensor]:
        key = self._words_key(caption)
        row = self._words.read(key)
        if row is None and self.mend is not None:
            self.mend([], [WordsWork(key, caption)])
            self._words.refresh()
            row = self._words.read(key)
        if row is None:
            raise DataError("This caption is not in the cache.", where=example.name, mend=_NOT_CACHED)
        return row


def masks_of(rows: Sequence[Mapping[str, Tensor]]) -> Tensor | None:
    """The masks [B 1 h w] of a batch, all ones where a picture has none; None where no picture has one."""
    if not any("mask" in row for row in rows):
        return None
    whole = torch.ones((1, *rows[0]["mean"].shape[1:]))
    return torch.stack([row.get("mask", whole) for row in rows])


def geometry_of(examples: Sequence[Example], bucket: Bucket, cuts: Sequence[Cut]) -> Geometry:
    """How pictures of one bucket are cut."""
    places = [place(example.size, bucket, cut) for example, cut in zip(examples, cuts, strict=True)]
    return Geometry(
        original=torch.tensor([[example.size.height, example.size.width] for example in examples]),
        crop=torch.tensor([[one.top, one.left] for one in places]),
        target=torch.tensor([[bucket.height, bucket.width]] * len(places)),
    )
