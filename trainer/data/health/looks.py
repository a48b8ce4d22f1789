"""What the pixels tell: blur, pictures of one colour, masks that do nothing or nearly everything."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.data.account import Account
from trainer.data.health.findings import Finding, about, counted
from trainer.data.health.portraits import Portraits

_SOFT: Final = 1.8  # pixels of blur: visible to everybody
_SOFTER: Final = 1.2  # pixels: below this, nobody would mind
_APART: Final = 3.0  # deviations from the set's middle
_LEAST_SPREAD: Final = 0.15  # pixels: so much do crisp pictures differ by their content
_PLAIN: Final = 2.0  # levels of 255
_WHOLE: Final = 0.99  # of what is seen of a picture
_HARDLY: Final = 0.05


def look_findings(account: Account, portraits: Portraits) -> Iterator[Finding]:
    """What a second look at the pixels found."""
    places = list(portraits.faults)
    if places:
        finding = Finding(
            kind="changed-files",
            level="error",
            what=f"{counted(len(places), 'picture')} changed while they were examined: {portraits.faults[places[0]]}",
            mend="Start again, and leave them alone then.",
        )
        yield about(account, places, finding)
    plain = portraits.contrast < _PLAIN
    yield from _plain(account, plain)
    yield from _blur(account, np.where(plain, np.nan, portraits.blur))
    yield from _masks(account, portraits.counts)


def _plain(account: Account, plain: NDArray[np.bool_]) -> Iterator[Finding]:
    if plain.any():
        finding = Finding(
            kind="one-colour",
            level="warning",
            what=f"{counted(int(plain.sum()), 'picture shows', 'pictures show')} nothing but one colour.",
            mend="Remove them, unless that is what shall be learned.",
        )
        yield about(account, np.flatnonzero(plain).tolist(), finding)


def _blur(account: Account, blur: NDArray[np.floating]) -> Iterator[Finding]:
    known = ~np.isnan(blur)
    soft = known & (blur >= _SOFT)
    if soft.any():
        most = " That is most of them, and the model will draw so." if int(soft.sum()) * 2 > len(blur) else ""
        finding = Finding(
            kind="blurred",
            level="warning",
            what=f"{counted(int(soft.sum()), 'picture is', 'pictures are')} blurred even in the sharpest parts, by up "
            f"to {blur[soft].max():.1f} pixels at the size of the bucket.{most}",
            mend="Use sharper ones, or a smaller data.resolution, at which the blur vanishes.",
        )
        yield about(account, _worst(blur, soft), finding)
    middle = float(np.median(blur[known])) if known.any() else 0.0
    spread = float(np.median(np.abs(blur[known] - middle))) * 1.4826 if known.any() else 0.0  # a deviation's worth
    beyond = max(middle + _APART * max(spread, _LEAST_SPREAD), _SOFTER)
    softer = known & ~soft & (blur > beyond)
    if softer.any():
        finding = Finding(
            kind="softer-than-others",
            level="note",
            what=f"{counted(int(softer.sum()), 'picture is', 'pictures are')} softer than the others: "
            f"up to {blur[softer].max():.1f} pixels of blur, where {middle:.1f} is usual here.",
            mend="Look at them; they may have been enlarged before.",
        )
        yield about(account, _worst(blur, softer), finding)


def _masks(account: Account, counts: NDArray[np.floating]) -> Iterator[Finding]:
    masked = np.fromiter((bool(example.mask_key) for example in account.accepted), np.bool_, len(account.accepted))
    for kind, chosen, what, mend in (
        (
            "black-masks",
            masked & (counts == 0),
            "of which the mask leaves nothing in the bucket",
            "Mend the mask, crop the picture to what counts, or remove it: nothing is learned from it.",
        ),
        (
            "dark-masks",
            masked & (counts > 0) & (counts < _HARDLY),
            f"of which the mask leaves less than {_HARDLY:.0%} of the bucket",
            "Crop them closer to what counts; white is learned from, black is not.",
        ),
        (
            "white-masks",
            masked & (counts > _WHOLE),
            "of which the mask leaves everything",
            "It does no harm and no good; white is learned from, black is not.",
        ),
    ):
        if chosen.any():
            finding = Finding(
                kind=kind,
                level="note" if kind == "white-masks" else "warning",
                what=f"{counted(int(chosen.sum()), 'picture')} {what}.",
                mend=mend,
            )
            yield about(account, np.flatnonzero(chosen).tolist(), finding)


def _worst(values: NDArray[np.floating], chosen: NDArray[np.bool_]) -> list[int]:
    places = np.flatnonzero(chosen)
    return places[np.argsort(-values[places], kind="stable")].tolist()
