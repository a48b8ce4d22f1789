"""The members of a tar archive, found by walking over its headers: nothing is extracted, nothing is unpacked."""

import os
import re
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal, NamedTuple

from trainer.core.errors import DataError
from trainer.core.files import printable

_BLOCK: Final = tarfile.BLOCKSIZE  # bytes; everything in a tar begins at a multiple of it
_MOST_MEMBERS: Final = 4_000_000  # in one archive
_MOST_HEADER: Final = 1 << 20  # bytes of an extended header: names alone, so this is generous
_PADDING: Final = tarfile.RECORDSIZE  # bytes of zeros with which an archive may end
_COMPRESSED: Final = (
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\xfd7zXZ\x00", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"PK\x03\x04", "zip", "unzip, then tar,"),
)
_RECORD: Final = re.compile(rb"(\d{1,7}) ([^=\n]+)=")
_REFUSED: Final = {
    tarfile.SYMTYPE: "This is a link; links are not followed.",
    tarfile.LNKTYPE: "This is a link; links are not followed.",
    tarfile.CHRTYPE: "This is no regular file but a device.",
    tarfile.BLKTYPE: "This is no regular file but a device.",
    tarfile.FIFOTYPE: "This is no regular file but a pipe.",
    tarfile.GNUTYPE_SPARSE: "This member is stored as a sparse file, which is not read.",
}


class Member(NamedTuple):
    """One entry of an archive, or the place where the archive cannot be read any further."""

    name: str  # as in the archive, without "./" in front; may hold surrogates, and is never used as a path
    start: int  # of its content, bytes from the archive's first
    size: int  # bytes
    kind: Literal["file", "folder", "refused", "damage", "remark"]
    reason: str = ""


def open_regular(path: Path) -> tuple[BinaryIO, os.stat_result]:
    """A regular file that is no link, open for reading, with its facts; never waits on a pipe or a device.

    Raises:
        DataError: it is gone, is something else, or cannot be read.
    """
    # Windows has neither flag, and neither pipes nor devices among ordinary files.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # before opening: to open a device can already do something
            raise _no_regular_file(path)
        file = os.fdopen(os.open(path, flags), "rb")
    except OSError as error:
        raise DataError(f"This file cannot be read: {error.strerror}.", where=printable(str(path))) from error
    facts = os.fstat(file.fileno())
    if not stat.S_ISREG(facts.st_mode):
        file.close()
        raise _no_regular_file(path)
    return file, facts


def compression_of(head: bytes) -> tuple[str, str] | None:
    """By what a file that begins with `head` is compressed, and the program that undoes it."""
    return next(((name, program) for magic, name, program in _COMPRESSED if head.startswith(magic)), None)


def members(file: BinaryIO, length: int) -> Iterator[Member]:
    """The members of an uncompressed tar, in its order, by its headers alone.

    Args:
        file: the archive, open for reading.
        length: bytes in it.

    Names and sizes are those that `tarfile` would give: ustar, GNU long names and pax headers are understood.
    """
    offset = 0
    for _ in range(_MOST_MEMBERS):
        try:
            header, coming, start = _next_header(file, offset)
        except _End as end:
            yield from _after_the_end(end.offset, length)
            return
        except _DamageError as error:
            yield Member("", offset, 0, "damage", f"The archive is damaged {_at(offset)}: {error}.")
            return
        yield _member(header, coming, start, length)
        offset = start + _stored(header, coming)
        if offset > length + _BLOCK:
            return  # the member that was just given is said to be cut short
    yield Member("", offset, 0, "damage", f"The archive has more than {_MOST_MEMBERS:,} members.")


class _DamageError(Exception):
    """A header that says nothing sensible."""


class _End(Exception):  # noqa: N818 not an error
    """The end of the archive."""

    def __init__(self, offset: int) -> None:
        super().__init__()
        self.offset = offset


class _Header(NamedTuple):
    """One block before a member's content."""

    name: str
    size: int  # bytes
    kind: bytes


@dataclass(slots=True)
class _Coming:
    """What extended headers say of the member that follows."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False

    def take_long_name(self, content: bytes) -> None:
        self.name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")

    def take_long_link(self, content: bytes) -> None:
        """Links are refused, wherever they lead."""

    def take_pax(self, content: bytes) -> None:
        for key, value in _records(content):
            if key == b"path":
                self.name = value.decode("utf-8", "surrogateescape")
            elif key == b"size":
                if not value.isdigit() or len(value) > 18:
                    raise _DamageError("a size that is no number")
                self.size = int(value)
            elif key.startswith(b"GNU.sparse."):
                self.sparse = True

    def take_pax_for_all(self, content: bytes) -> None:
        if any(key in (b"path", b"size") or key.startswith(b"GNU.sparse.") for key, _ in _records(content)):
            raise _DamageError("one name or size for all members")


_EXTENSIONS: Final = {
    tarfile.GNUTYPE_LONGNAME: _Coming.take_long_name,
    tarfile.GNUTYPE_LONGLINK: _Coming.take_long_link,
    tarfile.XHDTYPE: _Coming.take_pax,
    tarfile.SOLARIS_XHDTYPE: _Coming.take_pax,
    tarfile.XGLTYPE: _Coming.take_pax_for_all,
}


def _records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records of a pax header: "LENGTH KEY=VALUE" and a line break each."""
    place = 0
    while match := _RECORD.match(content, place):
        end = place + int(match[1])
        if not match.end() < end <= len(content):
            raise _DamageError("a pax record of a wrong length")
        yield match[2], content[match.end() : end - 1]
        place = end


