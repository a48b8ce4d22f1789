"""What every adapter can do, and what it yields."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.core.device import Precision
from trainer.core.errors import RecipeError
from trainer.core.seeds import Seeds
from trainer.core.settings import Settings
from trainer.families.model import DiffusionModel
from trainer.optim.groups import ParameterGroup
from trainer.optim.optimizer import OptimizerSettings
from trainer.weights.export import ExportSettings
from trainer.weights.metadata import TrainingFacts


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
    def set_strength(self, strength: float) -> None:
        """Let the adapter act `strength` times as much as trained, in all parts; 0 is the base model alone."""

    @abstractmethod
    def write(self, path: Path, facts: TrainingFacts, settings: ExportSettings) -> Path:
        """Write what is trained as other programs read it; when this returns, it has been read back and compared.

        Args:
            path: ends in .safetensors; an old file there stays until the new one is whole and checked.
            facts: what the file says of itself.
            settings: the number format and the layout.

        Returns:
            The file; of layouts that are folders the folder.

        Raises:
            NonFiniteError: a weight is NaN or infinite, or overflows in the number format asked for.
            WeightsError: the layout cannot say it, or the disk gave back something else.
        """

    def after_step(self) -> None:  # noqa: B027 - most kinds leave their weights as the optimiser left them
        """Bring the trained tensors to where they may be, after each movement of the optimiser; mostly nothing."""

    def follow(self) -> None:  # noqa: B027 - most kinds are never sharded
        """Take the parameters that now stand in the networks, where sharding has put others in their place."""

    def driven(self, optimizer: Optimizer, clip_norm: float) -> Optimizer:
        """What moves these parameters: mostly the optimiser as it is.

        Args:
            optimizer: over the trained parameters, without state yet.
            clip_norm: the recipe's; who needs gradients in the backward pass clips them by himself.
        """
        return optimizer

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What else a recipe asks for, which not every kind of adapter goes together with."""

    export: ExportSettings
    optimizer: OptimizerSettings
    precision: Precision
    accumulate: int = 1  # batches summed before the weights move
    processes: int = 1
    asks_base: bool = False  # whether some pictures are trained towards the base model's own answer
    frozen_base: bool = False  # whether the base is kept in a form that cannot be trained: quantised, or streaming


class Adapter(Settings, ABC):
    """What a recipe may say about what is trained."""

    @property
    @abstractmethod
    def trains_words(self) -> bool:
        """Whether text encoders are trained: words are then encoded anew in every step, and never cached."""

    @property
    def new_words(self) -> Mapping[str, int]:
        """Words that are added to the model, and how many tokens of a caption each takes; mostly none."""
        return {}

    def word_files(self, result: Path) -> Mapping[str, Path]:
        """Where each new word lies when the run's result lies in `result`."""
        return {}

    @property
    def makes_model(self) -> bool:
        """Whether the result is a whole model, and nothing that is used together with one."""
        return False

    @property
    def moves_alone(self) -> bool:
        """Whether each tensor is moved by itself, so that the optimiser must get them one by one and as they are."""
        return False

    @property
    def draws_on_processor(self) -> bool:
        """Whether its layers draw chance on the processor in each pass, which a recorded pass would repeat for ever."""
        return False

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

    def check_export(self, model: DiffusionModel, settings: ExportSettings) -> None:
        """Make sure, before anything is trained, that the result can be written as asked for.

        Raises:
            RecipeError: it cannot.
        """

    def check_surroundings(self, surroundings: Surroundings) -> None:
        """Make sure, before anything is loaded, that this kind goes together with the rest of the recipe.

        Raises:
            RecipeError: it does not.
        """
        if surroundings.export.layout == "folder":
            raise RecipeError(
                "The layout folder is that of a whole model, and here something smaller is trained.",
                where="export.layout",
                mend="Leave it out, or say kohya, diffusers or peft.",
            )

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
