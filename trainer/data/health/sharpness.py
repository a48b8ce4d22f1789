"""How blurred a picture is, in pixels."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

_BEFORE: Final = 1.0  # pixels: the deviation of a first blur, which takes grain and the blocks of JPEG away
_AGAIN: Final = 1.5  # pixels: of the second blur
_EDGES: Final = 0.005  # of all pixels: the steepest ones are taken for edges
_FEWEST_EDGES: Final = 160  # of fewer, thin lines that stand close together would decide
_TILES: Final = 8  # across and down
_LOOKED_AT: Final = 6  # tiles: those with the strongest detail
_OUTLIERS: Final = 0.002  # of all pixels: so many may be darker, and brighter, than what is told apart
_WHOLE: Final = 65_536  # pixels: a smaller picture is looked at as a whole
_MOST: Final = 10.0  # pixels: more blur than this is not told apart

Floats = NDArray[np.float32]


def blur_of(grey: Image.Image) -> float:
    """The deviation, in pixels, of the Gaussian blur on the steepest edges: 0.5 is crisp, 2 is visibly soft.

    At an edge that was blurred by s, the gradient falls by R = sqrt((s^2 + a^2) / s^2) when it is blurred again by a;
    so s = a / sqrt(R^2 - 1). In contrast to the variance of the Laplacian, which people often take, this does not
    depend on how much contrast or how much detail there is, and grain does not make a blurred picture look sharp.
    The steepest edges alone count, so that a soft background does no harm.

    Args:
        grey: "L", of the size in which it is to be judged.

    Returns:
        At most 10; NaN where there is no edge at all.

    Source: Zhuo and Sim 2011, "Defocus map estimation from a single image", Pattern Recognition 44, equation 5.
    """
    if min(grey.size) < 8:
        return float("nan")
    # Blurring rounds to whole numbers, so that faint edges are made stronger first.
    stronger = _stretching(grey)
    slopes = [_slopes(tile.point(stronger)) for tile in _detailed(grey)]
    once, twice = (np.concatenate(sides) for sides in zip(*slopes, strict=True))
    count = max(int(twice.size * _EDGES), _FEWEST_EDGES)
    steepest = np.argpartition(twice, -count)[-count:] if count < twice.size else np.arange(twice.size)
    steepest = steepest[twice[steepest] > 0]
    if not len(steepest):
        return float("nan")
    falls = float(np.median(once[steepest] / twice[steepest]))  # R^2
    if falls <= 1:
        return _MOST
    return min(max(_AGAIN**2 / (falls - 1) - _BEFORE**2, 0.0) ** 0.5, _MOST)


def _stretching(grey: Image.Image) -> list[int]:
    """What makes of each of 256 shades of grey so that nearly all of them are used."""
    share = np.cumsum(grey.histogram()) / (grey.width * grey.height)
    darkest, brightest = np.searchsorted(share, (_OUTLIERS, 1 - _OUTLIERS)).tolist()
    stretched = (np.arange(256) - darkest) * (255 / max(brightest - darkest, 1))
    return np.clip(np.rint(stretched), 0, 255).astype(int).tolist()


def _slopes(tile: Image.Image) -> tuple[Floats, Floats]:
    """The squared gradients of a tile after the first blur, and after the second one."""
    both = (_BEFORE, (_BEFORE**2 + _AGAIN**2) ** 0.5)
    once, twice = (_steepness(tile.filter(ImageFilter.GaussianBlur(radius))) for radius in both)
    return once, twice


def _steepness(grey: Image.Image) -> Floats:
    """The squared gradient of each pixel that has neighbours."""
    pixels = np.asarray(grey).astype(np.float32)
    across, down = pixels[1:-1, 2:] - pixels[1:-1, :-2], pixels[2:, 1:-1] - pixels[:-2, 1:-1]
    return np.square(across, out=across).reshape(-1) + np.square(down, out=down).reshape(-1)


def _detailed(grey: Image.Image) -> list[Image.Image]:
    """The tiles of a large picture that hold the strongest detail; blurring all of it would take longer than decoding.

    Each tile has a seam of its neighbours, or the blur would see its rim.
    """
    if grey.width * grey.height <= _WHOLE:
        return [grey]
    half = np.asarray(grey.reduce(2)).astype(np.float32)
    high, wide = half.shape[0] // _TILES, half.shape[1] // _TILES
    if min(high, wide) < _TILES:  # a strip
        return [grey]
    steps = np.diff(half, axis=0)[:, :-1] ** 2 + np.diff(half, axis=1)[:-1] ** 2
    steps = np.pad(steps, ((0, 1), (0, 1)))[: high * _TILES, : wide * _TILES]
    detail = steps.reshape(_TILES, high, _TILES, wide).mean((1, 3))
    tiles: list[Image.Image] = []
    for place in np.argsort(-detail, axis=None, kind="stable")[:_LOOKED_AT].tolist():
        row, column = divmod(place, _TILES)
        box = (column * wide * 2, row * high * 2, (column + 1) * wide * 2, (row + 1) * high * 2)
        tiles.append(grey.crop(box))
    return tiles
