"""The optimisers that a recipe can name."""

from typing import Annotated

from pydantic import Field

from trainer.optim.adafactor import Adafactor
from trainer.optim.adam import AdamW
from trainer.optim.eight_bit import AdamW8bit, Lion, Lion8bit, PagedAdamW8bit
from trainer.optim.optimizer import OptimizerSettings
from trainer.optim.prodigy import Prodigy
from trainer.optim.schedule_free import ScheduleFreeAdamW

__all__ = [
    "Adafactor",
    "AdamW",
    "AdamW8bit",
    "AnyOptimizer",
    "Lion",
    "Lion8bit",
    "OptimizerSettings",
    "PagedAdamW8bit",
    "Prodigy",
    "ScheduleFreeAdamW",
]

AnyOptimizer = Annotated[
    AdamW | AdamW8bit | PagedAdamW8bit | Lion | Lion8bit | Adafactor | Prodigy | ScheduleFreeAdamW,
    Field(discriminator="kind"),
]
