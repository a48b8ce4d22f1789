"""Examples -> batches, out of the cache: filled once, then read in any order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from trainer.batch import Batch, Conditioning, Encoders, Geometry, Posterior
from trainer.core.errors import DataError
from trainer.core.seeds import Seeds
from trainer.core.settings import Settings
from trainer.data.account import OnReject
from trainer.data.buckets import Bucket, BucketRules, assign, bucket_table
from trainer.data.cache import TensorCache, cache_key
from trainer.data.captions import NO_WORDS, CaptionRules, caption_of, is_dropped
from trainer.data.cropping import CROP_RULE, place
from trainer.data.decoding import DECODER_VERSION, ImageLimits
from trainer.data.example import Example
from trainer.data.sampler import BucketSampler
from trainer.data.sources import AnySource

_NOT_CACHED: Final = "Run `trainer cache` on this recipe, which encodes what is missing or damaged."


class CacheSettings(Settings):
    """Where encoded pictures and words are kept."""

    folder: Path = Path("cache")
    """Can serve all recipes at once: an entry is found by its content, never by a name."""
    memory: NonNegativeInt = 268_435_456
    """How many bytes of entries stay in memory once they were read from the folder."""


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
    flip: bool = False
    """Whether pictures are also shown mirrored, half of the time; not for faces and writing."""
    limits: ImageLimits = ImageLimits()
    """How large a picture may be."""
    on_reject: OnReject = "stop"
    """What to do when files cannot be used: stop and name them, or skip them."""
    cache: CacheSettings = CacheSettings()
    """Where encoded pictures and words are kept."""

    def buckets_of(self, examples: Sequence[Example], scale: int) -> list[Bucket]:
        """The bucket of each example, with `scale` pixels a latent column."""
        table = bucket_table(self.resolution, self.buckets, scale)
        return [assign(example.size, table) for example in examples]


def picture_key(example: Example, bucket: Bucket, *, mirrored: bool, identity: str) -> str:
    """The key of a picture's latents: its bytes, and everything that is done to them."""
    return cache_key("picture", DECODER_VERSION, CROP_RULE, example.key, *bucket, mirrored, identity)


def words_key(caption: str, identity: str) -> str:
    """The key of a caption's text states."""
    return cache_key("words", caption, identity)


@dataclass(eq=False)
class CachedBatches:
    """The batches of a run, each a pure function of its number, out of a cache that `fill_cache` has filled.

    Raises:
        DataError: there are no examples, or a picture is not in the cache.
    """

    examples: Sequence[Example]
    settings: DataSettings
    encoders: Encoders  # asked for their identities alone; none is loaded
    seeds: Seeds
    batch: int  # examples at once in each process
    world: int = 1  # processes
    rank: int = 0  # which of them this is

    def __post_init__(self) -> None:
        """Open the cache and plan the order."""
        if not self.examples:
            raise DataError("There are no pictures to train on.", where="data.sources")
        self._buckets = self.settings.buckets_of(self.examples, self.encoders.scale)
        self._instances = [place for place, example in enumerate(self.examples) for _ in range(example.repeats)]
        numbers = {bucket: number for number, bucket in enumerate(sorted(set(self._buckets)))}
        bucket_of = [numbers[self._buckets[place]] for place in self._instances]
        self._sampler = BucketSampler(bucket_of, self.batch, self.seeds, world=self.world, rank=self.rank)
        cache = self.settings.cache
        self._pictures = TensorCache(cache.folder, self.encoders.pictures_identity, cache.memory // 2)
        self._words = TensorCache(cache.folder, self.encoders.words_identity, cache.memory // 2)
        for example, bucket in zip(self.examples, self._buckets, strict=True):
            if self._picture_key(example, bucket, mirrored=False) not in self._pictures:
                raise DataError("This picture is not in the cache.", where=str(example.path), mend=_NOT_CACHED)

    @property
    def batches_per_epoch(self) -> int:
        """How many batches show every picture as often as its repeats say."""
        return self._sampler.batches_per_epoch

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
        places = [self._instances[instance] for instance in plan.instances]
        examples = [self.examples[place] for place in places]
        bucket = self._buckets[places[0]]
        mirrored = [self._is_mirrored(number, slot) for slot in plan.slots]
        posterior = self._posterior(examples, bucket, mirrored)
        draw = self.seeds.normal("posterior", number, plan.slots, posterior.mean.shape[1:])
        weights = [
            example.weight if slot < plan.total else 0.0 for example, slot in zip(examples, plan.slots, strict=True)
        ]
        return Batch(
            number=number,
            slots=plan.slots,
            latents=posterior.sample(draw),
            words=self._conditioning(examples, number, plan.slots),
            geometry=_geometry(examples, bucket, mirrored),
            weight=torch.tensor(weights, dtype=torch.float32),
            total=plan.total,
            keys=tuple(example.key for example in examples),
        )

    def _picture_key(self, example: Example, bucket: Bucket, *, mirrored: bool) -> str:
        return picture_key(example, bucket, mirrored=mirrored, identity=self.encoders.pictures_identity)

    def _is_mirrored(self, number: int, slot: int) -> bool:
        return self.settings.flip and self.seeds.uniform("flip", number, slot) < 0.5

    def _posterior(self, examples: Sequence[Example], bucket: Bucket, mirrored: Sequence[bool]) -> Posterior:
        rows: list[dict[str, Tensor]] = []
        for example, flipped in zip(examples, mirrored, strict=True):
            row = self._pictures.read(self._picture_key(example, bucket, mirrored=flipped))
            if row is None:
                raise DataError("This picture is no longer in the cache.", where=str(example.path), mend=_NOT_CACHED)
            rows.append(row)
        return Posterior(
            mean=torch.stack([row["mean"] for row in rows]),
            deviation=torch.stack([row["deviation"] for row in rows]),
        )

    def _conditioning(self, examples: Sequence[Example], number: int, slots: Sequence[int]) -> Conditioning:
        rules, epoch = self.settings.captions, number // self.batches_per_epoch
        rows: list[dict[str, Tensor]] = []
        for example, slot in zip(examples, slots, strict=True):
            dropped = is_dropped(rules, self.seeds, number, slot)
            caption = NO_WORDS if dropped else caption_of(example, rules, self.seeds, epoch)
            row = self._words.read(words_key(caption, self.encoders.words_identity))
            if row is None:
                raise DataError("This caption is not in the cache.", where=str(example.path), mend=_NOT_CACHED)
            rows.append(row)
        pooled = torch.stack([row["pooled"] for row in rows]) if "pooled" in rows[0] else None
        return Conditioning(tokens=torch.stack([row["tokens"] for row in rows]), pooled=pooled)


def _geometry(examples: Sequence[Example], bucket: Bucket, mirrored: Sequence[bool]) -> Geometry:
    places = [
        place(example.size, bucket, mirrored=flipped) for example, flipped in zip(examples, mirrored, strict=True)
    ]
    return Geometry(
        original=torch.tensor([[example.size.height, example.size.width] for example in examples]),
        crop=torch.tensor([[one.top, one.left] for one in places]),
        target=torch.tensor([[bucket.height, bucket.width]] * len(places)),
    )
