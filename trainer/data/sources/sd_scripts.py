"""sd-scripts' dataset configuration -> one image folder for each of its subsets."""

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError
from typing_extensions import override

from trainer.core.errors import DataError
from trainer.core.files import printable
from trainer.data.captions import CaptionRules
from trainer.data.decoding import read_regular
from trainer.data.sources.base import Masks, Reader, Source
from trainer.data.sources.sd_options import (
    OTHERWISE,
    EveryOption,
    GeneralOptions,
    SubsetOptions,
    read_options,
)
from trainer.data.sources.sd_subset import Subset

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports] it is there where it is needed

_MOST_BYTES: Final = 1 << 20
_SUFFIX: Final = re.compile(r"\.[a-z0-9_]+")
_RULES: Final = {  # their key: ours
    "shuffle_caption": "shuffle_tags",
    "keep_tokens": "keep_tags",
    "keep_tokens_separator": "keep_separator",
    "caption_separator": "separator",
    "secondary_separator": "secondary_separator",
    "enable_wildcard": "wildcards",
    "caption_prefix": "prefix",
    "caption_suffix": "suffix",
    "caption_dropout_rate": "dropout",
    "caption_tag_dropout_rate": "tag_dropout",
    "caption_dropout_every_n_epochs": "drop_every",
    "token_warmup_min": "warmup_tags",
}


class SdScripts(Source):
    """A dataset configuration of sd-scripts (`--dataset_config`), read as it is: each subset becomes a folder source.

    Of [general], [[datasets]] and [[datasets.subsets]] the nearest wins; what the file does not say, the settings
    here say, and then the recipe. `repeats` multiplies `num_repeats`.
    """

    kind: Literal["sd_scripts"] = "sd_scripts"
    path: Path
    """The .toml (or .json) file; a relative path starts where the command is run, and so do those inside it."""

    @property
    @override
    def title(self) -> str:
        return printable(str(self.path))

    @override
    def open(self) -> Reader:
        raise DataError("This is a list of sources.", where=self.title, mend="Open its parts.")

    @override
    def parts(self) -> "tuple[Source, ...]":
        """One folder a subset.

        Raises:
            DataError: the file cannot be read, or a key of it is unknown, misplaced or of a wrong value.
        """
        file = _read(self.path, self.title)
        general = read_options(GeneralOptions, file.pop("general", {}), "general", self.title)
        datasets = _tables(file.pop("datasets", []), "datasets", self.title)
        if file:
            raise DataError(
                f"There is no table {printable(next(iter(file)))!r}.",
                where=self.title,
                mend="The tables are [general], [[datasets]] and [[datasets.subsets]].",
            )
        drafts = [draft for dataset in datasets for draft in self._subsets(dataset, general)]
        used = [draft for draft in drafts if not draft.passed]
        if not used:
            raise DataError(
                "This file names no subset.", where=self.title, mend="Write [[datasets.subsets]] with image_dir."
            )
        used[0].remarks.extend(draft.passed for draft in drafts if draft.passed)
        return tuple(draft.finish() for draft in used)

    def _subsets(self, dataset: Mapping[str, object], general: dict[str, object]) -> "Iterator[_SubsetDraft]":
        own = {key: value for key, value in dataset.items() if key != "subsets"}
        shared = general | read_options(GeneralOptions, own, "datasets", self.title)
        seen: set[str] = set()
        for subset in _tables(dataset.get("subsets", []), "datasets.subsets", self.title):
            nearest = read_options(SubsetOptions, subset, "datasets.subsets", self.title)
            draft = _SubsetDraft(self, EveryOption.model_validate(shared | nearest))
            # sd-scripts passes over both; if we did not, moving over would change the data.
            if draft.place in seen:
                draft.passed = f"{printable(draft.place)} stands twice in one dataset; the second subset is not used"
            elif draft.options.num_repeats is not None and draft.options.num_repeats < 1:
                draft.passed = f"{printable(draft.place)} has num_repeats below 1; the subset is not used"
            seen.add(draft.place)
            yield draft


