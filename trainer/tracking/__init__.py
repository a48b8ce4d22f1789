"""Numbers and pictures go out. Here: the trackers that a recipe can name."""

from typing import Annotated

from pydantic import Field

from trainer.tracking.tensorboard import TensorBoard
from trainer.tracking.wandb import Wandb

AnyTracker = Annotated[TensorBoard | Wandb, Field(discriminator="kind")]
