"""Pictures while it trains."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt

from trainer.adapters.trainable import Trainable
from trainer.core.log import logger
from trainer.core.memory import give_back, ran_out, room_below_peak
from trainer.core.run_folder import RunFolder
from trainer.core.settings import Settings
from trainer.families.model import DiffusionModel
from trainer.sampling.generate import Drawing, Understood, understand
from trainer.sampling.generate import draw as draw_pictures
from trainer.sampling.grid import grid
from trainer.sampling.parameters import save_png
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import AnySampler, Ddim


class PreviewSettings(Settings):
    """What is drawn while it trains, and how."""

    every: NonNegativeInt = 250
    """Steps between previews; 0: only before the first step and after the last."""
    prompts: tuple[str, ...] = ()
    """What to draw; none: no previews."""
    negative: str = ""
    """What the pictures do not show."""
    seed: NonNegativeInt = 0
    """The chance of the first picture; each further one counts up."""
    size: PositiveInt | None = None
    """Pixels, width and height; absent: the resolution of the data."""
    sampler: AnySampler = Field(default_factory=Ddim)
    """The solver."""
    draw: DrawSettings = Field(default_factory=DrawSettings)
    """Steps, guidance and pictures at once."""

    def asked(self) -> list[Prompt]:
        """The prompts with their seeds."""
        return [
            Prompt(text=text, negative=self.negative, seed=self.seed + place) for place, text in enumerate(self.prompts)
        ]

    def understood(self, model: DiffusionModel) -> Understood:
        """The prompts with what they mean to the model, on the CPU."""
        return understand(model, self.asked())


@dataclass(slots=True, kw_only=True)
class Previews:
    """Draws the recipe's prompts into the run folder.

    They take no more memory than training does, where that is counted: prompts are encoded once, the network is asked
    for no more pictures at once than in a step, and what they are decoded with comes and goes. Where memory runs out
    all the same, there is a warning instead of pictures.
    """

    settings: PreviewSettings
    folder: RunFolder
    resolution: int
    model: DiffusionModel
    trainable: Trainable
    batch: int = 1  # pictures in a training step
    asked: Understood | None = None  # the prompts, where they were encoded before the denoiser was there
    keeps: bool = True  # writes what is drawn; else draws alone, to keep step with a process that does
    words_change: bool = False  # text encoders are trained: prompts mean something else each time

    def draw_base(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """Draw the base model's pictures, as step 0, unless they are there."""
        if self.settings.prompts and not _whole(self.folder.previews(0), len(self.settings.prompts)):
            with self.trainable.silenced():
                pictures = self._surviving(progress)
            if pictures is not None:
                self._write(0, pictures, [pictures], ["base"])

    def draw(self, step: int, progress: Callable[[int], None] = lambda _: None) -> Path | None:
        """Draw the prompts as the model is now; the sheet shows the base model's pictures above them.

        Returns:
            The sheet, or None where the recipe asks for no previews, memory ran out, or nothing is kept.
        """
        pictures = self._surviving(progress) if self.settings.prompts else None
        if pictures is None:
            return None
        if not _whole(self.folder.previews(0), len(pictures)):
            return self._write(step, pictures, [pictures], [f"step {step}"])
        before = _read(self.folder.previews(0), len(pictures))
        return self._write(step, pictures, [before, pictures], ["base", f"step {step}"])

    def files(self, step: int) -> dict[str, Path]:
        """Each prompt's picture after `step` steps, as trackers call it: its place among the prompts, from 1."""
        folder = self.folder.previews(step)
        places = range(len(self.settings.prompts))
        return {f"preview/{place + 1}": folder / picture_name(place) for place in places}

    def _surviving(self, progress: Callable[[int], None]) -> list[Image.Image] | None:
        """The pictures; or None and a warning where there is no memory for them, even for one at a time."""
        device = next(self.model.denoiser.parameters()).device
        for least in (False, True):
            give_back(device)
            try:
                return self._generate(progress, device, least=least)
            except (MemoryError, RuntimeError) as error:
                if not ran_out(error):
                    raise
            finally:
                self.model.release_encoders()
                give_back(device)
        logger.warning(
            "There is not enough memory for the previews: they are left out this time, and training goes on."
        )
        return None

    def _generate(self, progress: Callable[[int], None], device: torch.device, *, least: bool) -> list[Image.Image]:
        side = self.settings.size or self.resolution
        counted = room_below_peak(device)
        if least:
            draw = self.settings.draw.model_copy(update={"batch": 1})
            how = Drawing(sampler=self.settings.sampler, settings=draw, size=(side, side), rows=1, decoding=0)
        else:
            rows = None if counted is None else self.batch
            how = Drawing(
                sampler=self.settings.sampler,
                settings=self.settings.draw,
                size=(side, side),
                rows=rows,
                decoding=counted,
            )
        return draw_pictures(self.model, self._understood(), how, progress)

    def _understood(self) -> Understood:
        """The prompts with their meaning; it is asked for once, since it stays the same where it is not trained."""
        asked = self.asked if self.asked is not None else self.settings.understood(self.model)
        if not self.words_change:
            self.asked = asked
        self.model.release_encoders()
        return asked

    def _write(
        self, step: int, pictures: Sequence[Image.Image], rows: Sequence[Sequence[Image.Image]], labels: Sequence[str]
    ) -> Path | None:
        if not self.keeps:
            return None
        folder = self.folder.previews(step)
        for place, picture in enumerate(pictures):
            save_png(folder / picture_name(place), picture)
        sheet = folder / "grid.png"
        save_png(sheet, grid(rows, labels, self.settings.prompts))
        return sheet


def picture_name(place: int) -> str:
    """The file name of a prompt's picture: a number, since a prompt may hold anything."""
    return f"{place:02d}.png"


def _whole(folder: Path, count: int) -> bool:
    return all((folder / picture_name(place)).is_file() for place in range(count))


def _read(folder: Path, count: int) -> list[Image.Image]:
    pictures: list[Image.Image] = []
    for place in range(count):
        with Image.open(folder / picture_name(place)) as file:
            pictures.append(file.convert("RGB"))
    return pictures
