"""A grid is drawn once: after a stop only what is missing, and again when what it depends on has changed."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.core.progress import Silence
from trainer.gridding import cells as cells_module
from trainer.gridding.axes import Axis, Cell, Known, axis_of
from trainer.gridding.cells import Cells
from trainer.gridding.making import Grid, Made, make
from trainer.gridding.subjects import Subjects
from trainer.sampling.generate import drawn
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import Ddim


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.drawing.opening.pick_device", lambda: torch.device("cpu"))


class Sheets:
    """A small grid of strengths and prompts of one LoRA file."""

    def __init__(self, lora: Path, base: Path, out: Path) -> None:
        self.lora, self.base, self.out = lora, base, out
        self.cells: Cells

    def make(self, *words: str, **changes: Any) -> Made:
        subjects = Subjects(self.lora, str(self.base))
        self.cells = Cells(subjects=subjects, folder=self.out / "cells", size=(16, 16))
        known = Known(prompts=["red", "blue ball"], steps=[])
        axes: list[Axis] = [axis_of(word, known) for word in words or ("strength=0.5,1", "prompt")]
        settings = DrawSettings(steps=2, batch=8).model_copy(update=changes)
        usual = Cell(prompt=Prompt(text="red"), settings=settings, sampler=Ddim(), strength=1.0)
        grid = Grid(title="tried", axes=axes, usual=usual, with_base=True)
        return make(grid, self.cells, self.out, [Image.new("RGB", (20, 10), "green")], Silence())


@pytest.fixture
def sheets(small_model: Path, small_lora: Path, tmp_path: Path) -> Sheets:
    return Sheets(small_lora, small_model, tmp_path / "out")


def test_what_is_there_is_not_drawn_again(sheets: Sheets) -> None:
    first = sheets.make()
    assert (first.drawn, first.kept) == (6, 0)
    assert first.page.is_file()
    assert [path.name for path in first.sheets] == ["strength-prompt.png"]
    before = [path.read_bytes() for path in first.sheets]
    with patch.object(cells_module, "drawn", side_effect=AssertionError("nothing is missing")):
        again = sheets.make()
    assert (again.drawn, again.kept) == (0, 6)
    assert [path.read_bytes() for path in again.sheets] == before
    wider = sheets.make("strength=0.5,1,2", "prompt")
    assert (wider.drawn, wider.kept) == (2, 6)
    assert sheets.make("strength=0.5,1", "prompt", guidance=5.0).drawn == 6
    # the base does not depend on how strong the adapter is, and is there already
    assert sheets.make("strength=0.7,0.8", "prompt").drawn == 4


def test_after_a_stop_only_what_is_missing_is_drawn(sheets: Sheets) -> None:
    whole = sheets.make()
    expected = {path.name: path.read_bytes() for path in (sheets.out / "cells").iterdir()}
    for path in (sheets.out / "cells").iterdir():
        path.unlink()
    written: list[Path] = []

    def stopping(path: Path, *rest: Any) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        plain(path, *rest)
        written.append(path)

    plain = cells_module.save_png
    with patch.object(cells_module, "save_png", stopping), pytest.raises(KeyboardInterrupt):
        sheets.make()
    written[0].write_bytes(written[0].read_bytes()[:-20])  # and one is torn
    asked: list[int] = []

    def counting(*arguments: Any) -> Any:
        for place, picture in drawn(*arguments):
            asked.append(place)
            yield place, picture

    with patch.object(cells_module, "drawn", counting):
        again = sheets.make()
    assert (again.drawn, len(asked)) == (4, 4)
    assert {path.name for path in (sheets.out / "cells").iterdir()} == set(expected)
    for name, content in expected.items():
        with Image.open(sheets.out / "cells" / name) as now:
            then = sheets.out / "then.png"
            then.write_bytes(content)
            with Image.open(then) as before:
                difference = np.abs(np.asarray(now, dtype=int) - np.asarray(before, dtype=int)).max()
        assert difference <= 1  # they were drawn in other company
    assert again.page.stat().st_size > 0.8 * whole.page.stat().st_size


def test_nothing_is_loaded_twice(sheets: Sheets) -> None:
    from trainer.gridding import subjects as subjects_module

    with patch.object(subjects_module, "open_drawable", wraps=subjects_module.open_drawable) as opening:
        sheets.make("strength=0.2,0.6,1", "seed=0,1", "guidance=3,5")
    assert opening.call_count == 1


def test_another_adapter_file_is_another_picture(sheets: Sheets, tmp_path: Path) -> None:
    first = sheets.make()
    content = bytearray(sheets.lora.read_bytes())
    content[-1] ^= 1
    sheets.lora = tmp_path / sheets.lora.name
    sheets.lora.write_bytes(content)
    second = sheets.make()
    assert (first.drawn, second.drawn, second.kept) == (6, 4, 2)  # the base's are those that were there


def test_adapter_files_stand_side_by_side(sheets: Sheets, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(sheets.lora.read_bytes())
    made = sheets.make(f"adapter={sheets.lora},{other}", "prompt")
    assert made.drawn == 4  # the same file twice is the same picture, beside the base
