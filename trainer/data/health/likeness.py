"""Which pictures look alike, also when one was saved again, made smaller, brightened, slightly cut, or mirrored."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE: Final = 32  # pixels of the small grey picture
_WAVES: Final = 16  # the lowest frequencies of its cosine transform: those with row + column below this, but the mean
_TINTS: Final = 4  # squares across and down whose colour is compared
_MOST_TINT: Final = 10.0  # of 255: by how much colours may differ in the mean
_FLAT: Final = 1.0  # grey levels: what varies less has no face to be known by
_LIKE: Final = (0.8, 0.95)  # how like two pictures must be, at least and at most
_ABOVE_CHANCE: Final = 0.4  # by how much copies must be more alike than pictures of the same set are by chance
_DRAWN: Final = 50_000  # pairs that say how alike pictures are by chance
_FEW: Final = 6_000  # pictures of which every pair is looked at
_ROWS: Final = 1_024  # pictures compared with all others at once
_TABLES: Final = 48  # more of them miss fewer pairs
_BITS: Final = 48  # signs, beside the 16 that are its cell, by which a picture is looked at in each table
_NEIGHBOURS: Final = 16  # in each table
_PAIRS: Final = 65_536  # pairs looked at together

Pairs = NDArray[np.int64]
"""[P 2] places of pictures, the smaller one first."""


def _cosines() -> NDArray[np.float32]:
    places = np.arange(_SIDE)
    waves = np.cos(np.pi * (2 * places[None] + 1) * places[:, None] / (2 * _SIDE))
    return waves[:_WAVES].astype(np.float32)


_COSINES: Final = _cosines()
_PLACES: Final = np.argwhere(np.add.outer(np.arange(_WAVES), np.arange(_WAVES)) < _WAVES)[1:]  # without the mean
_ROW, _COLUMN = _PLACES.T
_LOUDNESS: Final = np.hypot(_ROW, _COLUMN).astype(np.float32)
TURNED: Final = np.where(_COLUMN % 2, -1, 1).astype(np.int8)  # mirroring turns the sign of waves that are odd across
WAVES: Final = len(_ROW)
TINTS: Final = _TINTS * _TINTS * 2


def face_of(grey: Image.Image) -> NDArray[np.int8]:
    """[WAVES] what a picture is known by: low frequencies of its cosine transform, each as loud as the others.

    In pictures, loudness falls with frequency; without the correction, the coarsest light and shade would decide, and
    all portraits would be alike. All zeros: the picture is of one shade.
    """
    small = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BOX)).astype(np.float32)
    if small.std() < _FLAT:
        return np.zeros(WAVES, np.int8)
    loud = (_COSINES @ small @ _COSINES.T)[_ROW, _COLUMN] * _LOUDNESS
    return np.rint(loud * (127 / max(float(np.abs(loud).max()), 1e-6))).astype(np.int8)


def tint_of(image: Image.Image) -> NDArray[np.uint8]:
    """[TINTS] the colour, without the brightness, of 4 x 4 squares of an RGB picture."""
    small = image.resize((_TINTS, _TINTS), Image.Resampling.BOX).convert("YCbCr")
    return np.asarray(small)[:, :, 1:].reshape(-1)


class Proposal(NamedTuple):
    """Pairs that may be alike, one of each mirrored or not."""

    pairs: Pairs
    mirrored: bool


@dataclass(frozen=True, slots=True)
class Alike:
    """Pairs of pictures that look alike."""

    near: Pairs  # as they are
    mirrored: Pairs  # when one of them is mirrored, and not as they are


def alike(faces: NDArray[np.int8], tints: NDArray[np.uint8], *, few: int = _FEW) -> Alike:
    """All pairs of N pictures that look alike, by the cosine between their faces, where their colours agree too.

    Up to `few` pictures, every pair is looked at. Of more, pairs are proposed by hashing with random planes: two
    pictures fall into one cell of a table the likelier, the smaller the angle between them; with these tables hardly a
    pair that is alike by 0.95 is missed, and one by 0.85 in ten. Time and memory then grow with N, not with its square.

    Args:
        faces: [N WAVES] of `face_of`.
        tints: [N TINTS] of `tint_of`.
        few: see above.

    Source: Charikar 2002, "Similarity estimation techniques from rounding algorithms", STOC, section 3; the cells are
    read in sorted order with a window, after Hernandez and Stolfo 1995, "The merge/purge problem", SIGMOD.
    """
    known = np.flatnonzero(faces.any(1))
    some = _Set(faces[known], tints[known])
    least = _threshold(some)
    proposed = _every_pair(some, least) if len(known) <= few else _likely_pairs(some, least)
    straight, mirrored = _settled(proposed, some, least)
    return Alike(known[straight], known[mirrored])


class _Set:
    """Pictures that are compared; kept in bytes, since there may be millions."""

    def __init__(self, faces: NDArray[np.int8], tints: NDArray[np.uint8]) -> None:
        self.faces, self.tints = faces, tints
        self.lengths = np.array([np.linalg.norm(face.astype(np.float32)) for face in faces], np.float32)
        rows = np.arange(TINTS).reshape(_TINTS, _TINTS, 2)
        self._flipped = rows[:, ::-1].reshape(-1)

    def __len__(self) -> int:
        return len(self.faces)

    def unit(self, start: int, stop: int) -> NDArray[np.float32]:
        """Faces of length 1."""
        return self.faces[start:stop].astype(np.float32) / self.lengths[start:stop, None]

    def likeness(self, pairs: Pairs, *, mirrored: bool) -> NDArray[np.float32]:
        """[P] cosines between the faces of each pair, the second one mirrored or not."""
        one, two = (self.faces[places].astype(np.float32) for places in pairs.T)
        if mirrored:
            two *= TURNED
        return np.einsum("pw,pw->p", one, two) / (self.lengths[pairs[:, 0]] * self.lengths[pairs[:, 1]])

    def tinge(self, pairs: Pairs, *, mirrored: bool) -> NDArray[np.float64]:
        """[P] by how much the colours of each pair differ, 0 .. 255."""
        one, two = (self.tints[places].astype(np.int16) for places in pairs.T)
        return np.abs(one - (two[:, self._flipped] if mirrored else two)).mean(1)


def _threshold(some: _Set) -> float:
    """How alike copies must be: more than the set's pictures are by chance, as all faces on white are alike."""
    if len(some) < 2:
        return _LIKE[1]
    drawn = np.random.default_rng(0).integers(0, len(some), (_DRAWN, 2))
    chance = some.likeness(drawn[drawn[:, 0] != drawn[:, 1]], mirrored=False)
    return float(np.clip(np.quantile(chance, 0.99) + _ABOVE_CHANCE, *_LIKE))


