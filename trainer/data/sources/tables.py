"""Rows of metadata.jsonl, metadata.csv and metadata.parquet, one after the other and never all at once."""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, TextIO, cast

from trainer.core.errors import DataError
from trainer.core.files import printable
from trainer.data.sources.archives import open_regular

SUFFIXES: Final = (".jsonl", ".csv", ".parquet")  # of several tables in a folder the first is used

_MOST_BYTES: Final = 1 << 32  # of a table
_MOST_LINE: Final = 1 << 20  # letters in a line
_PEEKED: Final = 100  # lines in which the first whole one is looked for
_ROWS_AT_ONCE: Final = 256  # a caption may have 1 MiB, so these are few
_MOST_GROUP: Final = 1 << 31  # bytes of a Parquet row group
_MARKS: Final = (  # the four-byte marks begin like the two-byte ones, so they come first
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_UTF8: Final = re.compile("[\udc80-\udcff]")


class Row(NamedTuple):
    """One row, or why it cannot be read."""

    place: str  # such as "line 3"
    cells: Mapping[str, object]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is being read: its columns, and its rows with some of them."""

    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterator[Row]]


def open_table(path: Path) -> Table:
    """The table in `path`, by its suffix.

    Raises:
        DataError: it is no regular file, too large, in another encoding, or no table.
    """
    where = printable(path.name)
    file, facts = open_regular(path)
    file.close()
    if facts.st_size > _MOST_BYTES:
        raise DataError(f"This table is larger than {_MOST_BYTES:,} bytes.", where=where, mend="Split it by folders.")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path)
    return _csv(path) if suffix == ".csv" else _jsonl(path)


def _jsonl(path: Path) -> Table:
    first = next((row for row in _some(_jsonl_rows(path), _PEEKED) if row.cells), None)
    return Table(() if first is None else tuple(first.cells), lambda _: _jsonl_rows(path))


def _some(rows: Iterator[Row], count: int) -> Iterator[Row]:
    for _, row in zip(range(count), rows, strict=False):
        yield row


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with _text(path) as text:
        number = 0
        while line := text.readline(_MOST_LINE + 1):
            number += 1
            place = f"line {number}"
            if len(line) > _MOST_LINE:
                while line and not line.endswith(("\n", "\r")):
                    line = text.readline(_MOST_LINE)
                yield Row(place, {}, f"is longer than {_MOST_LINE:,} letters")
            elif line.strip():
                yield _jsonl_row(place, line)


def _jsonl_row(place: str, line: str) -> Row:
    if _NO_UTF8.search(line):
        return Row(place, {}, "is not in UTF-8")
    try:
        cells: object = json.loads(line)
    except (ValueError, RecursionError):
        return Row(place, {}, "is no JSON")
    if not isinstance(cells, dict) or not cells:
        return Row(place, {}, 'is no JSON object such as {"file_name": "a.png", "text": "..."}')
    return Row(place, cast("dict[str, object]", cells))  # JSON's keys are text


def _csv(path: Path) -> Table:
    with _text(path) as text:
        try:
            columns = tuple(name.strip() for name in next(csv.reader(_lines(text)), ()))
        except csv.Error as error:
            raise DataError(f"This is no CSV table: {error}.", where=printable(path.name)) from error
    return Table(columns, lambda _: _csv_rows(path, columns))


def _csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    with _text(path) as text:
        reader = csv.reader(_lines(text))
        next(reader, ())
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield Row(f"line {reader.line_num + 1}", {}, f"is no CSV ({error}); what follows is not read")
                return
            if cells is None:
                return
            if cells:
                yield _csv_row(f"line {reader.line_num}", columns, cells)


def _csv_row(place: str, columns: tuple[str, ...], cells: Sequence[str]) -> Row:
    if len(cells) != len(columns):
        reason = f"has {len(cells)} cells, and the table {len(columns)} columns; put texts with commas in quotes"
        return Row(place, {}, reason)
    if any(_NO_UTF8.search(cell) for cell in cells):
        return Row(place, {}, "is not in UTF-8")
    return Row(place, dict(zip(columns, cells, strict=True)))


def _lines(text: TextIO) -> Iterator[str]:
    while line := text.readline(_MOST_LINE + 1):
        if len(line) > _MOST_LINE:
            raise csv.Error(f"a line of more than {_MOST_LINE:,} letters")
        if "\0" in line:
            raise csv.Error("a line with a NUL")
        yield line


def _parquet(path: Path) -> Table:
    with _parquet_errors(path):
        from pyarrow import parquet

        file, _ = open_regular(path)
        with file:
            facts = parquet.ParquetFile(file)
            columns = tuple(facts.schema_arrow.names)
            groups = [facts.metadata.row_group(number) for number in range(facts.metadata.num_row_groups)]
        for group in groups:
            sizes = [group.column(number).total_uncompressed_size for number in range(group.num_columns)]
            if not 0 <= sum(sizes) <= _MOST_GROUP:
                raise DataError(
                    f"A row group of this table has more than {_MOST_GROUP:,} bytes.",
                    where=printable(path.name),
                    mend="Write it with smaller row groups, and without the pictures themselves.",
                )
    return Table(columns, lambda chosen: _parquet_rows(path, chosen))


def _parquet_rows(path: Path, chosen: Sequence[str]) -> Iterator[Row]:
    with _parquet_errors(path):
        from pyarrow import parquet

        file, _ = open_regular(path)
        number = 0
        with file:
            batches = parquet.ParquetFile(file).iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(chosen))
            for batch in batches:
                batch.validate(full=True)
                for cells in batch.to_pylist():
                    number += 1
                    yield Row(f"row {number}", cells)


@contextmanager
def _parquet_errors(path: Path) -> Generator[None, None, None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, ValueError) as error:  # what pyarrow raises on damaged files
        reason = printable(str(error).partition("\n")[0])[:200]
        raise DataError(f"This is no Parquet table, or a damaged one: {reason}.", where=printable(path.name)) from error


@contextmanager
def _text(path: Path) -> Generator[TextIO, None, None]:
    """A text file, with bytes that are no UTF-8 as surrogates, so that one bad row does not hide the others."""
    file, _ = open_regular(path)
    with file:
        encoding = _encoding(file, path)
        errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
        try:
            with io.TextIOWrapper(file, encoding, errors, newline="") as text:
                yield text
        except UnicodeDecodeError as error:
            raise DataError(
                f"This table is damaged: byte {error.start} is no {encoding.upper()}.", where=path.name
            ) from error


def _encoding(file: BinaryIO, path: Path) -> str:
    head = file.read(4096)
    file.seek(0)
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in head:
        raise DataError(
            "This table is in UTF-16 without a byte-order mark, or is no text at all.",
            where=printable(path.name),
            mend="Save it as UTF-8 in your editor.",
        )
    return encoding
