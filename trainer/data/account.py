"""What became of every file of a dataset: nothing is dropped silently."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from trainer.core.errors import DataError
from trainer.data.example import Example

OnReject = Literal["stop", "skip"]

_SHOWN = 10  # how many refused files a message names


@dataclass(frozen=True, slots=True)
class Remark:
    """Something about one file: why it was refused or passed over, or what to know of it."""

    name: str  # the path inside its source, safe to print
    reason: str
    source: int = 0
    mend: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Every file found, exactly once: a picture that is used, a caption that is used, refused, or passed over.

    `len(accepted) + len(captions) + len(rejected) + len(ignored) == found`. A hidden folder, and a link to a folder,
    count as one file; we do not look into them.
    """

    accepted: tuple[Example, ...] = ()
    captions: tuple[Remark, ...] = ()  # caption files in use
    rejected: tuple[Remark, ...] = ()  # meant to be used, but cannot be
    ignored: tuple[Remark, ...] = ()  # not meant to be used
    warnings: tuple[Remark, ...] = ()  # about files that stand in one of the lists above
    sources: tuple[str, ...] = ()  # as the recipe names them

    @property
    def found(self) -> int:
        """How many files were seen."""
        return len(self.accepted) + len(self.captions) + len(self.rejected) + len(self.ignored)

    def as_json(self) -> dict[str, Any]:
        """The account as plain lists and numbers, for `data.json`."""  # Any: JSON
        counts = {
            "accepted": len(self.accepted),
            "captions": len(self.captions),
            "rejected": len(self.rejected),
            "ignored": len(self.ignored),
            "warnings": len(self.warnings),
        }
        return {
            "found": self.found,
            "counts": counts,
            "sources": list(self.sources),
            "accepted": [_example_as_json(example) for example in self.accepted],
            "captions": [asdict(remark) for remark in self.captions],
            "rejected": [asdict(remark) for remark in self.rejected],
            "ignored": [asdict(remark) for remark in self.ignored],
            "warnings": [asdict(remark) for remark in self.warnings],
        }

    def check(self, on_reject: OnReject = "stop") -> None:
        """Make sure that the run may begin: nothing was refused, or the rest shall do and is not empty.

        Raises:
            DataError: it may not; the message names the first refused files with their reasons.
        """
        if not self.rejected or (on_reject == "skip" and self.accepted):
            return
        lines = [f"    {self.sources[r.source]}/{r.name}: {r.reason}" for r in self.rejected[:_SHOWN]]
        if len(self.rejected) > _SHOWN:
            lines.append(f"    and {len(self.rejected) - _SHOWN} more")
        raise DataError(
            f"{len(self.rejected)} of {self.found} files cannot be used:\n" + "\n".join(lines),
            mend="Mend or remove them, or train on the rest with data.on_reject=skip."
            if self.accepted
            else "Mend them; no picture is left without them.",
        )


@dataclass(slots=True)
class Draft:
    """The account of one source while it is being written."""

    index: int
    source: str
    accepted: list[Example] = field(default_factory=list[Example])
    captions: list[Remark] = field(default_factory=list[Remark])
    rejected: list[Remark] = field(default_factory=list[Remark])
    ignored: list[Remark] = field(default_factory=list[Remark])
    warnings: list[Remark] = field(default_factory=list[Remark])

    def caption(self, name: str) -> None:
        """A caption file in use."""
        self.captions.append(Remark(name, "a caption", self.index))

    def reject(self, name: str, reason: str, mend: str | None = None) -> None:
        """A file that was meant to be used, but cannot be."""
        self.rejected.append(Remark(name, reason, self.index, mend))

    def ignore(self, name: str, reason: str) -> None:
        """A file that was not meant to be used."""
        self.ignored.append(Remark(name, reason, self.index))

    def warn(self, name: str, reason: str) -> None:
        """Something to know of a file that stands in another list."""
        self.warnings.append(Remark(name, reason, self.index))

    def finish(self) -> Account:
        """The account as written."""
        return Account(
            accepted=tuple(self.accepted),
            captions=tuple(self.captions),
            rejected=tuple(self.rejected),
            ignored=tuple(self.ignored),
            warnings=tuple(self.warnings),
            sources=(self.source,),
        )


def join(accounts: Iterable[Account]) -> Account:
    """One account of several sources, in their order."""
    parts = tuple(accounts)
    return Account(
        accepted=tuple(example for part in parts for example in part.accepted),
        captions=tuple(remark for part in parts for remark in part.captions),
        rejected=tuple(remark for part in parts for remark in part.rejected),
        ignored=tuple(remark for part in parts for remark in part.ignored),
        warnings=tuple(remark for part in parts for remark in part.warnings),
        sources=tuple(source for part in parts for source in part.sources),
    )


def _example_as_json(example: Example) -> dict[str, Any]:
    return {
        "name": example.name,
        "source": example.source,
        "key": example.key,
        "width": example.size.width,
        "height": example.size.height,
        "caption": example.caption,
        "repeats": example.repeats,
        "weight": example.weight,
        "regularisation": example.regularisation,
    }
