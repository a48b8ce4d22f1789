"""Tensors of which each process holds a share: put together, and taken apart again.

The tensors are torch's DTensors; a plain tensor passes through everything here as it is. A share is known by its words
and not by its class, whose import would cost every run half a second.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


def is_shared(tensor: object) -> bool:
    """Whether each process holds but a share of this tensor."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, on its device; where it is shared, all processes must ask for it at the same time."""
    shared: Any = tensor  # torch's DTensor, if it is one
    return shared.full_tensor() if is_shared(tensor) else tensor


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those that are shared whole and on the CPU; all other processes `lend` the same ones meanwhile."""
    return {name: whole(one.detach()).cpu() if is_shared(one) else one for name, one in tensors.items()}


def lend(value: object) -> None:
    """Take part in what another process puts together: every shared tensor in `value`, at whatever depth, in order."""
    if isinstance(value, Tensor):
        whole(value.detach())
    elif isinstance(value, Mapping):
        for part in value.values():
            lend(part)
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for part in value:
            lend(part)


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of the tensor; what is done to it in place is done to the tensor."""
    shared: Any = tensor
    return shared.to_local() if is_shared(tensor) else tensor


def shared_like(value: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor as `pattern` is shared; all processes must ask for it at the same time, and get the first's."""
    if not is_shared(pattern) or is_shared(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    like: Any = pattern
    own = value.to(like.to_local().device).contiguous()
    return distribute_tensor(own, like.device_mesh, like.placements)
