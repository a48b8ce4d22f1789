"""Device, precision and peak memory."""

import os
import re
import sys
from enum import Enum
from typing import Annotated, Final

import torch
from pydantic import AfterValidator

from trainer.core.errors import MemoryPlanError
from trainer.core.files import printable
from trainer.core.log import logger

_SIZE: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kmgt]?(?:i?b)?)", re.IGNORECASE)
_CONTEXT: Final = 1 << 30  # bytes: more than a CUDA context takes; beyond it, others use the card


class Precision(str, Enum):
    """The number format of the frozen base weights and of the arithmetic; adapters are always float32."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"

    @property
    def dtype(self) -> torch.dtype:
        """The same as torch says it."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.value]

    @property
    def mixed(self) -> str:
        """The same as accelerate's `mixed_precision` says it."""
        return {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[self.value]


def bytes_of_size(text: str) -> int:
    """The number of bytes that `8GiB`, `8 GB`, `1.5g` or `900MB` mean; G and GiB are 1024 MiB, GB is 1000 MB.

    Raises:
        ValueError: the text is no such size, or is nothing.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or float(found["number"]) <= 0:
        raise ValueError(f'"{printable(text[:40])}" is no size of memory. Write it as 8GiB, or as 900MB.')
    unit = found["unit"].lower()
    thousand = 1000 if unit.endswith("b") and "i" not in unit else 1024
    return int(float(found["number"]) * thousand ** " kmgt".index(unit[0] if unit and unit != "b" else " "))


def _is_size(text: str) -> str:
    bytes_of_size(text)
    return text


MemorySize = Annotated[str, AfterValidator(_is_size)]
"""An amount of memory as people write it."""


def pick_device() -> torch.device:
    """The best device of this machine: CUDA, Apple's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def is_first_process() -> bool:
    """Whether this process is the only one of its run, or the first of those that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """How many processes share this run, as their launcher says; known before they have met."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def peak_bytes(device: torch.device) -> int:
    """The most memory used so far: allocated on the device for CUDA, resident in this process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if os.name == "nt":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)  # pyright: ignore[reportAttributeAccessIssue]
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cap_memory(size: int, device: torch.device) -> None:
    """From now on this process gets at most `size` bytes: of the device's memory, or of the computer's on the CPU.

    On a GPU what the driver's context takes counts too. On Linux the limit is that on data, which libraries and files
    that are mapped do not count for; what of those is in memory by now is taken off.

    Raises:
        MemoryPlanError: the process has more than that already, or this system cannot hold a process to a limit.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        context = min(_CONTEXT, total - free - torch.cuda.memory_reserved(device))
        _check_room(size, context)
        torch.cuda.set_per_process_memory_fraction(min(1.0, (size - context) / total), device)
    elif device.type == "mps":
        most = torch.mps.recommended_max_memory()
        torch.mps.set_per_process_memory_fraction(min(1.0, size / most))
    elif sys.platform == "linux":
        import resource

        import psutil

        used = psutil.Process().memory_info()
        _check_room(size, int(used.rss))
        mapped = int(used.shared)  # resident pages of files and libraries
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (size - mapped, most))
    else:
        raise MemoryPlanError(
            "This system cannot hold a process to an amount of memory on the CPU.",
            where="memory",
            mend="Leave it out, or train on Linux or on a graphics card.",
        )
    logger.info("This run may take %.2f GiB of memory.", size / 2**30)


def _check_room(size: int, taken: int) -> None:
    if size <= taken:
        raise MemoryPlanError(
            f"The run may take {size / 2**30:.2f} GiB, and has {taken / 2**30:.2f} GiB before it begins.",
            where="memory",
            mend="Give it more.",
        )
