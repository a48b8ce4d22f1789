"""Sixteen bits that are right on average: rounding up or down by chance."""

from typing import Final

import torch
from torch import Tensor

_LOST_BITS: Final = 16  # of float32's 32, which bfloat16 has not
_PIECE: Final = 1 << 22  # numbers that are rounded together: what the chance takes in memory


def round_by_chance(exact: Tensor, into: Tensor, seed: int) -> None:
    """Give `into` the numbers of `exact`, each one of its two neighbours in bfloat16, the nearer one more often.

    The chance of the upper one is how far the number is on its way to it, so that the mean over many seeds is the
    number itself; small steps then add up, which rounding to the nearest would lose. A number that bfloat16 has stays
    what it is; infinities stay infinite and NaN stays NaN.

    Args:
        exact: float32, of any shape and memory format.
        into: bfloat16, of the same shape, on the same device; written in place.
        seed: decides the chance, together with the kind of device.

    Source: Gupta et al. 2015, arXiv:1502.02551, section 3.1; the bits of float32 that bfloat16 lacks get sixteen random
    ones added, and what does not carry over is cut off.
    """
    generator = torch.Generator(exact.device).manual_seed(seed)
    # in the order of the shape, not of the memory: the layout decides nothing
    for numbers, rounded in zip(_rows(exact), _rows(into), strict=True):
        bits = numbers.contiguous().view(torch.int32)
        chance = torch.randint(
            0, 1 << _LOST_BITS, bits.shape, generator=generator, device=bits.device, dtype=bits.dtype
        )
        # a NaN whose low bits are set could carry over into a number
        chance.masked_fill_(numbers.isnan(), 0)
        carried = (bits + chance).bitwise_and_(-1 << _LOST_BITS)
        rounded.copy_(carried.view(torch.float32))


def _rows(tensor: Tensor) -> list[Tensor]:
    """The tensor along its first dimension, in views of about `_PIECE` numbers."""
    if tensor.dim() == 0:
        return [tensor]
    row = max(1, tensor.numel() // max(1, tensor.shape[0]))
    return list(tensor.split(max(1, _PIECE // row)))
