"""The whole of what a user can ask for."""

from pathlib import Path

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from trainer.adapters import AnyAdapter
from trainer.adapters.lora import Lora
from trainer.core.device import Precision
from trainer.core.errors import RecipeError
from trainer.core.run_folder import check_name
from trainer.core.settings import Settings
from trainer.data.batches import DataSettings
from trainer.data.captioners import AnyCaptioner
from trainer.evaluation.previews import PreviewSettings
from trainer.families import AnyFamily
from trainer.families.sd1 import Sd1
from trainer.loop.checkpoints import CheckpointSettings
from trainer.objective.objective import Objective
from trainer.optim.optimizers import AdamW8bit, AnyOptimizer
from trainer.optim.rates import AnyRate, Constant
from trainer.tracking import AnyTracker
from trainer.weights.export import ExportSettings


class Recipe(Settings):
    """One training run: everything that decides its result."""

    name: str
    """The run's name, and that of its folder and of the resulting file."""
    model: AnyFamily = Field(default_factory=Sd1)
    """The base model."""
    precision: Precision = Precision.bfloat16
    """Number format of the frozen base weights and of the arithmetic; adapters are always float32."""
    data: DataSettings
    """Pictures and captions."""
    captioner: AnyCaptioner | None = None
    """What writes the missing captions when `trainer caption` is asked to; training never does."""
    adapter: AnyAdapter = Field(default_factory=Lora)
    """What is trained."""
    optimizer: AnyOptimizer = Field(default_factory=AdamW8bit)
    """How the weights move."""
    rate: AnyRate = Field(default_factory=Constant)
    """The learning rate over the run."""
    objective: Objective = Field(default_factory=Objective)
    """What is minimised."""
    batch: PositiveInt = 1
    """Pictures at once, on each device."""
    accumulate: PositiveInt = 1
    """Batches summed before the weights move."""
    steps: PositiveInt = 1000
    """How often the weights move."""
    clip_norm: PositiveFloat = 1.0
    """The longest gradient; longer ones are shortened to it."""
    gradient_checkpointing: bool = True
    """Compute the forward pass twice instead of keeping it in memory."""
    seed: NonNegativeInt = 0
    """All chance of the run follows from it."""
    previews: PreviewSettings = Field(default_factory=PreviewSettings)
    """Pictures while it trains."""
    checkpoints: CheckpointSettings = Field(default_factory=CheckpointSettings)
    """How often everything is saved, so that `--resume` can go on."""
    trackers: tuple[AnyTracker, ...] = ()
    """Where numbers and pictures go besides the run folder."""
    export: ExportSettings = Field(default_factory=ExportSettings)
    """How the resulting file is written."""
    runs: Path = Path("runs")
    """The folder that holds the run folders."""

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        try:
            return check_name(name)
        except RecipeError as error:
            raise ValueError(f"{error.what} {error.mend}") from error
