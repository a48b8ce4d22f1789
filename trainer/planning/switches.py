"""What in a recipe can be changed so that it fits, the cheapest in speed first."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from trainer.data.buckets import Bucket
from trainer.planning.memory_plan import MemoryPlan, plan_memory
from trainer.planning.pretending import Kind
from trainer.recipe.recipe import Recipe

_RESIDENT = (0.5, 0.25, 0.0)
_FEWER_BITS = {"none": ("int8", "nf4"), "int8": ("nf4",), "float8": ("nf4",), "nf4": ()}  # float8 takes as much as int8


@dataclass(frozen=True, slots=True)
class Switch:
    """One change of a recipe."""

    words: tuple[str, ...]  # key=value, as overrides say it
    recipe: Recipe  # with it


@dataclass(frozen=True, slots=True)
class Mended:
    """A recipe that fits."""

    words: tuple[str, ...]  # what was changed, as overrides say it
    plan: MemoryPlan


def switches(recipe: Recipe, kind: Kind) -> Iterator[Switch]:
    """The recipe with ever more switched over to what needs less memory; each has the ones before it too."""
    words: dict[str, str] = {}

    def switched(keys: dict[str, Any], changed: Recipe) -> Switch:
        words.update({key: str(value).lower() for key, value in keys.items()})
        return Switch(tuple(f"{key}={value}" for key, value in words.items()), changed)

    for checkpointing in {False: ("half", True), "half": (True,), True: ()}[recipe.gradient_checkpointing]:
        recipe = recipe.model_copy(update={"gradient_checkpointing": checkpointing})
        yield switched({"gradient_checkpointing": checkpointing}, recipe)
    whole = recipe.batch * recipe.accumulate
    while recipe.batch > 1:
        batch = recipe.batch // 2
        keys = {"batch": batch, "accumulate": -(-whole // batch)}
        recipe = recipe.model_copy(update=keys)
        yield switched(keys, recipe)
    if recipe.adapter.moves_alone:  # a model that is trained itself is neither quantised nor streams
        return
    for bits in _FEWER_BITS[recipe.model.quantize]:
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"quantize": bits})})
        yield switched({"model.quantize": bits}, recipe)
    for share in () if kind == "cpu" else _RESIDENT:
        if share < recipe.model.resident:
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"resident": share})})
            yield switched({"model.resident": share}, recipe)


def make_fit(recipe: Recipe, plan: MemoryPlan, memory: int, told: Callable[[str], None]) -> Mended | None:
    """The cheapest change that makes a recipe fit, each one planned as the recipe itself is.

    Args:
        recipe: does not fit.
        plan: its own.
        memory: bytes that the run may use.
        told: what is tried, before it is.

    Returns:
        None where nothing of what we know is enough.
    """
    others = [sum(parts.values()) for moment, parts in plan.moments.items() if moment != "training step"]
    step_alone = plan.fixed + max(others, default=0) <= memory  # what fits as it is needs not be planned again

    def planned(switch: Switch, bucket: Bucket) -> Mended | None:
        told(" ".join(switch.words))
        tried = plan_memory(switch.recipe, bucket, plan.kind, step_alone=step_alone)
        tried = replace(tried, fixed=plan.fixed)  # which this process, that plans, has made larger by now
        return Mended(switch.words, tried) if tried.fits(memory) else None

    last = Switch((), recipe)
    for last in switches(recipe, plan.kind):
        mended = planned(last, plan.bucket)
        if mended is not None:
            return mended
    return planned(*_smaller_pictures(last, plan.bucket))


def _smaller_pictures(switch: Switch, bucket: Bucket) -> tuple[Switch, Bucket]:
    """The same with pictures of half the width and height, and their bucket."""
    side = max(1, switch.recipe.data.resolution // 2)
    data = switch.recipe.data.model_copy(update={"resolution": side})
    step = bucket_step(bucket)
    half = Bucket(max(step, bucket.width // 2 // step * step), max(step, bucket.height // 2 // step * step))
    words = (*switch.words, f"data.resolution={side}")
    return Switch(words, switch.recipe.model_copy(update={"data": data})), half


def bucket_step(bucket: Bucket) -> int:
    """Pixels: the largest power of two that divides both sides."""
    both = bucket.width | bucket.height
    return both & -both
