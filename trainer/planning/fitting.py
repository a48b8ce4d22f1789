"""The fastest way to train that fits into some memory, for recipes that are yet to be written."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from trainer.data.buckets import Bucket
from trainer.planning.memory_plan import MemoryPlan, plan_memory
from trainer.planning.pretending import Kind
from trainer.recipe.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Fit:
    """What decides on memory and speed, and nothing on what is learned."""

    recipe: Recipe
    plan: MemoryPlan
    fits: bool  # false: it needs the least that we know of, and that is still too much


def fastest_fit(recipe: Recipe, bucket: Bucket, kind: Kind, memory: int, largest_batch: int) -> Fit:
    """The recipe with the largest batch that fits, computed as quickly as that allows.

    A larger batch is worth computing blocks twice; weights in fewer bits, or on the host, are for what does not fit
    otherwise. How large a batch is worth trying is reckoned from one picture; what is chosen was planned by itself.

    Args:
        recipe: to begin with; its batch, checkpointing, quantisation and residence are chosen anew.
        bucket: the largest one that the data will have.
        kind: of the device.
        memory: bytes that the run may use.
        largest_batch: no larger one is wanted.
    """
    batches = [1 << power for power in range(largest_batch.bit_length()) if 1 << power <= largest_batch]
    quick = _planned(recipe, bucket, kind, batch=batches[-1], checkpointing=False, step_alone=False)
    if quick.plan.fits(memory):
        return quick
    least = quick
    for base in _bases(recipe, kind):
        least = _planned(base, bucket, kind, batch=1, checkpointing=True, step_alone=False)
        if least.plan.fits(memory):
            return _largest_of(least, bucket, kind, memory, batches)
    return Fit(least.recipe, least.plan, fits=False)


def _largest_of(least: Fit, bucket: Bucket, kind: Kind, memory: int, batches: list[int]) -> Fit:
    """The largest batch that fits, with as little as possible computed twice; `least` is one picture, all twice."""
    step = least.plan.moments["training step"]
    room = memory - least.plan.fixed - sum(step.values())
    hopeful = [size for size in batches if (size - 1) * step.get("activations", 0) <= room]
    for size in reversed(hopeful):
        for checkpointing in (False, "half", True):
            tried = _planned(least.recipe, bucket, kind, batch=size, checkpointing=checkpointing, step_alone=True)
            if tried.plan.fits(memory):
                return tried
    return least


def _planned(
    recipe: Recipe, bucket: Bucket, kind: Kind, *, batch: int, checkpointing: bool | Literal["half"], step_alone: bool
) -> Fit:
    wanted = recipe.model_copy(update={"batch": batch, "gradient_checkpointing": checkpointing})
    return Fit(wanted, plan_memory(wanted, bucket, kind, step_alone=step_alone), fits=True)


def _bases(recipe: Recipe, kind: Kind) -> Iterator[Recipe]:
    """The recipe with its weights kept in ever less memory of the device, the quickest first."""
    yield recipe
    changes: list[Mapping[str, object]] = [{"quantize": "int8"}, {"quantize": "nf4"}]
    if kind == "cuda":
        changes.extend({"quantize": "nf4", "resident": share} for share in (0.5, 0.0))
    for change in changes:
        yield recipe.model_copy(update={"model": recipe.model.model_copy(update=change)})
