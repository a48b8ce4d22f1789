"""What the folders of the cache hold, whether it is sound, and what no recipe needs any more."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.core.files import printable
from trainer.core.log import logger
from trainer.data.cache import folder_of
from trainer.data.example import Progress
from trainer.data.remote_folder import RemoteFolder
from trainer.data.shard_files import ShardError
from trainer.data.shard_folders import LocalFolder, ShardFolder, Span, reading
from trainer.data.shard_index import INDEX_NAME
from trainer.data.shard_rows import Bytes, Rows, Truths, raw_keys
from trainer.data.shards import ShardStore


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFacts:
    """What one folder of the cache holds; damage was not looked for."""

    title: str  # what its encoder calls itself, or the folder's name where it is not an encoder's
    folder: ShardFolder
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
    folder: ShardFolder
    needed: Set[str]
    shards: tuple[str, ...]  # those in which something is wasted
    kept_rows: int
    wasted_rows: int
    wasted_bytes: int  # of contents


def facts_of(root: Path, shared: str | None = None) -> list[FolderFacts]:
    """Entries, files and bytes of every folder below the folder of all caches, or at the address that is shared.

    Raises:
        TrainerError: a folder cannot be read.
    """
    found: list[FolderFacts] = []
    for folder in _folders(root, shared):
        store = ShardStore(folder)
        size = sum(shard.size for shard in store.shards)
        title = _title(folder)
        found.append(FolderFacts(title=title, folder=folder, entries=len(store), shards=len(store.shards), bytes=size))
    return found


def verify(root: Path, progress: Progress, shared: str | None = None) -> list[Health]:
    """Read every row of every folder (see `facts_of`), and remove what is damaged: the next filling makes it again.

    The indices are made again, too.

    Raises:
        TrainerError: a file cannot be read or written.
    """
    folders = {folder: list(folder.listing()) for folder in _folders(root, shared)}
    total, done = sum(map(len, folders.values())), 0
    found: list[Health] = []
    for folder, names in folders.items():
        rows = damaged_rows = damaged_files = 0
        for name in names:
            count, damaged = _verify_shard(folder, name)
            rows += count or 0
            damaged_rows += damaged
            damaged_files += count is None
            done += 1
            progress("comparing the cache", done, total)
        folder.remove(INDEX_NAME)
        ShardStore(folder).save_index()
        health = Health(title=_title(folder), rows=rows, damaged_rows=damaged_rows, damaged_files=damaged_files)
        found.append(health)
    return found


def find_waste(
    root: Path, needed: Mapping[str, Set[str]], progress: Progress, shared: str | None = None
) -> list[Waste]:
    """What of the encoders' folders is not among the needed keys; changes nothing.

    Folders that are no encoder's, such as that of the verdicts on pictures, are nobody's waste.

    Args:
        root: the folder of all caches.
        needed: the keys that are needed of each encoder, by its identity; those of an encoder not named are not.
        progress: told after each shard.
        shared: an address to look at instead.

    Raises:
        TrainerError: a file cannot be read.
    """
    keys = {folder_of(root, identity).name: keys for identity, keys in needed.items()}
    folders = {folder: list(folder.listing()) for folder in _folders(root, shared) if _is_encoder_s(folder)}
    total, done = sum(map(len, folders.values())), 0
    found: list[Waste] = []
    for folder, names in folders.items():
        wanted = keys.get(folder.name, frozenset[str]())
        sorted_keys = _sorted(wanted)
        kept = wasted = size = 0
        touched: list[str] = []
        for name in names:
            rows = folder.rows(name)
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
        rows = waste.folder.rows(name)
        if len(rows):
            _rewrite(waste.folder, name, rows, _among(rows, keys[waste.folder]))
        progress("pruning the cache", number, len(shards))
    for waste in found:
        if waste.needed or waste.folder.listing():
            ShardStore(waste.folder).save_index()
        else:
            waste.folder.discard()


def _verify_shard(folder: ShardFolder, name: str) -> tuple[int | None, int]:
    """How many rows the shard has, and how many of them were damaged and are gone; None where it is gone itself."""
    try:
        rows, sound = folder.examine(name)
    except ShardError as error:
        logger.warning("A damaged or foreign file in the cache is removed: %s (%s)", name, error)
        folder.remove(name)
        return None, 0
    if not sound.all():
        _rewrite(folder, name, rows, sound)
    return len(rows), int((~sound).sum())


def _rewrite(folder: ShardFolder, name: str, rows: Rows, chosen: Truths) -> None:
    """Put the chosen rows of a shard into a new one, and remove the old one; in this order, so that none is lost."""
    entries = dict(_contents(folder, name, rows, chosen))
    if entries:
        folder.write(entries)
    folder.remove(name)


def _contents(folder: ShardFolder, name: str, rows: Rows, chosen: Truths) -> Iterator[tuple[bytes, bytes]]:
    """Key and content of the chosen rows, of those that are sound."""
    try:
        examined, sound = folder.examine(name)
    except ShardError:  # damaged meanwhile: its rows are as they were found
        examined, sound = rows, np.zeros(len(rows), dtype=np.bool_)
    if len(examined) != len(rows):  # another process has removed it
        return
    damaged = int((chosen & ~sound).sum())
    if damaged:
        logger.warning("Damaged rows in the cache are made again: %d in %s", damaged, name)
    rows = rows.where(chosen & sound)
    places = zip(rows.offsets.tolist(), rows.lengths.tolist(), strict=True)
    contents = folder.read([Span(name, offset, length) for offset, length in places])
    for key, content in zip(rows.keys, contents, strict=True):
        if content is not None:
            yield key.tobytes(), content


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


def _folders(root: Path, shared: str | None = None) -> list[ShardFolder]:
    """The folders of the cache, by name."""
    if shared is not None:
        return [RemoteFolder(address, root / "shared") for address in RemoteFolder(shared, root).folders()]
    with reading(root):
        below = sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
    folders = [LocalFolder(folder) for folder in below]
    return [folder for folder in folders if folder.identity() is not None or folder.listing()]


def _title(folder: ShardFolder) -> str:
    return printable(folder.identity() or folder.name)


def _is_encoder_s(folder: ShardFolder) -> bool:
    identity = folder.identity()
    return identity is not None and folder_of(Path(), identity).name == folder.name
