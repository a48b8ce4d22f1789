"""Aspect-ratio buckets: every picture is trained near its own shape, and none is left out."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from typing_extensions import override

from trainer.core.errors import RecipeError
from trainer.core.settings import Settings
from trainer.data.example import Size

# Of resolution squared, and of the area of the bucket from which a picture moves: less would waste more detail than it
# saves in cropping.
_LEAST_AREA = 0.7
_AT_ONCE = 65_536  # pictures that are assigned at once, so that ten million of them do not fill the memory


class Bucket(NamedTuple):
    """The size, in pixels, to which pictures of similar shape are cut."""

    width: int
    height: int


class BucketRules(Settings):
    """Which shapes there are."""

    step: PositiveInt | None = None
    """Sides are multiples of this many pixels. By default 64 where a latent column is 8 pixels, as in Stable
    Diffusion, whose U-Net halves three times; 16 where it is 4, as in the bundled base, whose U-Net halves twice."""
    max_aspect: float = Field(default=4.0, ge=1)
    """The longest shape, long side by short side; longer pictures are cropped. 1 makes all pictures square."""
    upscale: bool = True
    """Whether a picture smaller than its bucket is enlarged; if not, it gets a smaller bucket of its own shape."""
    small: Literal["shrink", "move"] = "shrink"
    """What happens where a bucket has fewer pictures, repeats counted, than a batch. shrink: its batch is smaller;
    move: its pictures go to the nearest shape that has enough, and lose more at their rims. None is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketTable:
    """The buckets of one resolution, and what is needed to choose among them."""

    buckets: tuple[Bucket, ...]  # by aspect, from tall to wide; with each its mirror image, and one square
    step: int
    rules: BucketRules


@dataclass(frozen=True, slots=True, eq=False)
class AssignedBuckets(Sequence[Bucket]):
    """The bucket of each of N pictures, in a few bytes a picture."""

    shapes: tuple[Bucket, ...]  # those in use, each once, in ascending order
    numbers: NDArray[np.int32]  # [N] places in `shapes`

    @classmethod
    def of(cls, pieces: Iterable[NDArray[np.int64]]) -> "AssignedBuckets":
        """The buckets of these widths and heights, [n 2] a piece."""
        found = [_distinct(piece) for piece in pieces]
        codes = np.unique(np.concatenate([codes for codes, _ in found]))
        numbers = [np.searchsorted(codes, own).astype(np.int32)[numbers] for own, numbers in found]
        shapes = tuple(Bucket(code >> 32, code & 0xFFFF_FFFF) for code in codes.tolist())
        return cls(shapes, np.concatenate(numbers))

    @classmethod
    def joined(cls, parts: "Sequence[tuple[NDArray[np.integer], AssignedBuckets]]") -> "AssignedBuckets":
        """One for all, out of parts and the places of their pictures among all; every picture is in one part."""
        shapes = tuple(sorted({shape for _, part in parts for shape in part.shapes}))
        number_of = {shape: number for number, shape in enumerate(shapes)}
        numbers = np.empty(sum(len(part) for _, part in parts), dtype=np.int32)
        for places, part in parts:
            numbers[places] = np.array([number_of[shape] for shape in part.shapes], dtype=np.int32)[part.numbers]
        return cls(shapes, numbers)

    @override
    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Bucket: ...
    @overload
    def __getitem__(self, index: slice) -> "AssignedBuckets": ...
    @override
    def __getitem__(self, index: int | slice) -> "Bucket | AssignedBuckets":
        if isinstance(index, slice):
            return AssignedBuckets(self.shapes, self.numbers[index])
        return self.shapes[self.numbers[index]]

    @override
    def __iter__(self) -> Iterator[Bucket]:
        return map(self.shapes.__getitem__, self.numbers.tolist())


def bucket_table(resolution: int, rules: BucketRules, scale: int) -> BucketTable:
    """All shapes of about `resolution` squared pixels, and never more.

    Args:
        resolution: the side of the square bucket, in pixels; rounded down to a multiple of the step.
        rules: step, longest shape.
        scale: pixels a latent column, by which the step must be divisible.

    Raises:
        RecipeError: the step is no multiple of `scale`, or the resolution is smaller than one step.
    """
    step = rules.step or scale * max(scale, 4)
    if step % scale:
        raise RecipeError(
            f"The bucket step {step} is no multiple of {scale}, the pixels of one latent column.",
            where="data.buckets.step",
            mend=f"Choose {math.ceil(step / scale) * scale}, or leave it out.",
        )
    if resolution < step:
        raise RecipeError(
            f"A resolution of {resolution} pixels is less than one bucket step of {step}.",
            where="data.resolution",
            mend=f"Choose at least {step}, or a smaller data.buckets.step.",
        )
    side = resolution // step * step
    wide = list(_wide(side, step, rules.max_aspect))
    tall = [Bucket(bucket.height, bucket.width) for bucket in reversed(wide)]
    return BucketTable(buckets=(*tall, Bucket(side, side), *wide), step=step, rules=rules)


def assign(size: Size, table: BucketTable) -> Bucket:
    """The bucket of one picture; see `assign_all`, which has the rules."""
    ((width, height),) = _nearest(np.array([size], dtype=np.int64), table).tolist()
    return Bucket(width, height)


