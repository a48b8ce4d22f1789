"""The whole health report of a dataset."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.data.account import Account
from trainer.data.batches import DataSettings
from trainer.data.example import Progress
from trainer.data.health.copies import Copies, among, copies_of, copy_findings
from trainer.data.health.files import file_findings
from trainer.data.health.findings import Finding, ModelFacts, names_of, worst_first
from trainer.data.health.looks import look_findings
from trainer.data.health.overflow import CutCaption, cut_captions, overflow_findings
from trainer.data.health.portraits import Portraits, portraits
from trainer.data.health.shapes import (
    BucketCount,
    Fitting,
    bucket_findings,
    count_buckets,
    fit_all,
    shape_findings,
)
from trainer.data.health.shares import Share, share_findings, shares_of
from trainer.data.health.vocabulary import Vocabulary, vocabulary_findings, vocabulary_of
from trainer.data.health.words import word_findings
from trainer.data.opened import OpenSources


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What there is to know of a dataset before it is trained on."""

    account: Account
    settings: DataSettings
    batch: int
    findings: tuple[Finding, ...]  # worst first
    shares: tuple[Share, ...]  # of the sources
    buckets: tuple[BucketCount, ...]
    fitting: Fitting
    copies: tuple[Copies, ...]
    vocabulary: Vocabulary
    cut: tuple[CutCaption, ...]
    token_limit: int
    portraits: Portraits | None = None  # None: nobody looked at the pixels again

    @property
    def refused(self) -> bool:
        """Whether training would be refused."""
        return any(finding.level == "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain text, numbers and lists."""
        names = names_of(self.account, [one.place for one in self.cut])
        return {
            "findings": [finding.as_json() for finding in self.findings],
            "sources": [asdict(share) for share in self.shares],
            "buckets": [asdict(count) | {"bucket": list(count.bucket)} for count in self.buckets],
            "copies": [group.as_json(self.account) for group in self.copies],
            "vocabulary": self.vocabulary.as_json(),
            "overflow": [one.as_json() | {"picture": name} for one, name in zip(self.cut, names, strict=True)],
            "account": self.account.as_json(),
        }


def examine(
    account: Account,
    settings: DataSettings,
    *,
    model: ModelFacts = ModelFacts(),  # noqa: B008 frozen
    batch: int = 1,
    portraits: Portraits | None = None,
    before: tuple[Finding, ...] = (),
) -> Report:
    """What to know of a dataset, errors first.

    Args:
        account: of a scan of `settings.parts`.
        settings: the recipe's `data`.
        model: what is known of the model.
        batch: examples at once in one process.
        portraits: of `account.accepted`, by `look_closer`; without them, only byte-identical copies are found, and
            nothing is said of blur and masks.
        before: what was found before, and belongs into the report.
    """
    fitting = fit_all(account, settings, scale=model.scale, batch=batch)
    shares, counts = shares_of(account), count_buckets(account, fitting, batch)
    copies = copies_of(account, portraits)
    # the base may well be asked about the very pictures that are learned
    learned = among(copies, account, lambda example: not settings.asks_base(example))
    vocabulary = vocabulary_of(account, settings.rules_of)
    cut = cut_captions(account, settings.rules_of, model)
    findings = [
        *before,
        *file_findings(account, settings.on_reject),
        *copy_findings(account, learned, flip=settings.flip),
        *overflow_findings(account, cut, model.token_limit),
        *word_findings(account, settings.rules_of),
        *(look_findings(account, portraits) if portraits is not None else ()),
        *shape_findings(account, settings, fitting),
        *vocabulary_findings(vocabulary),
        *bucket_findings(counts, settings, batch),
        *share_findings(shares),
    ]
    return Report(
        account=account,
        settings=settings,
        batch=batch,
        findings=tuple(worst_first(findings)),
        shares=tuple(shares),
        buckets=tuple(counts),
        fitting=fitting,
        copies=tuple(copies),
        vocabulary=vocabulary,
        cut=tuple(cut),
        token_limit=model.token_limit,
        portraits=portraits,
    )


def look_closer(
    account: Account,
    settings: DataSettings,
    opened: OpenSources,
    scale: int,
    progress: Progress | None = None,
    memory: Path | None = None,
) -> Portraits:
    """The portraits of all accepted pictures, each judged at the size of its own bucket.

    Args:
        account: whose pictures.
        settings: the recipe's `data`.
        opened: its sources.
        scale: pixels a latent column.
        progress: told after each picture.
        memory: a folder in which the portraits are remembered.
    """
    buckets = settings.buckets_of(account.accepted, scale, 1)
    looked = portraits(account.accepted, buckets, opened, settings.limits, progress, memory)
    return Portraits.gathered(looked, len(account.accepted))
