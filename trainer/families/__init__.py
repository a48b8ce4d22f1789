"""The families that a recipe can name."""

from typing import Annotated

from pydantic import Field

from trainer.families.sd1 import Sd1

AnyFamily = Annotated[Sd1, Field(discriminator="kind")]
