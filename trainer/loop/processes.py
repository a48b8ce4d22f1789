"""What spreads a run over devices and processes: accelerate, with the settings that it must have here."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn import Parameter

from trainer.core.errors import CheckpointError
from trainer.loop.sharding import shard_on_processors

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE: Final = timedelta(hours=6)
"""How long a process waits for the others: while the first one scans, draws or writes, all others do nothing."""

_AGAIN: Final = "started-again"  # the scheme of an address
_MEGABYTE: Final = 1 << 20  # as torch counts it


def meet(mixed: str, accumulate: int) -> "Accelerator":
    """What spreads a run; with several processes, they have met when this returns.

    Args:
        mixed: the recipe's precision, in accelerate's words.
        accumulate: passes summed before the weights move.
    """
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    # asked without making one: every process would take memory on the first card
    on_cpu = not torch.cuda.is_available() and not torch.backends.mps.is_available()
    accelerator = Accelerator(
        # as a plugin, since a plain number gives way to what accelerate's own configuration says
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulate),
        # float16 arithmetic needs a device that has it; loss scaling comes with it
        mixed_precision="no" if on_cpu and mixed == "fp16" else mixed,
        cpu=on_cpu,
        kwargs_handlers=[InitProcessGroupKwargs(init_method=_meeting_place(), timeout=PATIENCE)],
    )
    if on_cpu:
        shard_on_processors(accelerator)
    return accelerator


def _meeting_place() -> str | None:
    """Where processes look for each other, as torch writes it; None: where it looks by itself.

    torchrun keeps the store in which processes tell their addresses when it starts them again after one has died, and
    whoever is quicker than the others finds addresses of the dead, and waits for them. So each start has its own part.
    """
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if start == "0" or not torch.distributed.is_available():
        return None
    from torch.distributed import PrefixStore, Store
    from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

    def meet_again(_url: str, timeout: timedelta = PATIENCE, **_: object) -> Iterator[tuple[Store, int, int]]:
        for store, rank, world in rendezvous("env://", timeout=timeout):
            yield PrefixStore(f"start {start}", store), rank, world

    with suppress(RuntimeError):  # it is known already
        register_rendezvous_handler(_AGAIN, meet_again)
    return f"{_AGAIN}://"


def spread(accelerator: "Accelerator", network: nn.Module, *, one_bucket: bool) -> nn.Module:
    """The network as it is trained: with several processes, each ends a backward pass with the mean of all gradients.

    Nothing but the gradients of what is trained travels, and once, at first, what is trained: frozen weights and
    buffers, which may be packed bits, stay where they are.

    Args:
        accelerator: that of the run.
        network: with what is trained in place.
        one_bucket: whether all gradients travel together, when the last one is there: best for the few of an adapter.
            Else they travel in pieces of 25 MiB while the backward pass goes on.
    """
    from accelerate.utils import DistributedDataParallelKwargs
    from torch.nn.parallel import DistributedDataParallel

    trained = [own for own in network.parameters() if own.requires_grad]
    if accelerator.use_distributed and trained:
        frozen = [name for name, own in network.named_parameters() if not own.requires_grad]
        frozen += [name for name, _ in network.named_buffers()]
        # torch has no public name for it, and says there that it will stay until there is one
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, frozen)  # pyright: ignore[reportPrivateUsage]
        handler = DistributedDataParallelKwargs(broadcast_buffers=False)
        handler.gradient_as_bucket_view = True  # gradients are not in memory twice
        if one_bucket:
            handler.bucket_cap_mb = _megabytes(trained)
        accelerator.ddp_handler = handler  # pyright: ignore[reportAttributeAccessIssue] - typed as the None it begins as
    return prepared(accelerator, network)


def prepared(accelerator: "Accelerator", network: nn.Module, *, wrapped: bool = True) -> nn.Module:
    """The network as accelerate prepares it: made mixed in its arithmetic and, if `wrapped`, averaging its gradients.

    It lies on its device already. accelerate would copy it there: several processes of one computer have processors
    with numbers (cpu:0), and parameters that lie in one long tensor would no longer be parts of it.
    """
    return accelerator.prepare_model(network, device_placement=False, evaluation_mode=not wrapped)


def check_alike(accelerator: "Accelerator", facts: Mapping[str, object]) -> None:
    """Make sure that all processes are about to do the same.

    Args:
        accelerator: that of the run.
        facts: by the words for them, what must be the same everywhere; small plain values.

    Raises:
        CheckpointError: something differs, in all processes alike.
    """
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import gather_object

    of_all: Any = gather_object([dict(facts)])  # a list comes back for a list
    differing = [name for name in facts if any(other[name] != of_all[0][name] for other in of_all)]
    if differing:
        raise CheckpointError(
            f"The processes of this run do not have the same {' and '.join(differing)}.",
            where=f"process {accelerator.process_index} of {accelerator.num_processes}",
            mend="Give every machine the same recipe, the same data, and one folder of runs that all of them see.",
        )


def _megabytes(parameters: Iterable[Parameter]) -> int:
    return max(1, math.ceil(sum(one.numel() * one.element_size() for one in parameters) / _MEGABYTE))
