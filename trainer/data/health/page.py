"""The health report as one HTML file: opens from a disk, needs no network, runs no script."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from trainer import __version__
from trainer.core.files import printable, write_atomically
from trainer.data.example import Example, Progress
from trainer.data.health.examining import Report
from trainer.data.health.findings import Finding, names_of, percent
from trainer.data.health.overflow import CutCaption
from trainer.data.health.thumbnails import Thumbnail, as_many_as_fit, thumbnails
from trainer.data.opened import OpenSources

_TEMPLATE: Final = "page.html.jinja"
_BYTES: Final = 13_000_000  # of all thumbnails
_FINDINGS: Final = 200
_NAMES: Final = 100  # of files, a finding
_PICTURES: Final = 24  # thumbnails, a finding
_GROUPS: Final = 40  # of copies, a finding
_GROUP: Final = 6  # thumbnails, a group
_GALLERY: Final = 300  # pictures; of a larger set, so many of all parts of it
_FILES: Final = 300  # names in a list of files
_TERMS: Final = 60
_LETTERS: Final = 300  # of a caption


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A picture as the page shows it."""

    place: int
    source: str
    name: str
    facts: str  # size, bucket, and what was measured
    caption: str
    thumbnail: Thumbnail | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A finding as the page shows it."""

    finding: Finding
    groups: list[list[Shown]]  # copies side by side
    pictures: list[Shown]
    names: list[str]  # of what no thumbnail stands for
    more: int  # files that are not named; the JSON names all


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A caption with the words that are not read."""

    name: str
    read: str
    lost: str
    over: int


def write_page(path: Path, report: Report, opened: OpenSources, title: str, progress: Progress | None = None) -> None:
    """Write the page; it is smaller than 20 MB, however many pictures there are.

    Args:
        path: the file.
        report: what it tells.
        opened: the sources, for the thumbnails.
        title: what was examined.
        progress: told after each thumbnail.
    """
    write_atomically(path, page_of(report, opened, title, progress))


def page_of(report: Report, opened: OpenSources, title: str, progress: Progress | None = None) -> str:
    """The page; arguments as for `write_page`."""
    places = _wanted(report)
    examples = report.account.accepted.take(places)
    buckets = [report.fitting.buckets[place] for place in places]
    made = thumbnails(examples, buckets, opened, report.settings, progress)
    shown = _Shelf(report, as_many_as_fit(places, made, _BYTES), dict(zip(places, examples, strict=True)))
    return _template().render(
        title=title,
        version=__version__,
        report=report,
        counts=report.account.counts,
        told=[_told(report, finding, shown) for finding in report.findings[:_FINDINGS]],
        more_findings=len(report.findings) - _FINDINGS,
        thumbnails=shown.thumbnails,
        gallery=shown.all(_gallery(report)),
        cut=list(_cut(report)),
        terms=list(report.vocabulary.counts.items())[:_TERMS],
        files=_files(report),
        most_showings=max((count.showings for count in report.buckets), default=1),
    )


class _Shelf:
    """The pictures that the page shows."""

    def __init__(self, report: Report, made: dict[int, Thumbnail], examples: dict[int, Example]) -> None:
        self._report, self._examples = report, examples
        self.thumbnails = made

    def one(self, place: int) -> Shown:
        """The picture at a place."""
        example = self._examples[place]
        caption = " | ".join(example.captions) or example.class_words
        return Shown(
            place=place,
            source=self._report.account.sources[example.source],
            name=example.name,
            facts=self._facts(place, example),
            caption=caption if len(caption) <= _LETTERS else f"{caption[:_LETTERS]}...",
            thumbnail=self.thumbnails.get(place),
        )

    def all(self, places: Iterable[int]) -> list[Shown]:
        """The pictures at these places."""
        return [self.one(place) for place in places]

    def _facts(self, place: int, example: Example) -> str:
        fitting, portraits, bucket = self._report.fitting, self._report.portraits, self._report.fitting.buckets[place]
        facts = [f"{example.size.width} × {example.size.height} in {bucket.width} × {bucket.height}"]
        if fitting.lost[place] >= 0.005:
            facts.append(f"{fitting.lost[place]:.0%} cut off")
        if fitting.enlarged[place] > 1:
            facts.append(f"enlarged {fitting.enlarged[place]:.1f} times")
        if portraits is not None and not math.isnan(portraits.blur[place]):
            facts.append(f"blur {portraits.blur[place]:.1f} px")
        if portraits is not None and example.mask_key:
            facts.append(f"mask leaves {portraits.counts[place]:.0%}")
        return ", ".join(facts)


def _wanted(report: Report) -> list[int]:
    """The places of all pictures of which the page wants a thumbnail, the most important first, each once."""
    places = [place for finding in report.findings[:_FINDINGS] for place in _pictured(finding)]
    return list(dict.fromkeys([*places, *_gallery(report)]))


def _pictured(finding: Finding) -> list[int]:
    if finding.groups:
        return [place for group in finding.groups[:_GROUPS] for place in group[:_GROUP]]
    return list(finding.places[:_PICTURES])


def _gallery(report: Report) -> list[int]:
    """All places, or as many, evenly spread."""
    count = len(report.account.accepted)
    return np.unique(np.linspace(0, count - 1, min(count, _GALLERY)).astype(np.int64)).tolist()


def _told(report: Report, finding: Finding, shown: _Shelf) -> Told:
    if finding.groups:
        groups = [shown.all(group[:_GROUP]) for group in finding.groups[:_GROUPS]]
        rest = [place for group in finding.groups[_GROUPS:] for place in group]
        return Told(finding=finding, groups=groups, pictures=[], names=_names(report, rest), more=len(rest) - _NAMES)
    pictures = shown.all(finding.places[:_PICTURES])
    names = finding.where[len(pictures) :]
    return Told(finding=finding, groups=[], pictures=pictures, names=list(names[:_NAMES]), more=len(names) - _NAMES)


def _names(report: Report, places: Sequence[int]) -> list[str]:
    return names_of(report.account, places[:_NAMES])


def _cut(report: Report) -> Iterable[Cut]:
    worst = sorted(report.cut, key=lambda one: -one.over)[:_NAMES]
    for one, name in zip(worst, names_of(report.account, [one.place for one in worst]), strict=True):
        read, lost = _parted(one)
        yield Cut(name=name, read=read, lost=lost, over=one.over)


def _parted(one: CutCaption) -> tuple[str, str]:
    """What is read of a caption, and what is not, in the letters of the caption where that can be told."""
    at = one.caption.casefold().rfind(one.lost.casefold()) if one.lost else -1
    if at < 0 or len(one.caption) != len(one.caption.casefold()):
        return one.caption, one.lost
    return one.caption[:at], one.caption[at:]


def _files(report: Report) -> list[tuple[str, int, list[tuple[str, str]]]]:
    """Refused, passed over and remarked files: the heading, how many, and names with reasons."""
    account = report.account
    lists = (("Refused", account.rejected), ("Passed over", account.ignored), ("Remarks", account.warnings))
    return [
        (heading, len(remarks), [(f"{account.sources[r.source]}/{r.name}", r.reason) for r in remarks[:_FILES]])
        for heading, remarks in lists
        if remarks
    ]


def _template() -> Any:
    """The template, in which every text is escaped, for HTML and for signs that change the direction of writing."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: object) -> object:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment.get_template(_TEMPLATE)
