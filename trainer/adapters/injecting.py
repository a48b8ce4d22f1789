"""Puts peft layers into the layers that a family names; the one place that calls peft."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from trainer.adapters.trainable import Trainable
from trainer.core.errors import CheckpointError, RecipeError
from trainer.families.model import DiffusionModel
from trainer.optim.groups import ParameterGroup

ADAPTER = "default"  # peft's own name for the one adapter
PART = "unet"


def layers_named(model: DiffusionModel, words: Sequence[str]) -> list[str]:
    """The names of the denoiser's layers that the words of a recipe mean, in the network's order.

    Raises:
        RecipeError: the family does not know a word.
    """
    unknown = sorted(set(words) - set(model.adaptable))
    if unknown:
        raise RecipeError(
            f"This family has no layers called {', '.join(unknown)}.",
            where="adapter.layers",
            mend=f"Choose among: {', '.join(sorted(model.adaptable))}.",
        )
    pattern = re.compile("|".join(model.adaptable[word] for word in words))
    layers = model.denoiser.named_modules()
    return [name for name, layer in layers if isinstance(layer, (nn.Linear, nn.Conv2d)) and pattern.fullmatch(name)]


def width_of(model: DiffusionModel, layer: str) -> int:
    """The greatest rank that a change of this layer's weight can have."""
    weight = model.denoiser.get_parameter(f"{layer}.weight")
    return min(weight.shape[0], weight[0].numel())


def inject(model: DiffusionModel, layers: Sequence[str], config: Callable[[list[str]], Any], seed: int) -> Trainable:
    """Put a peft adapter beside the layers, its weights in float32 whatever the base's precision.

    Args:
        model: its denoiser is changed in place.
        layers: full names, as `layers_named` gives them.
        config: layer names -> a peft configuration.
        seed: decides the new weights, independently of torch's global generator.
    """
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config(list(layers)), model.denoiser, adapter_name=ADAPTER)
    for parameter in model.denoiser.parameters():
        if parameter.requires_grad:
            # peft copies the dtype of the base layer; a 16-bit adapter would lose most of its small steps
            parameter.data = parameter.data.float()
    return InjectedAdapter(model.denoiser)


class InjectedAdapter(Trainable):
    """The peft layers inside a denoiser."""

    def __init__(self, network: nn.Module) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._layers: dict[str, Any] = {n: m for n, m in network.named_modules() if isinstance(m, BaseTunerLayer)}
        trained = ((name, p) for name, p in network.named_parameters() if p.requires_grad)
        self._parameters = {_plain_name(name): parameter for name, parameter in trained}

    @override
    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(name=PART, parameters=list(self._parameters.values()))]

    @override
    def state(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    @override
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        expected = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        given = {name: tuple(tensor.shape) for name, tensor in state.items()}
        wrong = sorted(expected.items() ^ given.items())
        if wrong:
            raise CheckpointError(
                f"These trained tensors do not fit the adapter: {len(wrong)} differences, {wrong[0][0]} first.",
                mend="Use the recipe that the file was trained with.",
            )
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state[name])

    @override
    def alphas(self) -> dict[str, float]:
        return {f"{PART}.{name}": float(layer.lora_alpha[ADAPTER]) for name, layer in self._layers.items()}

    @override
    def set_strength(self, strength: float) -> None:
        for layer in self._layers.values():
            layer.set_scale(ADAPTER, strength)


def _plain_name(parameter: str) -> str:
    """`unet.<layer>.lora_A.weight` out of peft's name for a parameter."""
    return f"{PART}.{parameter.replace(f'.{ADAPTER}.', '.')}"
