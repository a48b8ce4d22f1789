"""Tables of captions in an image folder, in the form of Hugging Face's ImageFolder: metadata.jsonl, .csv, .parquet."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from trainer.core.errors import DataError, TrainerError
from trainer.core.files import inside, printable
from trainer.data.sidecars import Words
from trainer.data.sources.columns import CAPTION_COLUMNS, MOST_CAPTIONS, caption_column, lines_of, shown
from trainer.data.sources.tables import SUFFIXES, Row, open_table
from trainer.data.walking import FoundFile, Walk

_FILE_COLUMN: Final = "file_name"
_MOST_REMARKS: Final = 1000  # of one kind about one table; what goes beyond is counted in one remark
_SETTING: Final = "caption_column"


class CaptionStore:
    """The captions of many pictures, close together in memory: they weigh little more than their letters."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array("Q", (0,))
        self._numbers: dict[str, int] = {}
        self._more: dict[str, array[int]] = {}  # for the few that have several rows

    def __contains__(self, name: str) -> bool:
        """Whether there are captions, perhaps empty, for `name`."""
        return name in self._numbers

    def __len__(self) -> int:
        """How many pictures have captions."""
        return len(self._numbers)

    def put(self, name: str, lines: Sequence[str]) -> None:
        """Keep the captions of `name`, and no others; no line holds a line break."""
        self._more.pop(name, None)
        self._numbers[name] = self._write(lines)

    def add(self, name: str, lines: Sequence[str]) -> None:
        """Keep further captions of `name`, behind those that it has."""
        self._more.setdefault(name, array("Q")).append(self._write(lines))

    def rows_of(self, name: str) -> int:
        """How often captions of `name` were put and added."""
        return (name in self._numbers) + len(self._more.get(name, ()))

    def get(self, name: str) -> tuple[str, ...] | None:
        """The captions of `name`, each once: () where they are empty, None where there are none."""
        number = self._numbers.get(name)
        if number is None:
            return None
        numbers = (number, *self._more.get(name, ()))
        return tuple(dict.fromkeys(line for one in numbers for line in self._read(one)))

    def _write(self, lines: Sequence[str]) -> int:
        self._text += "\n".join(lines).encode("utf-8")
        self._ends.append(len(self._text))
        return len(self._ends) - 1

    def _read(self, number: int) -> list[str]:
        text = self._text[self._ends[number - 1] : self._ends[number]].decode("utf-8")
        return text.split("\n") if text else []


@dataclass(slots=True)
class Tables:
    """What the metadata files of a folder say, and what became of each of them; lists hold (name, reason)."""

    files: set[str] = field(default_factory=set[str])  # `relative` of each metadata file, whatever became of it
    used: list[str] = field(default_factory=list[str])  # names, safe to print
    rejected: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    ignored: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    warnings: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    captions: CaptionStore = field(default_factory=CaptionStore)

    def captions_of(self, relative: str) -> tuple[str, ...] | None:
        """The captions of a picture: () where its row is empty, None where no row names it."""
        return self.captions.get(relative)


def is_table(file: FoundFile) -> bool:
    """Whether this is a metadata file in ImageFolder form."""
    return file.stem.lower() == "metadata" and file.suffix in SUFFIXES


def read_tables(found: Walk, column: str | None) -> Tables:
    """Read all metadata files of a folder; for each picture the row in the table nearest to it counts.

    A row that names no file of the folder is refused like a file, with its place in the table.

    Args:
        found: everything in the folder.
        column: of the captions; None: the one that is called text, caption, captions or prompt.
    """
    tables = Tables()
    files = [file for file in found.files if is_table(file)]
    if not files:
        return tables
    known = {file.relative: file.relative for file in found.files}
    chosen: dict[str, FoundFile] = {}
    for file in sorted(files, key=lambda file: SUFFIXES.index(file.suffix)):
        tables.files.add(file.relative)
        if file.folder in chosen:
            tables.ignored.append((file.name, f"{chosen[file.folder].name} is used"))
            tables.warnings.append((file.name, f"a second table; {chosen[file.folder].name} is used"))
        else:
            chosen[file.folder] = file
    for file in sorted(chosen.values(), key=_nearest_first):
        _TableReader(file, tables, known, column).read()
    return tables


def _nearest_first(file: FoundFile) -> tuple[int, str]:
    depth = file.folder.count("/") + 1 if file.folder else 0
    return -depth, file.relative


