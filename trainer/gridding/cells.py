"""The pictures of a grid, kept one by one, so that a grid that was stopped goes on where it was."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from weakref import ref

from PIL import Image

from trainer.core.errors import DataError
from trainer.drawing import Drawable
from trainer.drawing.origins import origin_of
from trainer.families.model import DiffusionModel
from trainer.gridding.axes import Cell
from trainer.gridding.subjects import Subjects
from trainer.sampling.generate import Drawing, drawn
from trainer.sampling.parameters import Drawn, parameters_of, save_png
from trainer.sampling.prompts import Prompt
from trainer.sampling.understanding import Understood, understand


@dataclass(slots=True, kw_only=True)
class Cells:
    """Where the pictures of a grid lie, and how the missing ones come there."""

    subjects: Subjects
    folder: Path
    size: tuple[int, int]  # pixels, width and height where a prompt says none
    parameters: bool = True  # the files say how they were drawn
    _keys: dict[Cell, str] = field(default_factory=dict[Cell, str])
    _understood: tuple[ref[DiffusionModel], Understood] | None = (
        None  # all prompts, where adapters leave their meaning alone
    )

    def path(self, cell: Cell) -> Path:
        """Where the picture of a cell lies."""
        key = self._keys.get(cell)
        if key is None:
            key = self._keys[cell] = self.subjects.key(cell, self.size)
        return self.folder / f"{key}{'' if self.parameters else '-bare'}.png"

    def missing(self, cells: Iterable[Cell]) -> list[Cell]:
        """The cells that are still to be drawn, each picture once."""
        by_path = {self.path(cell): cell for cell in cells}
        return [cell for path, cell in by_path.items() if not _is_whole(path)]

    def picture(self, cell: Cell) -> Image.Image:
        """The picture of a cell that was drawn.

        Raises:
            DataError: it is gone or damaged.
        """
        try:
            with Image.open(self.path(cell)) as file:
                return file.convert("RGB")
        except (OSError, SyntaxError) as error:
            raise DataError(
                "A picture of this grid cannot be read.",
                where=str(self.path(cell)),
                mend="Start again: it is drawn anew.",
            ) from error

    def picture_size(self, cell: Cell) -> tuple[int, int]:
        """Width and height in pixels of a picture that was drawn."""
        with Image.open(self.path(cell)) as file:
            return file.size

    def facts(self, cell: Cell) -> str:
        """How the picture of a cell was drawn, as its file says it; "" where it says nothing."""
        with Image.open(self.path(cell)) as file:
            return str(file.info.get("parameters", ""))

    def draw(self, cells: Sequence[Cell], progress: Callable[[int], None]) -> None:
        """Draw these cells; each picture is kept as soon as it is there.

        What is opened stays open for all cells that it draws; prompts and seeds go through the network together.

        Args:
            cells: in any order.
            progress: told how many are new.
        """
        prompts = list(dict.fromkeys(cell.prompt for cell in cells))
        ordered = sorted(cells, key=self.subjects.order)
        for _, alike in groupby(ordered, key=self.subjects.order):
            self._draw_group(list(alike), prompts, progress)

    def _draw_group(self, group: Sequence[Cell], prompts: Sequence[Prompt], progress: Callable[[int], None]) -> None:
        """Draw what one model draws at one strength; afterwards nothing here holds the model."""
        drawable = self.subjects.open(group[0])
        understood = self._meaning(drawable, prompts)
        for part in _alike(group):
            self._draw_together(drawable, understood, part, progress)

    def _meaning(self, drawable: Drawable, prompts: Sequence[Prompt]) -> Understood:
        """What all prompts mean; asked for once where adapters do not change it."""
        model = drawable.model
        if drawable.words_change or self._understood is None or self._understood[0]() is not model:
            self._understood = (ref(model), understand(model, prompts))
            model.release_encoders()
        return self._understood[1]

    def _draw_together(
        self, drawable: Drawable, understood: Understood, cells: Sequence[Cell], progress: Callable[[int], None]
    ) -> None:
        first = cells[0]
        how = Drawing(sampler=first.sampler, settings=first.settings, size=self.size, yielding=True)
        asked = Understood([cell.prompt for cell in cells], understood.wanted, understood.unwanted)
        origin = origin_of(drawable, first.strength)
        for place, picture in drawn(drawable.model, asked, how, progress):
            cell = cells[place]
            one = Drawn(prompt=cell.prompt, settings=cell.settings, sampler=cell.sampler, origin=origin)
            save_png(self.path(cell), picture, parameters_of(one, picture.size) if self.parameters else "")


def _alike(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Cells that one solver draws with the same settings."""
    by_settings: dict[str, list[Cell]] = {}
    for cell in cells:
        by_settings.setdefault(f"{cell.sampler!r} {cell.settings!r}", []).append(cell)
    yield from by_settings.values()


def _is_whole(path: Path) -> bool:
    try:
        with Image.open(path) as file:
            file.verify()
    except (OSError, SyntaxError):
        return False
    return True
