"""Latents and text states on disk, keyed by everything that shapes them."""

import hashlib
import json
import struct
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from trainer.core.log import logger
from trainer.core.settings import Settings
from trainer.data import journal
from trainer.data.journal import Content, Contents, Journal
from trainer.data.shard_folders import LocalFolder
from trainer.data.shard_rows import Truths
from trainer.data.shards import ShardStore
from trainer.data.shared_store import Shared, SharedAddress, SharedStore

CacheDtype = Literal["float16", "bfloat16"]
_PIECE: Final = 16_384  # numbers; torch shares out the work from 32,768 on
_LAYOUT: Final = "safetensors-1"  # part of every key: change it when rows are written in another way
_DTYPES: Final[Mapping[CacheDtype, torch.dtype]] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_WORDS: Final = {torch.float16: "F16", torch.bfloat16: "BF16"}
_ALWAYS: Final = {"mask": torch.float16}  # in 0 .. 1, where it is the more exact of the two

Entry = Mapping[str, Tensor]
"""Named tensors of one picture or one text; kept in 16 bits."""


class CacheSettings(Settings):
    """Where encoded pictures and words are kept."""

    folder: Path = Path("cache")
    """Can serve all recipes at once: an entry is found by its content, never by a name."""
    shared: SharedAddress | None = None
    """Where entries lie for many machines, such as s3://bucket/prefix; `folder` then holds copies of what was read."""
    copies: NonNegativeInt = 20_000_000_000
    """With `shared`: how many bytes of copies a machine keeps in `folder`; the rest is read from there each time."""
    memory: NonNegativeInt = 268_435_456
    """How many bytes of entries stay in memory once they were read from the folder."""
    dtype: CacheDtype = "float16"
    """Number format of entries: float16 is the more exact one, bfloat16 holds any size of number."""

    @property
    def elsewhere(self) -> Shared | None:
        """Where one of the two caches lies for several machines; each has half of the room for copies."""
        return None if self.shared is None else Shared(self.shared, self.copies // 2)


def cache_key(*parts: str | int | bool) -> str:
    """A digest of everything that shapes an entry: content, sizes, rules, versions, dtype, the encoder's identity."""
    return hashlib.sha256(json.dumps([_LAYOUT, *parts]).encode("utf-8")).hexdigest()


def folder_of(root: Path, identity: str) -> Path:
    """The folder of an encoder's entries below the folder of all caches."""
    return root / hashlib.sha256(identity.encode("utf-8")).hexdigest()[:16]


class TensorCache:
    """Entries of one encoder, in a folder of its own below `root`; any number of threads may read and write."""

    def __init__(
        self,
        root: Path,
        identity: str,
        memory: int = 0,
        dtype: CacheDtype = "float16",
        shared: Shared | None = None,
    ) -> None:
        """Open the cache, or begin it; files that are no whole shards are removed with a warning.

        Args:
            root: the folder of all caches.
            identity: what the encoder calls itself; names the folder.
            memory: how many bytes of entries to keep once they were read.
            dtype: how new entries are written. Each row says its own, so a folder may hold both; put it into the key.
            shared: where the entries lie for all machines; the folder then holds copies of what was read.

        Raises:
            TrainerError: the folder cannot be read or written.
        """
        self.folder = folder_of(root, identity)
        self._dtype = _DTYPES[dtype]
        self._kept: dict[str, dict[str, Tensor]] = {}
        # What was first read stays: each epoch asks for everything once, where throwing out the oldest keeps less.
        self._free = memory
        self._lock = threading.Lock()
        self._shared: SharedStore | None = None
        if shared is not None:
            address = f"{shared.address.rstrip('/')}/{self.folder.name}"
            self._shared = SharedStore(address, self.folder, shared.copies)
            self._shared.folder.identify(identity)
        self._store = ShardStore(self.folder) if self._shared is None else self._shared
        LocalFolder(self.folder).identify(identity)

    def __len__(self) -> int:
        """How many keys there are, whether or not their rows are sound."""
        return len(self._store)

    def keys(self) -> list[str]:
        """All keys, whether or not their rows are sound."""
        return self._store.keys()

    def __contains__(self, key: str) -> bool:
        """Whether there is a row for this key, sound or not; nothing is read from the disk."""
        return key in self._store

    @property
    def bytes(self) -> int:
        """The size of its shards."""
        return sum(shard.size for shard in self._store.shards)

    def known(self, keys: Sequence[str]) -> Truths:
        """`__contains__` of many keys at once [len(keys)]: a million take about a second."""
        return self._store.known(keys)

    def refresh(self) -> None:
        """See also what other processes have written since."""
        self._store.refresh()

    def fetch(self, keys: Sequence[str]) -> None:
        """Read together what is about to be asked for, where each reading by itself would wait for a network.

        Raises:
            TrainerError: it cannot be read.
        """
        if self._shared is not None:
            self._shared.fetch([key for key in keys if key not in self._kept])

    @property
    def is_near(self) -> bool:
        """Whether entries lie on this machine, so that reading all of them costs little."""
        return self._shared is None

    def save_index(self) -> None:
        """Make the next opening quick; called when much was written."""
        self._store.save_index()

    def read(self, key: str) -> dict[str, Tensor] | None:
        """The entry in float32, or None if it is not there or damaged; damage is warned of."""
        kept = self._kept.get(key)
        if kept is None:
            kept = self._read_sound(key)
            if kept is None:
                return None
            self._keep(key, kept)
        return {name: _as_float32(tensor) for name, tensor in kept.items()}

    def holds(self, key: str) -> bool:
        """Whether the entry is there and sound: its bytes are read and compared with their checksum."""
        return key in self._kept or self._store.get(key) is not None

    def as_stored(self, entry: Entry) -> dict[str, Tensor]:
        """The tensors as `write` stores them, on the CPU, in memory of their own."""
        stored: dict[str, Tensor] = {}
        for name, tensor in entry.items():
            stored[name] = torch.empty(tensor.shape, dtype=_ALWAYS.get(name, self._dtype))
            stored[name].copy_(tensor.detach())
        return stored

    def write(self, entries: Mapping[str, Entry]) -> None:
        """Add entries as one new shard; they are on the disk when this returns.

        Raises:
            TrainerError: the disk is full or cannot be written; nothing is then left behind.
        """
        self.write_contents({key: self.content_of(entry) for key, entry in entries.items()})

    def content_of(self, entry: Entry) -> Content:
        """The entry as it stands in a shard."""
        return _as_bytes(self.as_stored(entry))

    def contents_of(self, batch: Entry) -> list[Content]:
        """The same for the rows [B ...] of tensors of several entries, which have no masks; many times as quick."""
        stored = self.as_stored(batch)
        head = _head_of({name: tensor[0] for name, tensor in stored.items()})
        rows = [tensor.flatten(1).view(torch.int16).numpy() for tensor in stored.values()]  # [B numbers] each
        return [b"".join((head, *(row.tobytes() for row in entry))) for entry in zip(*rows, strict=True)]

    def write_contents(self, contents: Contents) -> None:
        """As `write`, for what `content_of` gives."""
        self._store.write(contents)

    def journal(self) -> Journal:
        """What keeps entries from a kill until they are written; on this machine, also where entries lie elsewhere."""
        return Journal(self.folder)

    def take_up_journals(self) -> None:
        """What killed processes had encoded is in the cache; seen is also what others have written or taken up.

        Raises:
            TrainerError: the cache cannot be read.
        """
        journal.take_up(self.folder, self._write_unknown)
        self.refresh()

    def _write_unknown(self, contents: Contents) -> None:
        """Write what is in no shard yet; all is, if a process was killed right before it removed its journal."""
        there = self._store.known(list(contents)).tolist()
        self._store.write({key: one for (key, one), known in zip(contents.items(), there, strict=True) if not known})

    def _keep(self, key: str, entry: dict[str, Tensor]) -> None:
        size = sum(tensor.nbytes for tensor in entry.values())
        with self._lock:
            if size <= self._free and key not in self._kept:
                self._kept[key] = entry
                self._free -= size

    def _read_sound(self, key: str) -> dict[str, Tensor] | None:
        from safetensors import SafetensorError
        from safetensors.torch import load

        content = self._store.get(key)
        if content is None:
            return None
        try:
            return load(content)
        except (SafetensorError, ValueError, KeyError) as error:
            logger.warning("A row in the cache holds no tensors and is made again: %s (%s)", key, error)
            return None


def _as_bytes(tensors: Mapping[str, Tensor]) -> Content:
    """Tensors of 16 bits in safetensors form, which the library reads; its own writing takes ten times as long."""
    return b"".join((_head_of(tensors), *(tensor.view(torch.int16).numpy().tobytes() for tensor in tensors.values())))


def _head_of(tensors: Mapping[str, Tensor]) -> bytes:
    header: dict[str, dict[str, object]] = {}
    start = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _WORDS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.nbytes],
        }
        start += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _as_float32(tensor: Tensor) -> Tensor:
    """A copy in float32, made in pieces so small that torch wakes no threads: that costs milliseconds on busy cores."""
    if tensor.numel() <= _PIECE:
        return tensor.to(torch.float32, copy=True)
    flat = tensor.reshape(-1)
    converted = torch.empty(tensor.numel(), dtype=torch.float32)
    for start in range(0, tensor.numel(), _PIECE):
        converted[start : start + _PIECE] = flat[start : start + _PIECE]
    return converted.view(tensor.shape)
