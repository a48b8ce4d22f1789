"""What a recipe needs of a device's memory: by part, at its worst moment, and whether that fits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import psutil
import torch

from trainer.core.device import bytes_of_size, pick_device
from trainer.data.buckets import Bucket
from trainer.data.health.shapes import BucketCount
from trainer.planning.dry_run import PARTS, Moment, count
from trainer.planning.pretending import Kind
from trainer.recipe.recipe import Recipe

GIBIBYTE: Final = 1 << 30

CUDA_FIXED: Final = GIBIBYTE // 2
"""Bytes that a process takes of a GPU before it has a tensor, and its libraries for themselves: assumed, not measured,
since it differs by card and driver (0.4 to 0.6 GiB)."""

FIXED: Final = "libraries and context"
"""How the fixed cost is called among the parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What a recipe needs with batches of one bucket."""

    bucket: Bucket
    kind: Kind
    moments: Mapping[Moment, Mapping[str, int]]  # bytes by part when most are live, tensors alone
    fixed: int  # bytes that are taken whatever the recipe says
    flops: float  # of one pass
    trained: int  # numbers that are trained

    @property
    def worst(self) -> Moment:
        """When most is needed."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def peak(self) -> int:
        """Bytes that are needed then, with what is fixed."""
        return self.fixed + sum(self.moments[self.worst].values())

    def fits(self, memory: int) -> bool:
        """Whether `memory` bytes are enough."""
        return self.peak <= memory

    def rows(self) -> list[tuple[str, list[int]]]:
        """Each part with its bytes at each of the moments; parts that are never there are left out."""
        parts = {part: [moment.get(part, 0) for moment in self.moments.values()] for part in PARTS}
        return [
            *((part, sizes) for part, sizes in parts.items() if any(sizes)),
            (FIXED, [self.fixed] * len(self.moments)),
        ]

    def as_json(self) -> dict[str, Any]:  # Any: as JSON is
        """All of it, in bytes."""
        return {
            "bucket": list(self.bucket),
            "device": self.kind,
            "moments": {moment: dict(parts) for moment, parts in self.moments.items()},
            "fixed": self.fixed,
            "peak": self.peak,
            "when": self.worst,
            "flops": self.flops,
            "trained": self.trained,
        }


def plan_memory(recipe: Recipe, bucket: Bucket, kind: Kind, *, step_alone: bool = False) -> MemoryPlan:
    """What the recipe needs, counted on its own step without numbers; no weights are read and no GPU is asked.

    Args:
        recipe: what to plan.
        bucket: the largest one that the data hold.
        kind: of the device.
        step_alone: leave out encoding and previews.

    Raises:
        TrainerError: the recipe asks for something that is not there or does not fit together.
    """
    counted = count(recipe, bucket, kind, step_alone=step_alone)
    # on a CPU what this process has loaded by now is what a run loads
    fixed = CUDA_FIXED if kind == "cuda" else int(psutil.Process().memory_info().rss)
    return MemoryPlan(
        bucket=bucket, kind=kind, moments=counted.moments, fixed=fixed, flops=counted.flops, trained=counted.trained
    )


def largest_bucket(buckets: list[BucketCount]) -> Bucket:
    """The bucket with the most pixels."""
    return max((count.bucket for count in buckets), key=lambda bucket: bucket.width * bucket.height)


def kind_here() -> Kind:
    """What kind of device this machine would train on."""
    return "cuda" if pick_device().type == "cuda" else "cpu"


def memory_allowed(recipe: Recipe, kind: Kind) -> int | None:
    """Bytes that a run may use: as the recipe says, or what this machine's device has; None if it has none such."""
    if recipe.memory is not None:
        return bytes_of_size(recipe.memory)
    return memory_here() if kind == kind_here() else None


def memory_here() -> int:
    """Bytes that the device has on which this machine would train."""
    if kind_here() == "cuda":
        return int(torch.cuda.get_device_properties(pick_device()).total_memory)
    return int(psutil.virtual_memory().total)
