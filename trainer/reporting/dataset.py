"""The run's data once more: what its account says, and what the doctor finds in it now."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from trainer.core.errors import TrainerError, WeightsError
from trainer.core.files import printable
from trainer.core.progress import Phases
from trainer.core.redacting import redacted_text
from trainer.data.health.examining import Report, examine, look_closer
from trainer.data.health.findings import Finding, ModelFacts
from trainer.data.health.thumbnails import as_many_as_fit, thumbnails
from trainer.data.opened import OpenSources
from trainer.data.scanning import scan
from trainer.recipe.recipe import Recipe
from trainer.reporting.record import RunRecord

_LETTERS: Final = 1_500_000  # of all thumbnails together
_MOST: Final = 20_000  # pictures; larger sets are examined by `trainer doctor` alone
_CLOSELY: Final = 1_000  # pictures: so many are looked at once more, for blur and near copies
_FINDINGS: Final = 40
_NAMES: Final = 12  # a finding
_PICTURES: Final = 8  # a finding


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownFinding:
    """What the doctor says, with some of the pictures that it is about."""

    finding: Finding
    pictures: list[tuple[str, str]]  # name and data URI
    names: list[str]
    more: int  # files that are not named


@dataclass(frozen=True, slots=True, kw_only=True)
class DataHealth:
    """The run's data as the page tells of them."""

    counts: dict[str, int]  # of the account; empty where there is none
    found: int
    findings: list[ShownFinding]
    closely: bool = False  # whether blur and near copies were looked for
    problem: str = ""  # why nobody looked again, in words; "" where somebody did


def health_of(record: RunRecord, progress: Phases, *, examined: bool = True) -> DataHealth:
    """What there is to know of a run's data; what cannot be examined any more is said.

    Args:
        record: of the run.
        progress: told after each picture.
        examined: whether the doctor looks at the data again; else only their account is told.
    """
    counted = _mapping(record.account.get("counts"))
    counts = {str(key): value for key, value in counted.items() if isinstance(value, int)}
    found = record.account.get("found")
    known = DataHealth(counts=counts, found=found if isinstance(found, int) else 0, findings=[])
    if record.recipe is None:
        return replace(known, problem=record.recipe_problem)
    if not examined:
        return replace(known, problem="The command trainer report also tells what the doctor finds in them.")
    if counts.get("accepted", 0) > _MOST:
        return replace(known, problem=f"There are more than {_MOST:,} pictures: trainer doctor examines them.")
    try:
        report, opened = _examined(record.recipe, progress)
        shown = _shown(report, opened, progress)
    except TrainerError as error:
        why = printable(redacted_text(error.what))
        return replace(known, problem=f"The data could not be examined again: {why}")
    return DataHealth(
        counts=report.account.counts,
        found=report.account.found,
        findings=shown,
        closely=report.portraits is not None,
    )


def _examined(recipe: Recipe, progress: Phases) -> tuple[Report, OpenSources]:
    data, cache = recipe.data, recipe.data.cache.folder
    opened = OpenSources(data.parts)
    account = scan(opened.parts, data.limits, progress, memory=cache / "verdicts")
    facts, before = _model_facts(recipe)
    few = len(account.accepted) <= _CLOSELY
    seen = look_closer(account, data, opened, facts.scale, progress, cache / "portraits") if few else None
    return examine(account, data, model=facts, batch=recipe.batch, portraits=seen, before=before), opened


def _model_facts(recipe: Recipe) -> tuple[ModelFacts, tuple[Finding, ...]]:
    """What the doctor needs to know of the model; no network is read for it."""
    try:
        model = recipe.model.load(recipe.precision, torch.device("cpu"))
    except WeightsError as error:
        what = f"The base model cannot be opened, so tokens are not counted: {redacted_text(error.what)}"
        return ModelFacts(), (Finding(kind="no-model", level="note", what=what),)
    model.vocabulary.add(recipe.adapter.new_words)
    facts = ModelFacts(
        scale=model.latent.scale,
        token_limit=model.token_limit,
        count_tokens=model.count_tokens,
        lost_words=model.lost_words,
    )
    return facts, ()


def _shown(report: Report, opened: OpenSources, progress: Phases) -> list[ShownFinding]:
    findings = report.findings[:_FINDINGS]
    places = list(dict.fromkeys(place for finding in findings for place in _places(finding)))
    examples = report.account.accepted.take(places)
    buckets = [report.fitting.buckets[place] for place in places]
    made = as_many_as_fit(places, thumbnails(examples, buckets, opened, report.settings, progress), _LETTERS)
    names = {place: example.name for place, example in zip(places, examples, strict=True)}
    return [
        ShownFinding(
            finding=finding,
            pictures=[(names[place], made[place].content) for place in _places(finding) if place in made],
            names=[redacted_text(name) for name in finding.where[:_NAMES]],
            more=max(len(finding.where) - _NAMES, 0),
        )
        for finding in findings
    ]


def _places(finding: Finding) -> Sequence[int]:
    every = [place for group in finding.groups for place in group] or list(finding.places)
    return every[:_PICTURES]


def _mapping(value: object) -> dict[Any, Any]:  # Any: JSON of many kinds
    return value if isinstance(value, dict) else {}
