"""The recipe's sources, open: gives the pixels of any example."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

from PIL import Image

from trainer.core.errors import DataError
from trainer.data.decoding import ImageLimits, Picture, decode, decode_mask, digest
from trainer.data.example import Example, Size
from trainer.data.sources.base import Reader, Source


@dataclass(eq=False)
class OpenSources:
    """Sources that open when they are first asked; may be used by several threads at once."""

    parts: Sequence[Source]
    _readers: dict[int, Reader] = field(default_factory=dict[int, Reader], repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def __reduce__(self) -> tuple[type["OpenSources"], tuple[Sequence[Source]]]:
        """In another process they are opened anew."""
        return OpenSources, (self.parts,)

    def content(self, example: Example, limits: ImageLimits) -> bytes:
        """The bytes of a picture, the very ones that were looked at.

        Raises:
            DataError: it is gone, or was changed since.
        """
        content = self._reader(example).read(example.locator, limits.bytes)
        if digest(content) != example.key:
            raise _changed("picture", self.where(example))
        return content

    def picture(self, example: Example, limits: ImageLimits, least: Size | None = None) -> Picture:
        """A picture, decoded; `least` as for `decode`.

        Raises:
            DataError: it is gone, or was changed since it was looked at.
        """
        return decode(self.content(example, limits), self.where(example), limits, least=least)

    def mask(self, example: Example, picture: Picture, limits: ImageLimits) -> Image.Image | None:
        """What to learn from in a picture: white, in 8-bit grey; None: all of it.

        Raises:
            DataError: the mask file is gone, or was changed since it was looked at.
        """
        if not example.mask_key:
            return None
        if example.mask_key == "alpha":
            return picture.alpha
        reader = self._reader(example)
        where = reader.where(example.mask)
        content = reader.read(example.mask, limits.bytes)
        if digest(content) != example.mask_key:
            raise _changed("mask", where)
        return decode_mask(content, where, limits)

    def where(self, example: Example) -> str:
        """How messages call an example."""
        return self._reader(example).where(example.locator)

    def _reader(self, example: Example) -> Reader:
        with self._lock:
            if example.source not in self._readers:
                self._readers[example.source] = self.parts[example.source].open()
            return self._readers[example.source]


def _changed(what: str, where: str) -> DataError:
    return DataError(
        f"This {what} was changed while the run was being prepared.",
        where=where,
        mend="Start again; leave it alone then.",
    )
