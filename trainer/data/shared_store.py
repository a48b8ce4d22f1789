"""Contents that all machines share, with copies of what was read on this one."""

import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from pydantic import AfterValidator

from trainer.core.errors import TrainerError
from trainer.core.log import logger
from trainer.data.remote_folder import RemoteFolder
from trainer.data.shards import ShardStore
from trainer.data.storage import PACKAGES

_ADDRESS: Final = re.compile(r"([a-z0-9]+)://\w[\w.-]*(/(?!\.+(/|$))[\w.=+-]+)*/?", re.ASCII)
_SHARD_BYTES: Final = 16 * 1024 * 1024  # copies that wait to be written together


def _address(text: str) -> str:
    """An address without credentials, of a kind of storage that puts whole objects.

    Raises:
        ValueError: it is none; the text is not told, for it may hold a password.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or found[1] not in PACKAGES:
        raise ValueError(
            f"not an address such as s3://bucket/prefix, of letters, digits and ._=+- (kinds: {', '.join(PACKAGES)}); "
            "credentials come from the environment, and a folder that machines share is given as data.cache.folder"
        )
    return text


SharedAddress = Annotated[str, AfterValidator(_address)]
"""Where object storage is found."""


class Shared(NamedTuple):
    """Where entries lie for all machines, and what this machine may keep of them."""

    address: str
    copies: int  # bytes


class SharedStore(ShardStore):
    """The store at an address; what was read there is copied into a store of this machine, as far as there is room.

    What the address holds is what counts: the copies are asked first when a content is read, and for nothing else.
    What was copied first stays: each epoch asks for everything once, where throwing out the oldest keeps less.
    """

    def __init__(self, address: str, folder: Path, room: int) -> None:
        """Open both.

        Args:
            address: where the contents lie.
            folder: where the copies lie.
            room: bytes that they may take.

        Raises:
            TrainerError: one of them cannot be read, or the storage's package is not installed.
        """
        super().__init__(RemoteFolder(address, folder))
        self._copies = ShardStore(folder)
        self._room = room
        self._fetched: dict[str, bytes] = {}  # what was read together, until it is asked for
        self._waiting: dict[str, bytes] = {}  # copies to be written
        self._guard = threading.Lock()

    def fetch(self, keys: Sequence[str]) -> None:
        """Read together what is about to be asked for: a range of bytes each, many at once.

        Raises:
            TrainerError: the storage does not answer, after its library's own attempts.
        """
        near = self._copies.known(keys).tolist()
        with self._guard:
            far = {key for key, copied in zip(keys, near, strict=True) if not copied and key not in self._waiting}
        found = super().get_all(sorted(far))
        self._copy(found)
        with self._guard:
            self._fetched = found

    def get(self, key: str) -> bytes | None:
        """The content under this key, of the copies or else of the store; see `ShardStore.get`."""
        with self._guard:
            content = self._fetched.get(key) or self._waiting.get(key)
        if content is None and key in self._copies:
            content = self._copies.get(key)
        if content is None:
            content = super().get(key)
            if content is not None:
                self._copy({key: content})
        return content

    def get_all(self, keys: Iterable[str]) -> dict[str, bytes]:
        """See `ShardStore.get_all`."""
        wanted = list(keys)
        self.fetch(wanted)
        return {key: content for key in wanted if (content := self.get(key)) is not None}

    def _copy(self, contents: dict[str, bytes]) -> None:
        with self._guard:
            self._waiting |= contents
            if sum(map(len, self._waiting.values())) < _SHARD_BYTES:
                return
            ready, self._waiting = self._waiting, {}
        self._write_copies(ready)

    def _write_copies(self, contents: dict[str, bytes]) -> None:
        if self._room <= 0:
            return
        try:
            self._copies.refresh()  # other processes of this machine copy too
            taken = sum(shard.size for shard in self._copies.shards)
            if taken + _SHARD_BYTES > self._room:
                self._room = 0
                logger.info("There is no more room for copies of the shared cache; the rest is read there each time.")
                return
            self._copies.write(contents)
        except TrainerError as error:  # a run can do without copies
            self._room = 0
            logger.warning("No more copies of the shared cache are kept: %s", error.what)
