"""What every adapter can do, and what it yields."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from trainer.core.seeds import Seeds
from trainer.core.settings import Settings
from trainer.families.model import DiffusionModel
from trainer.optim.groups import ParameterGroup


class Trainable(ABC):
    """The tensors that a run trains, inside their model."""

    @abstractmethod
    def groups(self) -> list[ParameterGroup]:
        """The trained parameters, float32, with the factor of the rate that each part learns at."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The trained tensors by name: all that a checkpoint needs of the model."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put trained tensors back.

        Raises:
            CheckpointError: a tensor is missing, unknown or of another shape.
        """

    @abstractmethod
    def alphas(self) -> dict[str, float]:
        """The alpha of each adapted layer, by its name in `state` without the tensor's own name."""

    @abstractmethod
    def set_strength(self, strength: float) -> None:
        """Let the adapter act `strength` times as much as trained; 0 is the base model alone."""

    @contextmanager
    def silenced(self) -> Generator[None, None, None]:
        """Inside, the model is the base model."""
        self.set_strength(0.0)
        try:
            yield
        finally:
            self.set_strength(1.0)

    def parameters(self) -> Iterable[nn.Parameter]:
        """All trained parameters."""
        return [parameter for group in self.groups() for parameter in group.parameters]


class Adapter(Settings, ABC):
    """What a recipe may say about what is trained."""

    @abstractmethod
    def attach(self, model: DiffusionModel, seeds: Seeds) -> Trainable:
        """Put new weights into the model; it predicts as before until they are trained.

        Raises:
            RecipeError: the family has no layers of the names asked for.
        """
