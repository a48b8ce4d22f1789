"""Shards in WebDataset form: tar archives whose members of one name are one picture with its words."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, Final, Literal

from typing_extensions import override

from trainer.core.errors import DataError
from trainer.core.files import printable
from trainer.data.account import Draft
from trainer.data.sidecars import Words, decode_caption
from trainer.data.sources.archives import Member, compression_of, members, open_regular
from trainer.data.sources.base import Found, Reader, Source, stamp_of
from trainer.data.sources.columns import CAPTION_COLUMNS, lines_of
from trainer.data.sources.shard_names import Shard, find_shards
from trainer.data.sources.suffixes import OTHER_PICTURE_SUFFIXES, PICTURE_SUFFIXES

_PICTURES: Final = frozenset(suffix[1:] for suffix in PICTURE_SUFFIXES)
_OTHER_PICTURES: Final = frozenset(suffix[1:] for suffix in OTHER_PICTURE_SUFFIXES)
_CAPTIONS: Final = ("txt", "caption", "json")  # the first that a picture has is used
_MASK: Final = "mask.png"
_ARCHIVES: Final = ("tar", "tgz", "zip", "gz", "7z", "rar")
_MOST_CAPTION: Final = 1 << 20  # bytes


class WebDataset(Source):
    """Uncompressed tar shards: members with the same name up to its first dot belong together.

    A picture (`.jpg`, `.png`, `.webp`, ...), its caption (`.txt`, `.caption`, or a `.json` with `text`, `caption`,
    `captions` or `prompt`) and its mask (`.mask.png`). Shards are read where they lie; nothing is extracted.
    """

    kind: Literal["webdataset"] = "webdataset"
    path: str
    """A shard, a folder of shards, or a pattern such as shards/train-{000000..000099}.tar or shards/*.tar."""
    caption_column: str | None = None
    """The key of captions in `.json` members; nothing said: text, caption, captions or prompt."""

    @property
    @override
    def title(self) -> str:
        return printable(self.path)

    @override
    def open(self) -> "ShardReader":
        shards = find_shards(self.path)
        return ShardReader(self, {shard.name: shard for shard in shards})


@dataclass(eq=False)
class ShardReader(Reader):
    """Shards that are being read; a locator says which bytes of which shard."""

    source: WebDataset
    shards: dict[str, Shard]  # by their names, in their order

    @override
    def list(self, draft: Draft) -> Iterator[Found]:
        seen: Counter[str] = Counter()
        pictures = 0
        for shard in self.shards.values():
            for found in self._listed(shard, draft, seen):
                pictures += 1
                yield found
        if not pictures and not draft.rejected:
            raise _no_pictures(self.source.title, seen)

    @override
    def read(self, locator: str, most: int) -> bytes:
        name, start, size, _ = _place(locator)
        where = self.where(locator)
        if size > most:
            raise DataError(f"This file is larger than {most:,} bytes.", where=where, mend="Save it smaller.")
        shard = self.shards.get(name)
        if shard is None:
            raise DataError("This shard is gone.", where=where, mend="Put it back, or start again without it.")
        file, _ = open_regular(shard.path)
        with file:
            return _content(file, start, size, where)

    @override
    def where(self, locator: str) -> str:
        name, _, _, member = _place(locator)
        return printable(f"{name}/{member}")

    def _listed(self, shard: Shard, draft: Draft, seen: "Counter[str]") -> Iterator[Found]:
        if shard.problem:
            draft.reject(printable(shard.name), shard.problem)
            return
        try:
            file, facts = open_regular(shard.path)
        except DataError as error:
            draft.reject(printable(shard.name), error.what, error.mend)
            return
        with file:
            packed = compression_of(file.read(16))
            if packed is not None:
                reason = f"This shard is compressed ({packed[0]}); pictures could not be read out of its middle."
                draft.reject(printable(shard.name), reason, f"Undo it with {packed[1]}.")
                return
            opened = _OpenShard(shard, file, facts, draft, self.source)
            yield from opened.pictures(seen)


@dataclass(eq=False)
class _OpenShard:
    """One shard that is being listed: its members, sorted into pictures with what belongs to them."""

    shard: Shard
    file: BinaryIO
    facts: os.stat_result
    draft: Draft
    source: WebDataset
    names: set[str] = field(default_factory=set[str])

    def pictures(self, seen: "Counter[str]") -> Iterator[Found]:
        # Kept for one shard at a time. Members need not lie side by side: an archive that plain `tar` made of a
        # folder is in no order at all.
        samples: dict[str, list[tuple[str, Member]]] = {}
        for member in members(self.file, self.facts.st_size):
            part = self._sort_in(member, samples)
            if part:
                seen[part] += 1
        for sample in samples.values():
            yield from self._settle(sample)

    def _sort_in(self, member: Member, samples: dict[str, list[tuple[str, Member]]]) -> str:
        """Put a member into its sample, or write it into the account; gives its suffix."""
        match member.kind:
            case "damage":
                reason = f"{member.reason} What follows is not read."
                self.draft.reject(f"{printable(self.shard.name)}, its rest", reason, "Copy or download it again.")
            case "remark":
                self.draft.warn(printable(self.shard.name), member.reason)
            case "folder":
                self.draft.ignore(self._name(member), member.reason)
            case "refused":
                self.draft.reject(self._name(member), member.reason)
            case "file":
                return self._sort_in_file(member, samples)
        return ""

    def _sort_in_file(self, member: Member, samples: dict[str, list[tuple[str, Member]]]) -> str:
        folder, _, base = member.name.rpartition("/")
        stem, _, part = base.partition(".")
        if member.name in self.names:
            self.draft.reject(self._name(member), "The shard holds two members of this name; the first is used.")
        elif not stem or "__MACOSX" in folder.split("/"):
            self.draft.ignore(self._name(member), "hidden, or a file of the operating system")
        else:
            self.names.add(member.name)
            samples.setdefault(f"{folder}/{stem}", []).append((part.lower(), member))
        return f".{part.lower()}" if part else "without suffix"

    def _settle(self, sample: Sequence[tuple[str, Member]]) -> Iterator[Found]:
        """The pictures of a sample; every other member of it is written into the account."""
        pictures = [member for part, member in sample if part in _PICTURES]
        captions = {part: member for part, member in reversed(sample) if part in _CAPTIONS}
        masks = [member for part, member in sample if part == _MASK]
        for part, member in sample:
            if part not in _PICTURES and part not in _CAPTIONS and part != _MASK:
                self._pass(part, member, alone=not pictures)
        self._settle_masks(masks, used=bool(pictures))
        words = self._caption(captions, used=bool(pictures))
        for number, member in enumerate(pictures):
            mask = masks[0] if masks and self.source.masks == "files" else None
            remarks = () if words is None or isinstance(words, DataError) else words.remarks
            if number:
                remarks += (f"has the same name, and so the same caption, as {self._name(pictures[0])}",)
            yield self._found(member, words, mask, remarks)

    def _found(
        self, member: Member, words: Words | DataError | None, mask: Member | None, remarks: tuple[str, ...]
    ) -> Found:
        lines = words.lines if isinstance(words, Words) else ()
        if isinstance(words, Words) and not lines:
            remarks += ("its caption is empty",)
        stamp = partial(stamp_of, self.facts)
        return Found(
            locator=self._locator(member),
            name=self._name(member),
            stamp=stamp(member.start, member.size),
            captions=lines,
            remarks=remarks,
            refusal=words if isinstance(words, DataError) else None,
            mask="" if mask is None else self._locator(mask),
            mask_stamp="" if mask is None else stamp(mask.start, mask.size),
        )

    def _settle_masks(self, masks: Sequence[Member], *, used: bool) -> None:
        for number, mask in enumerate(masks):
            if number:
                self.draft.ignore(self._name(mask), f"{self._name(masks[0])} is the mask")
            elif not used:
                self.draft.ignore(self._name(mask), "a mask without a picture")
            elif self.source.masks == "files":
                self.draft.mask(self._name(mask))
            else:
                self.draft.ignore(self._name(mask), "a mask; `masks` is not `files`")

    def _caption(self, captions: dict[str, Member], *, used: bool) -> Words | DataError | None:
        """The words of a sample; its caption members are written into the account."""
        chosen = next((captions[part] for part in _CAPTIONS if part in captions), None)
        if chosen is None:
            return None
        name = self._name(chosen)
        for member in captions.values():
            if member is not chosen:
                self.draft.ignore(self._name(member), f"{name} is the caption")
        if not used:
            self.draft.ignore(name, "a caption without a picture")
            self.draft.warn(name, "a caption without a picture")
            return None
        try:
            words = self._words(chosen)
        except DataError as error:
            self.draft.reject(name, error.what, error.mend)
            return DataError("Its caption cannot be used.", where=name, mend=error.mend)
        if words is None:
            self.draft.ignore(name, "holds no caption")
        else:
            self.draft.caption(name)
        return words

    def _words(self, member: Member) -> Words | None:
        where = self._name(member)
        if member.size > _MOST_CAPTION:
            raise DataError("This caption is larger than 1 MiB.", where=where)
        content = _content(self.file, member.start, member.size, where)
        if not member.name.lower().endswith(".json"):
            return decode_caption(content, where)
        return words_in_json(content, where, self.source.caption_column)

    def _pass(self, part: str, member: Member, *, alone: bool) -> None:
        name = self._name(member)
        last = part.rpartition(".")[2]
        if part in _OTHER_PICTURES:
            self.draft.reject(name, f"Pictures of type .{part} are not read; save it as PNG or JPEG.")
        elif last in _ARCHIVES:
            self.draft.ignore(name, "an archive inside the archive; it is not opened")
        else:
            self.draft.ignore(name, "not a picture")
            if last in _PICTURES and alone:
                self.draft.warn(name, f"what follows the first dot, .{part}, is no picture's suffix; use no other dots")

    def _name(self, member: Member) -> str:
        return printable(f"{self.shard.name}/{member.name}")

    def _locator(self, member: Member) -> str:
        return json.dumps([self.shard.name, member.start, member.size, member.name])


def words_in_json(content: bytes, where: str, column: str | None) -> Words | None:
    """The caption in a JSON object, or None where it has none.

    Raises:
        DataError: it is no JSON object, or its caption is no text.
    """
    try:
        document: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError("This caption is no JSON.", where=where, mend="Write it again.") from error
    if not isinstance(document, dict):
        raise DataError("This caption is JSON, but no object.", where=where, mend='Write {"caption": "..."}.')
    names = (column,) if column is not None else CAPTION_COLUMNS
    value = next((document[name] for name in names if document.get(name) is not None), None)
    return None if value is None else lines_of(value, where)


def _place(locator: str) -> tuple[str, int, int, str]:
    name, start, size, member = json.loads(locator)
    return str(name), int(start), int(size), str(member)


def _content(file: BinaryIO, start: int, size: int, where: str) -> bytes:
    file.seek(start)
    content = file.read(size)
    if len(content) < size:
        raise DataError("The shard is shorter than it was.", where=where, mend="Start again; leave it alone then.")
    return content


def _no_pictures(title: str, seen: "Counter[str]") -> DataError:
    kinds = ", ".join(f"{count} {printable(kind)}" for kind, count in seen.most_common(8)) or "no members"
    return DataError(
        f"These shards hold no pictures. Seen there: {kinds}.",
        where=title,
        mend="Give shards with NAME.jpg, NAME.png, NAME.webp, ... members.",
    )
