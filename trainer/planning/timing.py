"""How long a run will take: by what a step took here before, or else by its arithmetic."""

import json
import statistics
from dataclasses import dataclass
from typing import Any, Final

import torch

from trainer.beginning import MAY_CHANGE, device_name, run_folder_of
from trainer.core.device import Precision, pick_device
from trainer.core.errors import TrainerError
from trainer.core.events import read_events
from trainer.core.run_folder import RunFolder
from trainer.planning.memory_plan import MemoryPlan, kind_here
from trainer.recipe.reading import read_recipe
from trainer.recipe.recipe import Recipe

_WARM: Final = 3  # steps that are not counted: caches and kernels come with the first ones
_SIDE: Final = {"cuda": 8192, "cpu": 1024, "mps": 4096}  # of the matrices that are multiplied
_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long a step takes, and how that is known."""

    seconds: float
    source: str  # for a person
    at_least: bool  # whether it cannot be less, and may well be more


def pace_of(recipe: Recipe, plan: MemoryPlan) -> Pace | None:
    """The time of one step on this machine; None where another kind of device is planned for."""
    if plan.kind != kind_here():
        return None
    measured = _measured_before(recipe)
    if measured is not None:
        return measured
    rate = matrix_rate(recipe.precision, pick_device())
    name = str(recipe.precision.value)
    return Pace(
        seconds=plan.flops * recipe.accumulate / rate,
        source=f"{plan.flops * recipe.accumulate / 1e12:.2f} TFLOP a step, and matrix products in {name} run at "
        f"{rate / 1e12:.3g} TFLOP/s here, as measured just now",
        at_least=True,
    )


def matrix_rate(precision: Precision, device: torch.device) -> float:
    """Floating point operations a second of a large matrix product on `device`, measured for about a second."""
    from torch.utils.benchmark import Timer

    side = _SIDE[device.type]
    factor = torch.ones(side, side, dtype=precision.dtype, device=device)
    timer = Timer("factor @ factor", globals={"factor": factor}, num_threads=torch.get_num_threads())
    return 2 * side**3 / timer.blocked_autorange(min_run_time=_SECONDS).median


def _measured_before(recipe: Recipe) -> Pace | None:
    """What a step took in a run of this machine whose steps are the same."""
    own = run_folder_of(recipe)
    others = sorted(recipe.runs.iterdir()) if recipe.runs.is_dir() else []
    for folder in [own, *(RunFolder(path) for path in others if path != own.root)]:
        if not _is_alike(recipe, folder):
            continue
        steps = [event for event in read_events(folder.events) if event["kind"] == "step"]
        seconds = [float(event["seconds"]) for event in steps[_WARM:] if event.get("seconds")]
        if seconds:
            source = f"median of {len(seconds)} steps of {folder.root}, made on this machine"
            return Pace(seconds=statistics.median(seconds), source=source, at_least=False)
    return None


def _is_alike(recipe: Recipe, folder: RunFolder) -> bool:
    """Whether the run in `folder` made the same steps on the same device."""
    if not folder.recipe.is_file() or not folder.environment.is_file():
        return False
    try:
        before: dict[str, Any] = read_recipe(folder.recipe).model_dump(mode="json")
        device = json.loads(folder.environment.read_text(encoding="utf-8")).get("device")
    except (TrainerError, ValueError):  # of another version, or broken: no concern of ours
        return False
    now = recipe.model_dump(mode="json")
    idle = MAY_CHANGE - {"compile"} | {"name", "rate", "seed"}
    return device == device_name() and all(before.get(key) == now[key] for key in now if key not in idle)
