"""Picture + bucket -> pixels, mask and geometry; one function decides where the crop lies."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from trainer.core.settings import Settings
from trainer.data.buckets import Bucket
from trainer.data.example import Size

CROP_RULE: Final = "centre, lanczos, 2"  # part of every cache key: change it when `place` or `fit` gives other pixels
# Pictures of six times the size and more are first made smaller by a whole factor, to three times or more: twice as
# quick at 24 megapixels, and no more than 2 of 255 levels off in all but 0.03 % of pixels.
_GAP: Final = 3.0


class CropRules(Settings):
    """Where pictures are cut to the shape of their bucket."""

    places: int = Field(default=1, ge=1, le=100)
    """At how many places a picture is cut, evenly spread along the side that sticks out of its bucket; a showing gets
    one of them. 1: always at the centre. More show all of a picture over the epochs, at the price of a larger cache."""


class Cut(NamedTuple):
    """One way to cut a picture to its bucket."""

    mirrored: bool = False
    place: float = 0.5  # where along the side that sticks out of the picture as it is: 0 first, 1 last, 0.5 centre


class Placement(NamedTuple):
    """How a picture is laid under its bucket."""

    resized: Size  # covers the bucket
    top: int  # pixels cut off above, after resizing
    left: int  # pixels cut off on the left, after resizing and mirroring


def cuts_of(size: Size, bucket: Bucket, rules: CropRules, flip: bool) -> tuple[Cut, ...]:
    """Every way in which a picture of this size is cut, each other than the rest: first as it is, then mirrored.

    Where fewer places can be told apart than the rules ask for, there are fewer; a picture that fits has one.
    """
    if rules.places == 1 or _covering(size, bucket) == bucket:
        spread = [0.5]
    else:
        spread = [number / (rules.places - 1) for number in range(rules.places)]
    distinct: dict[Placement, float] = {}
    # Nearest to the centre first: where two places are one, it bears the name that other rules would give it too.
    for along in sorted(spread, key=lambda along: abs(along - 0.5)):
        distinct.setdefault(place(size, bucket, Cut(place=along)), along)
    return tuple(
        Cut(mirrored, along)
        for mirrored in ((False, True) if flip else (False,))
        for along in sorted(distinct.values())
    )


def place(size: Size, bucket: Bucket, cut: Cut) -> Placement:
    """The smallest resizing that covers the bucket, and where the bucket lies on it.

    A mirrored cut shows the same part of the picture, so the picture's right rim is counted as its left.

    Args:
        size: the picture's own size, upright, as it lies on disk; all of its variants go by it.
        bucket: what is to be covered.
        cut: which part of it.
    """
    resized = _covering(size, bucket)
    spare = resized.width - bucket.width
    left = int(spare * cut.place)
    top = int((resized.height - bucket.height) * cut.place)
    return Placement(resized, top, spare - left if cut.mirrored else left)


def fit(image: Image.Image, bucket: Bucket, cut: Cut, size: Size | None = None) -> tuple[NDArray[np.uint8], Placement]:
    """Pixels [H W 3] of the bucket's size, and where they were cut out of an RGB picture.

    Args:
        image: the picture, upright; possibly decoded at a reduced scale.
        bucket: the size to cut to.
        cut: which part of it, and whether it is mirrored.
        size: the picture's own size, where `image` is a reduced one of it; the placement speaks of the picture.
    """
    whole = Size(*image.size) if size is None else size
    piece = _cut_out(image, bucket, cut, whole, (bucket, Image.Resampling.LANCZOS))
    return np.array(piece), place(whole, bucket, cut)


def fit_mask(mask: Image.Image, bucket: Bucket, cut: Cut, scale: int, size: Size | None = None) -> NDArray[np.float32]:
    """How much each latent place counts, [1 h w] float32 in 0 .. 1, cut as the picture is: the mean over its pixels.

    All places can be 0, where the masked part was cut away: ask `counts_nowhere` before a loss is asked for.

    Args:
        mask: "L", upright, white where the picture counts.
        bucket: the size to which the picture is cut.
        cut: as for the picture.
        scale: pixels a latent column, by which the bucket is divisible.
        size: the picture's own size, where the mask is smaller or larger than it; the mask is laid over all of it.
    """
    whole = Size(*mask.size) if size is None else size
    grid = Bucket(bucket.width // scale, bucket.height // scale)
    piece = _cut_out(mask, bucket, cut, whole, (grid, Image.Resampling.BOX))
    shares = np.array(piece, dtype=np.float32)[None]
    shares /= 255
    return shares


def counts_nowhere(mask: NDArray[np.float32]) -> bool:
    """Whether a mask [1 h w] leaves nothing to learn; the mean over its area would be 0 / 0."""
    return not bool(mask.any())


def _covering(size: Size, bucket: Bucket) -> Size:
    factor = max(bucket.width / size.width, bucket.height / size.height)
    return Size(max(round(size.width * factor), bucket.width), max(round(size.height * factor), bucket.height))


def _cut_out(
    image: Image.Image, bucket: Bucket, cut: Cut, size: Size, onto: tuple[Bucket, Image.Resampling]
) -> Image.Image:
    """The part of `image`, which is the picture of `size` at any scale, that the cut shows.

    Cut in the same pass as the resizing, so that a picture of 1 x 60,000 pixels does not fill the memory.
    """
    plain = place(size, bucket, cut._replace(mirrored=False))
    across, down = image.width / plain.resized.width, image.height / plain.resized.height
    box = (
        plain.left * across,
        plain.top * down,
        min((plain.left + bucket.width) * across, image.width),
        min((plain.top + bucket.height) * down, image.height),
    )
    shape, filtering = onto
    piece = image.resize(shape, filtering, box=box, reducing_gap=_GAP)
    return piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if cut.mirrored else piece
