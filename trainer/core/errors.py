"""Every error that a user can meet: what happened, where, and how to mend it."""

from typing import ClassVar


class TrainerError(Exception):
    """Something that the user can mend; printed as `what / where / mend`, without a traceback."""

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, where: str | None = None, mend: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.mend = mend

    def __str__(self) -> str:
        """The message as the user reads it, on one to three lines."""
        lines = [self.what]
        if self.where is not None:
            lines.append(f"  where: {self.where}")
        if self.mend is not None:
            lines.append(f"  mend:  {self.mend}")
        return "\n".join(lines)


class RecipeError(TrainerError):
    """The recipe, or the command line, asks for something that does not exist or does not fit together."""


class DataError(TrainerError):
    """A picture, a caption or a folder of them cannot be used."""

    exit_code: ClassVar[int] = 3


class WeightsError(TrainerError):
    """A model file is missing, broken, of another family, or of a kind that we refuse to open."""


class CheckpointError(TrainerError):
    """A run folder or one of its checkpoints is not what it should be."""


class NotWrittenError(CheckpointError):
    """The disk takes no more, or none of what a run must write."""


class MemoryPlanError(TrainerError):
    """The run does not fit into the memory that it may use."""

    exit_code: ClassVar[int] = 4


class NonFiniteError(TrainerError):
    """Loss, gradient, latent or weight is NaN or infinite."""

    exit_code: ClassVar[int] = 5
