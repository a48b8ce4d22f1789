"""What is wrong with a recipe: every mistake at once, each with its place and its cure."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from trainer.core.errors import RecipeError

MOST = 100
"""More mistakes than this are not put into words: such a file is no recipe."""
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing to mend."""

    what: str
    where: str
    mend: str
    line: int = 0  # 0: not in the file

    def __str__(self) -> str:
        """The same form as that of every error of ours."""
        return f"{self.what}\n  where: {self.where}\n  mend:  {self.mend}"


class RecipeMistakesError(RecipeError):
    """A recipe that cannot be read; `mistakes` holds all that is wrong with it."""

    def __init__(self, source: str, mistakes: Iterable[Mistake]) -> None:
        self.source = source
        self.mistakes = tuple(sorted(mistakes, key=lambda mistake: mistake.line))
        if len(self.mistakes) == 1:
            only = self.mistakes[0]
            super().__init__(only.what, where=only.where, mend=only.mend)
            return
        parts = [
            f"{source} has {len(self.mistakes)} mistakes{' or more' if len(self.mistakes) >= MOST else ''}.",
            *map(str, self.mistakes[:_SHOWN]),
        ]
        if len(self.mistakes) > _SHOWN:
            parts.append(f"And {len(self.mistakes) - _SHOWN} more.")
        super().__init__("\n\n".join(parts))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be, or None."""
    by_lower = {name.lower().replace("-", "_"): name for name in known}
    close = get_close_matches(word.lower().replace("-", "_"), by_lower, n=1)
    return by_lower[close[0]] if close else None
