"""Words that are added to a model: how they are found in a text, and what they mean to its text encoders."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from trainer.families.clip import ClipWords, unwrapped
from trainer.families.source import Part, WeightsSource
from trainer.families.spelling import Spelling


class WordTable(nn.Module):
    """A text encoder's table of words, and rows of their own for the tokens that come behind its last one.

    The table stays as it is, in its number format; the new rows alone can be trained.

    Source: Gal et al. 2022, arXiv:2208.01618, section 4.2.
    """

    def __init__(self, table: nn.Embedding, rows: Tensor) -> None:
        """The rows [n D] are a float32 parameter on the table's device."""
        super().__init__()
        self.table = table
        self.rows = nn.Parameter(rows.to(table.weight.device, torch.float32))
        self.strength = 1.0
        """1: the rows as they are; less: so much of the way to them from the table's middle, which says nothing."""

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        """The vectors [... D] of tokens [...], int64."""
        first = self.table.num_embeddings
        new = tokens >= first
        known = self.table(tokens.masked_fill(new, 0))
        rows = self.rows
        if self.strength != 1.0:
            rows = torch.lerp(self.table.weight.detach().float().mean(0), rows, self.strength)
        own = functional.embedding((tokens - first).clamp(min=0), rows)
        return torch.where(new.unsqueeze(-1), own.to(known.dtype), known)


@dataclass(frozen=True, slots=True)
class Reader:
    """One text encoder's tokenizer, and how many tokens its table of words has."""

    tokenizer: ClipWords
    size: int


class Vocabulary:
    """The words of a model: those that it came with, and new ones."""

    def __init__(self, readers: Mapping[str, Reader], network: Callable[[str], nn.Module]) -> None:
        """There are no new words yet, and nothing is loaded.

        Args:
            readers: of each text encoder, by its part.
            network: a part -> its network, which comes into memory when it is asked for.
        """
        self._readers = readers
        self._network = network
        self._counts: dict[str, int] = {}

    @property
    def parts(self) -> tuple[str, ...]:
        """The text encoders."""
        return tuple(self._readers)

    def add(self, words: Mapping[str, int]) -> None:
        """From now on each of these words, and no other new one, is read as so many tokens of its own.

        It is found where it stands by itself in a text, in whatever letters.
        """
        self._counts = dict(words)
        self.heed(new_words=True)

    def heed(self, *, new_words: bool) -> None:
        """Whether the new words are read as such, or as any other text: as the model came, that is."""
        for reader in self._readers.values():
            spelling = Spelling(self._counts, reader.size) if new_words and self._counts else None
            reader.tokenizer.spelling = spelling

    def spans(self) -> dict[str, slice]:
        """The rows of each new word, behind the table."""
        ends = list(accumulate(self._counts.values()))
        return {word: slice(end - self._counts[word], end) for word, end in zip(self._counts, ends, strict=True)}

    def place(self, rows: Mapping[str, Tensor]) -> dict[str, WordTable]:
        """Give the new words their meaning.

        Args:
            rows: of each text encoder, [n D], n for all new words together in their order.

        Returns:
            The tables of words that now stand in the text encoders; placing again puts others in their place.
        """
        placed: dict[str, WordTable] = {}
        for part, values in rows.items():
            holder = _holder(self._network(part))
            old = holder.token_embedding
            placed[part] = WordTable(old.table if isinstance(old, WordTable) else old, values)
            holder.token_embedding = placed[part]
        return placed

    def table(self, part: str) -> Tensor:
        """The vectors [V D] of the words that a text encoder came with."""
        table = _holder(self._network(part)).token_embedding
        return (table.table if isinstance(table, WordTable) else table).weight.detach()

    def tokens(self, part: str, text: str) -> Sequence[int]:
        """The tokens that a text is to one text encoder, without end marks, new words among them."""
        return self._readers[part].tokenizer.tokens([text])[0]

    def has(self, word: str, text: str) -> bool:
        """Whether a new word stands in a text."""
        return re.search(Spelling.pattern(word), text, re.IGNORECASE) is not None


def vocabulary_of(
    source: WeightsSource, tokenizers: Mapping[str, ClipWords], network: Callable[[str], nn.Module]
) -> Vocabulary:
    """The words of a model as it lies on disk.

    Args:
        source: the weights; of them the configurations are read.
        tokenizers: of each text encoder, by its part.
        network: a part -> its network.
    """
    sizes = {part: int(source.config(cast("Part", part))["vocab_size"]) for part in tokenizers}
    return Vocabulary({part: Reader(words, sizes[part]) for part, words in tokenizers.items()}, network)


def _holder(network: nn.Module) -> Any:
    """What holds a text encoder's table of words; transformers' classes share no type of their own."""
    bare: Any = unwrapped(network)
    # one class holds the layers itself, the other within, as both did before transformers 5
    return getattr(bare, "text_model", bare).embeddings
