"""Aspect-ratio buckets: every picture is trained near its own shape, and none is left out."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import Field, PositiveInt

from trainer.core.errors import RecipeError
from trainer.core.settings import Settings
from trainer.data.example import Size

_LEAST_AREA = 0.7  # of resolution squared; buckets below would waste more detail than they save in cropping


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


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketTable:
    """The buckets of one resolution, and what is needed to choose among them."""

    buckets: tuple[Bucket, ...]  # by aspect, from tall to wide; with each its mirror image, and one square
    step: int
    rules: BucketRules


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
    """The bucket whose shape is nearest on the scale of log(aspect); portrait and landscape are treated alike.

    Where pictures are not enlarged, a picture that is smaller than that bucket gets one of its own size, rounded down
    to the step and cropped to the longest shape.
    """
    # Computed for the picture lying down, so that rounding cannot treat the two ways differently.
    long, short = max(size), min(size)
    wide = [bucket for bucket in table.buckets if bucket.width >= bucket.height]
    aspect = math.log(long / short)
    best = min(wide, key=lambda b: (abs(math.log(b.width / b.height) - aspect), b.width))
    if not table.rules.upscale and (long < best.width or short < best.height):
        best = _own(long, short, table)
    return best if size.width >= size.height else Bucket(best.height, best.width)


def _wide(side: int, step: int, max_aspect: float) -> Iterator[Bucket]:
    for width in range(side + step, int(side * max_aspect) + step, step):
        height = side * side // width // step * step
        if height and width <= height * max_aspect and width * height >= _LEAST_AREA * side * side:
            yield Bucket(width, height)


def _own(long: int, short: int, table: BucketTable) -> Bucket:
    step = table.step
    height = max(short // step * step, step)
    longest = int(height * table.rules.max_aspect) // step * step
    return Bucket(max(min(long // step * step, longest), height), height)
