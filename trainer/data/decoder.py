"""One picture -> the pixels and masks of all entries that are made of it.

Needs no torch, so that a process that only decodes starts quickly and stays small.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.core.errors import DataError
from trainer.data.buckets import Bucket
from trainer.data.cropping import Cut, counts_nowhere, fit, fit_mask, place
from trainer.data.decoding import ImageLimits
from trainer.data.example import Example
from trainer.data.opened import OpenSources


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureWork:
    """A picture in its bucket, and the entries that are to be made of it: it is decoded once for all of them."""

    example: Example
    bucket: Bucket
    cuts: tuple[Cut, ...]
    keys: tuple[str, ...]  # one a cut

    @property
    def bytes(self) -> int:
        """About what it holds in memory while it is decoded."""
        width, height = self.example.size
        decoded = 8 * width * height  # Pillow's four bytes a pixel, twice where it is turned upright
        return decoded + len(self.cuts) * 12 * self.bucket.width * self.bucket.height


class Piece(NamedTuple):
    """One cut of a decoded picture."""

    key: str
    where: str  # how messages call the picture
    pixels: NDArray[np.uint8]  # [H W 3]
    mask: NDArray[np.float32] | None  # [1 h w] in 0 .. 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """How pictures are decoded and cut; may be used by several threads at once, and sent to another process."""

    sources: OpenSources
    limits: ImageLimits
    scale: int  # pixels a latent column

    def __call__(self, work: PictureWork) -> list[Piece]:
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
            kept = None if mask is None else fit_mask(mask, bucket, cut, self.scale, example.size)
            if kept is not None and counts_nowhere(kept):
                raise _nothing_left(where, bucket)
            pieces.append(Piece(key, where, pixels, kept))
        return pieces


def _nothing_left(where: str, bucket: Bucket) -> DataError:
    return DataError(
        f"Nothing of this picture's mask is left after cutting it to {bucket.width} x {bucket.height} pixels.",
        where=where,
        mend="Enlarge the mask, or take the picture out; or train without masks, or with data.crops.places=1.",
    )
