"""Puts peft layers into the layers that a recipe names; the one place that calls peft."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from trainer.adapters.parts import Target
from trainer.adapters.trainable import Trainable
from trainer.core.errors import CheckpointError
from trainer.families.model import DiffusionModel
from trainer.optim.groups import ParameterGroup

ADAPTER = "default"  # peft's own name for the one adapter


def inject(
    model: DiffusionModel,
    targets: Sequence[Target],
    config: Callable[[Target], Any],
    seed_of: Callable[[Target], int],
) -> "InjectedAdapter":
    """Put peft adapters beside the layers, their weights in float32 whatever the base's precision.

    Args:
        model: its networks are changed in place.
        targets: the layers, network by network.
        config: a network's layers -> a peft configuration.
        seed_of: decides the new weights of a network, independently of torch's global generator.
    """
    from peft import inject_adapter_in_model

    for target in targets:
        network = model.network(target.part)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(target))
            inject_adapter_in_model(config(target), network, adapter_name=ADAPTER)
        for parameter in network.parameters():
            if parameter.requires_grad:
                # peft copies the dtype of the base layer; a 16-bit adapter would lose most of its small steps
                parameter.data = parameter.data.float()
        network.train(network.training)  # new layers, and the dropout in them, begin as for training
    return InjectedAdapter(model, targets)


class InjectedAdapter(Trainable):
    """The peft layers inside the networks of a model."""

    def __init__(self, model: DiffusionModel, targets: Sequence[Target]) -> None:
        self._targets = tuple(targets)
        self._layers: dict[str, Any] = {}  # peft's layers share no typed base
        self._parameters: dict[str, dict[str, nn.Parameter]] = {}  # by part, then by name
        for target in targets:
            layers = _adapted(model, target.part)
            self._layers |= layers
            self._parameters[target.part] = {
                f"{layer}.{name.replace(f'.{ADAPTER}', '')}": parameter
                for layer, module in layers.items()
                for name, parameter in module.named_parameters()
                if parameter.requires_grad
            }

    @property
    @override
    def parts(self) -> tuple[str, ...]:
        return tuple(target.part for target in self._targets)

    @override
    def groups(self) -> list[ParameterGroup]:
        return [
            ParameterGroup(name=target.word, parameters=list(self._parameters[target.part].values()), rate=target.rate)
            for target in self._targets
        ]

    @override
    def state(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._all().items()}

    @override
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        parameters = self._all()
        expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        given = {name: tuple(tensor.shape) for name, tensor in state.items()}
        wrong = sorted(expected.items() ^ given.items())
        if wrong:
            raise CheckpointError(
                f"These trained tensors do not fit the adapter: {len(wrong)} differences, {wrong[0][0]} first.",
                mend="Use the recipe that the file was trained with.",
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])

    @override
    def alphas(self) -> dict[str, float]:
        return {name: float(layer.lora_alpha[ADAPTER]) for name, layer in self._layers.items()}

    @override
    def set_strength(self, strength: float) -> None:
        for layer in self._layers.values():
            layer.set_scale(ADAPTER, strength)

    def _all(self) -> dict[str, nn.Parameter]:
        return {name: parameter for part in self._parameters.values() for name, parameter in part.items()}


def _adapted(model: DiffusionModel, part: str) -> dict[str, Any]:
    """The peft layers of a network by their canonical names, in the network's order."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = model.network(part).named_modules()
    return {model.naming.canonical(f"{part}.{path}"): m for path, m in modules if isinstance(m, BaseTunerLayer)}
