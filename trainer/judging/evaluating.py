"""One run -> everything that is measured of it, what is wrong with it, and what to use."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from trainer.core.errors import CheckpointError
from trainer.core.progress import Phases
from trainer.drawing import Drawable, RunModels
from trainer.evaluation.choosing import Choice, choose
from trainer.evaluation.features import Encode, Features, Read, Rows
from trainer.evaluation.judgement import Measured, References, drift_of
from trainer.evaluation.previews import picture_name
from trainer.evaluation.scores import Wide, cosines
from trainer.evaluation.still import Losses, fixed_losses
from trainer.judging.captions import CaptionFit, fit_of_captions
from trainer.judging.pictures import RunPictures
from trainer.judging.questions import Questions
from trainer.sampling.generate import generate
from trainer.sampling.parameters import save_png

STRENGTHS: Final = (0.6, 0.8)
"""Beside full strength, what is tried of the best checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A checkpoint at a strength; the base model is one of step 0 and strength 0."""

    step: int
    strength: float
    file: Path | None  # as other programs load it
    measured: Measured
    pictures: Sequence[Path]  # of the subject prompts, then of the ordinary ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All that is known of a run."""

    models: RunModels
    pictures: RunPictures
    questions: Questions
    features: Features
    base: Candidate
    candidates: Sequence[Candidate]  # rising by step, then strength
    choice: Choice
    caption_fit: CaptionFit | None  # of the pictures whose losses are measured; None: all have the same words

    @property
    def best(self) -> Candidate:
        """What is recommended."""
        return self.candidates[self.choice.best]

    @property
    def full(self) -> list[Candidate]:
        """The candidates at full strength: the run's way."""
        return [one for one in self.candidates if one.strength == 1]


@dataclass(slots=True, kw_only=True)
class Judge:
    """Measures one candidate of a run after the other."""

    models: RunModels
    pictures: RunPictures
    questions: Questions
    read: Read | None
    encode: Encode
    references: References
    folder: Path
    progress: Phases
    total: int = 1  # pictures to draw, as far as is known
    drawn: int = 0
    before: Rows | None = None  # features of the base's pictures of ordinary prompts, as soon as they are drawn

    @classmethod
    def opened(
        cls,
        run: Path,
        pictures: RunPictures,
        questions: Questions,
        features: Features,
        progress: Phases,
        folder: Path | None = None,
    ) -> "Judge":
        """A run that is ready to be judged, its pictures encoded.

        Args:
            run: its folder.
            pictures: that it was trained on, and that were kept back.
            questions: what is drawn.
            features: how likeness is seen.
            progress: told how far it is.
            folder: for what is drawn; else `evaluation` in the run's folder.

        Raises:
            TrainerError: as of `evaluate`.
        """
        models = RunModels(run)
        if not models.steps:
            raise CheckpointError(
                "Nothing is trained in this run yet.",
                where=str(run),
                mend="Wait for its first checkpoint (checkpoints.every), or let it end.",
            )
        encode = features.load()
        out = folder or models.folder.root / "evaluation"
        model = models.base().model
        pictures.encode(model, progress)
        pictures.write_thumbnails(out / "training")
        rows = pictures.features(model, encode, progress)
        model.release_encoders()
        return cls(
            models=models,
            pictures=pictures,
            questions=questions,
            read=features.reader(),
            encode=encode,
            references=References(rows=rows),
            folder=out,
            progress=progress,
        )

    def base(self) -> Candidate:
        """The base model."""
        return self._measure(self.models.base(), 0, 0.0)

    def candidate(self, step: int, strength: float) -> Candidate:
        """The run as it was at `step`, acting so strongly."""
        drawable = self.models.at(step)
        drawable.set_strength(strength)
        return self._measure(drawable, step, strength)

    def _measure(self, drawable: Drawable, step: int, strength: float) -> Candidate:
        asked, questions = self.questions.prompts(), self.questions
        images = generate(
            drawable.model, asked, questions.sampler, questions.settings, questions.size, self._tell_drawn
        )
        name = "base" if not step else f"step-{step:06d}-strength-{strength:.2f}"
        paths = [self.folder / name / picture_name(place) for place in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            save_png(path, image)
        count = questions.count
        rows = self.encode(images[:count])
        ordinary = self.encode(images[count:])
        self.before = ordinary if self.before is None else self.before
        measured = Measured(
            rows=rows,
            seeds=questions.seeds,
            references=self.references,
            drift=drift_of(ordinary, self.before),
            adherence=self._adherence(images[:count]),
            held_out=self._losses(drawable, held_out=True),
            train=self._losses(drawable, held_out=False),
        )
        file = self.models.file(step) if step else None
        return Candidate(step=step, strength=strength, file=file, measured=measured, pictures=paths)

    def _adherence(self, images: Sequence[Image.Image]) -> Wide | None:
        if self.read is None:
            return None
        texts = [prompt.text for prompt in self.questions.prompts()[: len(images)]]
        return np.diag(cosines(self.encode(images), self.read(texts)))

    def _losses(self, drawable: Drawable, *, held_out: bool) -> Losses | None:
        pictures, model = self.pictures, drawable.model
        examples = pictures.held_out if held_out else pictures.asked
        batches = pictures.batches(examples, model)
        return fixed_losses(model, batches, pictures.recipe.objective) if batches else None

    def _tell_drawn(self, new: int) -> None:
        self.drawn += new
        self.progress("drawing", self.drawn, max(self.total, self.drawn))


def evaluate(
    folder: Path,
    pictures: RunPictures,
    questions: Questions,
    features: Features,
    progress: Phases,
    strengths: Sequence[float] = STRENGTHS,
) -> Evaluation:
    """Draw and measure every kept step of the run at full strength, and the best one at other strengths too.

    Args:
        folder: of the run; samples go into its folder `evaluation`.
        pictures: that it was trained on, and that were kept back.
        questions: what is drawn.
        features: how likeness is seen.
        progress: told how far it is.
        strengths: beside 1.

    Raises:
        TrainerError: there is no such run, nothing is trained in it, or its base or its pictures are gone.
    """
    judge = Judge.opened(folder, pictures, questions, features, progress)
    models = judge.models
    steps = models.steps
    others = [] if models.recipe.adapter.makes_model else [one for one in strengths if one != 1]
    judge.total = len(questions.prompts()) * (1 + len(steps) + len(others))
    base = judge.base()
    candidates = [judge.candidate(step, 1.0) for step in steps]
    fit = fit_of_captions(models.at(steps[0]).model, pictures, progress)
    best = candidates[choose([one.measured for one in candidates], base.measured).best]
    candidates += [judge.candidate(best.step, strength) for strength in others]
    candidates.sort(key=lambda one: (one.step, one.strength))
    return Evaluation(
        models=models,
        pictures=pictures,
        questions=questions,
        features=features,
        base=base,
        candidates=candidates,
        choice=choose([one.measured for one in candidates], base.measured),
        caption_fit=fit,
    )
