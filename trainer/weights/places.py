"""Where one tensor of a network lies in a checkpoint of the original layout."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

Form = Literal["same", "pointwise", "query", "key", "value", "transposed"]
"""How the original tensor relates to ours: it has two last sizes of one more, holds ours as a third, or is turned."""

STACKED: Final[tuple[Form, ...]] = ("query", "key", "value")
"""The order in which OpenCLIP stacks three of our matrices to one."""

_MOST: Final = 10_000  # tensors of a network; SDXL's U-Net has 1,680


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor of a network, and where it lies in an original checkpoint."""

    name: str  # in diffusers or transformers; that of a text encoder begins with text_model or text_projection
    shape: tuple[int, ...]
    key: str  # in the original, behind the network's prefix
    form: Form = "same"

    @property
    def original_shape(self) -> tuple[int, ...]:
        """The shape of the tensor that lies at `key`."""
        if self.form == "pointwise":
            return (*self.shape, 1, 1)
        if self.form in STACKED:
            return (3 * self.shape[0], *self.shape[1:])
        return self.shape[::-1] if self.form == "transposed" else self.shape


def counted(places: Iterable[Place]) -> tuple[Place, ...]:
    """The places, which are not more than any model has: a configuration comes from a file, and may ask for anything.

    Raises:
        ValueError: they are more.
    """
    found = tuple(islice(places, _MOST + 1))
    if len(found) > _MOST:
        raise ValueError("layers")
    return found


def layer(name: str, shape: tuple[int, ...], original: str) -> tuple[Place, Place]:
    """A linear layer or a convolution: its weight of `shape`, and its bias."""
    return Place(f"{name}.weight", shape, f"{original}.weight"), Place(f"{name}.bias", shape[:1], f"{original}.bias")


def norm(name: str, width: int, original: str) -> tuple[Place, Place]:
    """A normalisation of `width` channels: its weight and its bias."""
    return layer(name, (width,), original)
