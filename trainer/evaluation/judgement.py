"""What the samples of one candidate, a checkpoint at a strength, say of it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.features import Rows
from trainer.evaluation.scores import Wide, cosines, kid
from trainer.evaluation.still import Losses

SAME: Final = 0.008
"""Two training pictures that are nearer to each other than this are one picture, saved twice."""
COPIED: Final = 0.5
"""A sample copies a picture when it is nearer to it than this part of that picture's distance to its own kind."""


@dataclass(frozen=True, kw_only=True)
class References:
    """The training pictures in feature space; distances are one minus the cosine."""

    rows: Rows  # [N F], N at least 2

    @cached_property
    def distances(self) -> Wide:
        """Between any two, [N N]; infinite from a picture to itself."""
        between = 1 - cosines(self.rows, self.rows)
        np.fill_diagonal(between, np.inf)
        return between

    @cached_property
    def copies(self) -> NDArray[np.int64]:
        """How many training pictures are the same one, itself included, [N]."""
        return 1 + (self.distances < SAME).sum(1)

    @cached_property
    def spacing(self) -> Wide:
        """From each picture to the nearest that is another one, [N]; infinite where all are the same."""
        return np.where(self.distances < SAME, np.inf, self.distances).min(1)

    @property
    def likeness(self) -> float:
        """What a faithful new picture would score: the mean cosine of each to its nearest other."""
        usual = self.spacing[np.isfinite(self.spacing)]
        return float(1 - usual.mean()) if len(usual) else 1.0

    @property
    def diversity(self) -> float:
        """One minus the mean cosine of all pairs."""
        finite = self.distances[np.isfinite(self.distances)]
        return float(finite.mean()) if len(finite) else 0.0

    def groups(self) -> list[list[int]]:
        """Pictures that are the same one, largest group first; each group of two and more once."""
        seen: set[int] = set()
        found: list[list[int]] = []
        for place in np.argsort(-self.copies, kind="stable").tolist():
            if place in seen or self.copies[place] < 2:
                continue
            group = [place, *(int(other) for other in np.flatnonzero(self.distances[place] < SAME))]
            found.append([one for one in group if one not in seen])
            seen.update(group)
        return [group for group in found if len(group) > 1]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All that was measured of one candidate; rows of samples are prompt by prompt, within a prompt seed by seed."""

    rows: Rows  # [P * S F] of samples of prompts that call what was learned
    seeds: int  # S
    references: References
    drift: Wide  # [Q * R] of each picture of an ordinary prompt, from the base model's; 1: as another
    adherence: Wide | None = None  # [P * S]; None: not measured
    held_out: Losses | None = None  # [H BANDS]
    train: Losses | None = None  # [M BANDS]

    @cached_property
    def _nearest(self) -> tuple[NDArray[np.int64], Wide]:
        between = 1 - cosines(self.rows, self.references.rows)
        place = between.argmin(1)
        return place, between[np.arange(len(place)), place]

    @property
    def nearest(self) -> NDArray[np.int64]:
        """The training picture that each sample is most like, [P * S]."""
        return self._nearest[0]

    @property
    def distance(self) -> Wide:
        """To that picture, [P * S]."""
        return self._nearest[1]

    @cached_property
    def copied(self) -> NDArray[np.bool_]:
        """Whether each sample copies it, [P * S]: far nearer to it than it is to any other training picture.

        Source of comparing with the training pictures' own distances: Carlini et al. 2023, arXiv:2301.13188, section 5,
        and Yoon et al. 2023 (Diffusion probabilistic models generalize when they fail to memorize).
        """
        usual = self.references.spacing[self.nearest]
        return self.distance < COPIED * np.where(np.isfinite(usual), usual, 0.0)

    @cached_property
    def diversities(self) -> Wide:
        """Of the samples of each prompt, [P]; of one seed, of all samples, the same for each prompt."""
        width = self.rows.shape[-1]
        sets = self.rows.reshape(-1, self.seeds, width) if self.seeds > 1 else self.rows[None]
        found = [_diversity(rows) for rows in sets]
        return np.array(found if self.seeds > 1 else found * len(self.rows))

    def scores(self, base: "Measured") -> dict[str, float | None]:
        """The numbers by their names, as the file has them."""
        like = float((1 - self.distance).mean())
        few = len(self.rows) < 2
        return {
            "likeness": like,
            "gap_closed": gap_closed(like, float((1 - base.distance).mean()), self.references.likeness),
            "kid": None if few else kid(self.rows, self.references.rows),
            "diversity": float(self.diversities.mean()),
            "adherence": None if self.adherence is None else float(self.adherence.mean()),
            "copied": float(self.copied.mean()),
            "drift": float(self.drift.mean()) if len(self.drift) else None,
        }


def gap_closed(likeness: float, base: float, real: float) -> float:
    """The share of the way from the base model to real pictures, below 0 where it leads away; 0 where there is none."""
    return float((likeness - base) / (real - base)) if real - base > 1e-6 else 0.0


def drift_of(drawn: Rows, base: Rows) -> Wide:
    """How far each picture went from the base model's of the same prompt and seed, [N].

    It is told in parts of what other words and seeds do: the mean distance between the base model's pictures.

    Args:
        drawn: [N F] with the adapter.
        base: [N F] without it.
    """
    if not len(drawn):
        return np.zeros(0)
    moved = 1 - np.diag(cosines(drawn, base))
    return moved / max(_diversity(base), 1e-3)


def deviations(values: Wide) -> Wide:
    """How far each value [N] lies from the median, in robust standard deviations; 0 where all are the same.

    Source: Iglewicz and Hoaglin 1993, on the modified z-score.
    """
    off = values - np.median(values)
    scale = 1.4826 * np.median(np.abs(off))
    return off / scale if scale > 1e-12 else np.zeros_like(values)


def _diversity(rows: Rows) -> float:
    if len(rows) < 2:
        return 0.0
    between = cosines(rows, rows)
    count = len(rows)
    return float(1 - (between.sum() - np.trace(between)) / (count * (count - 1)))
