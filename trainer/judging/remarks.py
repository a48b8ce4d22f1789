"""What each training picture's losses say of it, compared with the others' at equal timesteps and noise."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from trainer.evaluation.judgement import deviations
from trainer.evaluation.scores import Wide
from trainer.judging.captions import CaptionFit
from trainer.judging.evaluating import Evaluation

FAR: Final = 3.5
"""Robust deviations from the usual that make a picture remarkable (Iglewicz and Hoaglin 1993)."""
FEW: Final = 12
"""Fewer pictures have no usual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remarks:
    """Numbers of each picture whose losses were measured, [M]."""

    keys: Sequence[str]
    names: Sequence[str]
    captions: Sequence[str]
    learned: Wide  # share of the base model's loss that is gone at the last step
    learned_z: Wide
    fit: CaptionFit | None  # of the words
    copies: Sequence[int]  # training pictures that are this one

    @property
    def bad_captions(self) -> list[int]:
        """Places of pictures whose words seem wrong, the worst first.

        They help their picture less than they hurt others, and share no word with most captions. Neither says enough
        alone: right words that the model does not know do the first, and often more than wrong ones.
        """
        if self.fit is None or len(self.names) < FEW:
            return []
        misfit = self.fit.misfit
        wrong = (misfit > 0) & self.fit.foreign
        return [int(place) for place in np.argsort(-misfit) if wrong[place]]

    @property
    def never_learned(self) -> list[int]:
        """Places of pictures whose loss fell far less than others', the worst first."""
        return self._far(-self.learned_z)

    @property
    def learned_at_once(self) -> list[int]:
        """Places of pictures whose loss fell far more than others', the quickest first."""
        return self._far(self.learned_z)

    def quicker(self, keys: Container[str]) -> float | None:
        """How much more the loss of these pictures fell than is usual; None where nothing can be said."""
        inside = [place for place, key in enumerate(self.keys) if key in keys]
        usual = float(np.median(self.learned))
        return float(self.learned[inside].mean()) / usual if inside and usual > 0.005 else None

    def _far(self, away: Wide) -> list[int]:
        if len(self.names) < FEW:
            return []
        return [int(place) for place in np.argsort(-away) if away[place] > FAR]


def remarks_of(evaluation: Evaluation) -> Remarks:
    """The numbers of all pictures whose losses were measured."""
    pictures = evaluation.pictures
    before, last = evaluation.base.measured.train, evaluation.full[-1].measured.train
    if before is None or last is None:
        raise ValueError("the losses of training pictures were not measured")
    learned = (1 - last / before).mean(1)
    copies = dict(
        zip((one.key for one in pictures.training), evaluation.base.measured.references.copies.tolist(), strict=True)
    )
    asked = list(pictures.asked)
    return Remarks(
        keys=[example.key for example in asked],
        names=[example.name for example in asked],
        captions=[example.caption for example in asked],
        learned=learned,
        learned_z=deviations(learned),
        fit=evaluation.caption_fit,
        copies=[copies[example.key] for example in asked],
    )
