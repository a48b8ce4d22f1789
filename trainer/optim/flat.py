"""Many small parameters as few long ones: clipping and the optimiser's step are then a few kernels."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import Parameter

from trainer.core.shards import is_shared, own_part
from trainer.optim.groups import ParameterGroup

BLOCK: Final = 256  # numbers; 8-bit optimisers count their blocks of this size through a tensor
_SMALL: Final = 4096  # numbers; of tensors with fewer, 8-bit optimisers keep 32 bits
_ALONE: Final = 1 << 20  # numbers; so long a tensor fills a kernel by itself


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a parameter lies in its stretch."""

    parameter: Parameter
    begin: int
    size: tuple[int, ...]  # as it lies in memory, its dimensions in the order of `stride`
    stride: tuple[int, ...]

    def of(self, stretch: Tensor) -> Tensor:
        """The parameter's part of a tensor that is laid out as its stretch, in the parameter's shape."""
        return stretch.as_strided(self.size, self.stride, stretch.storage_offset() + self.begin)


class Stretch:
    """Parameters that lie one behind another in one tensor, each beginning at a multiple of 256 numbers.

    The parameters themselves stay: their values are views of `whole`, so that whoever moves `whole` moves them. Since
    no block of 256 holds numbers of two of them, an optimiser that treats each number by itself, or each block, moves
    them to the same bits as it would move each alone.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        """Move the parameters' values into one new tensor.

        Args:
            parameters: of one dtype and device, each dense in memory.
        """
        self._places: list[_Place] = []
        length = 0
        for parameter in parameters:
            self._places.append(_Place(parameter, length, tuple(parameter.shape), parameter.stride()))
            length += -(-parameter.numel() // BLOCK) * BLOCK
        first = parameters[0]
        self.whole = Parameter(torch.zeros(length, dtype=first.dtype, device=first.device))
        for place in self._places:
            view = place.of(self.whole.data)
            view.copy_(place.parameter.data)
            place.parameter.data = view

    def gather(self) -> None:
        """Move the parameters' gradients into one gradient of `whole`; who has none counts with zeros."""
        given = [place for place in self._places if place.parameter.grad is not None]
        if not given:
            return
        gradient = torch.zeros_like(self.whole)
        gradients = [own for place in given if (own := place.parameter.grad) is not None]
        copy_each([place.of(gradient) for place in given], gradients)
        for place in self._places:
            place.parameter.grad = None
        self.whole.grad = gradient

    def share(self) -> None:
        """Let each parameter's gradient be its part of `whole`'s."""
        gradient = self.whole.grad
        if gradient is not None:
            for place in self._places:
                place.parameter.grad = place.of(gradient)

    def drop(self) -> None:
        """Forget all gradients, and give their memory back."""
        self.whole.grad = None
        for place in self._places:
            place.parameter.grad = None


class FlatGroups:
    """The trained parameters of a run, as its optimiser sees them."""

    def __init__(self, groups: Sequence[ParameterGroup], *, whole: bool) -> None:
        """Lay the parameters of each group one behind another.

        Float32 parameters of up to a million numbers are laid together, those of fewer than 4,096 apart from the
        others and at most 4,095 at once, so that 8-bit optimisers keep 32 bits for them as they would for each alone.

        Args:
            groups: the parameters as they are trained.
            whole: whether the optimiser treats each number, or each block of 256, by itself: it then gets the
                stretches; else the parameters.
        """
        self._stretches: list[Stretch] = []
        self._singles: list[Parameter] = []
        self._whole = whole
        self.groups: list[ParameterGroup] = []
        for group in groups:
            stretches = [Stretch(parameters) for parameters in _laid_together(group.parameters)]
            singles = [parameter for parameter in group.parameters if not _fits(parameter)]
            flat = [*(stretch.whole for stretch in stretches), *singles]
            self.groups.append(ParameterGroup(group.name, flat if whole else list(group.parameters), group.rate))
            self._stretches += stretches
            self._singles += singles

    def gather(self) -> list[Parameter]:
        """Make the step's gradients few and long, and give the parameters that now bear them."""
        for stretch in self._stretches:
            stretch.gather()
            if not self._whole:
                stretch.share()
        return [*(stretch.whole for stretch in self._stretches), *self._singles]

    def drop(self) -> None:
        """Forget all gradients."""
        for stretch in self._stretches:
            stretch.drop()
        for parameter in self._singles:
            parameter.grad = None


@torch.no_grad()
def copy_each(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy each value into its tensor: few kernels for many tensors."""
    # torch has no public name for it, and its own optimisers are built on it
    torch._foreach_copy_(list(into), list(values))  # pyright: ignore[reportPrivateUsage]


def silence_unless(finite: Tensor, parameters: Iterable[Parameter]) -> None:
    """Turn all gradients into zeros where `finite` [] is false, without waiting for it: weights never take a NaN."""
    for parameter in parameters:
        if parameter.grad is not None:
            own_part(parameter.grad).masked_fill_(~finite, 0.0)  # a product would leave NaN what is NaN


def _fits(parameter: Parameter) -> bool:
    if is_shared(parameter):  # among processes
        return False
    dense = parameter.is_contiguous() or parameter.is_contiguous(memory_format=torch.channels_last)
    return parameter.dtype == torch.float32 and parameter.numel() <= _ALONE and dense


def _laid_together(parameters: Sequence[Parameter]) -> Iterator[list[Parameter]]:
    """The parameters that share a stretch, in their order."""
    for device in dict.fromkeys(parameter.device for parameter in parameters):
        fitting = [parameter for parameter in parameters if parameter.device == device and _fits(parameter)]
        large = [parameter for parameter in fitting if parameter.numel() >= _SMALL]
        if large:
            yield large
        together: list[Parameter] = []
        length = 0
        for parameter in fitting:
            padded = -(-parameter.numel() // BLOCK) * BLOCK
            if parameter.numel() >= _SMALL:
                continue
            if together and length + padded >= _SMALL:
                yield together
                together, length = [], 0
            together.append(parameter)
            length += padded
        if together:
            yield together
