"""Small pictures for the page, with what their bucket shows of them."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from PIL import Image

from trainer.core.errors import DataError
from trainer.core.threads import in_order
from trainer.data.batches import DataSettings
from trainer.data.buckets import Bucket
from trainer.data.cropping import place
from trainer.data.example import Example, Progress, Size
from trainer.data.examples import ExampleTable
from trainer.data.opened import OpenSources

_SIDE: Final = 160  # pixels, the longer one
_QUALITY: Final = 60
_UNMASKED: Final = (214, 40, 96)  # laid over what a mask keeps from being learned


class Box(NamedTuple):
    """A rectangle in a thumbnail, in its pixels."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A small picture, made by us, so that nothing of the file itself gets into the page."""

    size: Size
    content: str  # a data URI
    cuts: tuple[Box, ...]  # what is trained on; empty: all of it


def thumbnails(
    examples: ExampleTable,
    buckets: Sequence[Bucket],
    opened: OpenSources,
    settings: DataSettings,
    progress: Progress | None = None,
) -> Iterator[Thumbnail | None]:
    """The thumbnail of each example, in order; None where the file cannot be read any more.

    Args:
        examples: N pictures.
        buckets: [N] to which they are cut.
        opened: their sources.
        settings: the recipe's `data`: limits, and where pictures are cut.
        progress: told after each picture.
    """

    def work(task: tuple[Example, Bucket]) -> Thumbnail | None:
        try:
            return thumbnail(*task, opened, settings)
        except DataError:  # that it changed is said by the closer look, or by the run itself
            return None

    for done, one in enumerate(in_order(work, zip(examples, buckets, strict=True)), start=1):
        if progress is not None:
            progress("drawing thumbnails", done, len(examples))
        yield one


def thumbnail(example: Example, bucket: Bucket, opened: OpenSources, settings: DataSettings) -> Thumbnail:
    """The thumbnail of one example; what its mask leaves out is laid over with red.

    Raises:
        DataError: it cannot be read any more.
    """
    shrink = min(_SIDE / max(example.size), 1.0)
    size = Size(*(max(round(side * shrink), 1) for side in example.size))
    picture = opened.picture(example, settings.limits, least=size)
    small = picture.image.resize(size, Image.Resampling.HAMMING)
    mask = opened.mask(example, picture, settings.limits)
    if mask is not None:
        covered = Image.blend(small, Image.new("RGB", size, _UNMASKED), 0.6)
        small = Image.composite(small, covered, mask.resize(size, Image.Resampling.BOX))
    file = io.BytesIO()
    small.save(file, "WEBP", quality=_QUALITY)
    return Thumbnail(
        size=size,
        content=f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}",
        cuts=cuts_in(example, bucket, settings, size),
    )


def cuts_in(example: Example, bucket: Bucket, settings: DataSettings, size: Size) -> tuple[Box, ...]:
    """What the bucket shows of an example, on a thumbnail of `size`; nothing where that is all of it."""
    boxes: list[Box] = []
    for cut in settings.cuts_of(example, bucket):
        placed = place(example.size, bucket, cut)
        across, down = size.width / placed.resized.width, size.height / placed.resized.height
        box = Box(placed.left * across, placed.top * down, bucket.width * across, bucket.height * down)
        if not cut.mirrored and (box.width, box.height) != size:
            boxes.append(Box(*(round(side, 1) for side in box)))
    return tuple(boxes)


def as_many_as_fit(places: Sequence[int], made: Iterator[Thumbnail | None], budget: int) -> dict[int, Thumbnail]:
    """The thumbnails by place, until together they have `budget` letters; the others are not made."""
    kept: dict[int, Thumbnail] = {}
    for at, one in zip(places, made, strict=True):
        if one is None:
            continue
        budget -= len(one.content)
        if budget < 0:
            break
        kept[at] = one
    return kept
