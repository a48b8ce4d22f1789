"""What the doctor has to say: findings, and the names of the pictures that they are about."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from trainer.data.account import Account

Level = Literal["error", "warning", "note"]

_ORDER: Final[dict[Level, int]] = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing to know: what it is, which files it concerns, and how to mend it."""

    kind: str  # the same for all findings of its sort, such as "near-duplicates"
    level: Level  # error: training would be refused; warning: the result may suffer; note: good to know
    what: str
    mend: str = ""
    where: tuple[str, ...] = ()  # SOURCE/FILE; of copies, one group each
    places: tuple[int, ...] = ()  # of the pictures concerned, in `Account.accepted`
    groups: tuple[tuple[int, ...], ...] = ()  # of copies: the places of each group

    def as_json(self) -> dict[str, Any]:
        """The finding as plain text and lists."""
        return {
            "kind": self.kind,
            "level": self.level,
            "what": self.what,
            "mend": self.mend,
            "where": list(self.where),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the doctor needs to know of the model that the pictures are for."""

    scale: int = 8  # pixels a latent column; 8 in every Stable Diffusion
    token_limit: int = 75  # how many tokens the text encoder reads, without the two end marks
    count_tokens: Callable[[str], int] | None = None  # without it, overflow is not looked for
    lost_words: Callable[[str], str] | None = None  # the end of a caption that the text encoder does not read


def about(account: Account, places: Sequence[int], finding: Finding) -> Finding:
    """The finding with the pictures at these places of `account.accepted`."""
    return replace(finding, where=tuple(names_of(account, places)), places=tuple(places))


def names_of(account: Account, places: Sequence[int]) -> list[str]:
    """SOURCE/FILE of the pictures at these places of `account.accepted`."""
    return [f"{account.sources[example.source]}/{example.name}" for example in account.accepted.take(places)]


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Errors, then warnings, then notes; otherwise in their order."""
    return sorted(findings, key=lambda finding: _ORDER[finding.level])


def counted(number: int, one: str, many: str = "") -> str:
    """`1 picture`, `2 pictures`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def percent(share: float) -> str:
    """`25%`; small shares, which would be 0, with a digit more."""
    return f"{share:.1%}" if 0.0005 <= share < 0.1 else f"{share:.0%}"
