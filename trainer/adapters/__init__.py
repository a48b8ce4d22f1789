"""The adapters that a recipe can name."""

from typing import Annotated

from pydantic import Field

from trainer.adapters.lora import Lora

AnyAdapter = Annotated[Lora, Field(discriminator="kind")]
