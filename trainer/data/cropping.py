"""Picture + bucket -> pixels and geometry; one function decides where the crop lies."""

from typing import Final, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.data.buckets import Bucket
from trainer.data.example import Size

CROP_RULE: Final = "centre, lanczos, 1"  # part of every cache key: change it when `place` or `fit` gives other pixels


class Placement(NamedTuple):
    """How a picture is laid under its bucket."""

    resized: Size  # covers the bucket
    top: int  # pixels cut off above, after resizing
    left: int  # pixels cut off on the left, after resizing and mirroring


def place(size: Size, bucket: Bucket, *, mirrored: bool = False) -> Placement:
    """The smallest resizing that covers the bucket, and the centre of it."""
    factor = max(bucket.width / size.width, bucket.height / size.height)
    width = max(round(size.width * factor), bucket.width)
    height = max(round(size.height * factor), bucket.height)
    left = (width - bucket.width) // 2
    if mirrored:
        left = width - bucket.width - left
    return Placement(Size(width, height), (height - bucket.height) // 2, left)


def fit(image: Image.Image, bucket: Bucket, *, mirrored: bool = False) -> tuple[Tensor, Placement]:
    """Pixels [3 H W] in -1 .. 1 of the bucket's size, and where they were cut out of an RGB picture.

    The cut is made in the same pass as the resizing, so that a picture of 1 x 60,000 pixels does not fill the memory.
    """
    size = Size(*image.size)
    plain = place(size, bucket)
    across, down = size.width / plain.resized.width, size.height / plain.resized.height
    box = (
        plain.left * across,
        plain.top * down,
        min((plain.left + bucket.width) * across, size.width),
        min((plain.top + bucket.height) * down, size.height),
    )
    cut = image.resize((bucket.width, bucket.height), Image.Resampling.LANCZOS, box=box)
    if mirrored:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1).float() / 127.5 - 1.0
    return pixels.contiguous(), place(size, bucket, mirrored=mirrored)
