"""What a tool has made, for people and for programs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.weights.fitting import FitReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A result on disk."""

    path: Path
    facts: Mapping[str, str | int | float | list[str]]
    """What it is, in words for a person: family, layout, number format, ..."""
    notes: tuple[str, ...] = ()
    """What could not be carried over, and what a person should know; one sentence each."""
    fit: FitReport | None = None
    """How near the result comes to what it stands for, where that is a question."""
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """What the notes only count."""

    @property
    def bytes(self) -> int:
        """The size of the file, or of all files in the folder."""
        files = [self.path] if self.path.is_file() else [path for path in self.path.rglob("*") if path.is_file()]
        return sum(file.stat().st_size for file in files)

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "output": str(self.path),
            "bytes": self.bytes,
            **self.facts,
            "notes": list(self.notes),
            **{name: list(values) for name, values in self.lists.items()},
            **({} if self.fit is None else self.fit.as_json()),
        }
