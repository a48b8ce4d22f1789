"""Every picture of every source is looked at before anything else happens; what was looked at is remembered."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from typing import Final

from trainer.core.errors import DataError
from trainer.core.threads import in_order
from trainer.data.account import Account, Draft, settle
from trainer.data.decoding import DECODER_VERSION, ImageLimits, decode, decode_mask, digest, look
from trainer.data.example import Example, Progress, Size
from trainer.data.examples import ExampleTableBuilder
from trainer.data.shards import ShardStore
from trainer.data.sources.base import Found, Masks, Reader, Source

_AT_ONCE: Final = 4096  # verdicts written together
_LISTED: Final = 100_000  # pictures that are listed before the first is looked at, so that the end is known

_OPAQUE: Final = "has no transparent parts, so all of it is learned from"
_NO_MASK: Final = "has no mask, so all of it is learned from"
_MOST_ASPECT_ERROR: Final = 0.02  # how far a mask's shape may be from its picture's before it is somebody else's


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a look at a picture that can be used found."""

    key: str
    size: Size
    remarks: tuple[str, ...]
    mask_key: str = ""

    def as_bytes(self) -> bytes:
        """The verdict as JSON."""
        return json.dumps([self.key, *self.size, self.mask_key, *self.remarks]).encode("utf-8")

    @classmethod
    def from_bytes(cls, content: bytes | memoryview) -> "Verdict":
        """The verdict that `as_bytes` wrote."""
        key, width, height, mask_key, *remarks = json.loads(bytes(content))
        return cls(key, Size(width, height), tuple(remarks), mask_key)


def scan(
    sources: Sequence[Source],
    limits: ImageLimits,
    progress: Progress | None = None,
    *,
    memory: Path | None = None,
) -> Account:
    """The account of all sources, in their order; whether it will do is asked with `Account.check`.

    Every picture is decoded from its first byte to its last, in threads, unless `memory` knows the verdict on the
    very same file: same entry of the file system, same size, same times of change to the nanosecond.

    Args:
        sources: parts of sources, as `DataSettings.parts` gives them.
        limits: what a picture may measure.
        progress: told after each picture.
        memory: a folder in which verdicts are remembered.

    Raises:
        DataError: a source does not exist, or holds nothing that is meant to be a picture.
    """
    builder = ExampleTableBuilder()
    verdicts = _Verdicts(memory, limits)
    drafts = [Draft(index, source.title) for index, source in enumerate(sources)]
    looked = 0
    with verdicts:
        for source, draft in zip(sources, drafts, strict=True):
            for note in source.notes():
                draft.warn("the settings", note)
            reader = source.open()
            listing = reader.list(draft)
            first = list(islice(listing, _LISTED))
            expected = looked + len(first)
            for found, verdict in _judged(chain(first, listing), reader, source, limits, verdicts):
                _settle(draft, builder, source, found, verdict)
                looked += 1
                if progress is not None:
                    progress("reading pictures", looked, max(looked, expected))
    return settle(drafts, builder.finish())


def _judged(
    pictures: Iterable[Found], reader: Reader, source: Source, limits: ImageLimits, verdicts: "_Verdicts"
) -> Iterator["_Judged"]:
    """Each picture with the verdict on it, in order."""

    def known(found: Found) -> "_Judged | None":
        verdict = verdicts.on(found, source.masks)
        return None if verdict is None else (found, verdict)

    def judge(found: Found) -> "_Judged":
        try:
            verdict = _look(found, reader, source.masks, limits)
        except DataError as error:
            return found, error
        verdicts.remember(found, source.masks, verdict)
        return found, verdict

    yield from in_order(judge, pictures, known=known)