def _next_header(file: BinaryIO, offset: int) -> "tuple[_Header, _Coming, int]":
    """The header at `offset` or behind the extended headers there, what those said, and where its content begins.

    Raises:
        _End: the end mark is there, or nothing.
        _DamageError: what is there is no header.
    """
    coming = _Coming()
    while True:
        file.seek(offset)
        block = file.read(_BLOCK)
        if not block.strip(b"\0"):
            raise _End(offset)
        header = _parse(block)
        offset += _BLOCK
        take = _EXTENSIONS.get(header.kind)
        if take is None:
            return header, coming, offset if header.kind != tarfile.GNUTYPE_SPARSE else _behind_the_map(file, block)
        take(coming, _extension(file, offset, header.size))
        offset += _blocks(header.size)


def _parse(block: bytes) -> _Header:
    """What a header says; `tarfile` says the same, but takes four times as long to say more than is needed.

    Source: POSIX.1-2017, pax, "ustar Interchange Format"; https://www.gnu.org/software/tar/manual/html_node/Standard.html
    """
    if len(block) < _BLOCK:
        raise _DamageError("cut short")
    rest = block[:148] + block[156:]
    right = sum(rest) + 8 * ord(" ")  # the checksum's own field counts as spaces
    stored = _number(block[148:156])
    if stored != right and stored != right - 256 * sum(one > 127 for one in rest):  # old programs took bytes as signed
        raise _DamageError("a wrong checksum")
    name, size, kind = _text(block[:100]), _number(block[124:136]), block[156:157]
    if size < 0:
        raise _DamageError("a negative size")
    if kind == tarfile.AREGTYPE and name.endswith("/"):
        kind = tarfile.DIRTYPE  # as before 1988
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    return _Header(name, size, kind)


def _text(content: bytes) -> str:
    return content.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(content: bytes) -> int:
    """A number in octal digits or, where the first byte says so, in bytes."""
    if content[0] in (0x80, 0xFF):
        return int.from_bytes(content[1:], "big") - (256 ** (len(content) - 1) if content[0] == 0xFF else 0)
    try:
        return int(content.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError as error:
        raise _DamageError("a number that is none") from error


def _behind_the_map(file: BinaryIO, block: bytes) -> int:
    """Where the content of a sparse file begins: its map may go on in further blocks."""
    more = block[482]
    while more:
        block = file.read(_BLOCK)
        more = len(block) == _BLOCK and block[504]
    return file.tell()


def _extension(file: BinaryIO, start: int, size: int) -> bytes:
    if size > _MOST_HEADER:
        raise _DamageError("an extended header of more than 1 MiB")
    file.seek(start)
    content = file.read(size)
    if len(content) < size:
        raise _DamageError("cut short")
    return content


def _stored(header: _Header, coming: _Coming) -> int:
    """Bytes of a member's content; links, folders and devices have none, whatever their size says."""
    if header.kind in tarfile.SUPPORTED_TYPES and header.kind not in tarfile.REGULAR_TYPES:
        return 0
    return _blocks(header.size if coming.size is None else coming.size)


def _blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _member(header: _Header, coming: _Coming, start: int, length: int) -> Member:
    name = header.name if coming.name is None else coming.name
    size = header.size if coming.size is None else coming.size
    while name.startswith("./"):
        name = name[2:]
    if header.kind == tarfile.DIRTYPE:
        return Member(name.rstrip("/"), start, 0, "folder", "a folder")
    if header.kind in _REFUSED:
        reason = _REFUSED[header.kind]
    elif coming.sparse:
        reason = _REFUSED[tarfile.GNUTYPE_SPARSE]
    elif header.kind not in tarfile.REGULAR_TYPES:
        reason = "This member is of a kind that is not known."
    elif leaves(name):
        reason = "Its name leads out of the archive."
    elif start + size > length:
        reason = "The archive is cut short inside this member."
    else:
        return Member(name, start, size, "file")
    return Member(name, start, size, "refused", reason)


def leaves(name: str) -> bool:
    """Whether a name, taken as a path, would lead out of the folder in which it stands."""
    parts = name.replace("\\", "/").split("/")
    return not name or "\0" in name or parts[0] == "" or ".." in parts or re.match(r"[A-Za-z]:[/\\]", name) is not None


def _after_the_end(offset: int, length: int) -> Iterator[Member]:
    rest = length - offset
    if rest <= 0:
        reason = "has no end mark; it may have been cut short between two members"
        yield Member("", offset, 0, "remark", reason)
    elif rest > _PADDING:
        yield Member("", offset, 0, "remark", f"{rest:,} bytes after its end mark, {_at(offset)}, are not read")


def _at(offset: int) -> str:
    return f"at byte {offset:,}"


def _no_regular_file(path: Path) -> DataError:
    return DataError("This is no regular file.", where=printable(str(path)), mend="Copy the file itself there.")
