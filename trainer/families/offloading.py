"""Blocks whose frozen weights wait in the host's memory and come to the device just before they are used."""

import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from typing_extensions import override

from trainer.core.log import logger
from trainer.families.checkpointing import SecondPass

_ALIGNMENT: Final = 256  # bytes: tensors begin where a device reads best


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The residual and transformer blocks of a U-Net of diffusers, which hold nearly all of its weights."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    return [module for module in network.modules() if isinstance(module, (BasicTransformerBlock, ResnetBlock2D))]


def blocks_to_stream(network: nn.Module, resident: float) -> list[nn.Module]:
    """Blocks to stream so that at least `1 - resident` of the network's bytes wait on the host, or else all of them.

    They lie evenly between those that stay, so that each has something to be reckoned during its journey.
    """
    blocks = blocks_of(network)
    sizes = [sum(_bytes(tensor) for tensor in (*block.parameters(), *block.buffers())) for block in blocks]
    whole = sum(_bytes(tensor) for tensor in (*network.parameters(), *network.buffers()))
    share = min(1.0, whole * (1 - resident) / max(1, sum(sizes)))
    chosen: list[nn.Module] = []
    passed = streamed = 0
    for block, size in zip(blocks, sizes, strict=True):
        passed += size
        if streamed < share * passed:
            chosen.append(block)
            streamed += size
    return chosen