@dataclass(eq=False)
class _TableReader:
    """One table that is being read into `tables`."""

    file: FoundFile
    tables: Tables
    known: dict[str, str]  # the folder's files; values are the very strings that the walk holds, which saves memory
    column: str | None
    own: set[str] = field(default_factory=set[str])  # pictures that this table has named
    refused: int = 0
    warned: int = 0

    def read(self) -> None:
        """Read every row."""
        try:
            table = open_table(self.file.path)
            caption = self._caption_column(table.columns)
            if caption is None:
                names = ", ".join(CAPTION_COLUMNS)
                self.tables.ignored.append((self.file.name, f"it has no column of captions ({names})"))
                self._warn(self.file.relative, f"has no column of captions; say which with {_SETTING}")
                return
            for row in table.rows((_FILE_COLUMN, caption)):
                self._take(row, caption)
        except DataError as error:
            self.tables.rejected.append((self.file.name, " ".join(filter(None, (error.what, error.mend)))))
        else:
            self.tables.used.append(self.file.name)
        self._count_the_rest()

    def _caption_column(self, columns: Sequence[str]) -> str | None:
        if not columns:
            raise DataError("This table holds no row that can be read.", mend="Write it again, or remove it.")
        if _FILE_COLUMN not in columns:
            raise DataError(f"This table has no column {_FILE_COLUMN}; its columns are: {shown(columns)}.")
        return caption_column(columns, self.column, self.file.name, _SETTING)

    def _take(self, row: Row, caption: str) -> None:
        if row.problem:
            self._refuse(row, row.problem)
            return
        name = row.cells.get(_FILE_COLUMN)
        if not isinstance(name, str) or not name:
            self._refuse(row, f"has no {_FILE_COLUMN}")
            return
        relative = self._locate(name)
        if relative is None:
            self._refuse(row, self._why_not(name))
            return
        try:
            words = lines_of(row.cells.get(caption), row.place)
        except DataError as error:
            self._refuse(row, f"cannot be used: {error.what}")
            return
        self._keep(row, relative, words)

    def _keep(self, row: Row, relative: str, words: Words) -> None:
        captions = self.tables.captions
        if relative in captions and relative not in self.own:
            self._warn(relative, f"is also named in {self.file.name} ({row.place}); the table nearer to it is used")
            return
        if relative not in captions:
            self.own.add(relative)
            captions.put(relative, words.lines)
        elif captions.rows_of(relative) < MOST_CAPTIONS:
            captions.add(relative, words.lines)
            self._warn(relative, f"is named more than once in {self.file.name} (again in {row.place}); captions add up")
        else:
            self._refuse(row, f"is one of more than {MOST_CAPTIONS:,} that name {printable(relative)}")
            return
        for remark in words.remarks:
            self._warn(relative, f"{remark} ({self.file.name}, {row.place})")
        if not words.lines:
            self._warn(relative, f"its caption in {self.file.name} ({row.place}) is empty")

    def _locate(self, name: str) -> str | None:
        """The file of the folder that a row names; asking what the walk has found can never lead out of it."""
        folder = f"{self.file.folder}/" if self.file.folder else ""
        exact = self.known.get(folder + name)
        if exact is not None:
            return exact
        for spelling in (name, name.replace("\\", "/")):
            relative = self.known.get(folder + str(PurePosixPath(spelling)))
            if relative is not None:
                return relative
        return None

    def _why_not(self, name: str) -> str:
        shown_name = printable(name)[:200]
        try:
            inside(self.file.path.parent, name)
        except (TrainerError, OSError, ValueError):  # OSError: such as a name that is too long for any file
            return f"names {shown_name}, which leads out of the folder"
        return f"names {shown_name}, which is no file of the folder"

    def _refuse(self, row: Row, reason: str) -> None:
        self.refused += 1
        if self.refused <= _MOST_REMARKS:
            self.tables.rejected.append((f"{self.file.name}, {row.place}", f"This row {reason}."))

    def _warn(self, relative: str, reason: str) -> None:
        self.warned += 1
        if self.warned <= _MOST_REMARKS:
            self.tables.warnings.append((printable(relative), reason))

    def _count_the_rest(self) -> None:
        if self.refused > _MOST_REMARKS:
            rest = self.refused - _MOST_REMARKS
            self.tables.rejected.append((f"{self.file.name}, its rest", f"{rest:,} more rows cannot be used."))
        if self.warned > _MOST_REMARKS:
            self.tables.warnings.append((self.file.name, f"{self.warned - _MOST_REMARKS:,} more remarks of this kind"))
