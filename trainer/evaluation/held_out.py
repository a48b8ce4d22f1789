"""Pictures that are kept back from training, and what the model makes of them while it trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field, NonNegativeInt

from trainer.batch import Batch
from trainer.core.clock import Clock
from trainer.core.seeds import Seeds
from trainer.core.settings import Settings
from trainer.data.examples import ExampleTable
from trainer.evaluation.still import fixed_losses
from trainer.families.model import DiffusionModel
from trainer.objective.objective import Objective

LARGE: Final = 400
"""Pictures from which on some are kept back by themselves."""
_ENOUGH: Final = 16  # pictures, each asked in four bands of noise: differences of a percent show


class HeldOutSettings(Settings):
    """Which pictures are kept back from training, to judge by, and how often that is done.

    Pictures of sources with `held_out: true` are kept back in any case.
    """

    share: Literal["auto"] | Annotated[float, Field(ge=0, le=0.5)] = "auto"
    """The share of the pictures that is kept back, regularisation pictures not counted. auto: 16 pictures where there
    are at least 400, and otherwise none, since a small set needs every picture."""
    every: NonNegativeInt = 250
    """Steps between measurements; 0: only before the first step and after the last."""
    seed: NonNegativeInt = 0
    """Which pictures: they follow from this number and their contents alone, so that runs can be compared."""

    def kept_back(self, accepted: ExampleTable) -> ExampleTable:
        """The same pictures, with those marked that are not to be trained on; copies of a file share their fate."""
        free = ~(accepted.numbers("regularisation") | accepted.numbers("held_out"))
        keys = accepted.keys()
        distinct = sorted({keys[place] for place in np.flatnonzero(free)})
        count = self._count(len(distinct))
        if not count:
            return accepted
        chance = Seeds(self.seed)
        chosen = set(sorted(distinct, key=lambda key: chance.integer("held out", key))[:count])
        marked = np.array([key in chosen for key in keys])
        return accepted.with_held_out(accepted.numbers("held_out") | marked)

    def _count(self, pictures: int) -> int:
        if self.share == "auto":
            return _ENOUGH if pictures >= LARGE else 0
        return min(max(round(self.share * pictures), 1 if self.share else 0), pictures - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The pictures that were kept back, ready to be asked for as long as the run lasts."""

    batches: Sequence[Batch]
    every: int
    objective: Objective
    model: DiffusionModel

    def due(self, clock: Clock) -> bool:
        """Whether they are to be asked now."""
        return clock.step == 0 or clock.done or clock.due(self.every)

    def measure(self) -> Mapping[str, object]:
        """What the model as it is now makes of them: `loss`, the mean, and `bands`, from little noise to much."""
        bands = fixed_losses(self.model, self.batches, self.objective).mean(0)
        self.model.release_encoders()
        return {"loss": float(bands.mean()), "bands": [float(band) for band in bands]}
