"""The adapters that a recipe can name."""

from typing import Annotated

from pydantic import Field

from trainer.adapters.full import FullFinetune
from trainer.adapters.loha import Loha
from trainer.adapters.lokr import Lokr
from trainer.adapters.lora import Lora
from trainer.adapters.pivotal import Pivotal
from trainer.adapters.textual_inversion import TextualInversion

AnyAdapter = Annotated[Lora | Loha | Lokr | TextualInversion | Pivotal | FullFinetune, Field(discriminator="kind")]
