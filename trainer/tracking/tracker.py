"""What every tracker can do."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from trainer.core.errors import RecipeError
from trainer.core.run_folder import RunFolder
from trainer.core.settings import Settings


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of words and numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]  # each as long as `columns`


class Tracker(ABC):
    """Shows one run somewhere. Its verbs are called in a thread of its own, one at a time: they may wait, and raise."""

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show numbers by name, such as "train/loss", after `step` steps."""

    @abstractmethod
    def pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Show picture files by name."""

    def table(self, step: int, name: str, table: Table) -> None:  # noqa: B027 - who has no place for tables shows none
        """Show a table by name."""

    @abstractmethod
    def close(self) -> None:
        """Everything is shown."""

    def abandon(self) -> None:
        """End at once what the tracker has started; called from another thread, when nobody waits for it any more."""
        return


class TrackerSettings(Settings, ABC):
    """A place where runs are shown."""

    @abstractmethod
    def open(self, folder: RunFolder, config: Mapping[str, object], step: int) -> Tracker:
        """A tracker of the run that goes on after `step` steps; it does not wait for any network.

        Args:
            folder: the run's folder; the tracker writes nowhere else.
            config: the recipe as JSON, without secrets and private paths.
            step: what was shown of later steps is void.

        Raises:
            RecipeError: the tracker's package is not installed.
        """


def need(package: str) -> None:
    """Make sure that an optional package of the same name as our extra can be imported.

    Raises:
        RecipeError: it is not installed.
    """
    if find_spec(package) is None:
        raise RecipeError(
            f"The package {package} is not installed.",
            where="trackers",
            mend=f"Install it with: pip install 'sd-trainer[{package}]'; or take this tracker out of the recipe.",
        )
