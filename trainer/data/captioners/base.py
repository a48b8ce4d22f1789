"""What every captioner can do: pictures in, words out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeAlias

import torch
from PIL import Image
from pydantic import PositiveInt

from trainer.core.settings import Settings

Describer: TypeAlias = Callable[[Sequence[Image.Image], Sequence[str]], list[str]]
"""An open captioner: (pictures, their names) -> one text each, in their order.

Pictures are upright, RGB, 8 bits; there are none where the captioner does not look (`Captioner.looks`). A name is the
path of a picture, separated by "/", which begins with the name of the folder that is captioned. A text may be empty:
the captioner has nothing to say. A DataError means that at least one of these pictures cannot be described.
"""

_NAMES_AT_ONCE = 256


class Captioner(Settings, ABC):
    """Gives words to pictures that have none."""

    looks: ClassVar[bool] = True
    """Whether it needs the pictures themselves; if not, none is decoded for it."""
    gives_tags: ClassVar[bool] = False
    """Whether its texts are tags, separated by commas."""

    @property
    def at_once(self) -> int:
        """How many pictures one call gets."""
        return _NAMES_AT_ONCE

    @abstractmethod
    def open(self, device: torch.device) -> Describer:
        """The captioner, ready to be called.

        Args:
            device: where its network computes.

        Raises:
            WeightsError: its network is missing, broken, or of a kind that is not opened.
        """


class NetworkCaptioner(Captioner):
    """A captioner that looks at pictures by a network."""

    weights: str
    """A folder, or a name on the model hub."""
    revision: str | None = None
    """Which version of a model on the hub: a branch, a tag or a commit."""
    batch: PositiveInt = 8
    """Pictures at once."""

    @property
    def at_once(self) -> int:
        """How many pictures one call gets."""
        return self.batch
