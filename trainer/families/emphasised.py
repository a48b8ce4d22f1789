"""Prompts whose words count differently, and what their weights do to the states of a text encoder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from torch import Tensor

from trainer.batch import Conditioning
from trainer.families.clip import CHUNK, ChunkStates, ClipWords, join_chunks

_BACK: Final = 20  # tokens: where a chunk is full, a comma so near its end is where the next one begins


@dataclass(frozen=True, slots=True)
class Passage:
    """Words that count equally."""

    text: str
    weight: float = 1.0


Emphasised: TypeAlias = "tuple[tuple[Passage, ...], ...]"
"""A prompt: parts that begin a chunk of their own, each of passages."""

Weighed: TypeAlias = "tuple[int, float]"
"""A token and its weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """A prompt in chunks, ready for a text encoder."""

    tokens: Tensor  # [1 N 77] int64
    weights: Tensor  # [1 N 77]
    as_trained: bool  # in as many chunks as captions are cut into, and in the same way


def lay_out(words: ClipWords, prompt: Emphasised) -> Laid:
    """The tokens of a prompt and their weights: as a caption where it fits into the limit, or else in more chunks."""
    parts = [_tokens_of(words, part) for part in prompt]
    fits = len(parts) == 1 and len(parts[0]) <= words.limit
    chunks = cut_evenly(parts[0], words.limit // CHUNK) if fits else laid_out(parts, words.comma)
    weights = torch.ones(1, len(chunks), CHUNK + 2)
    for place, chunk in enumerate(chunks):
        weights[0, place, 1 : len(chunk) + 1] = torch.tensor([weight for _, weight in chunk])
    tokens = words.marked([[token for token, _ in chunk] for chunk in chunks])
    return Laid(tokens=tokens[None], weights=weights, as_trained=fits)


def _tokens_of(words: ClipWords, passages: Sequence[Passage]) -> list[Weighed]:
    read = words.tokens([passage.text for passage in passages])
    return [(token, passage.weight) for passage, ids in zip(passages, read, strict=True) for token in ids]


def laid_out(parts: Sequence[Sequence[Weighed]], comma: int) -> list[list[Weighed]]:
    """The tokens in chunks of at most 75; each part begins a new one, and chunks rather end behind a comma.

    As A1111 lays out long prompts, so that a tag is not torn apart where two chunks meet.
    """
    return [chunk for part in parts for chunk in _chunks_of(part, comma)]


def cut_evenly(tokens: Sequence[Weighed], chunks: int) -> list[list[Weighed]]:
    """The tokens in so many chunks, each filled before the next one begins, as captions are cut for training."""
    return [list(tokens[start : start + CHUNK]) for start in range(0, chunks * CHUNK, CHUNK)]


def weighed(states: Tensor, weights: Tensor) -> Tensor:
    """States [B N 77 D] multiplied by their token's weight [B N 77], the mean of each chunk as it was before.

    That is how A1111 weighs words. Chunks in which every weight is 1 stay as they are, bit for bit.
    """
    mean = states.mean(dim=(2, 3), keepdim=True)
    louder = states * weights[..., None]
    restored = louder * (mean / louder.mean(dim=(2, 3), keepdim=True))
    touched = (weights != 1).any(dim=2)[..., None, None]
    return restored.where(touched, states)


def join_weighed(states: ChunkStates, read: Sequence[Laid]) -> Conditioning:
    """What a prompt means, its words weighed.

    Args:
        states: of one prompt.
        read: as it was laid out for each encoder.
    """
    louder = [weighed(one, laid.weights.to(one.device)) for one, laid in zip(states.encoders, read, strict=True)]
    joined = [join_chunks(one) if read[0].as_trained else one.flatten(1, 2) for one in louder]
    return Conditioning(tokens=torch.cat(joined, dim=-1), pooled=states.pooled)


def _chunks_of(tokens: Sequence[Weighed], comma: int) -> Iterator[list[Weighed]]:
    chunk: list[Weighed] = []
    last_comma: int | None = None  # its place in the chunk
    for token in tokens:
        if len(chunk) == CHUNK:
            torn = last_comma is not None and token[0] != comma and CHUNK - last_comma <= _BACK
            end = CHUNK if last_comma is None or not torn else last_comma + 1
            yield chunk[:end]
            chunk, last_comma = chunk[end:], None
        if token[0] == comma:
            last_comma = len(chunk)
        chunk.append(token)
    if chunk or not tokens:
        yield chunk
