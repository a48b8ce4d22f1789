"""What is wrong with this dataset, before hours are spent on it."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trainer.core.seeds import Seeds
from trainer.data.account import Account
from trainer.data.batches import DataSettings
from trainer.data.buckets import Bucket
from trainer.data.captions import captions_needed, has_trigger
from trainer.data.example import Example

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know: what it is, which files it concerns, and how to mend it."""

    level: Level  # error: training would be refused; warning: the result may suffer; note: good to know
    what: str
    where: tuple[str, ...] = ()  # SOURCE/FILE
    mend: str = ""

    def as_json(self) -> dict[str, Any]:
        """The finding as plain text and lists."""
        return {**asdict(self), "where": list(self.where)}


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketCount:
    """How a bucket fills."""

    bucket: Bucket
    pictures: int
    showings: int  # in one epoch: pictures times repeats
    batches: int  # in one epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one source contributes."""

    source: str
    pictures: int
    showings: int  # in one epoch
    share: float  # of all showings, each counted with its weight; 0 .. 1


def examine(
    account: Account,
    settings: DataSettings,
    *,
    batch: int = 1,
    scale: int = 8,
    count_tokens: Callable[[str], int] | None = None,
    token_limit: int = 75,
) -> list[Finding]:
    """What to know of a dataset, errors first.

    Args:
        account: of a scan of `settings.sources`.
        settings: the recipe's `data`.
        batch: examples at once in one process.
        scale: pixels a latent column of the model.
        count_tokens: tokens of a text without its two end marks; without it, overflow is not looked for.
        token_limit: how many the text encoder reads.
    """
    findings = [
        *_files(account, settings),
        *_words(account, settings),
        *_duplicates(account),
        *_sizes(account, settings, scale),
        *_buckets(account, settings, batch, scale),
        *_shares(account, settings),
    ]
    if count_tokens is not None:
        findings += _tokens(account, settings, count_tokens, token_limit)
    order: dict[Level, int] = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda finding: order[finding.level])


def count_buckets(account: Account, settings: DataSettings, batch: int, scale: int) -> list[BucketCount]:
    """The buckets in use, from tall to wide."""
    pictures: Counter[Bucket] = Counter()
    showings: Counter[Bucket] = Counter()
    for example, bucket in zip(account.accepted, settings.buckets_of(account.accepted, scale), strict=True):
        pictures[bucket] += 1
        showings[bucket] += example.repeats
    return [
        BucketCount(
            bucket=bucket,
            pictures=pictures[bucket],
            showings=showings[bucket],
            batches=math.ceil(showings[bucket] / batch),
        )
        for bucket in sorted(pictures, key=lambda bucket: (bucket.width / bucket.height, bucket.width))
    ]


def shares_of(account: Account) -> list[Share]:
    """How much of an epoch each source makes up."""
    weighed = [0.0] * len(account.sources)
    pictures, showings = [0] * len(account.sources), [0] * len(account.sources)
    for example in account.accepted:
        pictures[example.source] += 1
        showings[example.source] += example.repeats
        weighed[example.source] += example.repeats * example.weight
    whole = sum(weighed) or 1.0
    return [
        Share(source=source, pictures=count, showings=shown, share=part / whole)
        for source, count, shown, part in zip(account.sources, pictures, showings, weighed, strict=True)
    ]


def _files(account: Account, settings: DataSettings) -> Iterable[Finding]:
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for remark in account.rejected:
        by_reason[remark.reason].append(f"{account.sources[remark.source]}/{remark.name}")
    for reason, names in by_reason.items():
        stops = settings.on_reject == "stop" or not account.accepted
        yield Finding(
            "error" if stops else "warning",
            f"Cannot be used: {reason}",
            tuple(names),
            "Mend or remove them, or train on the rest with data.on_reject=skip.",
        )
    by_warning: defaultdict[str, list[str]] = defaultdict(list)
    for remark in account.warnings:
        by_warning[remark.reason].append(f"{account.sources[remark.source]}/{remark.name}")
    for reason, names in by_warning.items():
        if "caption is empty" in reason or "no caption" in reason:
            mend = "Write a caption beside each; a picture without words teaches less."
            yield Finding("warning", f"{len(names)} pictures: {reason}.", tuple(names), mend)
        else:
            yield Finding("note", f"{len(names)} files: {reason}.", tuple(names))


