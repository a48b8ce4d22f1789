"""The families that a recipe can name."""

from typing import Annotated

from pydantic import Field

from trainer.families.auto import Auto
from trainer.families.sd1 import Sd1
from trainer.families.sd2 import Sd2
from trainer.families.sdxl import Sdxl

AnyFamily = Annotated[Sd1 | Sd2 | Sdxl | Auto, Field(discriminator="kind")]
