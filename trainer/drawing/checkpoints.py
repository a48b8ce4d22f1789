"""The checkpoints of a run, as pictures show them."""

from contextlib import ExitStack
from pathlib import Path

from trainer.adapters.trainable import Trainable
from trainer.core.run_folder import RunFolder
from trainer.core.seeds import Seeds
from trainer.drawing.opening import Drawable, base_of, title_of_weights
from trainer.loop.checkpoints import Checkpoints
from trainer.optim.drawn import drawn_weights
from trainer.optim.flat import FlatGroups
from trainer.optim.optimizers import ScheduleFreeAdamW
from trainer.optim.state import unpack
from trainer.recipe.reading import read_recipe


class RunCheckpoints:
    """The checkpoints of a run, to be drawn one after the other with one model."""

    def __init__(self, folder: Path) -> None:
        """Nothing is loaded yet.

        Raises:
            TrainerError: there is no run in the folder, or its recipe cannot be read.
        """
        self.recipe = read_recipe(folder / "recipe.yaml")
        self._checkpoints = Checkpoints(RunFolder(folder.resolve()), self.recipe.checkpoints)
        self._trainable: Trainable | None = None
        self._showing = ExitStack()

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, rising."""
        return self._checkpoints.steps()

    def digest(self, step: int) -> str:
        """A name for the checkpoint that changes with its content.

        Raises:
            CheckpointError: there is none of this step.
        """
        return self._checkpoints.digest(step)

    def open(self) -> Drawable:
        """The run's model with its adapter, as new: `show` puts a checkpoint into it."""
        model = base_of(self.recipe)
        trainable = self._trainable = self.recipe.adapter.attach(model, Seeds(self.recipe.seed))
        return Drawable(
            model=model,
            resolution=self.recipe.data.resolution,
            name=self.recipe.name,
            identity="",
            base_name=title_of_weights(self.recipe.model.weights),
            acting=trainable,
            words_change=self.recipe.adapter.trains_words,
        )

    def release(self) -> None:
        """Hold nothing of what `open` gave."""
        self._showing.close()
        self._trainable = None

    def show(self, drawable: Drawable, step: int) -> None:
        """Put a checkpoint into what `open` gave, as previews and the result show it: averaged, where the run averages.

        Raises:
            CheckpointError: there is none of this step, it is damaged, or it does not fit the recipe.
        """
        trainable = self._trainable
        if trainable is None:
            raise RuntimeError("show() needs what open() gave")
        state = self._checkpoints.at(step)
        self._showing.close()
        trainable.set_strength(1.0)
        trainable.load_state(state.trained)
        if self.recipe.ema is not None and state.ema is not None:
            ema = self.recipe.ema.build(tuple(trainable.parameters()))
            ema.load_state(state.ema)
            self._showing.enter_context(ema.averaged())
        elif isinstance(self.recipe.optimizer, ScheduleFreeAdamW):
            whole = self.recipe.optimizer.joins and not self.recipe.adapter.moves_alone
            flat = FlatGroups(trainable.groups(), whole=whole)
            optimizer = self.recipe.optimizer.build(flat.groups)
            unpack(optimizer, dict(state.optimizer), dict(state.optimizer_facts))
            self._showing.enter_context(drawn_weights(optimizer))
        drawable.name, drawable.identity = f"{self.recipe.name}-{step:06d}", self.digest(step)
