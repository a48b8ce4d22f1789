"""Many examples in columns: a million of them weigh what a file of them would weigh."""

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Literal, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from trainer.data.example import Example, Size

WholeColumn = Literal["source", "width", "height", "repeats"]
TruthColumn = Literal["regularisation", "held_out"]

_CHUNK: Final = 4096  # examples that wait as objects before they become columns
_TYPES: Final = {
    "source": "whole",
    "locator": "bytes",  # names that are no UTF-8 keep their bytes
    "name": "text",
    "key": "text",
    "width": "whole",
    "height": "whole",
    "captions": "texts",
    "class_words": "text",
    "repeats": "whole",
    "weight": "real",
    "regularisation": "yes or no",
    "held_out": "yes or no",
    "mask": "bytes",
    "mask_key": "text",
}

Table = Any
"""A pyarrow.Table; pyarrow comes without types."""


class ExampleTable(Sequence[Example]):
    """Examples as columns in memory; an `Example` is made when it is asked for."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._columns = {name: table.column(name) for name in table.column_names}

    @classmethod
    def of(cls, examples: Iterable[Example]) -> "ExampleTable":
        """The examples in their order."""
        builder = ExampleTableBuilder()
        for example in examples:
            builder.append(example)
        return builder.finish()

    @override
    def __len__(self) -> int:
        return self._table.num_rows

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "ExampleTable": ...
    @override
    def __getitem__(self, index: int | slice) -> "Example | ExampleTable":
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        return _example({name: column[place].as_py() for name, column in self._columns.items()})

    @override
    def __iter__(self) -> Iterator[Example]:
        for batch in self._table.to_batches(max_chunksize=_CHUNK):
            for row in batch.to_pylist():
                yield _example(row)

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))  # noqa: B905 the lengths are equal

    __hash__ = None  # type: ignore[assignment]  # as of a list

    @override
    def __repr__(self) -> str:
        return f"ExampleTable({len(self)} examples)"

    @overload
    def numbers(self, column: WholeColumn) -> NDArray[np.int32]: ...
    @overload
    def numbers(self, column: TruthColumn) -> NDArray[np.bool_]: ...
    @overload
    def numbers(self, column: Literal["weight"]) -> NDArray[np.float64]: ...
    def numbers(self, column: WholeColumn | TruthColumn | Literal["weight"]) -> NDArray[np.generic]:
        """One column as numbers, [len(self)]."""
        return self._columns[column].to_numpy()

    def take(self, places: Sequence[int] | NDArray[np.integer]) -> "ExampleTable":
        """The examples at these places, in this order."""
        import pyarrow

        return ExampleTable(self._table.take(_column(np.asarray(places), pyarrow.int64())))

    def select(self, chosen: NDArray[np.bool_]) -> "ExampleTable":
        """The examples for which `chosen` [len(self)] is true."""
        return self if bool(chosen.all()) else self.take(np.flatnonzero(chosen))

    def keys(self) -> list[str]:
        """The content key of each example."""
        return self._columns["key"].to_pylist()

    def with_held_out(self, held: NDArray[np.bool_]) -> "ExampleTable":
        """The same examples, of which those are kept back for which `held` [len(self)] is true."""
        import pyarrow

        place = self._table.schema.get_field_index("held_out")
        return ExampleTable(self._table.set_column(place, "held_out", _column(held, pyarrow.bool_())))

    def write(self, path: Path) -> None:
        """Write the columns as one Arrow file."""
        import pyarrow

        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, self._table.schema) as writer:
            writer.write_table(self._table)

    @staticmethod
    def concatenated(tables: "Sequence[ExampleTable]") -> "ExampleTable":
        """One table after the other."""
        import pyarrow

        return (
            ExampleTable(pyarrow.concat_tables([one._table for one in tables]).combine_chunks())
            if tables
            else ExampleTableBuilder().finish()
        )


class ExampleTableBuilder:
    """Takes examples one by one."""

    def __init__(self) -> None:
        self._waiting: list[Example] = []
        self._batches: list[Any] = []  # pyarrow.RecordBatch

    def append(self, example: Example) -> None:
        """Add one."""
        self._waiting.append(example)
        if len(self._waiting) >= _CHUNK:
            self._settle()

    def __len__(self) -> int:
        """How many were added."""
        return len(self._waiting) + sum(batch.num_rows for batch in self._batches)

    def finish(self) -> ExampleTable:
        """All that were added."""
        import pyarrow

        self._settle()
        return ExampleTable(pyarrow.Table.from_batches(self._batches, schema=_schema()).combine_chunks())

    def _settle(self) -> None:
        import pyarrow

        rows = [_row(example) for example in self._waiting]
        schema = _schema()
        columns = [_column([row[field.name] for row in rows], field.type) for field in schema]
        self._batches.append(pyarrow.record_batch(columns, schema=schema))
        self._waiting = []


def _schema() -> Any:
    import pyarrow

    kinds = {
        "text": pyarrow.large_string(),
        "texts": pyarrow.large_list(pyarrow.large_string()),
        "bytes": pyarrow.large_binary(),
        "whole": pyarrow.int32(),
        "real": pyarrow.float64(),
        "yes or no": pyarrow.bool_(),
    }
    return pyarrow.schema([(name, kinds[kind]) for name, kind in _TYPES.items()])


def _column(values: Sequence[Any] | NDArray[Any], kind: Any) -> Any:
    """An Arrow array, out of buffers: from a list, pyarrow would ask pandas what it is, and import it to do so."""
    import pyarrow
    from pyarrow import types

    if types.is_boolean(kind):
        parts = [np.packbits(np.array(values, dtype=bool), bitorder="little")]
    elif types.is_large_list(kind):
        return pyarrow.LargeListArray.from_arrays(
            pyarrow.Array.from_buffers(pyarrow.int64(), len(values) + 1, [None, _ends(values)]),
            _column([value for ones in values for value in ones], kind.value_type),
        )
    elif types.is_large_string(kind) or types.is_large_binary(kind):
        contents = [value.encode("utf-8") if isinstance(value, str) else value for value in values]
        parts = [_ends(contents), b"".join(contents)]
    else:
        parts = [np.array(values, dtype=kind.to_pandas_dtype())]
    return pyarrow.Array.from_buffers(kind, len(values), [None, *map(pyarrow.py_buffer, parts)])


def _ends(values: Iterable[Sized]) -> Any:
    """Where each of the values begins when they lie one behind the other, and where the last one ends."""
    import pyarrow

    return pyarrow.py_buffer(np.cumsum([0, *map(len, values)], dtype=np.int64))


def _row(example: Example) -> dict[str, Any]:
    row = {field.name: getattr(example, field.name) for field in fields(example)}
    row["width"], row["height"] = row.pop("size")
    row["captions"] = list(example.captions)
    row["locator"] = example.locator.encode("utf-8", "surrogateescape")
    row["mask"] = example.mask.encode("utf-8", "surrogateescape")
    return row


def _example(row: dict[str, Any]) -> Example:
    row["size"] = Size(row.pop("width"), row.pop("height"))
    row["captions"] = tuple(row["captions"])
    row["locator"] = row["locator"].decode("utf-8", "surrogateescape")
    row["mask"] = row["mask"].decode("utf-8", "surrogateescape")
    return Example(**row)
