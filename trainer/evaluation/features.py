"""Pictures -> feature vectors, in which like pictures lie near each other."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import override

from trainer.core.settings import Settings

Rows = NDArray[np.float32]
Read = Callable[[Sequence[str]], Rows]
"""Texts -> features [N F], in the space of the pictures."""
Encode = Callable[[Sequence[Image.Image]], Rows]
"""Pictures of any size -> features [N F]."""

ORDINARY = Path(__file__).with_name("ordinary.safetensors")
_SIDE = 64  # pixels
_CELL = 8  # pixels
_ANGLES = 9
_SHADES = 4  # a colour channel


class Features(Settings, ABC):
    """A way to see likeness."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The word for it: builtin, clip, dinov2."""

    @abstractmethod
    def load(self) -> Encode:
        """The function from pictures to features [N F], one row a picture, which depends on that picture alone."""

    def reader(self) -> Read | None:
        """The function from texts to features [N F] in the same space; None: this space holds no texts."""
        return None

    @property
    @abstractmethod
    def title(self) -> str:
        """What a report calls it."""

    @property
    def weights_name(self) -> str | None:
        """The name of the folder that its weights come from, if they do."""
        return None


class BuiltIn(Features):
    """Shapes, colours and composition of small pictures; needs no network and no download.

    Three blocks, each centred and scaled on ordinary pictures (so that a cosine of 0 is the likeness of any two of
    them, and no block drowns another): gradients by direction in 8 x 8 cells, a soft histogram of the colours that are
    not white, and an 8 x 8 thumbnail. Source of the first: Dalal and Triggs 2005, histograms of oriented gradients.
    """

    @property
    @override
    def name(self) -> str:
        return "builtin"

    @property
    @override
    def title(self) -> str:
        return "built-in shapes, colours and composition"

    @override
    def load(self) -> Encode:
        """See `Features.load`."""
        from safetensors.numpy import load_file

        ordinary = load_file(ORDINARY)
        mean, scale = ordinary["mean"], ordinary["scale"]

        def encode(pictures: Sequence[Image.Image]) -> Rows:
            if not pictures:
                return np.zeros((0, len(mean)), np.float32)
            return np.asarray((raw_blocks(pictures) - mean) / scale, np.float32)

        return encode


def raw_blocks(pictures: Sequence[Image.Image]) -> Rows:
    """The three blocks beside each other, [N 832], neither centred nor scaled."""
    pixels = np.stack([_pixels(picture) for picture in pictures])
    blocks: list[Rows] = [_gradients(pixels), _colours(pixels), _thumbnails(pixels)]
    return np.concatenate(blocks, axis=1)


def measure_ordinary(pictures: Sequence[Image.Image]) -> dict[str, Rows]:
    """What `BuiltIn` subtracts and divides by, [832] each, measured on `pictures`.

    Afterwards each block has a mean of 0 over them and a mean squared length of 1.
    """
    raw = raw_blocks(pictures)
    mean = raw.mean(0)
    cells = (_SIDE // _CELL) ** 2
    edges = np.cumsum([cells * _ANGLES, _SHADES**3])
    spreads = [np.sqrt(np.square(block).sum(1).mean()) for block in np.split(raw - mean, edges, axis=1)]
    scale = np.repeat(np.array(spreads, np.float32), [cells * _ANGLES, _SHADES**3, cells * 3])
    return {"mean": mean.astype(np.float32), "scale": scale}


def _pixels(picture: Image.Image) -> Rows:
    """[64 64 3] in 0 .. 1; transparent parts are white."""
    if picture.mode != "RGB":
        opaque = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    small = picture.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return np.asarray(np.asarray(small) / 255, np.float32)


def _gradients(pixels: Rows) -> Rows:
    """How strong the edges of each direction are in each cell, [N 576]; each cell is brought to about unit length."""
    grey = pixels.mean(-1)
    across, down = np.zeros_like(grey), np.zeros_like(grey)
    across[:, :, 1:-1] = grey[:, :, 2:] - grey[:, :, :-2]
    down[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    strength = np.hypot(across, down)
    angle = (np.arctan2(down, across) % np.pi / np.pi * _ANGLES).astype(int) % _ANGLES
    cells = _SIDE // _CELL
    histogram = np.stack(
        [(strength * (angle == place)).reshape(-1, cells, _CELL, cells, _CELL).sum((2, 4)) for place in range(_ANGLES)],
        axis=-1,
    )
    # the constant keeps the faint gradients of an empty cell faint
    lengths = np.sqrt(np.square(histogram).sum(-1, keepdims=True) + 0.05)
    return (histogram / lengths).reshape(len(pixels), -1)


def _colours(pixels: Rows) -> Rows:
    """The root of the share of each colour among those that are not nearly white, [N 64]."""
    flat = pixels.reshape(len(pixels), -1, 3)
    counts = (flat.min(-1) < 0.92).astype(np.float32)
    counts /= counts.sum(1, keepdims=True) + 1e-6
    shades = (np.arange(_SHADES, dtype=np.float32) + 0.5) / _SHADES
    near = np.maximum(0, 1 - np.abs(flat[..., None] - shades) * _SHADES)
    near /= near.sum(-1, keepdims=True)
    red, green, blue = near[:, :, 0], near[:, :, 1], near[:, :, 2]
    shares = np.einsum("npi,npj,npk,np->nijk", red, green, blue, counts, optimize=True)
    return np.sqrt(shares.reshape(len(pixels), -1))


def _thumbnails(pixels: Rows) -> Rows:
    """The mean colour of each cell, [N 192]."""
    cells = _SIDE // _CELL
    return pixels.reshape(-1, cells, _CELL, cells, _CELL, 3).mean((2, 4)).reshape(len(pixels), -1)
