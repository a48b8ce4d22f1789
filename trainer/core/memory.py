"""Running out of memory, told in the words of a person; and the memory that only seems to be a graphics card's."""

import gc
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import torch

from trainer.core.errors import MemoryPlanError

OUT_OF_MEMORY: Final = (MemoryError, RuntimeError)
"""What is raised where memory is out, among others: see `ran_out`."""

_ALLOCATORS: Final = (  # how torch's allocators begin or end the RuntimeError that they raise
    "can't allocate memory",
    "not enough memory: you tried to allocate",
    "out of memory",
    "could not create a primitive",  # oneDNN, where its buffers find no room
    "can't start new thread",  # Python, where a thread's own memory finds none
)
_STEPS_COMPARED: Final = 20
_STEPS_NEEDED: Final = 5
_SLOWER: Final = 3.0  # times the usual step: reading over the bus makes more than that of it
_FULL: Final = 0.03  # of the card's memory: less than this is free


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there is no memory left: of a GPU, of the CPU's allocator, or of Python."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATORS)


def as_message(error: BaseException, device: str = "memory") -> MemoryPlanError:
    """The same for a person: what ran out, and what to do, the cheapest first."""
    asked = str(error).strip().splitlines()
    return MemoryPlanError(
        "There is not enough memory for this.",
        where=asked[0][:300] if asked else device,
        mend="Try, in this order: gradient_checkpointing=true, batch=1 with accumulate, model.quantize=nf4, "
        "model.resident=0.5, a smaller data.resolution; or raise `memory` where it is set. "
        "The last checkpoint is whole: a run goes on with --resume.",
    )


def give_back(device: torch.device) -> None:
    """What nobody uses any more is free for others: garbage, and what torch keeps of the device's memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def room_below_peak(device: torch.device) -> int | None:
    """Bytes that can be taken now without raising the most that was ever taken; None where nobody counts them."""
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Bytes of a device's own memory."""

    reserved: int  # by this process, as torch counts it
    free: int  # by nobody taken, as the driver counts it
    total: int


def read_device_memory(device: torch.device) -> DeviceMemory | None:
    """How full a GPU is; None for other devices. It does not wait for the GPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(reserved=torch.cuda.memory_reserved(device), free=free, total=total)


@dataclass(slots=True)
class SpillWatch:
    """Notices, once, when a driver lends the computer's memory for a card's, which makes steps many times slower."""

    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_STEPS_COMPARED))
    _said: bool = False

    def look(self, seconds: float, memory: DeviceMemory) -> str | None:
        """A warning, where memory spills; None otherwise, and ever after.

        Either torch holds more than the card has, or the card is full and a step takes three times as long as steps
        did before.

        Args:
            seconds: of the last step.
            memory: how full the card is.
        """
        usual = statistics.median(self._seconds) if len(self._seconds) >= _STEPS_NEEDED else None
        more_than_there_is = memory.reserved > memory.total
        full = memory.free < _FULL * memory.total
        slow = usual is not None and seconds > _SLOWER * usual
        if not slow:
            self._seconds.append(seconds)
        if self._said or not (more_than_there_is or (full and slow)):
            return None
        self._said = True
        pace = f" A step takes {seconds:.1f} s now, and took {usual:.1f} s." if slow and usual is not None else ""
        return (
            f"The graphics card's memory ({memory.total / 2**30:.1f} GiB) is full, and the driver lends it the "
            f"computer's, which is many times slower.{pace} Stop the run, which saves it, and use less: "
            "gradient_checkpointing=true, a smaller batch, model.quantize=nf4; or close other programs on the card."
        )
