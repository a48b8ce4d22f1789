"""What a run folder holds, as far as it can be read: of a run that is finished, stopped, failed, or still going on."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from trainer.core.errors import CheckpointError, TrainerError
from trainer.core.events import Event, read_events
from trainer.core.files import printable
from trainer.core.redacting import redacted_text
from trainer.core.run_folder import RunFolder
from trainer.recipe.reading import read_recipe
from trainer.recipe.recipe import Recipe

_STEP: Final = re.compile(r"step-(\d{1,12})")
_PICTURE: Final = re.compile(r"(\d{1,4})\.png")
_MOST_BYTES: Final = 512 * 1024 * 1024  # of a JSON file that we read


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as its folder tells of it; each part may be missing."""

    folder: RunFolder
    events: tuple[Event, ...]
    recipe: Recipe | None
    recipe_problem: str  # why there is no recipe, in words; "" where there is one
    environment: dict[str, Any]  # Any: JSON of many kinds
    account: dict[str, Any]
    evaluation: dict[str, Any]

    @classmethod
    def read(cls, root: Path) -> "RunRecord":
        """What lies in the folder `root`.

        Raises:
            CheckpointError: it is no run folder.
        """
        folder = RunFolder(root.resolve())
        if not (folder.recipe.is_file() or folder.events.is_file()):
            raise CheckpointError(
                "There is no run in this folder.",
                where=str(root),
                mend="Name the folder of a run, such as runs/blob; `trainer train` makes it.",
            )
        recipe, problem = _recipe(folder)
        return cls(
            folder=folder,
            events=tuple(read_events(folder.events)),
            recipe=recipe,
            recipe_problem=problem,
            environment=read_json(folder.environment),
            account=read_json(folder.data),
            evaluation=read_json(folder.root / "evaluation.json"),
        )

    def of_kind(self, kind: str) -> list[Event]:
        """The events of one kind, in order."""
        return [event for event in self.events if event["kind"] == kind]

    @cached_property
    def step(self) -> int:
        """How many steps are made."""
        return max((event["step"] for event in self.of_kind("step")), default=0)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end, and its result lies there."""
        ends = [event["step"] for event in self.of_kind("done")]
        asked = self.recipe.steps if self.recipe is not None else 0
        return bool(ends) and ends[-1] >= asked and self.result is not None

    @property
    def result(self) -> Path | None:
        """What the run was for, a file or a folder; None where it is not there yet."""
        path = self.folder.result
        path = self.recipe.export.result(path) if self.recipe is not None else path
        return path if path.exists() else None

    @property
    def warnings(self) -> list[tuple[int, str]]:
        """What the run warned of, and after which step."""
        said = [(event["step"], event.get("message") or event.get("text")) for event in self.of_kind("warning")]
        return [(step, redacted_text(words)) for step, words in said if isinstance(words, str)]

    @cached_property
    def previews(self) -> dict[int, dict[int, Path]]:
        """The files of all previews: by step, rising, and by the place of the prompt."""
        found: dict[int, dict[int, Path]] = {}
        for folder in _listed(self.folder.root / "previews"):
            step = _STEP.fullmatch(folder.name)
            if step is None or not folder.is_dir() or folder.is_symlink():
                continue
            pictures = {
                int(name[1]): file
                for file in _listed(folder)
                if (name := _PICTURE.fullmatch(file.name)) and file.is_file() and not file.is_symlink()
            }
            if pictures:
                found[int(step[1])] = pictures
        return dict(sorted(found.items()))

    @property
    def grids(self) -> list[Path]:
        """The sheets that `trainer grid` has drawn."""
        sheets = _listed(self.folder.root / "grids")
        return [file for file in sheets if file.suffix == ".png" and file.is_file() and not file.is_symlink()]


def read_json(path: Path) -> dict[str, Any]:  # Any: JSON of many kinds
    """The mapping that a JSON file holds; empty where there is no such file, or it is torn or no mapping."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _recipe(folder: RunFolder) -> tuple[Recipe | None, str]:
    try:
        return read_recipe(folder.recipe), ""
    except TrainerError as error:
        return None, printable(redacted_text(error.what))


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