def assign_all(
    sizes: Sequence[Size] | NDArray[np.integer],
    showings: NDArray[np.integer],
    table: BucketTable,
    batch: int,
) -> AssignedBuckets:
    """The bucket of every picture: that whose shape is nearest on the scale of log(aspect).

    Portrait and landscape are treated alike, and a picture of a bucket's own size is in that bucket. Where pictures are
    not enlarged, one that is smaller than its bucket gets a bucket of its own size, rounded down to the step and
    cropped to the longest shape. Where small buckets move (`BucketRules.small`), the pictures of a bucket with less
    than `batch` showings go, each by itself, to the nearest shape that has as many. They stay where there is none that
    they fill without being enlarged against the rules, or none of about their bucket's area.

    No picture's bucket depends on the order of the pictures.

    Args:
        sizes: [N] or, as numbers, [N 2] width and height in pixels, all of them positive.
        showings: [N], how often each is seen in one epoch.
        table: the buckets of this resolution.
        batch: how many pictures a batch should hold.
    """
    pictures = np.asarray(sizes).reshape(-1, 2)
    pieces = np.split(pictures, range(_AT_ONCE, len(pictures), _AT_ONCE))
    assigned = AssignedBuckets.of(_nearest(piece.astype(np.int64), table) for piece in pieces)
    if table.rules.small == "move":
        return _moved(assigned, pictures, np.asarray(showings), table.rules, batch)
    return assigned


def _distinct(shapes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The distinct shapes among [n 2], width and height as one number in the order of buckets, and which are which."""
    codes, numbers = np.unique(shapes[:, 0] << 32 | shapes[:, 1], return_inverse=True)
    return codes, numbers.astype(np.int32)


def _nearest(pictures: NDArray[np.int64], table: BucketTable) -> NDArray[np.int64]:
    """Width and height of the bucket of each picture, [n 2] of [n 2]."""
    # Computed for the picture lying down, so that rounding cannot treat the two ways differently.
    long, short = pictures.max(1), pictures.min(1)
    wide = np.array([bucket for bucket in table.buckets if bucket.width >= bucket.height], dtype=np.int64)
    aspects = wide[:, 0] / wide[:, 1]
    # Half-way on the scale of logarithms is the geometric mean, which all processors round alike.
    borders = np.sqrt(aspects[1:] * aspects[:-1])
    lying = wide[np.searchsorted(borders, long / short, side="left")]
    if not table.rules.upscale:
        small = (long < lying[:, 0]) | (short < lying[:, 1])
        lying[small] = _own(long[small], short[small], table)
    return np.where((pictures[:, 0] >= pictures[:, 1])[:, None], lying, lying[:, ::-1])


def _moved(
    assigned: AssignedBuckets,
    pictures: NDArray[np.integer],
    showings: NDArray[np.integer],
    rules: BucketRules,
    batch: int,
) -> AssignedBuckets:
    """The same, with the pictures of buckets of less than `batch` showings in the nearest bucket that has enough."""
    enough = np.bincount(assigned.numbers, weights=showings) >= batch
    lonely = np.flatnonzero(~enough[assigned.numbers])
    numbers = assigned.numbers.copy()
    new: dict[tuple[int, int], int] = {}  # pictures of one size move alike, for the size says where they come from
    for picture in lonely.tolist():
        width, height = (int(side) for side in pictures[picture])
        if (width, height) not in new:
            home = int(assigned.numbers[picture])
            new[width, height] = _nearest_of(assigned.shapes, enough, home, Size(width, height), rules)
        numbers[picture] = new[width, height]
    used, renumbered = np.unique(numbers, return_inverse=True)
    return AssignedBuckets(tuple(assigned.shapes[one] for one in used), renumbered.astype(np.int32))


def _nearest_of(buckets: Sequence[Bucket], enough: NDArray[np.bool_], home: int, size: Size, rules: BucketRules) -> int:
    """Which of the buckets with enough pictures is nearest in shape to a picture of `home`; `home` if none is open."""
    shapes = np.array(buckets, dtype=np.int64)
    is_open = enough & (shapes.prod(1) >= _LEAST_AREA * shapes[home].prod())
    if not rules.upscale:
        is_open &= (shapes <= size).all(1)
    candidates = np.flatnonzero(is_open)
    if not len(candidates):
        return home
    # How many times the one aspect is the other: ordered as logarithms are, and rounded alike by all processors.
    wider, taller = shapes[candidates, 0] * size.height, shapes[candidates, 1] * size.width
    return int(candidates[np.argmin(np.maximum(wider, taller) / np.minimum(wider, taller))])


def _wide(side: int, step: int, max_aspect: float) -> Iterator[Bucket]:
    for width in range(side + step, int(side * max_aspect) + step, step):
        height = side * side // width // step * step
        if height and width <= height * max_aspect and width * height >= _LEAST_AREA * side * side:
            yield Bucket(width, height)


def _own(long: NDArray[np.int64], short: NDArray[np.int64], table: BucketTable) -> NDArray[np.int64]:
    """Buckets of the pictures' own sizes, [n 2] long and short side."""
    step = table.step
    height = np.maximum(short // step * step, step)
    longest = (height * table.rules.max_aspect).astype(np.int64) // step * step
    return np.stack((np.maximum(np.minimum(long // step * step, longest), height), height), axis=1)
