"""Device, precision and peak memory."""

import os
import sys
from enum import Enum

import torch


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
