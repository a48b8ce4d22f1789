"""What `trainer evaluate` found, out of its file in the run's folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.core.errors import TrainerError
from trainer.core.files import inside
from trainer.reporting.curves import Curve, Drawing
from trainer.reporting.pictures import Embedded, embed, open_picture

_LETTERS: Final = 2_600_000  # of all pictures of this part together
_MOST_PICTURES: Final = 320
_LONGEST: Final = 192  # pixels


class _Read(BaseModel):
    """A part of the file; what we do not know is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Loss(_Read):
    """A loss at fixed timesteps and with fixed noise."""

    loss: float | None = None


class Judged(_Read):
    """A model that was scored: the base, or a checkpoint at a strength."""

    step: int = 0
    strength: float = 1.0
    scores: dict[str, float | None] = Field(default_factory=dict[str, float | None])
    held_out: Loss | None = None
    train: Loss | None = None
    score: float | None = None
    score_range: tuple[float, float] | None = None
    wins: float | None = None


class Copied(_Read):
    """A sample that copies a training picture."""

    picture: str
    training: str
    step: int
    strength: float = 1.0
    prompt: str = ""
    seed: int = 0
    name: str = ""
    distance: float | None = None
    usual: float | None = None


class Moment(_Read):
    """The losses of a picture after some steps."""

    step: int
    bands: tuple[float | None, ...] = ()

    @property
    def mean(self) -> float | None:
        """The mean over the bands of noise."""
        known = [value for value in self.bands if value is not None]
        return sum(known) / len(known) if known else None


class Trained(_Read):
    """A picture that was trained on, with its losses over the run."""

    key: str = ""
    name: str = ""
    caption: str = ""
    thumbnail: str | None = None
    loss: tuple[Moment, ...] = ()
    learned: float | None = None
    caption_gain: float | None = None
    copies: int = 1
    remarks: tuple[str, ...] = ()


class Found(_Read):
    """Something that the evaluation has to say."""

    kind: str = ""
    level: Literal["error", "warning", "note"] = "note"
    what: str
    mend: str | None = None
    names: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()


class Rival(_Read):
    """What else might be the best."""

    step: int
    strength: float = 1.0
    wins: float | None = None


class Recommendation(_Read):
    """Which checkpoint to use, at which strength."""

    step: int
    strength: float = 1.0
    file: str | None = None
    why: tuple[str, ...] = ()
    sure: str = ""
    wins: float | None = None
    rivals: tuple[Rival, ...] = ()
    copied_to: str | None = None


class RunVerdict(_Read):
    """What was found of one run."""

    name: str = ""
    held_out_pictures: int = 0
    base: Judged | None = None
    real: dict[str, float | None] = Field(default_factory=dict[str, float | None])
    candidates: tuple[Judged, ...] = ()
    copies: tuple[Copied, ...] = ()
    training: tuple[Trained, ...] = ()
    findings: tuple[Found, ...] = ()
    recommendation: Recommendation | None = None


class Features(_Read):
    """In which space pictures were compared."""

    kind: str = ""
    name: str = ""


class Difference(_Read):
    """A key of the recipe in which runs differ."""

    key: str
    values: tuple[str, ...] = ()


class Verdict(_Read):
    """The whole file; the run's own verdict comes first."""

    features: Features = Features()
    differences: tuple[Difference, ...] = ()
    runs: tuple[RunVerdict, ...] = ()

    @property
    def own(self) -> RunVerdict:
        """What was found of the run itself."""
        return self.runs[0]


def verdict_of(content: Mapping[str, Any]) -> Verdict | None:  # Any: JSON of many kinds
    """What `evaluation.json` says; None where there is none, or it is none that we can read."""
    try:
        verdict = Verdict.model_validate(dict(content))
    except ValidationError:
        return None
    return verdict if verdict.runs else None


def measured(run: RunVerdict, names: Sequence[str]) -> list[str]:
    """Those of the scores that were measured for some candidate."""
    return [name for name in names if any(one.scores.get(name) is not None for one in run.candidates)]


def drawing_of(run: RunVerdict) -> Drawing | None:
    """The losses of kept-back pictures and of those that were trained on, by step; None where none were measured."""
    whole = [one for one in run.candidates if one.strength == 1.0]
    judged = [*([run.base.model_copy(update={"step": 0})] if run.base is not None else []), *whole]
    curves = [
        curve
        for key, label in (("held_out", "kept-back pictures"), ("train", "pictures trained on"))
        if (curve := _curve(judged, key, label)) is not None
    ]
    if not curves:
        return None
    told = "; ".join(
        f"{curve.label}: " + ", ".join(_point(curve, at) for at in range(len(curve.steps))) for curve in curves
    )
    return Drawing(
        name="fixed",
        title="Loss at fixed timesteps and noise",
        unit="",
        summary=f"{told.capitalize()}.",
        curves=tuple(curves),
    )


def pictures_of(run: RunVerdict, root: Path) -> dict[str, Embedded]:
    """The pictures that the verdict shows, by their paths in the run's folder, as many as there is room for.

    Args:
        run: the verdict.
        root: the run's folder; a path that leads out of it is passed over.
    """
    wanted = [name for one in run.findings for name in one.pictures]
    wanted += [name for one in run.copies for name in (one.picture, one.training)]
    wanted += [one.thumbnail for one in run.training if one.thumbnail is not None]
    names = list(dict.fromkeys(wanted))[:_MOST_PICTURES]
    share = _LETTERS // max(len(names), 1)
    shown: dict[str, Embedded] = {}
    for name in names:
        try:
            picture = open_picture(inside(root, name))
        except TrainerError:
            continue
        if picture is not None:
            shown[name] = embed(picture, _LONGEST, share)
    return shown


def _curve(judged: Sequence[Judged], key: str, label: str) -> Curve | None:
    told = {one.step: loss.loss for one in judged if (loss := _loss(one, key)) is not None and loss.loss is not None}
    if not told:
        return None
    steps = sorted(told)
    return Curve(
        label=label,
        steps=np.array(steps, dtype=np.float64),
        values=np.array([told[step] for step in steps], dtype=np.float64),
        dotted=True,
    )


def _loss(one: Judged, key: str) -> Loss | None:
    return one.held_out if key == "held_out" else one.train


def _point(curve: Curve, at: int) -> str:
    return f"{curve.values[at]:.4g} at step {curve.steps[at]:.0f}"