@dataclass(eq=False)
class _SubsetDraft:
    """One subset on its way to an image folder."""

    source: SdScripts
    options: EveryOption
    remarks: list[str] = field(default_factory=list[str])
    passed: str = ""  # why it is not used

    @property
    def place(self) -> str:
        """What it reads; two subsets of one dataset must differ in it."""
        return self.options.metadata_file or self.options.image_dir or ""

    def finish(self) -> Subset:
        """The folder, with what to know of keys that mean nothing here."""
        options, source = self.options, self.source
        if options.image_dir is None:
            raise DataError(
                "This subset has no image_dir.", where=source.title, mend="Write the folder of its pictures."
            )
        return Subset(
            path=self._locate(options.image_dir),
            listing=None if options.metadata_file is None else self._locate(options.metadata_file),
            class_words=options.class_tokens or "",
            recursive=False,
            numbered_folders=False,
            caption_suffixes=self._suffixes(),
            repeats=source.repeats * (options.num_repeats or 1),
            weight=source.weight,
            regularisation=source.regularisation or options.is_reg is True,
            target=source.target,
            held_out=source.held_out,
            resolution=self._resolution(),
            flip=source.flip if options.flip_aug is None else options.flip_aug,
            captions=self._rules(),
            masks=self._masks(),
            remarks=(*self._otherwise(), *self.remarks),
        )

    def _locate(self, path: str) -> Path:
        """Where sd-scripts would look; failing that, beside the file, which moves with its data."""
        there = Path(path)
        beside = self.source.path.parent / there
        if there.is_absolute() or there.exists() or not beside.exists():
            return there
        self.remarks.append(f"{printable(path)} is read from beside {self.source.title}")
        return beside

    def _suffixes(self) -> tuple[str, ...]:
        suffix = self.options.caption_extension
        if self.options.metadata_file is not None:
            return ()
        if suffix is None:
            return (".txt", ".caption")
        if not _SUFFIX.fullmatch(suffix.lower()):
            raise DataError(
                f"caption_extension cannot be {suffix!r}.", where=self.source.title, mend="Write it with its dot: .txt"
            )
        return (suffix.lower(),)

    def _resolution(self) -> int | None:
        wanted = self.options.resolution
        if wanted is None:
            return self.source.resolution
        if isinstance(wanted, int):
            return wanted
        side = round(math.sqrt(wanted[0] * wanted[1]))
        if wanted[0] != wanted[1]:
            self.remarks.append(f"resolution {wanted[0]} x {wanted[1]} is taken as its area, {side} x {side}")
        return side

    def _masks(self) -> Masks:
        if self.options.alpha_mask is None:
            return self.source.masks
        return "alpha" if self.options.alpha_mask else "none"

    def _rules(self) -> CaptionRules | None:
        """How its captions are treated; None: as the recipe says."""
        own = self.source.captions
        rules: dict[str, object] = {} if own is None else own.model_dump(exclude_unset=True)
        theirs = {key: getattr(self.options, key) for key in _RULES}  # by names of `EveryOption`
        given = {key: value for key, value in theirs.items() if value is not None}
        rules |= {_RULES[key]: value for key, value in given.items()}
        if "enable_wildcard" in given:
            rules["several"] = "choose" if given["enable_wildcard"] else "first"
        if given.get("caption_prefix") and (given.get("shuffle_caption") or given.get("keep_tokens")):
            self.remarks.append("caption_prefix stays in front here: it is never shuffled, nor counted by keep_tokens")
        if not rules:
            return None
        try:
            return CaptionRules.model_validate(rules)
        except ValidationError as error:
            raise DataError(
                f"Its caption keys do not go together: {error.errors()[0]['msg']}", where=self.source.title
            ) from error

    def _otherwise(self) -> Iterator[str]:
        for key, (usual, advice) in OTHERWISE.items():
            value = getattr(self.options, key)  # by names of `EveryOption`
            if value is not None and value != usual:
                yield f"{key} is not followed: {advice}"


def _read(path: Path, where: str) -> dict[str, Any]:
    """The file as plain tables; Any: TOML and JSON."""
    if not path.exists():
        raise DataError(
            "There is no such file.", where=where, mend="Give the dataset configuration, such as dataset.toml."
        )
    content = read_regular(path.resolve(), _MOST_BYTES)
    try:
        text = content.decode("utf-8-sig")
        file = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # both kinds of syntax errors, and wrong encodings, are ValueErrors
        raise DataError(f"This file cannot be read: {printable(str(error))[:200]}.", where=where) from error
    if not isinstance(file, dict):
        raise DataError("This file holds no tables.", where=where, mend="Write [[datasets]] and [[datasets.subsets]].")
    return file


def _tables(content: object, level: str, where: str) -> list[dict[str, Any]]:
    if isinstance(content, list) and all(isinstance(one, dict) for one in content):
        return content
    raise DataError(f"{level} is no list of tables.", where=where, mend=f"Write [[{level}]], with two brackets.")
