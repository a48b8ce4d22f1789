"""How much of an epoch each source makes up."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from trainer.data.account import Account
from trainer.data.health.findings import Finding, counted, percent

_FAINT: Final = 0.01  # a source below this share is hardly seen beside the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one source contributes."""

    source: str
    pictures: int
    showings: int  # in one epoch; none of held-out pictures
    share: float  # of all showings, each counted with its weight; 0 .. 1
    regularisation: bool = False
    held_out: bool = False


def shares_of(account: Account) -> list[Share]:
    """The share of each source, in the order of the recipe."""
    table, many = account.accepted, len(account.sources)
    sources = table.numbers("source").astype(np.int64)
    shown = np.where(table.numbers("held_out").astype(np.bool_), 0, table.numbers("repeats").astype(np.int64))
    pictures = np.bincount(sources, minlength=many)
    showings = np.bincount(sources, weights=shown, minlength=many)
    weighed = np.bincount(sources, weights=shown * table.numbers("weight").astype(np.float64), minlength=many)
    whole = float(weighed.sum()) or 1.0
    regular, held = (
        np.bincount(sources, weights=table.numbers(column).astype(np.float64), minlength=many) > 0
        for column in ("regularisation", "held_out")
    )
    return [
        Share(
            source=source,
            pictures=int(pictures[index]),
            showings=int(showings[index]),
            share=float(weighed[index]) / whole,
            regularisation=bool(regular[index]),
            held_out=bool(held[index]),
        )
        for index, source in enumerate(account.sources)
    ]


def share_findings(shares: list[Share]) -> Iterator[Finding]:
    """What the shares tell: how much is regularisation, and which sources are hardly seen."""
    trained = [share for share in shares if share.showings]
    regular = [share for share in trained if share.regularisation]
    if regular and len(regular) < len(trained):
        part = sum(share.share for share in regular)
        yield Finding(
            kind="regularisation-share",
            level="note",
            what=f"Regularisation pictures make up {percent(part)} of what is learned from.",
            mend="Change it with the repeats or the weight of their source.",
        )
    faint = [share for share in trained if share.share < _FAINT and len(trained) > 1]
    if faint:
        yield Finding(
            kind="faint-sources",
            level="note",
            what=f"{counted(len(faint), 'source')} of {len(trained)} make up less than {_FAINT:.0%} of an epoch each.",
            mend="Raise their repeats if they shall be learned.",
            where=tuple(share.source for share in faint),
        )
    if any(share.held_out for share in shares) and not trained:
        yield Finding(
            kind="nothing-to-train-on",
            level="error",
            what="All pictures are held out; none is left to train on.",
            mend="Take held_out from one of the sources.",
        )
