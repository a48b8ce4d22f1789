"""Hugging Face data sets: saved to disk, Parquet files, or a name on the hub."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from typing_extensions import override

from trainer.core.errors import DataError, TrainerError
from trainer.core.files import inside, printable
from trainer.data.account import Draft
from trainer.data.decoding import read_regular
from trainer.data.sources.base import Found, Reader, Source, stamp_of
from trainer.data.sources.columns import lines_of
from trainer.data.sources.folder import ImageFolder
from trainer.data.sources.hub import HUB_NAME, commit_of, folder_of, is_pinned
from trainer.data.sources.row_files import dataset_errors, open_rows
from trainer.data.sources.rows import Columns, Rows

_AT_ONCE: Final = 1000  # rows; only their captions are brought into memory
_MASK: Final = "mask "


class HuggingFace(Source):
    """Rows of a Hugging Face data set: a column of pictures, and a column of captions.

    Pictures are decoded by us, from the very bytes that are stored. No script of a data set is ever run.
    """

    kind: Literal["huggingface"] = "huggingface"
    path: str
    """A folder saved by `save_to_disk`, a Parquet file, a folder or pattern of them, or a name on the hub."""
    split: str | None = None
    """Which part of the data set, such as `train`; may be left out where there is one part only."""
    image_column: str | None = None
    """The column of pictures; nothing said: the only one that holds pictures."""
    caption_column: str | None = None
    """The column of captions, or of lists of captions; nothing said: text, caption, captions or prompt."""
    mask_column: str | None = None
    """A column of masks, white where the picture is learned from; needs `masks: files`."""
    revision: str | None = None
    """For a name on the hub: a branch, a tag or, so that nothing can change, a commit."""

    @property
    @override
    def title(self) -> str:
        return printable(self.path)

    @override
    def open(self) -> Reader:
        path, commit = self._locate()
        remarks = () if commit is None or is_pinned(self.revision) else (_unpinned(commit),)
        wanted = Columns(self.image_column, self.caption_column, self.mask_column if self.masks == "files" else None)
        with dataset_errors(self.title):
            rows = open_rows(path, self.split, wanted, self.title)
        if rows is None:  # a repository of pictures
            folder = Path(path) / self.split if self.split is not None else Path(path)
            return ImageFolder(path=folder, caption_column=self.caption_column, masks=self.masks).open()
        return RowReader(rows, self.title, remarks)

    def _locate(self) -> tuple[str, str | None]:
        """Where the data lie on this disk, and, for a name on the hub, at which commit."""
        path = Path(self.path)
        if path.exists() or any(sign in self.path for sign in "*?["):
            return self.path, None
        # A mistyped path must not become a question to the hub.
        if not HUB_NAME.fullmatch(self.path) or Path(path.parts[0]).exists() or path.suffix == ".parquet":
            raise DataError(
                "There is no such folder or file.",
                where=self.title,
                mend="Give a folder saved by save_to_disk, Parquet files, or a hub name such as owner/name.",
            )
        commit = commit_of(self.path, self.revision)
        return str(folder_of(self.path, commit)), commit


@dataclass(eq=False)
class RowReader(Reader):
    """A data set that is being read; a locator is the number of a row, behind "mask " for its mask."""

    rows: Rows
    title: str
    remarks: tuple[str, ...] = ()

    @override
    def list(self, draft: Draft) -> Iterator[Found]:
        for remark in self.remarks:
            draft.warn(self.title, remark)
        for name, reason in self.rows.refused:
            draft.reject(name, reason)
        for name, reason in self.rows.passed:
            draft.ignore(name, reason)
        if self.rows.caption is None:
            draft.warn(self.title, "has no column of captions; say which with caption_column")
        if not len(self.rows):
            raise DataError("This data set has no rows.", where=self.title, mend="Choose another `split`.")
        with dataset_errors(self.title):
            for start in range(0, len(self.rows), _AT_ONCE):
                yield from self._listed(start, min(start + _AT_ONCE, len(self.rows)), draft)

    @override
    def read(self, locator: str, most: int) -> bytes:
        is_mask = locator.startswith(_MASK)
        column = self.rows.mask if is_mask and self.rows.mask is not None else self.rows.image
        where = self.where(locator)
        with dataset_errors(where):
            content, path = self.rows.picture(int(locator.removeprefix(_MASK)), column, most, where)
        if content is not None:
            return content
        if not path:
            raise DataError("This row holds no picture.", where=where)
        return read_regular(self._inside(path), most)

    @override
    def where(self, locator: str) -> str:
        return f"{self.title}, {_name(locator.removeprefix(_MASK))}"

    def _listed(self, start: int, stop: int, draft: Draft) -> Iterator[Found]:
        rows, count = self.rows, stop - start
        captions = rows.values(rows.caption, start, stop) if rows.caption is not None else [None] * count
        masks = rows.held(rows.mask, start, stop) if rows.mask is not None else [("", False)] * count
        cells = zip(rows.held(rows.image, start, stop), masks, captions, strict=True)
        for row, ((path, has_bytes), mask, caption) in enumerate(cells, start):
            try:
                stamp = self._stamp(row, path, has_bytes=has_bytes)
                mask_stamp = self._stamp(row, mask[0], has_bytes=mask[1]) if any(mask) else ""
            except DataError as error:
                draft.reject(_name(row), error.what, error.mend)
                continue
            yield _with_words(
                Found(
                    locator=str(row),
                    name=_name(row),
                    stamp=stamp,
                    mask=f"{_MASK}{row}" if any(mask) else "",
                    mask_stamp=mask_stamp and f"{_MASK}{mask_stamp}",
                ),
                caption,
            )

    def _stamp(self, row: int, path: str, *, has_bytes: bool) -> str:
        """The stamp of a row's picture.

        Raises:
            DataError: the row holds none, or a path that leads elsewhere.
        """
        if has_bytes:
            return self.rows.stamp and f"{self.rows.stamp}-{row}"
        if not path:
            raise DataError("This row holds no picture.")
        try:
            return stamp_of(self._inside(path).lstat())
        except OSError:
            return ""  # reading it says what is wrong

    def _inside(self, path: str) -> Path:
        root = self.rows.root
        relative = Path(path)
        try:
            if relative.is_absolute() and relative.is_relative_to(root):
                relative = relative.relative_to(root)
            return inside(root, str(relative))
        except (TrainerError, OSError, ValueError) as error:
            raise DataError(
                "The picture of this row lies outside the data set's folder.", mend="Store its bytes in the data set."
            ) from error


def _with_words(found: Found, caption: object) -> Found:
    if caption is None:
        return found
    try:
        words = lines_of(caption, found.name)
    except DataError as error:
        return replace(found, refusal=error)
    remarks = words.remarks if words.lines else (*words.remarks, "its caption is empty")
    return replace(found, captions=words.lines, remarks=remarks)


def _name(row: int | str) -> str:
    return f"row {row}"


def _unpinned(commit: str) -> str:
    return f"is at commit {commit} today; write `revision: {commit}`, so that the next run reads the same"
