"""What became of every file of a dataset: nothing is dropped silently."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Final, Literal

from trainer.core.errors import DataError
from trainer.core.redacting import without_secrets
from trainer.data.example import Example
from trainer.data.examples import ExampleTable

OnReject = Literal["stop", "skip"]

_SHOWN: Final = 10  # how many refused files a message names
MOST_LISTED: Final = 100_000  # accepted pictures that stand in the JSON one by one; more go into a table beside it


@dataclass(frozen=True, slots=True)
class Remark:
    """Something about one file: why it was refused or passed over, or what to know of it."""

    name: str  # the path inside its source, safe to print
    reason: str
    source: int = 0
    mend: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Every file found, exactly once: a picture that is used, a caption or mask in use, refused, or passed over.

    `len(accepted) + len(captions) + len(masks) + len(rejected) + len(ignored) == found`. A hidden folder, and a link
    to a folder, count as one file; we do not look into them. Members of an archive and rows of a table count as files.
    """

    accepted: ExampleTable = field(default_factory=lambda: ExampleTable.of(()))
    captions: tuple[Remark, ...] = ()  # caption files in use
    masks: tuple[Remark, ...] = ()  # mask files in use
    rejected: tuple[Remark, ...] = ()  # meant to be used, but cannot be
    ignored: tuple[Remark, ...] = ()  # not meant to be used
    warnings: tuple[Remark, ...] = ()  # about files that stand in one of the lists above
    sources: tuple[str, ...] = ()  # as the recipe names them

    @property
    def found(self) -> int:
        """How many files were seen."""
        return sum(self.counts[name] for name in ("accepted", "captions", "masks", "rejected", "ignored"))

    @property
    def counts(self) -> dict[str, int]:
        """The length of each list."""
        return {
            "accepted": len(self.accepted),
            "captions": len(self.captions),
            "masks": len(self.masks),
            "rejected": len(self.rejected),
            "ignored": len(self.ignored),
            "warnings": len(self.warnings),
        }

    @property
    def training(self) -> ExampleTable:
        """The accepted pictures that are trained on."""
        return self.accepted.select(~self.accepted.numbers("held_out"))

    @property
    def held_out(self) -> ExampleTable:
        """The accepted pictures that are kept back."""
        return self.accepted.select(self.accepted.numbers("held_out"))

    def as_json(self) -> dict[str, Any]:
        """The account as plain lists and numbers, for `data.json`; secrets in captions are hidden."""  # Any: JSON
        return {
            "found": self.found,
            "counts": self.counts,
            "sources": list(self.sources),
            "accepted": without_secrets([_example_as_json(example) for example in islice(self.accepted, MOST_LISTED)]),
            "captions": [asdict(remark) for remark in self.captions],
            "masks": [asdict(remark) for remark in self.masks],
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
    captions: list[Remark] = field(default_factory=list[Remark])
    masks: list[Remark] = field(default_factory=list[Remark])
    rejected: list[Remark] = field(default_factory=list[Remark])
    ignored: list[Remark] = field(default_factory=list[Remark])
    warnings: list[Remark] = field(default_factory=list[Remark])

    def caption(self, name: str) -> None:
        """A caption file in use."""
        self.captions.append(Remark(name, "a caption", self.index))

    def mask(self, name: str) -> None:
        """A mask file in use."""
        self.masks.append(Remark(name, "a mask", self.index))

    def reject(self, name: str, reason: str, mend: str | None = None) -> None:
        """A file that was meant to be used, but cannot be."""
        self.rejected.append(Remark(name, reason, self.index, mend))

    def ignore(self, name: str, reason: str) -> None:
        """A file that was not meant to be used."""
        self.ignored.append(Remark(name, reason, self.index))

    def warn(self, name: str, reason: str) -> None:
        """Something to know of a file that stands in another list."""
        self.warnings.append(Remark(name, reason, self.index))


def settle(drafts: Sequence[Draft], accepted: ExampleTable) -> Account:
    """One account of several sources, in their order."""
    return Account(
        accepted=accepted,
        captions=tuple(remark for draft in drafts for remark in draft.captions),
        masks=tuple(remark for draft in drafts for remark in draft.masks),
        rejected=tuple(remark for draft in drafts for remark in draft.rejected),
        ignored=tuple(remark for draft in drafts for remark in draft.ignored),
        warnings=tuple(remark for draft in drafts for remark in draft.warnings),
        sources=tuple(draft.source for draft in drafts),
    )


def _example_as_json(example: Example) -> dict[str, Any]:
    return {
        "name": example.name,
        "source": example.source,
        "key": example.key,
        "width": example.size.width,
        "height": example.size.height,
        "captions": list(example.captions),
        "class_words": example.class_words,
        "repeats": example.repeats,
        "weight": example.weight,
        "regularisation": example.regularisation,
        "held_out": example.held_out,
        "mask": bool(example.mask_key),
    }
