"""What of a recipe goes together with several processes, and with shards."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trainer.core.device import Precision
from trainer.core.errors import RecipeError
from trainer.loop.sharding import is_sharded, unfit_sharding
from trainer.recipe.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator


def check_spread(recipe: Recipe, accelerator: "Accelerator") -> None:
    """Make sure, before anything is loaded, that the recipe can be trained by as many processes as there are.

    Raises:
        RecipeError: it cannot, or accelerate's configuration asks for something that we do not do.
    """
    unfit = unfit_sharding(accelerator)
    if unfit is not None:
        raise RecipeError(
            f"accelerate's configuration says {unfit}, which does not go together with this program.",
            where="the configuration of accelerate launch",
            mend="Start from accelerate_config.yaml, or from accelerate_config_sharded.yaml for a whole model.",
        )
    if accelerator.num_processes > 1 and recipe.model.resident < 1:
        raise RecipeError(
            "A model part of which stays in the computer's memory is trained by one process alone.",
            where="model.resident",
            mend="Leave it out: model.quantize makes the model small on every card; or train with one process.",
        )
    if is_sharded(accelerator):
        for key, (there, what, mend) in _against_shards(recipe).items():
            if there:
                raise RecipeError(what, where=key, mend=mend)


def _against_shards(recipe: Recipe) -> Mapping[str, tuple[bool, str, str]]:
    """By the key where it stands: whether it is so, what is wrong, and how to mend it."""
    adapter = recipe.adapter
    return {
        "adapter.kind": (
            not adapter.makes_model,
            "Shards are for whole models (adapter.kind: full): what an adapter trains is small.",
            "Start it with accelerate_config.yaml, so that every process holds the model.",
        ),
        "adapter": (
            adapter.moves_alone,
            "Tensors that are moved one by one, in the backward pass or rounded by chance, cannot be shared out.",
            "Set adapter.fused: false and adapter.weights: float32; each process holds but its share of them.",
        ),
        "optimizer.kind": (
            not recipe.optimizer.shards,
            f"The optimizer {recipe.optimizer.kind} looks at whole tensors, and each process has but a share of them.",
            "Use optimizer.kind: adamw; each process holds but its share of its numbers.",
        ),
        "precision": (
            recipe.precision == Precision.float16,
            "float16, whose loss is scaled, does not go together with shards.",
            "Use precision: bfloat16 or float32.",
        ),
        "compile": (
            recipe.compile not in ("auto", "off"),
            "Compiled passes do not go together with shards.",
            "Leave compile out.",
        ),
    }
