"""Texts taken apart into new words and what stands between them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a text: a new word, or what an ordinary tokenizer reads."""

    text: str
    start: int  # where it begins in the whole text
    tokens: range | None = None  # of a new word


class Spelling:
    """How new words are written, and the tokens that stand for each."""

    def __init__(self, words: Mapping[str, int], first: int) -> None:
        """Which words, and how many tokens each.

        Args:
            words: word -> number of its tokens; at least one word.
            first: the first token that is not the tokenizer's own; the words get theirs from there, in order.
        """
        self._tokens: list[range] = []
        for count in words.values():
            self._tokens.append(range(first, first + count))
            first += count
        # the longest first, so that <blob-face> is not read as <blob>
        self._order = sorted(range(len(words)), key=lambda place: -len(list(words)[place]))
        names = list(words)
        self._words = re.compile("|".join(f"({self.pattern(names[place])})" for place in self._order), re.IGNORECASE)

    @staticmethod
    def pattern(word: str) -> str:
        """A regular expression for a word that stands by itself: a letter beside one of its letters makes another."""
        before = r"(?<!\w)" if re.match(r"\w", word) else ""
        behind = r"(?!\w)" if re.search(r"\w\Z", word) else ""
        return before + re.escape(word) + behind

    def pieces(self, text: str) -> list[Piece]:
        """The whole text, piece by piece, none of them empty."""
        found: list[Piece] = []
        reached = 0
        for match in self._words.finditer(text):
            if match.start() > reached:
                found.append(Piece(text[reached : match.start()], reached))
            word = self._order[(match.lastindex or 1) - 1]
            found.append(Piece(match.group(), match.start(), self._tokens[word]))
            reached = match.end()
        if reached < len(text):
            found.append(Piece(text[reached:], reached))
        return found
