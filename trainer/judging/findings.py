"""What is wrong with a run, in sentences, out of what was measured of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from trainer.evaluation.scores import Wide
from trainer.judging.evaluating import Candidate, Evaluation
from trainer.judging.remarks import Remarks

Kind = Literal[
    "over-trained", "under-trained", "memorised", "copies", "bad-captions", "never-learned", "learned-at-once", "drift",
    "monotonous", "not-measured",
]  # fmt: skip
Level = Literal["warning", "note"]

RISEN: Final = 0.01
"""Of the loss on kept-back pictures: a rise above its lowest that counts, if it is no chance."""
SURELY: Final = 2.0
"""Standard errors that a difference must be away from none."""
COPYING: Final = 0.2
"""The share of samples that copy a training picture, from which on a run has learned pictures by heart."""
LEARNED: Final = 0.4
"""The share of the way to the training pictures that a run should have gone."""
LOST: Final = 0.5
"""Of the training pictures' diversity: with less than this left, pictures of one prompt are all alike."""
DRIFTED: Final = 0.5
"""Of what another prompt does: with more than this, prompts without the trigger show something else."""
_MANY: Final = 0.05  # the share of pictures with words that seem wrong; one or two look so in sound sets
_NAMED: Final = 12  # pictures that a finding names in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, or that is worth knowing."""

    kind: Kind
    level: Level
    what: str
    mend: str = ""
    keys: Sequence[str] = ()  # of the training pictures that it is about


def findings_of(evaluation: Evaluation, remarks: Remarks) -> list[Finding]:
    """All findings of a run, the gravest first."""
    over = list(_over_trained(evaluation))
    found = [
        *over,
        *(() if over else _under_trained(evaluation)),
        *_memorised(evaluation),
        *_captions(remarks),
        *_copies(evaluation, remarks),
        *_remarkable(remarks),
        *_drift(evaluation),
        *_monotonous(evaluation),
        *_not_measured(evaluation),
    ]
    return sorted(found, key=lambda finding: finding.level != "warning")


def rise(evaluation: Evaluation) -> tuple[Candidate, float, float] | None:
    """How far the loss on kept-back pictures has risen since it was lowest.

    Returns:
        The candidate where it was lowest (the base too may be it), the rise as a share, and how many standard errors
        that is; None where it was not measured.
    """
    full = evaluation.full
    last = full[-1].measured.held_out
    if last is None or len(last) < 2:
        return None
    known = [one for one in (evaluation.base, *full) if one.measured.held_out is not None]
    lowest = min(known, key=lambda one: _mean(one.measured.held_out))
    before = lowest.measured.held_out
    off = (last - before).mean(1) if before is not None else np.zeros(1)
    error = off.std(ddof=1) / np.sqrt(len(off))
    return lowest, float(off.mean() / _mean(before)), float(off.mean() / error) if error > 0 else 0.0


def _over_trained(evaluation: Evaluation) -> Iterator[Finding]:
    risen, last = rise(evaluation), evaluation.full[-1]
    copied = float(last.measured.copied.mean())
    reasons: list[str] = []
    if risen is not None and risen[1] > RISEN and risen[2] > SURELY:
        lowest, share, errors = risen
        since = f"since step {lowest.step}" if lowest.step else "since the first step that was measured"
        fell = 1 - _mean(last.measured.train) / _mean(lowest.measured.train)
        reasons.append(
            f"{since} the loss on pictures that were kept back has risen by {share:.1%} ({errors:.1f} standard "
            f"errors), and that on training pictures has fallen by {fell:.1%}"
        )
    if copied >= COPYING:
        count, total = int(last.measured.copied.sum()), len(last.measured.copied)
        reasons.append(f"{count} of {total} samples of step {last.step} are copies of training pictures")
    if reasons:
        yield Finding(
            kind="over-trained",
            level="warning",
            what=f"Over-trained: {'; '.join(reasons)}.",
            mend="Use the recommended checkpoint or strength; or train fewer steps, at a lower rate, on more pictures.",
        )


def _under_trained(evaluation: Evaluation) -> Iterator[Finding]:
    last, base = evaluation.full[-1], evaluation.base
    gone = last.measured.scores(base.measured)["gap_closed"]
    falling = _is_falling(evaluation)
    if gone is not None and gone < LEARNED and falling:
        learned = 1 - _mean(last.measured.train) / _mean(base.measured.train)
        yield Finding(
            kind="under-trained",
            level="warning",
            what=f"Under-trained: after {last.step} steps the samples have gone {max(gone, 0):.0%} of the way from the "
            f"base model to the training pictures, the loss on training pictures has fallen by {learned:.1%}, and it "
            "was still falling.",
            mend="Train more steps (a finished run goes on with more steps and --resume), or raise optimizer.rate.",
        )


def _is_falling(evaluation: Evaluation) -> bool:
    """Whether the last step measured has the lowest loss on training pictures."""
    losses = [_mean(one.measured.train) for one in (evaluation.base, *evaluation.full)]
    return losses[-1] <= min(losses)