class StreamedBlocks:
    """Blocks of a frozen network that are on the device only while they are used, one and the next at a time.

    They are computed again in the backward pass, each by itself: the weights come once more, in reverse order, and
    stay until the gradient has passed them. Tensors that are put into a block later, such as those of an adapter, stay
    on the device.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        """The weights of the blocks, all frozen and on the CPU, are packed there; what stands for them takes no memory.

        Args:
            blocks: in the order in which they are used, about.
            device: where they are used.
        """
        self._lane = CudaLane(device) if device.type == "cuda" else Lane(device)
        self._waiting = {block: _pack(block, self._lane) for block in blocks}
        self._here: dict[nn.Module, Arriving] = {}  # on the device, or on the way there
        self._order: list[nn.Module] = []  # in which the blocks are reached, as far as it is known
        self._again: set[nn.Module] = set()  # blocks that the last backward pass reckoned a second time
        self._backwards = False
        self._second = SecondPass()
        for block in blocks:
            block.forward = partial(self._run, block, block.forward)

    @property
    def blocks(self) -> frozenset[nn.Module]:
        """What is streamed."""
        return frozenset(self._waiting)

    @property
    def host_bytes(self) -> int:
        """Bytes that wait in the host's memory."""
        return sum(waiting.host.numel() for waiting in self._waiting.values())

    def _run(self, block: nn.Module, forward: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """The block's forward pass, kept for no gradient."""

        def with_weights(*given: Any, **by_name: Any) -> Any:
            self._fetch(block)
            try:
                return forward(*given, **by_name)
            finally:  # also where checkpointing breaks off the second pass, because it has seen enough
                self._drop(block)

        return self._second.run(block, with_weights, *arguments, again=partial(self._going_back, block), **named)

    @contextmanager
    def _going_back(self, block: nn.Module) -> Generator[None, None, None]:
        """Inside, `block` is computed a second time, for its gradient: the next one is the one before it."""
        self._again.add(block)
        self._backwards = True
        try:
            yield
        finally:
            self._backwards = False

    def _fetch(self, block: nn.Module) -> None:
        if block not in self._order:
            self._order.append(block)
        with (
            torch.inference_mode(mode=False),
            torch.no_grad(),
        ):  # what comes while pictures are drawn may serve training
            arriving = self._here.get(block) or self._start(block)
            self._lane.wait(arriving)
            self._waiting[block].fill(arriving.bytes)
            following = self._following(block)
            if following is not None and following not in self._here:
                self._start(following)
        for stray in set(self._here) - {block, following}:  # the order was another one than before
            self._lane.wait(self._here.pop(stray))

    def _drop(self, block: nn.Module) -> None:
        self._waiting[block].empty()
        turning = block is self._order[-1] and torch.is_grad_enabled() and not self._backwards and block in self._again
        if not turning:  # the backward pass begins with the block that the forward pass ends with
            self._here.pop(block, None)

    def _start(self, block: nn.Module) -> "Arriving":
        self._here[block] = arriving = self._lane.send(self._waiting[block].host)
        return arriving

    def _following(self, block: nn.Module) -> nn.Module | None:
        """The block whose weights are needed next, where that is known."""
        place = self._order.index(block)
        if not self._backwards:
            return self._order[place + 1] if place + 1 < len(self._order) else None
        before = self._order[place - 1] if place else None
        return before if before in self._again else None


@dataclass(frozen=True, slots=True)
class _Slot:
    """One tensor of a block, and where in the block's bytes it lies."""

    owner: nn.Module
    name: str
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    begin: int
    end: int
    stand_in: Tensor  # of the same shape and dtype, on the device, of one number's memory

    def put(self, tensor: Tensor) -> None:
        # another object, not other data in the same one: autograd keeps frozen parameters as objects
        ready = isinstance(tensor, nn.Parameter) or not isinstance(self.stand_in, nn.Parameter)
        setattr(self.owner, self.name, tensor if ready else nn.Parameter(tensor, requires_grad=False))

    def out_of(self, packed: Tensor) -> Tensor:
        return packed[self.begin : self.end].view(self.dtype).as_strided(self.shape, self.strides)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A block's weights on the host, in one piece."""

    host: Tensor  # uint8
    slots: Sequence[_Slot]

    def fill(self, packed: Tensor) -> None:
        for slot in self.slots:
            slot.put(slot.out_of(packed))

    def empty(self) -> None:
        for slot in self.slots:
            slot.put(slot.stand_in)


@dataclass(frozen=True, slots=True, eq=False)
class Arriving:
    """A block's weights on the device, and what says that they are whole."""

    bytes: Tensor  # uint8
    whole: Any = None  # torch.cuda.Event, where copies run beside the reckoning


class Lane:
    """How bytes come to a device that copies in step with everything else."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def host_memory(self, size: int) -> Tensor:
        """Memory of the host, of `size` bytes, from which can be sent."""
        return torch.empty(size, dtype=torch.uint8)

    def send(self, host: Tensor) -> Arriving:
        """Begin to copy."""
        return Arriving(torch.empty_like(host, device=self.device).copy_(host))

    def wait(self, arriving: Arriving) -> None:
        """From here on the bytes may be used, or given back."""


class CudaLane(Lane):
    """The same for a GPU: copies run in a stream of their own, out of memory that the system cannot page out."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)
        self._told = False

    @override
    def host_memory(self, size: int) -> Tensor:
        memory = super().host_memory(size)
        # torch's own pinned memory comes in powers of two, which would waste a quarter of it
        driver: Any = torch.cuda.cudart()
        pinned = int(driver.cudaHostRegister(memory.data_ptr(), size, 0)) == 0
        if pinned:
            weakref.finalize(memory.untyped_storage(), _unpin, driver, memory.data_ptr())
        elif not self._told:
            self._told = True
            logger.warning("The system grants no more unpageable memory: weights stream to the device more slowly.")
        return memory

    @override
    def send(self, host: Tensor) -> Arriving:
        # allocated in the stream that uses it, so that giving it back needs no more care than with any other tensor
        packed = torch.empty(host.numel(), dtype=torch.uint8, device=self.device)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))  # its memory may still be read by older work
        with torch.cuda.stream(self._stream):
            packed.copy_(host, non_blocking=True)
            whole = torch.cuda.Event()
            whole.record(self._stream)
        return Arriving(packed, whole)

    @override
    def wait(self, arriving: Arriving) -> None:
        torch.cuda.current_stream(self.device).wait_event(arriving.whole)


def _unpin(driver: Any, address: int) -> None:
    driver.cudaHostUnregister(address)


def _pack(block: nn.Module, lane: Lane) -> _Waiting:
    """Move all tensors of a block into one piece of the host's memory."""
    slots: list[_Slot] = []
    tensors: list[Tensor] = []
    end = 0
    for module in block.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            begin = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = begin + _bytes(tensor)
            stand_in = torch.zeros((), dtype=tensor.dtype, device=lane.device).expand(tensor.shape)
            if isinstance(tensor, nn.Parameter):
                stand_in = nn.Parameter(stand_in, requires_grad=False)
            slots.append(_Slot(module, name, tensor.shape, tensor.stride(), tensor.dtype, begin, end, stand_in))
            tensors.append(tensor.detach())
    host = lane.host_memory(max(1, end))
    for slot, tensor in zip(slots, tensors, strict=True):
        slot.out_of(host).copy_(tensor)
    waiting = _Waiting(host, slots)
    waiting.empty()
    return waiting


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