def _every_pair(some: _Set, least: float) -> Iterator[Proposal]:
    for start in range(0, len(some), _ROWS):
        block = some.unit(start, start + _ROWS)
        for other in range(start, len(some), _ROWS):
            others = some.unit(other, other + _ROWS).T
            for mirrored, face in ((False, block), (True, block * TURNED)):
                pairs = np.stack(np.nonzero(face @ others > least), 1) + np.array((start, other))
                yield Proposal(pairs[pairs[:, 0] < pairs[:, 1]], mirrored)


def _likely_pairs(some: _Set, least: float) -> Iterator[Proposal]:
    """Pairs that fall into one cell of a table, or stand close in it where a cell is crowded."""
    planes = np.random.default_rng(0).standard_normal((WAVES, _TABLES * 16)).astype(np.float32)
    # Row n + i is picture i mirrored.
    signs = np.concatenate([_signs(some, normals) for normals in (planes, planes * TURNED[:, None])])
    apart = np.arccos(least) / np.pi  # how likely a plane parts two pictures that are just like enough
    most = _BITS * apart + 3 * (_BITS * apart * (1 - apart)) ** 0.5
    for table in range(_TABLES):
        ring = np.take(signs, range(2 * table, 2 * table + 8), axis=1, mode="wrap")
        keys = np.ascontiguousarray(ring).view(">u8")[:, 0].astype(np.uint64)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for away in range(1, _NEIGHBOURS + 1):
            differ = keys[away:] ^ keys[:-away]  # the first 16 signs are the cell
            close = np.flatnonzero((differ >> np.uint64(_BITS) == 0) & (bits_set(differ) <= most))
            yield from _proposals(order[close], order[close + away], len(some))


def _proposals(ones: NDArray[np.int64], twos: NDArray[np.int64], count: int) -> Iterator[Proposal]:
    """Rows of pictures and mirrored pictures as pairs of pictures; two mirrored ones are as like as the two are."""
    for mirrored in (False, True):
        wanted = ((ones >= count) != (twos >= count)) == mirrored
        pairs = np.sort(np.stack((ones[wanted], twos[wanted]), 1) % count, axis=1)
        yield Proposal(pairs[pairs[:, 0] != pairs[:, 1]], mirrored)


def bits_set(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """How many bits of each number are set; NumPy has it only from 2.0 on."""
    pairs, fours, bytes_ = (np.uint64(int(digit * 8, 16)) for digit in ("55", "33", "0f"))
    numbers = numbers - ((numbers >> np.uint64(1)) & pairs)
    numbers = (numbers & fours) + ((numbers >> np.uint64(2)) & fours)
    numbers = (numbers + (numbers >> np.uint64(4))) & bytes_
    return (numbers * np.uint64(0x0101_0101_0101_0101)) >> np.uint64(56)


def _signs(some: _Set, planes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[N tables * 2] on which side of each plane a face lies, eight to a byte."""
    starts = range(0, len(some), _ROWS)
    return np.concatenate([np.packbits(some.unit(start, start + _ROWS) @ planes > 0, axis=1) for start in starts])


def _settled(proposed: Iterator[Proposal], some: _Set, least: float) -> tuple[Pairs, Pairs]:
    """The proposed pairs that are alike: as they are, and mirrored; each once, in order."""
    found: dict[bool, list[Pairs]] = {False: [], True: []}
    for pairs, mirrored in proposed:
        for start in range(0, len(pairs), _PAIRS):
            some_pairs = pairs[start : start + _PAIRS]
            near = some_pairs[some.likeness(some_pairs, mirrored=mirrored) > least]
            found[mirrored].append(near[some.tinge(near, mirrored=mirrored) <= _MOST_TINT])
    straight, turned = (_distinct(found[mirrored], len(some)) for mirrored in (False, True))
    return straight, turned[~np.isin(_code(turned, len(some)), _code(straight, len(some)))]


def _distinct(chunks: list[Pairs], count: int) -> Pairs:
    codes = np.unique(np.concatenate([_code(chunk, count) for chunk in chunks])) if chunks else np.zeros(0, np.int64)
    return np.stack(np.divmod(codes, max(count, 1)), 1)


def _code(pairs: Pairs, count: int) -> NDArray[np.int64]:
    return pairs[:, 0] * count + pairs[:, 1]
