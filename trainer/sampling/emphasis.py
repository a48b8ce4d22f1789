r"""`(word:1.2)`, `((word))`, `[word]` and `BREAK` in a prompt, as people know them from programs that draw."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from trainer.families.emphasised import Emphasised, Passage

_ROUND: Final = 1.1  # what a pair of brackets does to the weight of the words inside
_SIGN: Final = re.compile(
    r"\\(?P<escaped>[()\[\]\\]?)|(?P<bracket>[()\[\]])|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
)
_BREAK: Final = re.compile(r"\s*\bBREAK\b\s*")
_MEANT: Final = re.compile(r"[()\[\]\\]")


def emphasised(prompt: str) -> Emphasised:
    r"""What a prompt says about the weights of its words.

    `(words)` count 1.1 times as much and `[words]` 1.1 times less, `(words:1.3)` 1.3 times as much; brackets nest, and
    one that never closes reaches to the end. `\(` is a bracket as such, and any other backslash goes. `BREAK` begins a
    new chunk of 75 tokens.
    """
    reading = _Reading()
    reached = 0
    for sign in _SIGN.finditer(prompt):
        reading.words(prompt[reached : sign.start()])
        reading.sign(sign)
        reached = sign.end()
    reading.words(prompt[reached:])
    return tuple(tuple(_merged(part)) for part in reading.finished())


def without_weights(prompt: Emphasised) -> str | None:
    """The words of a prompt that weighs nothing and breaks nowhere; None of any other."""
    passages = prompt[0]
    plain = len(prompt) == 1 and len(passages) == 1 and passages[0].weight == 1
    return passages[0].text if plain else None


def as_letters(caption: str) -> str:
    """A prompt that means the caption as it stands: its brackets, backslashes and capitals weigh nothing."""
    return _BREAK.sub(lambda found: found[0].lower(), _MEANT.sub(r"\\\g<0>", caption))


@dataclass(slots=True)
class _Reading:
    """What was read so far: words with their weight, None where a chunk ends, and where open brackets began."""

    found: "list[tuple[str, float] | None]" = field(default_factory=list["tuple[str, float] | None"])
    round: list[int] = field(default_factory=list[int])
    square: list[int] = field(default_factory=list[int])

    def words(self, text: str) -> None:
        """Text between signs."""
        first, *others = _BREAK.split(text)
        self.found.append((first, 1.0))
        for other in others:
            self.found += [None, (other, 1.0)]

    def sign(self, sign: re.Match[str]) -> None:
        """A bracket, the weight before a closing one, or a backslash with what follows it."""
        bracket, weight = sign["bracket"], sign["weight"]
        if bracket == "(":
            self.round.append(len(self.found))
        elif bracket == "[":
            self.square.append(len(self.found))
        elif weight is not None and self.round:
            self._multiply(self.round.pop(), float(weight))
        elif bracket == ")" and self.round:
            self._multiply(self.round.pop(), _ROUND)
        elif bracket == "]" and self.square:
            self._multiply(self.square.pop(), 1 / _ROUND)
        else:
            self.found.append((sign[0] if sign["escaped"] is None else sign["escaped"], 1.0))

    def finished(self) -> "Iterator[list[tuple[str, float]]]":
        """The parts between breaks."""
        for start in self.round:
            self._multiply(start, _ROUND)
        for start in self.square:
            self._multiply(start, 1 / _ROUND)
        part: list[tuple[str, float]] = []
        for piece in self.found:
            if piece is None:
                yield part
                part = []
            else:
                part.append(piece)
        yield part

    def _multiply(self, start: int, weight: float) -> None:
        for place, piece in enumerate(self.found[start:], start):
            if piece is not None:
                self.found[place] = (piece[0], piece[1] * weight)


def _merged(pieces: "list[tuple[str, float]]") -> Iterator[Passage]:
    """Words of one weight are one passage, so that a word is not read in two parts without need."""
    merged: list[tuple[str, float]] = []
    for text, weight in pieces:
        if not text:
            continue
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    for text, weight in merged or [("", 1.0)]:
        yield Passage(text, weight)
