"""Files that cannot be used, and files about which there is something to know."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from trainer.data.account import Account, OnReject, Remark
from trainer.data.health.findings import Finding, counted

_NO_WORDS: Final = ("caption is empty", "no caption")  # of the remarks that a scan writes
_SAID_ELSEWHERE: Final = "each is a caption of its own"


def file_findings(account: Account, on_reject: OnReject) -> Iterator[Finding]:
    """What the account of the files tells, one finding for each reason."""
    stops = on_reject == "stop" or not account.accepted
    for reason, remarks in _by_reason(account.rejected).items():
        mends = {remark.mend for remark in remarks if remark.mend}
        yield Finding(
            kind="refused-files",
            level="error" if stops else "warning",
            what=f"Cannot be used: {reason}",
            mend=f"{' '.join(sorted(mends))} Or train on the rest with data.on_reject=skip.".strip(),
            where=_names(account, remarks),
        )
    places = _places(account, account.warnings)
    for reason, remarks in _by_reason(account.warnings).items():
        if not reason.endswith(_SAID_ELSEWHERE):
            finding = _remarked(account, reason, remarks)
            found = (places.get((remark.source, remark.name)) for remark in remarks)
            yield replace(finding, places=tuple(place for place in found if place is not None))


def _remarked(account: Account, reason: str, remarks: Sequence[Remark]) -> Finding:
    if any(words in reason for words in _NO_WORDS):
        return Finding(
            kind="no-words",
            level="warning",
            what=f"{counted(len(remarks), 'picture')}: {reason}.",
            mend="Write a caption beside each, or let `trainer caption` do it; a picture without words teaches less.",
            where=_names(account, remarks),
        )
    return Finding(
        kind="file-remarks",
        level="note",
        what=f"{counted(len(remarks), 'file')}: {reason}.",
        where=_names(account, remarks),
    )


def _by_reason(remarks: Sequence[Remark]) -> dict[str, list[Remark]]:
    sorted_in: defaultdict[str, list[Remark]] = defaultdict(list)
    for remark in remarks:
        sorted_in[remark.reason].append(remark)
    return sorted_in


def _places(account: Account, remarks: Sequence[Remark]) -> dict[tuple[int, str], int]:
    """The places, in `account.accepted`, of the pictures that remarks are about, by source and name."""
    wanted = {(remark.source, remark.name) for remark in remarks}
    if not wanted:
        return {}
    keys = ((example.source, example.name) for example in account.accepted)
    return {key: place for place, key in enumerate(keys) if key in wanted}


def _names(account: Account, remarks: Sequence[Remark]) -> tuple[str, ...]:
    return tuple(f"{account.sources[remark.source]}/{remark.name}" for remark in remarks)