def _words(account: Account, settings: DataSettings) -> Iterable[Finding]:
    trigger = settings.captions.trigger
    learned = [example for example in account.accepted if not example.regularisation]
    if not trigger:
        if learned:
            mend = "Set data.captions.trigger to a rare word, so that a prompt can call what was learned."
            yield Finding("note", "No trigger word is set.", (), mend)
        return
    lacking = [example for example in learned if not has_trigger(example.caption, trigger)]
    if lacking:
        what = f"{len(lacking)} captions lack the trigger {trigger!r}; it is put in front of them."
        yield Finding("note", what, _names(account, lacking))
    bleeding = [
        example for example in account.accepted if example.regularisation and has_trigger(example.caption, trigger)
    ]
    if bleeding:
        what = f"{len(bleeding)} regularisation captions hold the trigger {trigger!r}."
        yield Finding("warning", what, _names(account, bleeding), "Take it out, or the trigger will call them too.")


def _duplicates(account: Account) -> Iterable[Finding]:
    by_key: defaultdict[str, list[Example]] = defaultdict(list)
    for example in account.accepted:
        by_key[example.key].append(example)
    for same in by_key.values():
        if len(same) > 1:
            what = f"{len(same)} files hold the same picture, byte for byte."
            yield Finding("warning", what, _names(account, same), "Keep one, or say what you want by repeats.")


def _sizes(account: Account, settings: DataSettings, scale: int) -> Iterable[Finding]:
    buckets = settings.buckets_of(account.accepted, scale)
    pairs = list(zip(account.accepted, buckets, strict=True))
    small = [e for e, b in pairs if e.size.width < b.width or e.size.height < b.height]
    if small:
        yield Finding(
            "warning",
            f"{len(small)} pictures are smaller than their bucket and will be enlarged: the model learns their blur.",
            _names(account, small),
            "Use larger originals, a smaller data.resolution, or data.buckets.upscale=false.",
        )
    cut = [e for e, b in pairs if abs(math.log(e.size.width * b.height / (e.size.height * b.width))) > math.log(1.25)]
    if cut:
        yield Finding(
            "warning",
            f"{len(cut)} pictures lose more than a fifth of their longer side to the crop.",
            _names(account, cut),
            "Crop them yourself to what matters, or raise data.buckets.max_aspect.",
        )


def _buckets(account: Account, settings: DataSettings, batch: int, scale: int) -> Iterable[Finding]:
    lonely = [count for count in count_buckets(account, settings, batch, scale) if count.showings < batch]
    if lonely:
        shapes = ", ".join(f"{c.bucket.width}x{c.bucket.height} ({c.showings})" for c in lonely)
        yield Finding(
            "note",
            f"{len(lonely)} buckets hold fewer showings than the batch of {batch}, and make smaller ones: {shapes}.",
            (),
            "Nothing is dropped; a larger data.buckets.step or smaller max_aspect gives fewer, fuller buckets.",
        )


def _shares(account: Account, settings: DataSettings) -> Iterable[Finding]:
    regular = [source.regularisation for source in settings.sources]
    shares = shares_of(account)
    if any(regular) and not all(regular):
        share = sum(one.share for one, ordinary in zip(shares, regular, strict=True) if ordinary)
        yield Finding("note", f"Regularisation pictures make up {share:.0%} of what is learned from.")


def _tokens(
    account: Account, settings: DataSettings, count_tokens: Callable[[str], int], limit: int
) -> Iterable[Finding]:
    long: list[tuple[int, Example]] = []
    for example in account.accepted:
        # Every order of the tags has as many tokens, so one will do.
        lengths = [count_tokens(text) for text in captions_needed([example], settings.captions, Seeds(0))]
        if max(lengths) > limit:
            long.append((max(lengths) - limit, example))
    if long:
        yield Finding(
            "warning",
            f"{len(long)} captions are longer than {limit} tokens; up to {max(lost for lost, _ in long)} are cut off.",
            _names(account, [example for _, example in long]),
            "Shorten them; what matters most belongs in front.",
        )


def _names(account: Account, examples: Sequence[Example]) -> tuple[str, ...]:
    return tuple(f"{account.sources[example.source]}/{example.name}" for example in examples)
