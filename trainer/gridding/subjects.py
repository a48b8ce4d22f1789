"""What draws a cell: the base, a run's result or checkpoint, or an adapter file; one of them in memory at a time."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image

from trainer import __version__
from trainer.core.device import Precision, pick_device
from trainer.core.errors import RecipeError
from trainer.core.progress import Phases
from trainer.core.run_folder import RunFolder
from trainer.core.tensors import read_header
from trainer.drawing import Drawable, RunModels, open_drawable
from trainer.drawing.opening import digest_of_model
from trainer.families.auto import Auto
from trainer.families.model import DiffusionModel
from trainer.gridding.axes import Cell
from trainer.gridding.references import training_pictures
from trainer.recipe.reading import read_recipe
from trainer.recipe.recipe import Recipe
from trainer.weights.adapter_digests import digest_of_adapter
from trainer.weights.recognising import kind_of

_LONGEST: Final = 1024  # pixels of a training picture beside what was drawn
_DRAWING: Final = 1  # counts up when a change here draws other pictures


class Subjects:
    """Opens what a cell is drawn with, and changes as little as it can from one cell to the next."""

    def __init__(self, source: Path, base: str) -> None:
        """Nothing is loaded yet.

        Args:
            source: a run folder, or a file of an adapter or of a whole model.
            base: the base model of an adapter file that belongs to no run.

        Raises:
            TrainerError: there is no such thing, or the run's recipe cannot be read.
        """
        self._source, self._base = source, base
        self.recipe: Recipe | None = read_recipe(source / "recipe.yaml") if source.is_dir() else None
        self._models = RunModels(source) if source.is_dir() else None
        self._open: Drawable | None = None
        self._opened: tuple[Path | None, bool] | None = None  # which adapter file, and whether of a step

    @property
    def steps(self) -> list[int]:
        """The steps of which a checkpoint or an adapter is there."""
        return [] if self._models is None else self._models.steps

    def key(self, cell: Cell, size: tuple[int, int]) -> str:
        """A name for the picture of a cell, which changes with all that the picture depends on.

        Args:
            cell: what is drawn.
            size: width and height in pixels where the prompt says none.
        """
        adapter = self._adapter_identity(cell) if cell.strength else ""
        prompt = cell.prompt.model_copy(
            update={"width": cell.prompt.width or size[0], "height": cell.prompt.height or size[1]}
        )
        facts: dict[str, Any] = {
            "drawing": [_DRAWING, __version__, torch.__version__, pick_device().type],
            "base": self._base_identity,
            "adapter": [adapter, cell.strength],
            "prompt": prompt.model_dump(mode="json"),
            "settings": cell.settings.model_dump(mode="json", exclude={"batch"}),
            "sampler": cell.sampler.model_dump(mode="json"),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8")).hexdigest()[:32]

    def order(self, cell: Cell) -> tuple[str, int, int, float]:
        """Cells in this order ask for the fewest changes: what needs no adapter comes when a model is there already."""
        rank = 2 if cell.strength == 0 else 1 if cell.step is None else 0
        return str(cell.adapter or ""), rank, cell.step or 0, cell.strength

    @property
    def resolution(self) -> int:
        """Pixels a side that pictures are drawn at where nobody says otherwise; known before a network is loaded."""
        if self.recipe is not None:
            return self.recipe.previews.size or self.recipe.data.resolution
        said = read_header(self._source).metadata.get("modelspec.resolution", "").split("x")[0]
        return int(said) if said.isdigit() and not self._is_whole else self._base_model.resolution

    def training_pictures(self, count: int, progress: Phases) -> list[Image.Image]:
        """Up to `count` pictures that the run was trained on, no longer than 1,024 pixels; of a file there are none."""
        return [] if self.recipe is None else training_pictures(self.recipe, count, _LONGEST, progress)

    @property
    def has_adapter(self) -> bool:
        """Whether there is something that acts, and so a picture without it."""
        return self.recipe is not None or not self._is_whole

    @cached_property
    def _is_whole(self) -> bool:
        return kind_of(list(read_header(self._source).tensors)) == "checkpoint"

    def open(self, cell: Cell) -> Drawable:
        """What draws a cell, at the cell's strength; what is in memory already is used again.

        Raises:
            TrainerError: it cannot be opened, or has no such strength.
        """
        wanted = self._wanted(cell)
        if self._open is None or self._opened != wanted:
            self._close()  # one model at a time
            self._open, self._opened = self._load(cell), wanted
        elif wanted[1] and cell.strength:
            self._open = None  # it may be another model
            self._open = self._load(cell)
        self._open.set_strength(cell.strength)
        return self._open

    def _close(self) -> None:
        self._open = None
        if self._models is not None:
            self._models.release()

    def _wanted(self, cell: Cell) -> tuple[Path | None, bool]:
        """Which adapter file, and whether of checkpoints; where there is no adapter, whatever is open already."""
        if cell.strength == 0 and self._opened is not None and self._opened[0] is None:
            return self._opened
        return cell.adapter, cell.step is not None

    def _load(self, cell: Cell) -> Drawable:
        if cell.adapter is not None:
            if self.recipe is not None and self.recipe.model.loras:
                raise RecipeError(
                    "This run's base has LoRAs merged in, so that other adapters cannot be drawn on it.",
                    where="model.loras",
                    mend="Merge them into a base with `trainer weights merge`, and draw the adapter file on that.",
                )
            return open_drawable(cell.adapter, self._base if self.recipe is None else self.recipe.model.weights)
        if cell.step is not None and self._models is not None:
            return self._models.at(cell.step)
        return open_drawable(self._source, self._base)

    def _adapter_identity(self, cell: Cell) -> str:
        if cell.adapter is not None:
            return digest_of_adapter(cell.adapter)
        if cell.step is not None and self._models is not None:
            return self._models.digest(cell.step)
        return self._own_identity

    @cached_property
    def _own_identity(self) -> str:
        """Of the run's result or newest checkpoint, or of the file."""
        if self.recipe is None or self._models is None:
            return digest_of_adapter(self._source)
        result = self.recipe.export.result(RunFolder(self._source.resolve()).result)
        if result.exists():
            return digest_of_model(result) if self.recipe.adapter.makes_model else digest_of_adapter(result)
        steps = self.steps
        return self._models.digest(steps[-1]) if steps else ""

    @cached_property
    def _base_identity(self) -> list[object]:
        """Of all parts of the base, and of how it is read."""
        said = ["float32", "none"] if self.recipe is None else [self.recipe.precision.value, self.recipe.model.quantize]
        return [*said, *_identity(self._base_model)]

    @cached_property
    def _base_model(self) -> DiffusionModel:
        """The base, of which no network is loaded."""
        if self.recipe is None:
            weights = str(self._source) if self._is_whole else self._base
            return Auto(weights=weights).load(Precision.float32, torch.device("cpu"))
        model = self.recipe.model.load(self.recipe.precision, torch.device("cpu"))
        model.prediction = self.recipe.objective.prediction or model.prediction
        return model


def _identity(model: DiffusionModel) -> list[object]:
    encoders = model.encoders()
    return [
        model.source.digest("unet"),
        encoders.pictures_identity,
        encoders.words_identity,
        model.prediction.kind,
        {key: str(value) for key, value in model.scheduler_config().items()},
    ]
