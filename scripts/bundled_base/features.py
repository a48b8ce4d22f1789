"""What a picture looks like, in numbers that need no downloaded network."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundled_base.latents import Pictures

Numbers = NDArray[np.floating]

_CELL = 8  # pixels
_DIRECTIONS = 9
_NEARLY_WHITE = 0.92
_COLOUR_STEPS = 4
_AT_ONCE = 64


def _edge_directions(pictures: Numbers) -> Numbers:
    """Return histograms of oriented gradients, normalised by cell, [N S/8*S/8*9]."""
    count, size = pictures.shape[:2]
    grey = pictures.mean(-1)
    across, down = np.zeros_like(grey), np.zeros_like(grey)
    across[:, :, 1:-1] = grey[:, :, 2:] - grey[:, :, :-2]
    down[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    strength = np.hypot(across, down)
    direction = ((np.arctan2(down, across) % np.pi) / np.pi * _DIRECTIONS).astype(int) % _DIRECTIONS
    cells = size // _CELL
    bins = [
        (strength * (direction == turn)).reshape(count, cells, _CELL, cells, _CELL).sum((2, 4))
        for turn in range(_DIRECTIONS)
    ]
    histogram = np.stack(bins, -1)
    histogram /= np.sqrt((histogram**2).sum(-1, keepdims=True) + 0.05)
    return histogram.reshape(count, -1)


def _colours(pictures: Numbers) -> Numbers:
    """Return soft colour histograms of what is not white ground, [N 64]."""
    count = len(pictures)
    pixels = pictures.reshape(count, -1, 3)
    weight = (pixels.min(-1) < _NEARLY_WHITE).astype(np.float32)
    weight /= weight.sum(1, keepdims=True) + 1e-6
    centres = (np.arange(_COLOUR_STEPS, dtype=np.float32) + 0.5) / _COLOUR_STEPS
    near = np.maximum(0, 1 - np.abs(pixels[..., None] - centres) * _COLOUR_STEPS)
    near /= near.sum(-1, keepdims=True) + 1e-6
    red, green, blue = near[:, :, 0], near[:, :, 1], near[:, :, 2]
    return np.sqrt(np.einsum("npi,npj,npk,np->nijk", red, green, blue, weight).reshape(count, -1))


def _thumbnails(pictures: Numbers) -> Numbers:
    """Return the pictures at 8 x 8, [N 192]."""
    count, size = pictures.shape[:2]
    step = size // 8
    return pictures.reshape(count, 8, step, 8, step, 3).mean((2, 4)).reshape(count, -1)


_BLOCKS = (_edge_directions, _colours, _thumbnails)


def _blocks(pictures: Pictures) -> list[Numbers]:
    chunks = [
        pictures[start : start + _AT_ONCE].astype(np.float32) / 255 for start in range(0, len(pictures), _AT_ONCE)
    ]
    return [np.concatenate([block(chunk) for chunk in chunks]) for block in _BLOCKS]


@dataclass(frozen=True)
class FeatureScale:
    """Centre and spread of each block on ordinary pictures, so that no block outweighs the others."""

    centres: tuple[Numbers, ...]
    spreads: tuple[float, ...]


def measure_scale(pictures: Pictures) -> FeatureScale:
    """Return the scale of the given ordinary pictures, [N S S 3]."""
    blocks = _blocks(pictures)
    centres = tuple(block.mean(0) for block in blocks)
    spreads = tuple(
        float(np.sqrt(((block - centre) ** 2).sum(1).mean())) for block, centre in zip(blocks, centres, strict=True)
    )
    return FeatureScale(centres, spreads)


def picture_features(pictures: Pictures, scale: FeatureScale) -> Numbers:
    """Return one unit vector per picture; the product of two is their likeness, [N F]."""
    scaled = [
        (block - centre) / spread
        for block, centre, spread in zip(_blocks(pictures), scale.centres, scale.spreads, strict=True)
    ]
    features = np.concatenate(scaled, 1)
    return features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-9)
