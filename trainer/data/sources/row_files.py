"""The files of a Hugging Face data set on this disk: saved by `save_to_disk`, or Parquet."""

import glob
import json
import os
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from trainer.core.errors import DataError, TrainerError
from trainer.core.files import inside, printable
from trainer.data.decoding import digest, read_regular
from trainer.data.sources.base import stamp_of
from trainer.data.sources.columns import shown
from trainer.data.sources.metadata import is_table
from trainer.data.sources.rows import Columns, Rows
from trainer.data.sources.suffixes import PICTURE_SUFFIXES
from trainer.data.walking import FoundFile, Walk, walk

_MOST_STATE: Final = 1 << 26  # bytes of a JSON file beside the data
# What the library was seen to raise on damaged files; RecursionError: JSON that is nested too deeply.
_DAMAGE: Final = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
_STATE: Final = "state.json"
_SPLITS_OF_SAVED: Final = "dataset_dict.json"
_NUMBERED: Final = re.compile(r"(.+?)-\d{5}-of-\d{5}.*", re.DOTALL)
_SPLITS: Final = ("train", "test", "validation", "valid", "val", "dev")


@contextmanager
def dataset_errors(where: str) -> Generator[None, None, None]:
    """Whatever the library raises on damaged or hostile files, as one error of ours."""
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, DatasetsError, *_DAMAGE) as error:
        cause = error.__cause__ or error  # the library wraps what happened into "an error occurred"
        reason = printable(str(cause).strip().partition("\n")[0])[:200] or type(cause).__name__
        raise DataError(
            f"This data set cannot be read: {reason}", where=where, mend="Save or download it again."
        ) from error


def open_rows(path: str, split: str | None, wanted: Columns, where: str) -> Rows | None:
    """The rows of a data set, or None where there are pictures themselves in its place.

    Raises:
        DataError: it is no data set, has no such split, or several where none is named.
    """
    place = Path(path)
    saved = place.is_dir() and _saved(place, split, where)
    if saved:
        return _open_saved(saved, wanted, where)
    found = _parquet_files(path)
    files = [file for file in found.files if file.suffix == ".parquet" and not is_table(file)]
    if not files:
        if place.is_dir() and any(file.suffix in PICTURE_SUFFIXES for file in found.files):
            return None
        raise DataError(
            "There is no data set here: neither Parquet files, nor what save_to_disk writes.",
            where=where,
            mend="For pictures and caption files, use kind: folder; for tar shards, kind: webdataset.",
        )
    chosen = _of_split(files, split, where)
    rows = _open_parquet(chosen, Path(path) if place.is_dir() else chosen[0].path.parent, wanted, where)
    others = tuple((file.name, "not a part of the split") for file in files if file not in chosen)
    passed = tuple((file.name, "not a Parquet file") for file in found.files if file not in files)
    return replace(rows, refused=tuple(found.refused), passed=(*others, *passed, *found.passed))


def _saved(folder: Path, split: str | None, where: str) -> Path | None:
    """The folder with a saved split; None: nothing was saved here."""
    if (folder / _STATE).is_file():
        return folder
    if not (folder / _SPLITS_OF_SAVED).is_file():
        return None
    splits = _json(folder / _SPLITS_OF_SAVED).get("splits")
    names = [str(name) for name in splits] if isinstance(splits, list) else []
    return _inside(folder, _choose(names, split, where))


def _open_saved(folder: Path, wanted: Columns, where: str) -> Rows:
    from datasets import Dataset

    files = _json(folder / _STATE).get("_data_files")
    names = [str(file.get("filename")) for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    if not names:
        raise DataError("This data set has no rows.", where=where, mend="Save it again, with rows.")
    # The library joins these names to the folder as they are, and would open whatever they lead to.
    facts = [_inside(folder, name).stat() for name in names]
    stamps = [stamp_of(one) for one in facts]
    dataset = Dataset.load_from_disk(str(folder), keep_in_memory=False)
    columns = wanted.found_in(dataset.features, where)
    return Rows.of(dataset, columns, folder.resolve(), digest("\n".join(stamps).encode()) if all(stamps) else "")


def _inside(folder: Path, name: str) -> Path:
    try:
        return inside(folder, name)
    except TrainerError as error:
        raise DataError(error.what, where=printable(str(folder)), mend="Save the data set again.") from error


def _json(path: Path) -> dict[str, object]:
    content = json.loads(read_regular(path, _MOST_STATE))
    if not isinstance(content, dict):
        raise DataError(
            "This file should hold a JSON object.", where=printable(str(path)), mend="Save the data set again."
        )
    return content


def _parquet_files(path: str) -> Walk:
    """All files of a folder, or those that a pattern means."""
    place = Path(path)
    if place.is_dir():
        return walk(place, recursive=True)
    if place.is_file():
        return Walk(files=[FoundFile(place.name, place.parent, str(place.resolve()))])
    matches = sorted(glob.glob(path, recursive=True), key=os.fsencode)  # noqa: PTH207 Path.glob takes no absolute pattern
    if not matches:
        raise DataError("There are no such files.", where=printable(path), mend="Mend the pattern.")
    common = Path(os.path.commonpath([Path(match).parent for match in matches]))
    files = [Path(match) for match in matches if Path(match).is_file()]
    return Walk(files=[FoundFile(file.relative_to(common).as_posix(), common, str(file.resolve())) for file in files])


def _of_split(files: Sequence[FoundFile], split: str | None, where: str) -> list[FoundFile]:
    names = [split_of(file.relative) for file in files]
    chosen = _choose(list(dict.fromkeys(names)), split, where)
    return [file for file, name in zip(files, names, strict=True) if name == chosen]


def split_of(relative: str) -> str:
    """The split that a Parquet file's path says: train-00000-of-00002.parquet, train.parquet, train/0000.parquet."""
    *folders, name = relative.split("/")
    stem = name.removesuffix(".parquet")
    if match := _NUMBERED.fullmatch(stem):
        return match[1]
    return next((part for part in (stem, *reversed(folders)) if part in _SPLITS), "")


def _choose(names: Sequence[str], split: str | None, where: str) -> str:
    if split is None and len(names) == 1:
        return names[0]
    if split is not None and split in names:
        return split
    problem = "This data set has several splits" if split is None else f"This data set has no split {split!r}"
    mend = f"Say `split`, one of: {shown([name or 'files without a split' for name in names])}."
    raise DataError(f"{problem}.", where=where, mend=mend)


def _open_parquet(files: Sequence[FoundFile], root: Path, wanted: Columns, where: str) -> Rows:
    """Rows of Parquet files, through a copy in the library's cache: Parquet itself has no quick way to a row."""
    from pyarrow import parquet

    from datasets import Dataset, Features, config

    columns = wanted.found_in(Features.from_arrow_schema(parquet.read_schema(files[0].path)), where)
    facts = [file.path.stat() for file in files]
    # The library itself would take a file that was changed, and its time set back, for the old one.
    place = [
        (str(file.path), one.st_size, one.st_mtime_ns, one.st_ctime_ns) for file, one in zip(files, facts, strict=True)
    ]
    folder = Path(config.HF_DATASETS_CACHE) / "sd-trainer" / digest(json.dumps(place).encode())[:32]
    with _quiet():
        dataset = Dataset.from_parquet(
            [str(file.path) for file in files], cache_dir=str(folder), columns=[name for name in columns if name]
        )
    stamps = [stamp_of(one) for one in facts]
    return Rows.of(dataset, columns, root.resolve(), digest("\n".join(stamps).encode()) if all(stamps) else "")


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """The library's own bars would stand between ours."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown_before = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown_before:
            enable_progress_bars()