def _look(found: Found, reader: Reader, masks: Masks, limits: ImageLimits) -> Verdict:
    """The verdict on one picture and its mask.

    Raises:
        DataError: it cannot be used.
    """
    where = reader.where(found.locator)
    content = reader.read(found.locator, limits.bytes)
    if masks == "alpha":
        return _look_at_alpha(content, where, limits)
    sight = look(content, where, limits)
    if not found.mask:
        return Verdict(digest(content), sight.size, (*sight.remarks, *((_NO_MASK,) if masks == "files" else ())))
    mask_where = reader.where(found.mask)
    mask_content = reader.read(found.mask, limits.bytes)
    mask = decode_mask(mask_content, mask_where, limits)
    if not mask.getbbox():
        raise _empty_mask("Its mask is black everywhere, so nothing would be learned from it.", mask_where)
    if abs(mask.width * sight.size.height / (mask.height * sight.size.width) - 1) > _MOST_ASPECT_ERROR:
        shape = f"{mask.width} x {mask.height}, and the picture {sight.size.width} x {sight.size.height}"
        raise DataError(
            f"Its mask has another shape: {shape}.", where=mask_where, mend="Save the mask in the picture's size."
        )
    return Verdict(digest(content), sight.size, sight.remarks, digest(mask_content))


def _look_at_alpha(content: bytes, where: str, limits: ImageLimits) -> Verdict:
    picture = decode(content, where, limits)
    size = Size(*picture.image.size)
    if picture.alpha is None or picture.alpha.getextrema() == (255, 255):
        return Verdict(digest(content), size, (*picture.remarks, _OPAQUE))
    if not picture.alpha.getbbox():
        raise _empty_mask("It is transparent everywhere, so nothing would be learned from it.", where)
    return Verdict(digest(content), size, picture.remarks, "alpha")


def _empty_mask(what: str, where: str) -> DataError:
    return DataError(what, where=where, mend="Mend its mask, or remove it.")


def _settle(
    draft: Draft, builder: ExampleTableBuilder, source: Source, found: Found, verdict: Verdict | DataError
) -> None:
    """Accept the picture, or refuse it with the reason."""
    if isinstance(verdict, DataError):
        draft.reject(found.name, verdict.what, verdict.mend)
        return
    if found.refusal is not None:
        draft.reject(found.name, found.refusal.what, found.refusal.mend)
        return
    for remark in (*verdict.remarks, *found.remarks):
        draft.warn(found.name, remark)
    if not found.captions and not found.class_words and "its caption is empty" not in found.remarks:
        draft.warn(found.name, "has no caption")
    builder.append(
        Example(
            source=draft.index,
            locator=found.locator,
            name=found.name,
            key=verdict.key,
            size=verdict.size,
            captions=found.captions,
            class_words=found.class_words,
            repeats=source.repeats * found.repeats,
            weight=source.weight,
            regularisation=source.regularisation,
            held_out=source.held_out,
            mask=found.mask,
            mask_key=verdict.mask_key,
        )
    )


_Judged = tuple[Found, Verdict | DataError]


class _Verdicts:
    """Remembers verdicts on pictures that can be used; refused ones are looked at again, since they may be mended."""

    def __init__(self, folder: Path | None, limits: ImageLimits) -> None:
        self._store = None if folder is None else ShardStore(folder)
        self._rules = f"{DECODER_VERSION} {limits.pixels} {limits.bytes}"
        self._new: dict[str, bytes] = {}
        self._lock = Lock()

    def __enter__(self) -> "_Verdicts":
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        if self._store is not None:
            self._store.save_index()

    def on(self, found: Found, masks: Masks) -> Verdict | None:
        """The verdict on this very file, if it is known."""
        if self._store is None or not found.stamp:
            return None
        content = self._store.get(self._key(found, masks))
        return None if content is None else Verdict.from_bytes(content)

    def remember(self, found: Found, masks: Masks, verdict: Verdict) -> None:
        """Keep a verdict; may be called by several threads."""
        if self._store is None or not found.stamp or (found.mask and not found.mask_stamp):
            return
        with self._lock:
            self._new[self._key(found, masks)] = verdict.as_bytes()
            if len(self._new) >= _AT_ONCE:
                self._write()

    def _key(self, found: Found, masks: Masks) -> str:
        return digest("\n".join((self._rules, masks, found.stamp, found.mask_stamp)).encode("utf-8"))

    def _write(self) -> None:
        if self._store is not None and self._new:
            self._store.write(self._new)
        self._new = {}
