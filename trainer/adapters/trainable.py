"""What every adapter can do, and what it yields."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from trainer.core.seeds import Seeds
from trainer.core.settings import Settings
from trainer.families.model import DiffusionModel
from trainer.optim.groups import ParameterGroup


class Trainable(ABC):
    """The tensors that a run trains, inside their model.

    A layer is called `<part>.<path>` here, by its canonical name, whichever version of which package made the network.
    """

    @property
    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """The networks that hold trained tensors, as `DiffusionModel.network` calls them; the denoiser first."""

    @abstractmethod
    def groups(self) -> list[ParameterGroup]:
        """The trained parameters, float32, one group a part, each with the rate that it learns at."""

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
        """Let the adapter act `strength` times as much as trained, in all parts; 0 is the base model alone."""

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

    @property
    @abstractmethod
    def trains_words(self) -> bool:
        """Whether text encoders are trained: words are then encoded anew in every step, and never cached."""

    @property
    @abstractmethod
    def files(self) -> Mapping[str, Path]:
        """The files that decide what a new run begins with, by their keys in a recipe."""

    @abstractmethod
    def check(self, model: DiffusionModel) -> None:
        """Make sure, without loading a network, that the family has what is asked for.

        Raises:
            RecipeError: the family has no layers of the names asked for.
            WeightsError: a file to begin with is broken, or belongs to another family.
        """

    @abstractmethod
    def attach(self, model: DiffusionModel, seeds: Seeds) -> Trainable:
        """Put new weights into the model; it predicts as before until they are trained.

        Raises:
            RecipeError: the family has no layers of the names asked for.
        """

    @abstractmethod
    def begin(self, trainable: Trainable, model: DiffusionModel) -> None:
        """Give attached weights the values that a new run begins with, where the recipe names a file of such.

        Raises:
            WeightsError: the file does not fit what the recipe trains.
        """
