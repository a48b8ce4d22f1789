"""What a plan says to a person."""

from typing import Any

from trainer.core.errors import MemoryPlanError
from trainer.planning.memory_plan import FIXED, GIBIBYTE, MemoryPlan
from trainer.planning.switches import Mended
from trainer.planning.timing import Pace
from trainer.recipe.recipe import Recipe

_HOUR, _MINUTE = 3600, 60


def verdict(plan: MemoryPlan, memory: int | None) -> list[str]:
    """The peak, when it occurs, and whether it fits."""
    fixed = "assumed, not measured" if plan.kind == "cuda" else "as this process has them"
    lines = [f"peak:      {in_gib(plan.peak)}, while {plan.worst}; {in_gib(plan.fixed)} of it are {FIXED} ({fixed})"]
    if memory is None:
        return [*lines, "           This machine has no such device; --memory says how much there is."]
    spare = memory - plan.peak
    word = (
        f"fits into {in_gib(memory)}, with {in_gib(spare)} to spare"
        if spare >= 0
        else f"does NOT fit into {in_gib(memory)}"
    )
    return [*lines, f"memory:    {word}"]


def duration(recipe: Recipe, pace: Pace | None) -> str:
    """How long the run takes, and how that is known."""
    if pace is None:
        return "time:      unknown, since this machine has no such device"
    least = "at least " if pace.at_least else "about "
    whole = in_time(pace.seconds * recipe.steps)
    return f"time:      {least}{whole} for {recipe.steps:,} steps of {pace.seconds:.3g} s ({pace.source})"


def does_not_fit(plan: MemoryPlan, memory: int, mended: Mended | None) -> MemoryPlanError:
    """The error of a recipe that is too large, with the cheapest change that makes it fit."""
    mend = "Nothing that we know makes it fit: take a smaller model, or a device with more memory."
    if mended is not None:
        mend = f"Add {' '.join(mended.words)}: the step then needs {in_gib(mended.plan.peak)}."
    return MemoryPlanError(
        f"This recipe needs {in_gib(plan.peak)} and may use {in_gib(memory)}.", where=f"while {plan.worst}", mend=mend
    )


def as_json(
    recipe: Recipe, plan: MemoryPlan, memory: int | None, pace: Pace | None, mended: Mended | None
) -> dict[str, Any]:  # Any: as JSON is
    """All that a plan says, in bytes and seconds."""
    return {
        **plan.as_json(),
        "memory": memory,
        "fits": None if memory is None else plan.fits(memory),
        "change": None if mended is None else {"words": list(mended.words), "step": mended.plan.peak},
        "steps": recipe.steps,
        "seconds_a_step": None if pace is None else pace.seconds,
        "seconds_known_by": None if pace is None else pace.source,
    }


def in_gib(size: int) -> str:
    """Bytes as a person reads them."""
    return f"{size / GIBIBYTE:.2f} GiB"


def in_time(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds >= _HOUR:
        return f"{seconds / _HOUR:.1f} h"
    return f"{seconds / _MINUTE:.0f} min" if seconds >= _MINUTE else f"{seconds:.0f} s"
