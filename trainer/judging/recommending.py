"""What to use of a run, why, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.evaluation.choosing import Sure
from trainer.judging.evaluating import Candidate, Evaluation

_RIVALS: Final = 3
_RIVAL: Final = 0.1  # of the bootstrap


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """A checkpoint and a strength."""

    step: int
    strength: float
    file: Path | None  # as other programs load it; None: only its checkpoint is there
    why: Sequence[str]
    sure: Sure
    wins: float
    rivals: Sequence[tuple[int, float, float]]  # step, strength, share of the bootstrap that it wins

    @property
    def sentence(self) -> str:
        """In one line."""
        return (
            f"Use step {self.step} at strength {self.strength:g} ({self.sure}: the best in {self.wins:.0%} of draws)."
        )


def recommend(evaluation: Evaluation) -> Recommendation:
    """The candidate with the highest score, and what speaks for it."""
    choice, best = evaluation.choice, evaluation.best
    others = sorted(
        ((one.step, one.strength, float(share)) for one, share in zip(evaluation.candidates, choice.wins, strict=True)),
        key=lambda rival: -rival[2],
    )
    return Recommendation(
        step=best.step,
        strength=best.strength,
        file=best.file,
        why=_reasons(evaluation, best),
        sure=choice.sure,
        wins=float(choice.wins[choice.best]),
        rivals=[one for one in others if one[:2] != (best.step, best.strength) and one[2] >= _RIVAL][:_RIVALS],
    )


def _reasons(evaluation: Evaluation, best: Candidate) -> list[str]:
    base = evaluation.base
    scores = best.measured.scores(base.measured)
    gone, drift, copied = scores["gap_closed"] or 0.0, scores["drift"], int(best.measured.copied.sum())
    reasons = [
        f"Its samples have gone {gone:.0%} of the way from the base model to the training pictures."
        if gone > 0
        else "Its samples are no more like the training pictures than the base model's."
    ]
    if best.measured.held_out is not None and base.measured.held_out is not None:
        fell = 1 - best.measured.held_out.mean() / base.measured.held_out.mean()
        lowest = min(one.measured.held_out.mean() for one in evaluation.candidates if one.measured.held_out is not None)
        place = "the lowest of all" if best.measured.held_out.mean() <= lowest else "not the lowest of all"
        direction = "below" if fell >= 0 else "above"
        reasons.append(
            f"On pictures that were kept back its loss is {abs(fell):.1%} {direction} the base model's, {place}."
        )
    reasons.append(
        f"{copied} of {len(best.measured.copied)} samples copy a training picture."
        if copied
        else "None of its samples copies a training picture."
    )
    if drift is not None:
        reasons.append(f"Prompts without the trigger move {drift:.0%} as far as another prompt would move them.")
    return reasons
