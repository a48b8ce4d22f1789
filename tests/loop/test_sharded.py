"""What goes together with several processes, and with shards, is known before anything is loaded."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import DistributedType

from trainer.core.errors import RecipeError
from trainer.recipe.recipe import Recipe
from trainer.spreading import check_spread

FULL: dict[str, Any] = {"kind": "full", "fused": False}


def accelerator(**changes: Any) -> Any:
    """What accelerate says of two processes with shards."""
    plugin = SimpleNamespace(activation_checkpointing=False, cpu_offload=None)
    usual = {
        "distributed_type": DistributedType.FSDP,
        "is_fsdp2": True,
        "num_processes": 2,
        "state": SimpleNamespace(fsdp_plugin=plugin),
    }
    return SimpleNamespace(**(usual | changes))


def test_a_whole_model_may_be_shared_out(recipe_of: Callable[..., Recipe]) -> None:
    check_spread(recipe_of(adapter=FULL, optimizer={"kind": "adamw"}), accelerator())


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"adapter": {"kind": "lora"}}, "adapter.kind"),
        ({"adapter": {"kind": "full"}}, "adapter"),
        ({"adapter": {**FULL, "weights": "bfloat16"}, "precision": "bfloat16"}, "adapter"),
        ({"optimizer": {"kind": "adamw_8bit"}}, "optimizer.kind"),
        ({"optimizer": {"kind": "adafactor"}}, "optimizer.kind"),
        ({"precision": "float16"}, "precision"),
        ({"compile": "blocks"}, "compile"),
    ],
    ids=str,
)
def test_what_cannot_be_shared_out_is_refused(
    recipe_of: Callable[..., Recipe], changes: dict[str, Any], where: str
) -> None:
    recipe = recipe_of(**({"adapter": FULL, "optimizer": {"kind": "adamw"}} | changes))
    with pytest.raises(RecipeError) as refused:
        check_spread(recipe, accelerator())
    assert refused.value.where == where


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"is_fsdp2": False}, "fsdp_version: 1"),
        ({"distributed_type": DistributedType.DEEPSPEED}, "distributed_type: DEEPSPEED"),
    ],
    ids=str,
)
def test_what_accelerate_is_asked_for_in_vain_is_refused(
    recipe_of: Callable[..., Recipe], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        check_spread(recipe_of(adapter=FULL, optimizer={"kind": "adamw"}), accelerator(**changes))


def test_a_model_that_streams_has_one_process(recipe_of: Callable[..., Recipe], small_model: Path) -> None:
    streaming = recipe_of(model={"kind": "sd1", "weights": str(small_model), "resident": 0.5})
    plain = {"distributed_type": DistributedType.MULTI_GPU, "is_fsdp2": False}
    check_spread(streaming, accelerator(**plain, num_processes=1))
    with pytest.raises(RecipeError) as refused:
        check_spread(streaming, accelerator(**plain))
    assert refused.value.where == "model.resident"
