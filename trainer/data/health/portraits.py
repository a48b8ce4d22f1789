"""A second look at the pixels of every picture: what it is known by, how blurred it is, how much its mask leaves."""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.core.errors import DataError
from trainer.core.threads import in_order
from trainer.data.buckets import Bucket
from trainer.data.cropping import Cut, fit_mask
from trainer.data.decoding import DECODER_VERSION, ImageLimits, digest
from trainer.data.example import Example, Progress, Size
from trainer.data.examples import ExampleTable
from trainer.data.health.likeness import TINTS, WAVES, face_of, tint_of
from trainer.data.health.sharpness import blur_of
from trainer.data.opened import OpenSources
from trainer.data.shards import ShardStore

_VERSION: Final = 1  # raise it when the same picture would get another portrait
_AT_ONCE: Final = 4_096  # portraits written together
_NUMBERS: Final = struct.Struct("<3f")
_PROBE: Final = 64  # pixels: the side of the small picture by which faces and colours are known


@dataclass(frozen=True, slots=True, kw_only=True)
class Portrait:
    """What a look at one picture found."""

    face: NDArray[np.int8]  # [WAVES]; zeros: of one shade
    tint: NDArray[np.uint8]  # [TINTS]
    blur: float = math.nan  # pixels, at the size of its bucket; NaN: it has no edges
    contrast: float = math.nan  # deviation of its strongest colour, 0 .. 128; about 0: of one colour
    counts: float = 1.0  # part of what its bucket shows that its mask lets count, 0 .. 1
    fault: str = ""  # why it could not be looked at, though the scan could

    def as_bytes(self) -> bytes:
        """The portrait, which has no fault, in some bytes."""
        return self.face.tobytes() + self.tint.tobytes() + _NUMBERS.pack(self.blur, self.contrast, self.counts)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Portrait":
        """The portrait that `as_bytes` wrote."""
        blur, contrast, counts = _NUMBERS.unpack(content[WAVES + TINTS :])
        face = np.frombuffer(content[:WAVES], np.int8)
        tint = np.frombuffer(content[WAVES : WAVES + TINTS], np.uint8)
        return cls(face=face, tint=tint, blur=blur, contrast=contrast, counts=counts)


@dataclass(frozen=True, slots=True)
class Portraits:
    """The portraits of N pictures in columns."""

    faces: NDArray[np.int8]  # [N WAVES]
    tints: NDArray[np.uint8]  # [N TINTS]
    blur: NDArray[np.float32]  # [N]
    contrast: NDArray[np.float32]  # [N]
    counts: NDArray[np.float32]  # [N]
    faults: dict[int, str]  # by place

    @classmethod
    def gathered(cls, portraits: Iterator[Portrait], count: int) -> "Portraits":
        """The columns of `count` portraits."""
        columns = cls(
            np.zeros((count, WAVES), np.int8),
            np.zeros((count, TINTS), np.uint8),
            np.full(count, np.nan, np.float32),
            np.full(count, np.nan, np.float32),
            np.full(count, np.nan, np.float32),
            {},
        )
        for place, one in enumerate(portraits):
            columns.faces[place], columns.tints[place] = one.face, one.tint
            columns.blur[place], columns.contrast[place], columns.counts[place] = one.blur, one.contrast, one.counts
            if one.fault:
                columns.faults[place] = one.fault
        return columns


def portraits(
    examples: ExampleTable,
    buckets: Sequence[Bucket],
    opened: OpenSources,
    limits: ImageLimits,
    progress: Progress | None = None,
    memory: Path | None = None,
) -> Iterator[Portrait]:
    """A portrait of each example, in order; made in threads, a few ahead.

    Args:
        examples: N pictures.
        buckets: [N] the size in which each is trained on, and judged.
        opened: their sources.
        limits: what a picture may measure.
        progress: told after each picture.
        memory: a folder in which portraits are remembered, by the content of picture and mask.
    """

    def work(task: tuple[Example, Bucket]) -> tuple[str, bytes | None, Portrait]:
        example, bucket = task
        key = _key(example, bucket)
        known = remembered.get(key)
        if known is not None:
            return key, None, Portrait.from_bytes(known)
        made = portrait(example, bucket, opened, limits)
        return key, None if made.fault else made.as_bytes(), made

    with _Remembered(memory) as remembered:
        looked = in_order(work, zip(examples, buckets, strict=True))
        for done, (key, new, one) in enumerate(looked, start=1):
            if new is not None:
                remembered.keep(key, new)
            if progress is not None:
                progress("looking closer", done, len(examples))
            yield one


def portrait(example: Example, bucket: Bucket, opened: OpenSources, limits: ImageLimits) -> Portrait:
    """The portrait of one example; what cannot be read any more has a fault instead."""
    try:
        picture = opened.picture(example, limits, least=Size(*bucket))
        mask = opened.mask(example, picture, limits)
    except DataError as error:
        return Portrait(face=np.zeros(WAVES, np.int8), tint=np.zeros(TINTS, np.uint8), fault=error.what)
    # Shrunk once for all that asks for little; what is a mean of means is the same mean.
    small = picture.image.resize((_PROBE, _PROBE), Image.Resampling.BOX)
    return Portrait(
        face=face_of(small.convert("L")),
        tint=tint_of(small),
        blur=blur_of(_as_trained(picture.image.convert("L"), bucket)),
        contrast=float(np.asarray(small).reshape(-1, 3).std(0).max()),
        counts=1.0 if mask is None else float(fit_mask(mask, bucket, Cut(), 1, example.size).mean()),
    )


def _as_trained(grey: Image.Image, bucket: Bucket) -> Image.Image:
    """In the size in which it covers its bucket, unless that would enlarge it: that is a finding of its own."""
    factor = max(bucket.width / grey.width, bucket.height / grey.height)
    if factor >= 1:
        return grey
    size = (max(round(grey.width * factor), 1), max(round(grey.height * factor), 1))
    return grey.resize(size, Image.Resampling.HAMMING)  # as crisp as Lanczos, in a third of its time


def _key(example: Example, bucket: Bucket) -> str:
    facts = (_VERSION, DECODER_VERSION, example.key, example.mask_key, *bucket)
    return digest(" ".join(map(str, facts)).encode("utf-8"))


class _Remembered:
    """Portraits on disk; in no folder, nothing is remembered."""

    def __init__(self, folder: Path | None) -> None:
        self._store = None if folder is None else ShardStore(folder)
        self._new: dict[str, bytes] = {}

    def __enter__(self) -> "_Remembered":
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        if self._store is not None:
            self._store.save_index()

    def get(self, key: str) -> bytes | None:
        """The portrait under this key."""
        return None if self._store is None else self._store.get(key)

    def keep(self, key: str, content: bytes) -> None:
        """Remember a portrait."""
        if self._store is not None:
            self._new[key] = content
            if len(self._new) >= _AT_ONCE:
                self._write()

    def _write(self) -> None:
        if self._store is not None:
            self._store.write(self._new)
        self._new = {}
