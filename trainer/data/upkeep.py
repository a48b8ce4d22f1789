"""What the folders of the cache hold, whether it is sound, and what no recipe needs any more."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.core.files import printable
from trainer.core.log import logger
from trainer.data.cache import IDENTITY_NAME, folder_of
from trainer.data.example import Progress
from trainer.data.shard_files import (
    ShardError,
    list_shards,
    read_content,
    read_rows,
    remove,
    shard_name,
    sound_rows,
    write_shard,
)
from trainer.data.shard_index import INDEX_NAME
from trainer.data.shard_rows import NO_ROWS, Bytes, Rows, Truths, raw_keys
from trainer.data.shards import ShardStore, reading, writing


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFacts:
    """What one folder of the cache holds; damage was not looked for."""

    title: str  # what its encoder calls itself, or the folder's name where it is not an encoder's
    folder: Path
    entries: int
    shards: int
    bytes: int  # of the shards


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What was found in one folder, every row read."""

    title: str
    rows: int
    damaged_rows: int
    damaged_files: int  # of which no row could be saved


@dataclass(frozen=True, slots=True, kw_only=True)
class Waste:
    """What nobody needs in one folder of the cache."""

    title: str
    folder: Path
    needed: Set[str]
    shards: tuple[str, ...]  # those in which something is wasted
    kept_rows: int
    wasted_rows: int
    wasted_bytes: int  # of contents


def facts_of(root: Path) -> list[FolderFacts]:
    """Entries, files and bytes of every folder below the folder of all caches.

    Raises:
        TrainerError: a folder cannot be read.
    """
    found: list[FolderFacts] = []
    for folder in _folders(root):
        store = ShardStore(folder)
        size = sum(shard.size for shard in store.shards)
        title = _title(folder)
        found.append(FolderFacts(title=title, folder=folder, entries=len(store), shards=len(store.shards), bytes=size))
    return found


def verify(root: Path, progress: Progress) -> list[Health]:
    """Read every row of every folder, and remove what is damaged, so that the next filling makes it again.

    The indices are made again, too.

    Raises:
        TrainerError: a file cannot be read or written.
    """
    folders = {folder: list(list_shards(folder)) for folder in _folders(root)}
    total, done = sum(map(len, folders.values())), 0
    found: list[Health] = []
    for folder, names in folders.items():
        rows = damaged_rows = damaged_files = 0
        for name in names:
            count, damaged = _verify_shard(folder / name)
            rows += count or 0
            damaged_rows += damaged
            damaged_files += count is None
            done += 1
            progress("comparing the cache", done, total)
        remove(folder / INDEX_NAME)
        ShardStore(folder).save_index()
        health = Health(title=_title(folder), rows=rows, damaged_rows=damaged_rows, damaged_files=damaged_files)
        found.append(health)
    return found


def find_waste(root: Path, needed: Mapping[str, Set[str]], progress: Progress) -> list[Waste]:
    """What of the encoders' folders is not among the needed keys; changes nothing.

    Folders that are no encoder's, such as that of the verdicts on pictures, are nobody's waste.

    Args:
        root: the folder of all caches.
        needed: the keys that are needed of each encoder, by its identity; those of an encoder not named are not.
        progress: told after each shard.

    Raises:
        TrainerError: a file cannot be read.
    """
    keys = {folder_of(root, identity): keys for identity, keys in needed.items()}
    folders = {folder: list(list_shards(folder)) for folder in _folders(root) if _is_encoder_s(root, folder)}
    total, done = sum(map(len, folders.values())), 0
    found: list[Waste] = []
    for folder, names in folders.items():
        wanted = keys.get(folder, frozenset[str]())
        sorted_keys = _sorted(wanted)
        kept = wasted = size = 0
        touched: list[str] = []
        for name in names:
            rows = _rows(folder / name)
            useful = _among(rows, sorted_keys)
            kept += int(useful.sum())
            wasted += int((~useful).sum())
            size += int(rows.lengths[~useful].sum(dtype=np.int64))
            touched += [] if useful.all() else [name]
            done += 1
            progress("looking through the cache", done, total)
        waste = Waste(
            title=_title(folder),
            folder=folder,
            needed=wanted,
            shards=tuple(touched),
            kept_rows=kept,
            wasted_rows=wasted,
            wasted_bytes=size,
        )
        found.append(waste)
    return [waste for waste in found if waste.wasted_rows]


