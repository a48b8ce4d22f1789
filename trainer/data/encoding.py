"""Pictures and words -> entries of the cache: decoded ahead, encoded on the device, written behind."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.batch import Encoders
from trainer.data.buckets import Bucket
from trainer.data.decode_ahead import decode_ahead
from trainer.data.decoder import Decoder, PictureWork, Piece
from trainer.data.decoding import ImageLimits
from trainer.data.gathering import Encoded, Gatherer
from trainer.data.opened import OpenSources

_PIXELS_AT_ONCE: Final = 512 * 512  # a 512-pixel picture fills a GPU by itself, and more would cost memory
_MOST_AT_ONCE: Final = 16

Count = Callable[[int], None]
"""Told how many entries have been encoded since it was told last."""


class WordsWork(NamedTuple):
    """A text, and the key of the entry that is to be made of it."""

    key: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How entries are made: the one way for training, `trainer cache`, several processes and a cluster."""

    sources: OpenSources
    limits: ImageLimits
    encoders: Encoders
    dtype: torch.dtype  # of the entries

    @property
    def decoder(self) -> Decoder:
        """How pictures are decoded."""
        return Decoder(sources=self.sources, limits=self.limits, scale=self.encoders.scale)

    def pictures(self, works: Iterable[PictureWork], into: Gatherer, count: Count, *, processes: bool = False) -> None:
        """Encode pictures into the cache; those of one bucket are best given one after the other.

        Batches have one fixed size a bucket, filled up where needed, so that an entry does not depend on what else was
        to be done. An error of any picture ends the work at once.

        Args:
            works: what to encode.
            into: where to.
            count: told how many are done.
            processes: whether pictures are decoded in processes of their own; worth it for hundreds of them.

        Raises:
            DataError: a file was changed or is gone since it was looked at, or nothing of its mask is left.
            NonFiniteError: the autoencoder gave NaN or infinity; names the picture.
        """
        with closing(decode_ahead(self.decoder, works, processes=processes)) as decoded, torch.no_grad():
            # no_grad, not inference_mode: what a network loads in there could never be trained
            for batch in _batches(chain.from_iterable(decoded)):
                into.add(self.encode(batch))
                count(len(batch))

    def words(self, works: Iterable[WordsWork], into: Gatherer, count: Count) -> None:
        """Encode texts into the cache.

        Raises:
            NonFiniteError: the text encoder gave NaN or infinity; names the text.
        """
        with torch.no_grad():
            for batch in _grouped(works):
                texts = [work.text for work in batch]
                words = self.encoders.encode_words(texts + texts[-1:] * (_MOST_AT_ONCE - len(texts)))
                states = {"tokens": words.tokens} | ({} if words.pooled is None else {"pooled": words.pooled})
                named = [(work.key, f"the caption {work.text!r}") for work in batch]
                into.add(_encoded("The text encoder", named, states, self.dtype))
                count(len(batch))

    def encode(self, batch: Sequence[Piece]) -> Encoded:
        """Entries of pieces of one size, at most as many as are encoded at once."""
        pixels = [piece.pixels for piece in batch]
        filled = np.stack(pixels + pixels[-1:] * (_at_once(pixels[0]) - len(pixels)))
        posterior = self.encoders.encode_pictures(as_numbers(filled))
        named = [(piece.key, piece.where) for piece in batch]
        states = {"mean": posterior.mean, "deviation": posterior.deviation}
        encoded = _encoded("The autoencoder", named, states, self.dtype)
        return encoded._replace(
            masks=tuple(None if piece.mask is None else torch.from_numpy(piece.mask) for piece in batch)
        )


def at_once(bucket: Bucket) -> int:
    """How many pictures of a bucket are encoded in one batch: always the same number."""
    return max(1, min(_MOST_AT_ONCE, _PIXELS_AT_ONCE // (bucket.width * bucket.height)))


def words_at_once() -> int:
    """How many texts are encoded in one batch: always the same number."""
    return _MOST_AT_ONCE


def as_numbers(pixels: NDArray[np.uint8]) -> Tensor:
    """Pictures [B 3 H W] in -1 .. 1, float32, of their bytes [B H W 3]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1.0


def _at_once(pixels: NDArray[np.uint8]) -> int:
    height, width, _ = pixels.shape
    return at_once(Bucket(width, height))


def _encoded(
    encoder: str, named: Sequence[tuple[str, str]], states: Mapping[str, Tensor], dtype: torch.dtype
) -> Encoded:
    """The first rows of what an encoder gave, in the cache's number format, still on its device."""
    rows = {name: state[: len(named)].to(dtype) for name, state in states.items()}
    # As it will be stored: what float16 cannot hold is infinite there.
    finite = torch.stack([torch.isfinite(state).flatten(1).all(1) for state in rows.values()]).all(0)
    keys, places = zip(*named, strict=True)
    return Encoded(encoder=encoder, keys=keys, places=places, states=rows, finite=finite)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Successive pieces of one size, as many as are encoded at once."""
    batch: list[Piece] = []
    for piece in pieces:
        if batch and piece.pixels.shape != batch[0].pixels.shape:
            yield batch
            batch = []
        batch.append(piece)
        if len(batch) == _at_once(piece.pixels):
            yield batch
            batch = []
    if batch:
        yield batch


def _grouped(works: Iterable[WordsWork]) -> Iterator[list[WordsWork]]:
    group: list[WordsWork] = []
    for work in works:
        group.append(work)
        if len(group) == _MOST_AT_ONCE:
            yield group
            group = []
    if group:
        yield group
