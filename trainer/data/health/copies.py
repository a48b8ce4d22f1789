"""Pictures that are there more than once: byte for byte, nearly, or mirrored; worst where some are held out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from trainer.data.account import Account
from trainer.data.example import Example
from trainer.data.health.findings import Finding, Level, counted, names_of
from trainer.data.health.likeness import alike
from trainer.data.health.portraits import Portraits

Sort = Literal["exact", "near", "mirrored"]

_HOW: Final[dict[Sort, str]] = {"exact": "the same byte for byte", "near": "nearly the same", "mirrored": "mirrored"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """Pictures that are the same."""

    sort: Sort
    places: tuple[int, ...]  # in `Account.accepted`, at least two

    def as_json(self, account: Account) -> dict[str, Any]:
        """The sort, and the names."""
        return {"sort": self.sort, "pictures": names_of(account, self.places)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meaning:
    """What it means that some pictures are the same."""

    kind: str
    applies: Callable[[Copies, Sequence[Example]], bool]
    what: str
    mend: str


def copies_of(account: Account, portraits: Portraits | None) -> list[Copies]:
    """All groups of equal pictures: exact ones, and with portraits near and mirrored ones too."""
    # 64 bits of each digest: two different ones of a million pictures agree in one case of thirty million.
    keys = np.fromiter((int(example.key[:16], 16) for example in account.accepted), np.uint64, len(account.accepted))
    _, firsts, which = np.unique(keys, return_index=True, return_inverse=True)
    same = _members(which.reshape(-1), len(firsts))
    exact = [Copies(sort="exact", places=tuple(group)) for group in same if len(group) > 1]
    if portraits is None:
        return _ordered(exact)
    pairs = alike(portraits.faces[firsts], portraits.tints[firsts])
    return [
        *_ordered(exact),
        *_ordered(_grouped("near", pairs.near, same)),
        *_ordered(_grouped("mirrored", pairs.mirrored, same)),
    ]


def among(copies: Sequence[Copies], account: Account, counts: Callable[[Example], bool]) -> list[Copies]:
    """The groups without the pictures that do not count, as far as two or more are left of them."""
    examples = _examples(account, copies)
    left = [
        replace(group, places=tuple(place for place in group.places if counts(examples[place]))) for group in copies
    ]
    return [group for group in left if len(group.places) > 1]


def copy_findings(account: Account, copies: list[Copies], *, flip: bool) -> Iterator[Finding]:
    """What the copies mean: known answers, contradictions, and pictures that count more than the others.

    Args:
        account: of which pictures.
        copies: its groups; each is told once, as the worst that it is.
        flip: whether pictures are also shown mirrored.
    """
    examples = _examples(account, copies)
    by_meaning: dict[str, list[Copies]] = {meaning.kind: [] for meaning in _MEANINGS}
    for group in copies:
        some = [examples[place] for place in group.places]
        first = next(meaning for meaning in _MEANINGS if meaning.applies(group, some))
        by_meaning[first.kind].append(group)
    for meaning in _MEANINGS:
        groups = by_meaning[meaning.kind]
        if groups:
            level = "note" if meaning.kind == "mirrored-copies" and not flip else "warning"
            yield _told(account, groups, meaning, level)


def _told(account: Account, groups: Sequence[Copies], meaning: _Meaning, level: Level) -> Finding:
    """One finding for all groups; each group is one line of it."""
    how = ", or ".join(words for sort, words in _HOW.items() if any(group.sort == sort for group in groups))
    files = sum(len(group.places) for group in groups)
    return Finding(
        kind=meaning.kind,
        level=level,
        what=f"{counted(len(groups), 'picture is', 'pictures are')} there {meaning.what} ({files:,} files, {how}).",
        mend=meaning.mend,
        where=tuple(" = ".join(names_of(account, group.places)) for group in groups),
        places=tuple(place for group in groups for place in group.places),
        groups=tuple(group.places for group in groups),
    )


def _examples(account: Account, copies: Iterable[Copies]) -> dict[int, Example]:
    """The examples that are copies, by place."""
    places = sorted({place for group in copies for place in group.places})
    return dict(zip(places, account.accepted.take(places), strict=True))


def _differ(of: Callable[[Example], object]) -> Callable[[Copies, Sequence[Example]], bool]:
    return lambda group, examples: len({of(example) for example in examples}) > 1


def _grouped(sort: Sort, pairs: NDArray[np.int64], same: list[list[int]]) -> list[Copies]:
    """Groups of pictures that hang together by pairs; of byte-identical pictures, which are one in `pairs`, all."""
    leader: dict[int, int] = {}

    def lead(one: int) -> int:
        while leader.setdefault(one, one) != one:
            leader[one] = leader[leader[one]]
            one = leader[one]
        return one

    for one, other in pairs.tolist():
        first, second = sorted((lead(one), lead(other)))
        leader[second] = first
    groups: dict[int, list[int]] = {}
    for one in sorted(leader):
        groups.setdefault(lead(one), []).extend(same[one])
    return [Copies(sort=sort, places=tuple(sorted(places))) for places in groups.values()]


def _members(which: NDArray[np.intp], count: int) -> list[list[int]]:
    """The places of each of `count` groups, given the group [N] of each place."""
    members: list[list[int]] = [[] for _ in range(count)]
    for place, group in enumerate(which.tolist()):
        members[group].append(place)
    return members


def _ordered(groups: list[Copies]) -> list[Copies]:
    return sorted(groups, key=lambda group: group.places)


_MEANINGS: Final = (  # the worst first
    _Meaning(
        kind="held-out-copies",
        applies=_differ(lambda example: example.held_out),
        what="to train on and held out as well, so that the held-out loss looks better than it is",
        mend="Remove one of each; pictures of one scene, or frames of one film, belong on one side.",
    ),
    _Meaning(
        kind="regularisation-copies",
        applies=_differ(lambda example: example.regularisation),
        what="to learn and as regularisation as well",
        mend="Take them out of the regularisation pictures, which shall show what is not to be changed.",
    ),
    _Meaning(
        kind="contradictory-copies",
        applies=lambda group, examples: group.sort == "exact" and len({one.captions for one in examples}) > 1,
        what="more than once, with different captions",
        mend="Keep one file, and write the captions into one caption file, a line each: they take turns.",
    ),
    _Meaning(
        kind="exact-copies",
        applies=lambda group, examples: group.sort == "exact",
        what="more than once",
        mend="Keep one of each, or say what you want by repeats.",
    ),
    _Meaning(
        kind="near-copies",
        applies=lambda group, examples: group.sort == "near",
        what="more than once",
        mend="Keep the best of each, unless the differences matter: what is there twice is learned twice as much.",
    ),
    _Meaning(
        kind="mirrored-copies",
        applies=lambda group, examples: group.sort == "mirrored",
        what="more than once",
        mend="Remove the mirrored ones; data.flip=true shows each picture both ways.",
    ),
)
