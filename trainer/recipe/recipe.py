"""The whole of what a user can ask for."""

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator
from typing_extensions import Self

from trainer.adapters import AnyAdapter
from trainer.adapters.lora import Lora
from trainer.adapters.parts import Rates
from trainer.core.device import MemorySize, Precision
from trainer.core.errors import RecipeError
from trainer.core.run_folder import check_name
from trainer.core.settings import Settings
from trainer.data.batches import DataSettings
from trainer.data.captioners import AnyCaptioner
from trainer.evaluation.held_out import HeldOutSettings
from trainer.evaluation.previews import PreviewSettings
from trainer.families import AnyFamily
from trainer.families.sd1 import Sd1
from trainer.loop.checkpoints import CheckpointSettings
from trainer.loop.compiling import CompileMode
from trainer.objective.objective import Objective
from trainer.optim.ema import EmaSettings
from trainer.optim.optimizers import AdamW8bit, AnyOptimizer, Prodigy, ScheduleFreeAdamW
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
    ema: EmaSettings | None = None
    """Draw and export an average of the weights over the steps; nothing said: the weights as they are."""
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
    gradient_checkpointing: bool | Literal["half"] = True
    """Compute the forward pass twice instead of keeping it in memory: of all blocks, or of every second one (half)."""
    memory: MemorySize | None = None
    """The most memory that the run may take, such as 8GiB: of the graphics card, or of the computer where there is
    none. The run is held to it: what does not fit ends with a message, on a larger card too."""
    compile: CompileMode = "auto"
    """How the processor is kept from being the slowest part of a step. graph: a pass is recorded once for each shape of
    picture and played again, on CUDA; blocks: torch.compile fuses the network's blocks, which takes minutes before the
    first step; off: neither; auto: what has proved itself by measurement, which is off so far."""
    seed: NonNegativeInt = 0
    """All chance of the run follows from it."""
    previews: PreviewSettings = Field(default_factory=PreviewSettings)
    """Pictures while it trains."""
    held_out: HeldOutSettings = HeldOutSettings()
    """Pictures that are kept back from training, to judge by."""
    checkpoints: CheckpointSettings = Field(default_factory=CheckpointSettings)
    """How often everything is saved, so that `--resume` can go on."""
    trackers: tuple[AnyTracker, ...] = ()
    """Where numbers and pictures go besides the run folder."""
    export: ExportSettings = Field(default_factory=ExportSettings)
    """How the resulting file is written."""
    runs: Path = Path("runs")
    """The folder that holds the run folders."""

    @model_validator(mode="after")
    def _one_average(self) -> Self:
        if self.ema is not None and isinstance(self.optimizer, ScheduleFreeAdamW):
            raise ValueError(
                f"optimizer.kind {self.optimizer.kind} averages the weights by itself: leave ema out, or choose "
                "another optimizer."
            )
        return self

    @model_validator(mode="after")
    def _one_rate_where_it_is_found(self) -> Self:
        rates = getattr(self.adapter, "rates", None)  # of most kinds
        if isinstance(self.optimizer, Prodigy) and isinstance(rates, Rates):
            for word, rate in rates.given.items():
                if rate != self.optimizer.rate:
                    raise ValueError(
                        f"optimizer.kind prodigy finds one rate for all parts: leave adapter.rates.{word} out, or "
                        "choose another optimizer."
                    )
        return self

    @model_validator(mode="after")
    def _the_base_answers_as_it_was_trained(self) -> Self:
        if self.objective.prediction is not None and any(source.target == "base" for source in self.data.sources):
            raise ValueError(
                "A source has target: base, and objective.prediction may teach another prediction than the base "
                "model's own, which is then no answer. Leave objective.prediction out, or use class pictures."
            )
        return self

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        try:
            return check_name(name)
        except RecipeError as error:
            raise ValueError(f"{error.what} {error.mend}") from error

    @property
    def checkpointed_every(self) -> int | None:
        """Of how many blocks one is computed again in the backward pass; None where none is."""
        return {False: None, "half": 2, True: 1}[self.gradient_checkpointing]

    @property
    def joins_tensors(self) -> bool:
        """Whether the optimiser sees trained tensors as few long ones.

        Those of a whole model it sees as they are, with shards and without, so that checkpoints fit both.
        """
        return self.optimizer.joins and not (self.adapter.moves_alone or self.adapter.makes_model)
