"""Which candidate is the best, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from trainer.core.seeds import Seeds
from trainer.evaluation.judgement import Measured, gap_closed
from trainer.evaluation.scores import Wide

Sure = Literal["sure", "fairly sure", "not sure"]

_ROUNDS: Final = 400  # of the bootstrap
_WEIGHTS: Final = {"gap": 0.45, "diversity": 0.15, "drift": 0.15, "held_out": 0.25}
_ADHERENCE: Final = 0.2  # beside them, where it is measured
_COPYING: Final = 0.6  # taken away where every sample is a copy
_LEAST: Final = 0.02  # of a loss: less is no difference to speak of
_MOST: Final = 0.1  # of a loss: more is as bad as having learned nothing
_SURE: Final = 0.9  # of the bootstrap
_FAIRLY: Final = 0.65

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The best of several candidates."""

    best: int
    scores: Wide  # [C] of each candidate
    low: Wide  # [C] 5th percentile of the bootstrap
    high: Wide  # [C] 95th percentile
    wins: Wide  # [C] share of the bootstrap in which each is the best

    @property
    def sure(self) -> Sure:
        """In a word."""
        share = float(self.wins[self.best])
        return "sure" if share >= _SURE else "fairly sure" if share >= _FAIRLY else "not sure"


def choose(candidates: Sequence[Measured], base: Measured) -> Choice:
    """The candidate with the highest score, and how often it would be if other prompts and seeds had been drawn.

    The score is a weighted mean of the share of the gap to real pictures that is closed (0 .. 1), of diversity against
    that of the training pictures (0 .. 1), of one minus the drift (0 .. 1), and of the loss on kept-back pictures,
    where there are some: 1 for the lowest of all, 0 for the base model's, or for a tenth above the lowest if that is
    less, down to -1. Copies of training pictures take off up to 0.6.

    Prompts, seeds and kept-back pictures are drawn again with replacement, the same for
    all candidates. Source: Efron 1979, bootstrap methods.

    Args:
        candidates: measured with the same prompts, seeds and pictures.
        base: the model without what was trained.
    """
    rounds = np.stack([_round(candidates, base, _Drawn.of(base, number)) for number in range(_ROUNDS)])
    scores = _round(candidates, base, _Drawn.whole(base))
    wins = np.bincount(rounds.argmax(1), minlength=len(candidates)) / _ROUNDS
    return Choice(
        best=int(scores.argmax()),
        scores=scores,
        low=np.quantile(rounds, 0.05, axis=0),
        high=np.quantile(rounds, 0.95, axis=0),
        wins=wins,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """What a round of the bootstrap looks at."""

    prompts: Places
    cells: Places  # samples
    ordinary: Places
    held_out: Places

    @classmethod
    def whole(cls, base: Measured) -> "_Drawn":
        prompts, held_out = len(base.rows) // base.seeds, 0 if base.held_out is None else len(base.held_out)
        return cls(
            prompts=np.arange(prompts),
            cells=np.arange(len(base.rows)),
            ordinary=np.arange(len(base.drift)),
            held_out=np.arange(held_out),
        )

    @classmethod
    def of(cls, base: Measured, number: int) -> "_Drawn":
        chance = np.random.default_rng(Seeds(0).integer("bootstrap", number))
        whole = cls.whole(base)
        prompts = chance.choice(whole.prompts, len(whole.prompts))
        seeds = chance.choice(base.seeds, base.seeds)
        cells = (prompts[:, None] * base.seeds + seeds[None]).ravel()
        return cls(
            prompts=prompts,
            cells=cells,
            ordinary=_again(whole.ordinary, chance),
            held_out=_again(whole.held_out, chance),
        )


def _again(places: Places, chance: np.random.Generator) -> Places:
    return chance.choice(places, len(places)) if len(places) else places


def _round(candidates: Sequence[Measured], base: Measured, drawn: _Drawn) -> Wide:
    """The score of each candidate, [C]."""
    losses = [_loss(one, drawn) for one in candidates]
    return np.array(
        [
            _score(one, base, drawn, _held_out(loss, losses, _loss(base, drawn)))
            for one, loss in zip(candidates, losses, strict=True)
        ]
    )


def _score(one: Measured, base: Measured, drawn: _Drawn, held_out: float | None) -> float:
    real = one.references
    likeness, before = (float((1 - measured.distance[drawn.cells]).mean()) for measured in (one, base))
    parts = {
        "gap": (_WEIGHTS["gap"], _within(gap_closed(likeness, before, real.likeness))),
        "diversity": (
            _WEIGHTS["diversity"],
            _within(float(one.diversities[drawn.prompts].mean()) / max(real.diversity, 1e-3)),
        ),
    }
    if len(one.drift):
        parts["drift"] = (_WEIGHTS["drift"], 1 - _within(float(one.drift[drawn.ordinary].mean())))
    if held_out is not None:
        parts["held_out"] = (_WEIGHTS["held_out"], held_out)
    if one.adherence is not None and base.adherence is not None:
        # the base follows prompts as well as it can; what is lost of that counts
        followed = float(one.adherence[drawn.cells].mean() / max(base.adherence[drawn.cells].mean(), 1e-3))
        parts["adherence"] = (_ADHERENCE, _within(followed))
    weight = sum(share for share, _ in parts.values())
    mean = sum(share * value for share, value in parts.values()) / weight
    return mean - _COPYING * float(one.copied[drawn.cells].mean())


def _loss(one: Measured, drawn: _Drawn) -> float | None:
    return None if one.held_out is None else float(one.held_out[drawn.held_out].mean())


def _held_out(loss: float | None, losses: Sequence[float | None], before: float | None) -> float | None:
    """1 for the lowest loss; 0 for the base model's, or for a tenth above the lowest if that is less; not below -1."""
    known = [one for one in losses if one is not None]
    if loss is None or before is None or not known:
        return None
    lowest = min(known)
    room = min(max(before - lowest, _LEAST * lowest), _MOST * lowest)
    return max(-1.0, 1 - (loss - lowest) / max(room, 1e-12))


def _within(value: float) -> float:
    return max(0.0, min(1.0, value))
