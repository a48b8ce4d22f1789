"""Forward and backward: what a pass is, and what two passes may have in common."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trainer.loop.ahead import Ready, each_tensor

Pass = Callable[[Ready], Tensor]
"""One forward and one backward pass: gives the loss, [] without gradient, and adds to the parameters' gradients."""


class Passing(Protocol):
    """A way to make a pass."""

    def __call__(self, deed: Pass, ready: Ready) -> Tensor:
        """Do `deed` with `ready`, which lies on the device; the loss is the caller's to keep."""
        ...

    def resting(self) -> AbstractContextManager[None]:
        """Inside, the network belongs to somebody else, such as previews; memory that passes need is free."""
        ...


class Plain:
    """Each pass as it is written."""

    def __call__(self, deed: Pass, ready: Ready) -> Tensor:
        """See `Passing`."""
        return deed(ready)

    @contextmanager
    def resting(self) -> Generator[None, None, None]:
        """See `Passing`."""
        yield


@dataclass(frozen=True, slots=True)
class Signature:
    """What two passes have in common that can be played from one record."""

    tensors: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    total: int
    masked: bool


def tensors_of(value: object) -> list[Tensor]:
    """All tensors in a dataclass, at whatever depth, in the order of its fields, none twice."""
    found: dict[Tensor, None] = {}

    def look(part: Tensor) -> Tensor:
        return found.setdefault(part) or part

    each_tensor(value, look)
    return list(found)


def signature_of(ready: Ready) -> Signature:
    """What must be alike in two passes for one record to serve both."""
    batch = ready.batch
    tensors = tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors_of(ready))
    return Signature(tensors, batch.total, batch.mask is not None)


def shape_of(ready: Ready) -> str:
    """How large the pictures of a pass are, for messages."""
    height, width = ready.batch.latents.shape[-2:]
    return f"{width}x{height} latent places"
