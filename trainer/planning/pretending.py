"""Torch computing with tensors that have shapes and no numbers, as if on a device that need not be there."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, Final, Literal
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

from trainer.planning.counting import LiveBytes

Kind = Literal["cuda", "cpu"]
"""What kind of device is planned for."""

NOWHERE: Final = torch.device("meta")
"""Where tensors have no numbers."""

# What autocast does on CUDA and on a CPU: the parts of torch's documented lists ("CUDA Ops that can autocast to
# float16", "... to float32", and the same for CPU; upsampling stands in ATen's autocast_mode.h) that these networks
# call. It is done here, since torch has no autocast for a device without numbers; and by standing in for the functions,
# since no mode of torch holds where checkpointing computes blocks again.
_LOWERED: Final = (
    (functional, "linear"),
    (functional, "conv2d"),
    (torch, "matmul"),
    (torch, "bmm"),
    (torch, "baddbmm"),
    (torch, "addmm"),
    (Tensor, "__matmul__"),
)
_RAISED_ON_CUDA: Final = (
    (functional, "group_norm"),
    (functional, "layer_norm"),
    (functional, "softmax"),
    (functional, "interpolate"),
)


@contextmanager
def pretending(kind: Kind) -> Generator[LiveBytes, None, None]:
    """Inside, what tensors on the device `NOWHERE` would take is counted, and they behave as on a device of that kind.

    Mixed precision is what torch's autocast for the CPU says, for both kinds of device. Attention keeps no matrix of
    all pairs, as it does on GPUs that have fused kernels, and on CPUs.
    """
    # torch loads its compiler when it first meets such tensors, and that must find torch's functions as they are
    import torch._dynamo  # pyright: ignore[reportPrivateUsage, reportUnusedImport]

    live = LiveBytes()
    with ExitStack() as stack:
        for home, name in _LOWERED:
            stack.enter_context(patch.object(home, name, _lowered(getattr(home, name))))
        for home, name in _RAISED_ON_CUDA if kind == "cuda" else ():
            stack.enter_context(patch.object(home, name, _raised(getattr(home, name))))
        stack.enter_context(patch.object(functional, "scaled_dot_product_attention", _lowered(_attention)))
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        stack.enter_context(live)
        yield live


class _Generator(torch.Generator):
    """Chance for a device that has none."""

    def __new__(cls, device: Any = "cpu") -> Any:  # Any: torch's own class has no __new__ that types know
        make: Any = super().__new__
        return make(cls, "cpu" if torch.device(device).type == "meta" else device)


def _attention(  # noqa: PLR0913 - torch's own signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention that keeps of its inner matrix one number a row, as Flash Attention does (arXiv:2205.14135)."""
    kernel: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _lowered(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The layer as it is where autocast lets it compute in 16 bits."""

    @wraps(layer)
    def in_few_bits(*arguments: Any, **named: Any) -> Tensor:
        return _called(layer, torch.get_autocast_dtype("cpu"), arguments, named)

    return in_few_bits


def _raised(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The layer as it is where autocast lets it compute in float32."""

    @wraps(layer)
    def exactly(*arguments: Any, **named: Any) -> Tensor:
        return _called(layer, torch.float32, arguments, named)

    return exactly


def _called(
    layer: Callable[..., Tensor], dtype: torch.dtype, arguments: Sequence[Any], named: Mapping[str, Any]
) -> Tensor:
    if not torch.is_autocast_enabled("cpu"):
        return layer(*arguments, **named)
    return layer(*(_in(dtype, value) for value in arguments), **{name: _in(dtype, of) for name, of in named.items()})


def _in(dtype: torch.dtype, value: Any) -> Any:
    casts = isinstance(value, Tensor) and value.is_meta and value.is_floating_point() and value.dtype != torch.float64
    return value.to(dtype) if casts else value
