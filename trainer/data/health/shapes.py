"""How pictures fit into their buckets: how full these are, what is cut off, what is enlarged."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.data.account import Account
from trainer.data.batches import DataSettings
from trainer.data.buckets import Bucket
from trainer.data.examples import ExampleTable
from trainer.data.health.findings import Finding, about, counted

_MUCH_LOST: Final = 0.2  # of a picture's area
_MUCH_ENLARGED: Final = 2.0  # along each side
_EXTREME: Final = 3.0  # long side by short side
_USUAL_STEP: Final = 64  # pixels between the sides of buckets
_TINY: Final = 0.25  # of the pixels that the resolution asks for


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketCount:
    """How a bucket fills."""

    bucket: Bucket
    pictures: int
    showings: int  # in one epoch: pictures times repeats
    batches: int  # in one epoch
    moved: int = 0  # of the pictures, those whose own bucket was too small
    small: bool = False  # fewer showings than the batch: its batch is made smaller
    lost: float = 0.0  # what is cut off its pictures, in the mean; 0 .. 1 of their area


@dataclass(frozen=True, slots=True)
class Fitting:
    """How each of N accepted pictures lies under its bucket."""

    buckets: list[Bucket]  # those of training pictures after small ones were dealt with
    moved: NDArray[np.bool_]  # [N] it is not in the bucket of its own shape
    lost: NDArray[np.float64]  # [N] part of its area that is cut off, 0 .. 1
    enlarged: NDArray[np.float64]  # [N] factor along each side; below 1 it is made smaller


def fit_all(account: Account, settings: DataSettings, *, scale: int, batch: int) -> Fitting:
    """The buckets of all accepted pictures; held-out pictures move nobody, and are not moved.

    Args:
        account: whose pictures.
        settings: the recipe's `data`.
        scale: pixels a latent column.
        batch: examples at once in one process.
    """
    table = account.accepted
    own = list(settings.buckets_of(table, scale, 1))
    buckets = list(own)
    training = np.flatnonzero(~table.numbers("held_out").astype(np.bool_))
    for place, bucket in zip(training.tolist(), settings.buckets_of(table.take(training), scale, batch), strict=True):
        buckets[place] = bucket
    moved = np.array([mine != now for mine, now in zip(own, buckets, strict=True)], dtype=np.bool_)
    sizes = _sizes(table)
    targets = np.array(buckets, dtype=np.float64).reshape(-1, 2)
    factor = (targets / sizes).max(1, initial=0.0)
    covered = (sizes * factor[:, None]).prod(1)
    return Fitting(buckets, moved, np.maximum(1 - targets.prod(1) / covered, 0.0), factor)


def count_buckets(account: Account, fitting: Fitting, batch: int) -> list[BucketCount]:
    """The buckets in use for training, from tall to wide."""
    table = account.accepted
    training = ~table.numbers("held_out").astype(np.bool_)
    repeats = table.numbers("repeats").astype(np.int64)
    shapes = np.array(fitting.buckets, dtype=np.int64).reshape(-1, 2)
    counts: list[BucketCount] = []
    for width, height in dict.fromkeys(fitting.buckets):
        inside = training & (shapes[:, 0] == width) & (shapes[:, 1] == height)
        if not inside.any():
            continue
        showings = int(repeats[inside].sum())
        counts.append(
            BucketCount(
                bucket=Bucket(width, height),
                pictures=int(inside.sum()),
                showings=showings,
                batches=math.ceil(showings / batch),
                moved=int(fitting.moved[inside].sum()),
                small=showings < batch,
                lost=float(fitting.lost[inside].mean()),
            )
        )
    return sorted(counts, key=lambda count: (count.bucket.width / count.bucket.height, count.bucket.width))


def shape_findings(account: Account, settings: DataSettings, fitting: Fitting) -> Iterator[Finding]:
    """Pictures that are enlarged, lose much to the crop, are extremely long, or have hardly any pixels."""
    sizes = _sizes(account.accepted)
    cropped = fitting.lost > _MUCH_LOST
    yield from _enlarged(account, settings, fitting.enlarged)
    if cropped.any():
        finding = Finding(
            kind="much-cropped",
            level="warning",
            what=f"{counted(int(cropped.sum()), 'picture loses', 'pictures lose')} more than a fifth of the area to "
            f"the crop, up to {fitting.lost.max():.0%}.",
            mend="Crop them yourself to what matters, raise data.buckets.max_aspect, or set data.crops.places=3.",
        )
        yield about(account, _most(fitting.lost, cropped), finding)
    aspects = sizes.max(1) / sizes.min(1) if len(sizes) else np.zeros(0)
    extreme = (aspects > _EXTREME) & ~cropped
    if extreme.any():
        finding = Finding(
            kind="extreme-aspect",
            level="note",
            what=f"{counted(int(extreme.sum()), 'picture is', 'pictures are')} more than {_EXTREME:.0f} times as long "
            "as wide.",
            mend="The model draws such shapes badly; cut them into pieces, or lower data.buckets.max_aspect.",
        )
        yield about(account, _most(aspects, extreme), finding)
    yield from _tiny(account, settings, fitting)


def bucket_findings(counts: list[BucketCount], settings: DataSettings, batch: int) -> Iterator[Finding]:
    """Buckets with fewer showings than the batch, and pictures that left such buckets."""
    lonely = [count for count in counts if count.small]
    if lonely:
        shapes = ", ".join(f"{c.bucket.width}x{c.bucket.height} ({c.showings})" for c in lonely)
        move = ", or data.buckets.small=move" if settings.buckets.small == "shrink" else ""
        yield Finding(
            kind="small-buckets",
            level="note",
            what=f"{counted(len(lonely), 'bucket holds', 'buckets hold')} fewer showings than the batch of {batch}: "
            f"a smaller batch is made of each: {shapes}.",
            mend="Nothing is dropped; a larger data.buckets.step or smaller max_aspect gives fewer, fuller buckets"
            f"{move}.",
        )
    moved = sum(count.moved for count in counts)
    if moved:
        yield Finding(
            kind="moved-pictures",
            level="note",
            what=f"{counted(moved, 'picture')} went from buckets smaller than the batch of {batch} to the nearest "
            "larger ones (data.buckets.small=move).",
            mend="Look at what is cut off them; data.buckets.small=shrink leaves them where they fit.",
        )


def _enlarged(account: Account, settings: DataSettings, factor: NDArray[np.float64]) -> Iterator[Finding]:
    small = factor > 1
    if not small.any():
        return
    much = int((factor >= _MUCH_ENLARGED).sum())
    which = "all" if much == int(small.sum()) else f"{much:,}"
    resolution = max(settings.resolution_of(source) for source in range(len(account.sources)))
    # A bucket is up to half a step longer one way than a picture of its area; 3/4 were enough for all that were tried.
    least = max(64, resolution + (settings.buckets.step or _USUAL_STEP) * 3 // 4)
    more = f", {which} of them to at least twice their size" if much else ""
    finding = Finding(
        kind="enlarged",
        level="warning",
        what=f"{counted(int(small.sum()), 'picture is', 'pictures are')} smaller than the bucket and will be "
        f"enlarged{more}: the model learns the blur.",
        mend="Use larger originals, a smaller data.resolution, or data.buckets.upscale=false; or let a network enlarge "
        f"them into another folder: trainer enlarge FOLDER --with WEIGHTS --out FOLDER --least {least}.",
    )
    yield about(account, _most(factor, small), finding)


def _tiny(account: Account, settings: DataSettings, fitting: Fitting) -> Iterator[Finding]:
    """Of pictures that are not enlarged: those that make buckets far below the resolution."""
    if settings.buckets.upscale:
        return
    resolutions = np.array([settings.resolution_of(source) for source in range(len(account.sources))])
    wanted = resolutions[account.accepted.numbers("source").astype(np.int64)] ** 2
    area = np.array(fitting.buckets, dtype=np.int64).reshape(-1, 2).prod(1)
    tiny = area < _TINY * wanted
    if tiny.any():
        finding = Finding(
            kind="tiny",
            level="warning",
            what=f"{counted(int(tiny.sum()), 'picture has', 'pictures have')} less than a quarter of the pixels "
            "that the resolution asks for.",
            mend="Use larger originals, or leave them out: the model draws badly what it learned at such a size.",
        )
        yield about(account, np.flatnonzero(tiny).tolist(), finding)


def _most(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> list[int]:
    """The chosen places, the largest value first."""
    places = np.flatnonzero(chosen)
    return places[np.argsort(-values[places], kind="stable")].tolist()


def _sizes(table: ExampleTable) -> NDArray[np.float64]:
    return np.stack((table.numbers("width"), table.numbers("height")), axis=1).astype(np.float64)
