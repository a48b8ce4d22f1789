"""Gradient checkpointing: what is computed again in the backward pass instead of being kept in memory."""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpoint_denoiser(network: nn.Module, every: int, but: Collection[nn.Module] = ()) -> None:
    """From now on the blocks of a U-Net of diffusers are computed again in the backward pass; gradients stay the same.

    A block is a residual block or a transformer block. What lies before the first trained layer keeps nothing anyway,
    and is left alone.

    Args:
        network: the U-Net.
        every: 1 for all blocks, 2 for every second one.
        but: blocks that see to it themselves.
    """
    second = SecondPass()
    numbers: dict[nn.Module, int] = {}  # in the order in which the blocks are first reached

    def call(block: nn.Module, *arguments: Any) -> Any:
        number = numbers.setdefault(block, len(numbers))
        if number % every or block in but:
            return block(*arguments)
        return second.run(block, block, *arguments)

    unet: Any = network  # diffusers adds the method to its modules
    unet.enable_gradient_checkpointing(call)


def checkpoint_text_encoder(network: nn.Module, every: int) -> None:
    """The same for a text encoder of transformers, whose blocks are its layers."""
    switched: Any = network
    # transformers' public verb would also let the embeddings ask for gradients, which nothing needs
    switched._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=_computed_again)
    layers: list[Any] = [layer for layer in network.modules() if getattr(layer, "gradient_checkpointing", False)]
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = number % every == 0


class SecondPass:
    """Runs blocks so that they keep nothing but their inputs, and are computed again when their gradient is due."""

    def __init__(self) -> None:
        self._draws: dict[tuple[nn.Module, bool], bool] = {}  # whether a block asks for chance, in both of its modes

    def run(
        self,
        block: nn.Module,
        forward: Callable[..., Any],
        *arguments: Any,
        again: Callable[[], AbstractContextManager[None]] = nullcontext,
        **named: Any,
    ) -> Any:
        """What `forward` answers to the arguments; where no gradient is asked for, it simply answers.

        Args:
            block: whose forward pass it is.
            forward: is called once, and once more in the backward pass.
            arguments: of it.
            again: is entered around the second call.
            named: arguments too.
        """
        if not torch.is_grad_enabled() or not _asks_for_gradients(block, (*arguments, *named.values())):
            return forward(*arguments, **named)
        mode = (block, block.training)
        before = None if mode in self._draws else _chance()
        calls = 0

        def counted(*given: Any, **by_name: Any) -> Any:
            nonlocal calls
            calls += 1
            with nullcontext() if calls == 1 else again():
                return forward(*given, **by_name)

        # most blocks ask for no chance, and keeping its state for each of them costs a fast card a part of its step
        keeps = self._draws.get(mode, True)
        answer = checkpoint(counted, *arguments, use_reentrant=False, preserve_rng_state=keeps, **named)
        if before is not None:
            self._draws[mode] = before != _chance()
        return answer


def _computed_again(block: Callable[..., Any], *arguments: Any) -> Any:
    return checkpoint(block, *arguments, use_reentrant=False)


def _asks_for_gradients(block: nn.Module, arguments: Collection[Any]) -> bool:
    asked = any(isinstance(argument, Tensor) and argument.requires_grad for argument in arguments)
    return asked or any(parameter.requires_grad for parameter in block.parameters())


def _chance() -> tuple[bytes, ...]:
    """Where torch's generators stand."""
    states = [torch.default_generator.get_state()]
    if torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return tuple(state.numpy().tobytes() for state in states)