def _memorised(evaluation: Evaluation) -> Iterator[Finding]:
    measured = evaluation.full[-1].measured
    count = int(measured.copied.sum())
    if not count:
        return
    training = list(evaluation.pictures.training)
    copied = {training[place].key: training[place].name for place in measured.nearest[measured.copied].tolist()}
    yield Finding(
        kind="memorised",
        level="warning" if count >= COPYING * len(measured.copied) else "note",
        what=f"{count} of {len(measured.copied)} samples of the last step are nearer to a training picture than that "
        f"picture is to any other: {_listed(list(copied.values()))}.",
        mend="Look at them side by side; where they are copies, use an earlier checkpoint or less strength.",
        keys=list(copied),
    )


def _captions(remarks: Remarks) -> Iterator[Finding]:
    places = remarks.bad_captions
    if places:
        lines = [f"{remarks.names[place]} ({remarks.captions[place]!r})" for place in places]
        many = len(places) >= _MANY * len(remarks.names)
        yield Finding(
            kind="bad-captions",
            level="warning" if many else "note",
            what=f"The words of {len(places)} of {len(remarks.names)} pictures seem wrong: they fit other pictures "
            "badly and their own no better than others' words do, at equal timesteps and noise, and share no word with "
            f"most captions: {_listed(lines)}.",
            mend="Look at them, correct the captions that are wrong, and train again.",
            keys=[remarks.keys[place] for place in places],
        )


def _copies(evaluation: Evaluation, remarks: Remarks) -> Iterator[Finding]:
    training = list(evaluation.pictures.training)
    names = [one.name for one in training]
    for group in evaluation.base.measured.references.groups():
        quicker = remarks.quicker({training[one].key for one in group})
        told = "" if quicker is None else f" Its loss fell {quicker:.1f} times as much as is usual in this set."
        yield Finding(
            kind="copies",
            level="warning" if len(group) > 2 else "note",
            what=f"{len(group)} training pictures are one picture: {_listed([names[one] for one in group])}. It is "
            f"learned {len(group)} times as often as others, and samples become like it.{told}",
            mend="Keep one of them; `repeats` of a source says it where a picture shall count more.",
            keys=[training[one].key for one in group],
        )


def _remarkable(remarks: Remarks) -> Iterator[Finding]:
    if remarks.never_learned:
        yield Finding(
            kind="never-learned",
            level="note",
            what="The loss of these pictures fell far less than is usual in this set: "
            f"{_listed([remarks.names[place] for place in remarks.never_learned])}.",
            mend="They may be of something else, blurred, or have words that do not fit; look at them.",
            keys=[remarks.keys[place] for place in remarks.never_learned],
        )
    if remarks.learned_at_once:
        yield Finding(
            kind="learned-at-once",
            level="note",
            what="The loss of these pictures fell far more than is usual in this set: "
            f"{_listed([remarks.names[place] for place in remarks.learned_at_once])}.",
            mend="They may be there several times, or be very simple; lower their repeats.",
            keys=[remarks.keys[place] for place in remarks.learned_at_once],
        )


def _drift(evaluation: Evaluation) -> Iterator[Finding]:
    drifted = evaluation.best.measured.scores(evaluation.base.measured)["drift"]
    if drifted is not None and drifted > DRIFTED:
        yield Finding(
            kind="drift",
            level="note",
            what=f"Prompts without the trigger change as well: their pictures move {drifted:.0%} as far from the base "
            "model's as another prompt would move them.",
            mend="Add regularisation pictures, or pictures with target: base, or use less strength.",
        )


def _monotonous(evaluation: Evaluation) -> Iterator[Finding]:
    last = evaluation.full[-1].measured
    usual = last.references.diversity
    left = float(last.diversities.mean()) / usual if usual > 0 else 1.0
    if evaluation.questions.seeds > 1 and left < LOST * _base_share(evaluation, usual):
        yield Finding(
            kind="monotonous",
            level="note",
            what=f"Other seeds hardly change the pictures of the last step: their diversity is {left:.0%} of that of "
            "the training pictures.",
            mend="Use an earlier checkpoint or less strength, or train on more, and more different, pictures.",
        )


def _base_share(evaluation: Evaluation, usual: float) -> float:
    """The base's own diversity in parts of the training pictures', at most 1: a model that never had more lost none."""
    return min(1.0, float(evaluation.base.measured.diversities.mean()) / usual) if usual > 0 else 1.0


def _not_measured(evaluation: Evaluation) -> Iterator[Finding]:
    if evaluation.base.measured.held_out is None:
        yield Finding(
            kind="not-measured",
            level="note",
            what="No picture was kept back from training, so over-training is judged by the samples alone.",
            mend="Give some pictures in a source with held_out: true, or set held_out.share.",
        )
    if evaluation.base.measured.adherence is None:
        yield Finding(
            kind="not-measured",
            level="note",
            what="How well samples follow their prompts was not measured: this feature space holds no texts.",
            mend="Give the folder of a CLIP model with --features.",
        )


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return f"{', '.join(words[:_NAMED])}{more}"


def _mean(losses: Wide | None) -> float:
    return float("nan") if losses is None else float(losses.mean())
