"""Where shards lie: what a store asks of a folder, and a folder of this machine's file system."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from typing_extensions import override

from trainer.core.errors import TrainerError
from trainer.core.files import write_atomically
from trainer.core.log import logger
from trainer.data.journal import discard_abandoned
from trainer.data.shard_files import (
    ShardError,
    compare_shard,
    list_shards,
    open_shard,
    read_content,
    read_rows,
    remove,
    remove_leftovers,
    shard_name,
    sound_rows,
    write_shard,
)
from trainer.data.shard_index import INDEX_NAME, IndexFileError, RowIndex, load_index, save_index
from trainer.data.shard_rows import NO_ROWS, NO_TRUTHS, Rows, ShardFacts, Truths

IDENTITY_NAME = "identity.txt"

Index = tuple[list[ShardFacts], RowIndex]
"""The shards that an index knows, and their rows."""


class Opened(NamedTuple):
    """A shard whose rows are known."""

    name: str
    rows: Rows
    size: int  # bytes of the file


class Span(NamedTuple):
    """A part of a shard."""

    name: str
    offset: int
    length: int


class ShardFolder(ABC):
    """Keeps shards under names of their own; none is ever changed, so nobody needs a lock.

    Every verb raises a TrainerError where the folder cannot be read or written.
    """

    title: str  # how messages call it

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of where it lies."""

    @abstractmethod
    def listing(self) -> dict[str, ShardFacts]:
        """Name and size of the shards, older ones first."""

    @abstractmethod
    def open(self, shards: Sequence[ShardFacts]) -> list[Opened]:
        """These shards with their rows; without rows what is gone, or is no shard of ours, which is warned of."""

    @abstractmethod
    def read(self, spans: Sequence[Span]) -> list[bytes | None]:
        """The bytes at these places, fewer where a shard does not reach that far; None where it is gone."""

    @abstractmethod
    def compare(self, name: str, known: Rows) -> Opened:
        """The sound rows of a shard, each compared with its checksum; damage is warned of.

        Args:
            name: the shard's.
            known: what is known of its rows; used if the shard no longer tells them.
        """

    @abstractmethod
    def examine(self, name: str) -> tuple[Rows, Truths]:
        """The rows of a shard, and which of them are sound [N]; no rows where it is gone.

        Raises:
            ShardError: it is no whole shard of ours.
            TrainerError: it cannot be read.
        """

    @abstractmethod
    def rows(self, name: str) -> Rows:
        """Where the rows of a shard lie; none where it is gone, or no shard of ours."""

    @abstractmethod
    def write(self, entries: Mapping[bytes, "bytes | memoryview"]) -> Opened:
        """Add a shard that is whole and durable when this returns, or not there."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file; where that cannot be done, it is said."""

    @abstractmethod
    def load_index(self) -> Index | None:
        """What the index file says, if there is one that can be trusted."""

    @abstractmethod
    def save_index(self, shards: Sequence[ShardFacts], index: RowIndex) -> None:
        """Write the index file; where that cannot be done, it is said."""

    @abstractmethod
    def tidy(self) -> None:
        """Take away what killed processes had begun to write."""

    @abstractmethod
    def identity(self) -> str | None:
        """Whose entries lie here, if that is written down."""

    @abstractmethod
    def identify(self, identity: str) -> None:
        """Write down whose entries lie here, unless that is done."""

    @abstractmethod
    def discard(self) -> None:
        """Remove what belongs to a folder without shards; another process's files keep it."""


class LocalFolder(ShardFolder):
    """A folder of the file system; one that machines share is as good."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.title = str(path)

    @property
    @override
    def name(self) -> str:
        return self.path.name

    @override
    def listing(self) -> dict[str, ShardFacts]:
        with reading(self.path):
            return list_shards(self.path)

    @override
    def open(self, shards: Sequence[ShardFacts]) -> list[Opened]:
        with reading(self.path):
            return [Opened(shard.name, *open_shard(self.path / shard.name)) for shard in shards]

    @override
    def read(self, spans: Sequence[Span]) -> list[bytes | None]:
        return [self._read(span) for span in spans]

    @override
    def compare(self, name: str, known: Rows) -> Opened:
        with reading(self.path):
            return Opened(name, *compare_shard(self.path / name, known))

    @override
    def examine(self, name: str) -> tuple[Rows, Truths]:
        with reading(self.path):
            try:
                rows = read_rows(self.path / name)
                return rows, sound_rows(self.path / name, rows)
            except FileNotFoundError:  # another process has pruned it
                return NO_ROWS, NO_TRUTHS

    @override
    def rows(self, name: str) -> Rows:
        with reading(self.path), suppress(FileNotFoundError, ShardError):
            return read_rows(self.path / name)
        return NO_ROWS

    @override
    def write(self, entries: Mapping[bytes, "bytes | memoryview"]) -> Opened:
        path = self.path / shard_name()
        with writing(self.path):
            write_shard(path, entries)
        with reading(self.path):
            return Opened(path.name, *open_shard(path))

    @override
    def remove(self, name: str) -> None:
        remove(self.path / name)

    @override
    def load_index(self) -> Index | None:
        path = self.path / INDEX_NAME
        try:
            return load_index(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (IndexFileError, OSError) as error:
            logger.warning("The index of the cache cannot be used and is made again: %s (%s)", path, error)
            remove(path)
            return None

    @override
    def save_index(self, shards: Sequence[ShardFacts], index: RowIndex) -> None:
        try:
            save_index(self.path / INDEX_NAME, shards, index)
        except OSError as error:  # a shortcut is not worth stopping for
            logger.warning("The index of the cache cannot be written; opening it takes longer: %s", error)

    @override
    def tidy(self) -> None:
        remove_leftovers(self.path)

    @override
    def identity(self) -> str | None:
        try:
            return (self.path / IDENTITY_NAME).read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError):
            return None

    @override
    def identify(self, identity: str) -> None:
        if not (self.path / IDENTITY_NAME).exists():
            with writing(self.path):
                write_atomically(self.path / IDENTITY_NAME, identity + "\n")

    @override
    def discard(self) -> None:
        remove(self.path / INDEX_NAME)
        remove(self.path / IDENTITY_NAME)
        discard_abandoned(self.path)
        try:
            self.path.rmdir()
        except OSError as error:
            logger.warning("This folder of the cache could not be removed: %s (%s)", self.path, error.strerror)

    def _read(self, span: Span) -> bytes | None:
        with reading(self.path):
            try:
                return read_content(self.path / span.name, span.offset, span.length)
            except FileNotFoundError:
                return None


@contextmanager
def writing(folder: Path) -> Generator[None, None, None]:
    """Turns an OSError of writing into a TrainerError that names the folder."""
    try:
        yield
    except OSError as error:
        raise TrainerError(
            f"The cache cannot be written: {error.strerror or error}.",
            where=str(folder),
            mend="Make room, or choose another folder with data.cache.folder=FOLDER; what is there is kept.",
        ) from error


@contextmanager
def reading(folder: Path) -> Generator[None, None, None]:
    """Turns an OSError of reading into a TrainerError that names the file, or the folder."""
    try:
        yield
    except OSError as error:
        raise TrainerError(
            f"The cache cannot be read: {error.strerror or error}.",
            where=str(error.filename or folder),
            mend="Check the rights and the disk. A file of the cache may be removed: its entries are made again.",
        ) from error
