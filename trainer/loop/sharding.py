"""Networks of which each process holds a share of every tensor: torch's FSDP2, as accelerate's configuration asks."""

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from accelerate import Accelerator


def is_sharded(accelerator: "Accelerator") -> bool:
    """Whether accelerate's configuration asks for shards of the kind that we make."""
    return accelerator.is_fsdp2


def unfit_sharding(accelerator: "Accelerator") -> str | None:
    """What in accelerate's configuration does not go together with us; None: it does."""
    from accelerate.utils import DistributedType

    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        return f"distributed_type: {kind.value}"
    if kind != DistributedType.FSDP:
        return None
    if not accelerator.is_fsdp2:
        return "fsdp_version: 1"
    plugin: Any = accelerator.state.fsdp_plugin  # accelerate's types let it be absent
    if plugin.activation_checkpointing:
        return "fsdp_activation_checkpointing: true"  # the recipe has a word for it
    if _offloads(plugin):
        return "fsdp_offload_params: true"
    return None


def shard_on_processors(accelerator: "Accelerator") -> None:
    """Let processes without graphics cards shard too, if the configuration asks for it.

    accelerate heeds it on graphics cards alone; what it does there then holds for processors just so.
    """
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = DistributedType.FSDP


def shard(accelerator: "Accelerator", network: nn.Module) -> None:
    """From now on each process holds a share of every parameter, and blocks are put together while they are used.

    The module stays the same, its parameters are others. Gradients are averaged in float32 whatever is computed in.

    Args:
        accelerator: whose configuration says which blocks.
        network: whole in every process, and the same.
    """
    from accelerate.utils import fsdp2_prepare_model
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin: Any = accelerator.state.fsdp_plugin
    if accelerator.mixed_precision == "bf16":
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    plain: Any = network  # torch does not type `memory_format`
    plain = plain.to(memory_format=torch.contiguous_format)  # it takes no other apart
    # accelerate's own way (`prepare`) takes one network alone and its optimiser; this is what it does inside. First
    # comes what makes the arithmetic mixed, as without shards
    fsdp2_prepare_model(accelerator, accelerator.prepare_model(plain, evaluation_mode=True))


def forget_whole(network: nn.Module) -> None:
    """Let what was put together for a forward pass be put together anew, since the shares may have changed meanwhile.

    After a pass without a backward pass some blocks stay as they are: they would go on with old weights.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _offloads(plugin: Any) -> bool:
    from torch.distributed.fsdp import CPUOffloadPolicy

    return isinstance(plugin.cpu_offload, CPUOffloadPolicy)