def prune(found: Sequence[Waste], progress: Progress) -> None:
    """Remove what is wasted; shards that are needed in part are written anew, and folders of nothing go.

    Raises:
        TrainerError: a file cannot be read or written; nothing that is needed is lost.
    """
    shards = [(waste, name) for waste in found for name in waste.shards]
    keys = {waste.folder: _sorted(waste.needed) for waste in found}
    for number, (waste, name) in enumerate(shards, start=1):
        rows = _rows(waste.folder / name)
        if len(rows):
            _rewrite(waste.folder / name, rows, _among(rows, keys[waste.folder]))
        progress("pruning the cache", number, len(shards))
    for waste in found:
        if waste.needed or list_shards(waste.folder):
            ShardStore(waste.folder).save_index()
        else:
            _remove_folder(waste.folder)


def _verify_shard(path: Path) -> tuple[int | None, int]:
    """How many rows the shard has, and how many of them were damaged and are gone; None where it is gone itself."""
    with reading(path.parent):
        try:
            rows = read_rows(path)
            sound = sound_rows(path, rows)
        except FileNotFoundError:  # another process has pruned it
            return 0, 0
        except ShardError as error:
            logger.warning("A damaged or foreign file in the cache is removed: %s (%s)", path.name, error)
            remove(path)
            return None, 0
    if not sound.all():
        _rewrite(path, rows, sound)
    return len(rows), int((~sound).sum())


def _rewrite(path: Path, rows: Rows, chosen: Truths) -> None:
    """Put the chosen rows of a shard into a new one, and remove the old one; in this order, so that none is lost."""
    with reading(path.parent):
        entries = dict(_contents(path, rows.where(chosen)))
    if entries:
        with writing(path.parent):
            write_shard(path.parent / shard_name(), entries)
    remove(path)


def _contents(path: Path, rows: Rows) -> Iterator[tuple[bytes, bytes]]:
    """Key and content of those rows that are sound."""
    sound = sound_rows(path, rows)
    if not sound.all():
        logger.warning("Damaged rows in the cache are made again: %d in %s", int((~sound).sum()), path.name)
    rows = rows.where(sound)
    for key, offset, length in zip(rows.keys, rows.offsets.tolist(), rows.lengths.tolist(), strict=True):
        yield key.tobytes(), read_content(path, offset, length)


def _rows(path: Path) -> Rows:
    """The rows of a shard; none if it is gone or no shard of ours, which the next filling says."""
    with reading(path.parent):
        try:
            return read_rows(path)
        except (FileNotFoundError, ShardError):
            return NO_ROWS


def _sorted(keys: Set[str]) -> Bytes:
    """Keys as sorted rows of 32 bytes, one number each to numpy [M]."""
    return np.sort(_as_one(raw_keys(list(keys))))


def _as_one(keys: Bytes) -> Bytes:
    return np.ascontiguousarray(keys).view("S32").reshape(-1)


def _among(rows: Rows, keys: Bytes) -> Truths:
    """For each row whether its key is among the sorted keys [N]."""
    if not len(keys):
        return np.zeros(len(rows), dtype=np.bool_)
    wanted = _as_one(rows.keys)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return keys[places] == wanted


def _folders(root: Path) -> list[Path]:
    """The folders of the cache, by name."""
    with reading(root):
        below = sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
        return [folder for folder in below if (folder / IDENTITY_NAME).is_file() or list_shards(folder)]


def _identity(folder: Path) -> str | None:
    try:
        return (folder / IDENTITY_NAME).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError):
        return None


def _title(folder: Path) -> str:
    return printable(_identity(folder) or folder.name)


def _is_encoder_s(root: Path, folder: Path) -> bool:
    identity = _identity(folder)
    return identity is not None and folder_of(root, identity) == folder


def _remove_folder(folder: Path) -> None:
    """Remove a folder of the cache in which nothing is left; another process's files keep it."""
    remove(folder / INDEX_NAME)
    remove(folder / IDENTITY_NAME)
    try:
        folder.rmdir()
    except OSError as error:
        logger.warning("This folder of the cache could not be removed: %s (%s)", folder, error.strerror)
