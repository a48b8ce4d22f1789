"""Pictures while it trains."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt

from trainer.adapters.trainable import Trainable
from trainer.core.files import replacing
from trainer.core.run_folder import RunFolder
from trainer.core.settings import Settings
from trainer.families.model import DiffusionModel
from trainer.sampling.generate import generate
from trainer.sampling.grid import grid
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Previews:
    """Draws the recipe's prompts into the run folder."""

    settings: PreviewSettings
    folder: RunFolder
    resolution: int
    model: DiffusionModel
    trainable: Trainable

    def draw_base(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """Draw the base model's pictures, as step 0, unless they are there."""
        if self.settings.prompts and not _whole(self.folder.previews(0), len(self.settings.prompts)):
            with self.trainable.silenced():
                pictures = self._generate(progress)
            self._write(0, pictures, [pictures], ["base"])

    def draw(self, step: int, progress: Callable[[int], None] = lambda _: None) -> Path | None:
        """Draw the prompts as the model is now; the sheet shows the base model's pictures above them.

        Returns:
            The sheet, or None where the recipe asks for no previews.
        """
        if not self.settings.prompts:
            return None
        pictures = self._generate(progress)
        before = _read(self.folder.previews(0), len(pictures))
        return self._write(step, pictures, [before, pictures], ["base", f"step {step}"])

    def _generate(self, progress: Callable[[int], None]) -> list[Image.Image]:
        side = self.settings.size or self.resolution
        wanted = self.settings
        pictures = generate(self.model, wanted.asked(), wanted.sampler, wanted.draw, (side, side), progress)
        self.model.release_encoders()
        return pictures

    def _write(
        self, step: int, pictures: Sequence[Image.Image], rows: Sequence[Sequence[Image.Image]], labels: Sequence[str]
    ) -> Path:
        folder = self.folder.previews(step)
        for place, picture in enumerate(pictures):
            save_png(folder / picture_name(place), picture)
        sheet = folder / "grid.png"
        save_png(sheet, grid(rows, labels, self.settings.prompts))
        return sheet


def picture_name(place: int) -> str:
    """The file name of a prompt's picture: a number, since a prompt may hold anything."""
    return f"{place:02d}.png"


def save_png(path: Path, picture: Image.Image) -> None:
    """Write a PNG whole or not at all, without any text inside."""
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def _whole(folder: Path, count: int) -> bool:
    return all((folder / picture_name(place)).is_file() for place in range(count))


def _read(folder: Path, count: int) -> list[Image.Image]:
    pictures: list[Image.Image] = []
    for place in range(count):
        with Image.open(folder / picture_name(place)) as file:
            pictures.append(file.convert("RGB"))
    return pictures
