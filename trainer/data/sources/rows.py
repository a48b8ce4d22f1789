"""Rows of a data set: their captions and the stored bytes of their pictures, out of Arrow, without decoding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainer.core.errors import DataError
from trainer.data.sources.columns import caption_column, shown

Dataset = Any
"""A datasets.Dataset; the library is imported where it is used."""
Features = Any
"""A datasets.Features: the column's names and types."""

_BYTES: Final = ("binary", "large_binary")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns the settings name."""

    image: str | None = None
    caption: str | None = None
    mask: str | None = None

    def found_in(self, features: Features, where: str) -> "tuple[str, str | None, str | None]":
        """The columns of pictures, captions and masks.

        Raises:
            DataError: one that is named is not there or of another type, or what is meant cannot be told.
        """
        names = list(features)
        possible = pictures_among(features)
        for name in (self.image, self.mask):
            if name is not None and name not in names:
                raise DataError(f"There is no column {name!r}.", where=where, mend=f"Choose among: {shown(names)}.")
            if name is not None and name not in possible and not _holds_bytes(features[name]):
                raise DataError(
                    f"The column {name!r} holds no pictures.", where=where, mend=f"Choose among: {shown(possible)}."
                )
        others = [name for name in possible if name != self.mask]
        if self.image is None and len(others) != 1:
            problem = "Several columns hold pictures" if others else "No column holds pictures"
            raise DataError(f"{problem}: {shown(others or names)}.", where=where, mend="Say which: image_column.")
        caption = caption_column(names, self.caption, where, "caption_column")
        return self.image or others[0], caption, self.mask


def pictures_among(features: Features) -> list[str]:
    """The columns of pictures: those that say so, or else those of bytes."""
    from datasets import Image

    said = [name for name, feature in features.items() if isinstance(feature, Image)]
    return said or [name for name, feature in features.items() if _holds_bytes(feature)]


def _holds_bytes(feature: Any) -> bool:
    """Whether a column holds bytes, or pairs of bytes and path."""
    from datasets import Image, Value

    if isinstance(feature, dict):
        return isinstance(feature.get("bytes"), Value) and feature["bytes"].dtype in _BYTES
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in _BYTES)


@dataclass(frozen=True, eq=False)
class Rows:
    """A data set on this disk."""

    views: Mapping[str, Dataset]  # by column; each gives Arrow tables of that column alone, straight from the disk
    image: str
    caption: str | None
    mask: str | None
    root: Path  # where pictures lie that are stored by their paths
    stamp: str = ""
    refused: tuple[tuple[str, str], ...] = ()  # files beside the data, (name, reason)
    passed: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, dataset: Dataset, columns: "tuple[str, str | None, str | None]", root: Path, stamp: str) -> "Rows":
        """The rows of a data set that comes from outside: its offsets are checked before anything is read by them.

        Raises:
            pyarrow.ArrowInvalid: they lead out of the data.
        """
        image, caption, mask = columns
        views: dict[str, Dataset] = {}
        for name in filter(None, columns):
            views[name] = dataset.select_columns([name]).with_format("arrow")
            views[name].data.table.column(name).validate(full=True)
        return cls(views, image, caption, mask, root, stamp)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.views[self.image])

    def values(self, column: str, start: int, stop: int) -> list[object]:
        """The cells of some rows."""
        return self.views[column][start:stop].column(0).to_pylist()

    def held(self, column: str, start: int, stop: int) -> list[tuple[str, bool]]:
        """For each of some rows the path of its picture, and whether its bytes are stored; they are not read."""
        from pyarrow import compute, types

        held: list[tuple[str, bool]] = []
        for chunk in self.views[column][start:stop].column(0).chunks:
            paths: Sequence[str | None] = [None] * len(chunk)
            content = chunk
            if types.is_struct(chunk.type):
                fields = dict(zip((field.name for field in chunk.type), chunk.flatten(), strict=True))
                content = fields["bytes"]
                paths = fields["path"].to_pylist() if "path" in fields else paths
            lengths = compute.call_function("binary_length", [content]).to_pylist()
            held.extend((path or "", bool(length)) for path, length in zip(paths, lengths, strict=True))
        return held

    def picture(self, row: int, column: str, most: int, where: str) -> tuple[bytes | None, str]:
        """The bytes of a picture, or None and its path.

        Raises:
            DataError: they are more than `most`.
        """
        from pyarrow import types

        cell = self.views[column][row : row + 1].column(0)[0]
        path = ""
        if types.is_struct(cell.type):
            if not cell.is_valid:
                return None, ""
            if cell.type.get_field_index("path") >= 0:
                path = cell["path"].as_py() or ""
            cell = cell["bytes"]
        buffer = cell.as_buffer() if cell.is_valid else None
        if buffer is None or not buffer.size:
            return None, path
        if buffer.size > most:
            raise DataError(f"This picture is larger than {most:,} bytes.", where=where, mend="Save it smaller.")
        return buffer.to_pybytes(), path
