"""Puts peft layers into the layers that a recipe names; the one place that calls peft."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from trainer.adapters import origins
from trainer.adapters.magnitudes import Magnitudes
from trainer.adapters.norms import limit_norm
from trainer.adapters.parts import Target
from trainer.adapters.trainable import Trainable
from trainer.core.errors import CheckpointError, RecipeError
from trainer.families.model import DiffusionModel
from trainer.optim.groups import ParameterGroup
from trainer.weights.adapter_kinds import state_of
from trainer.weights.adapter_state import AdapterState
from trainer.weights.export import ExportSettings, export
from trainer.weights.forms import KRONECKER_PRODUCT
from trainer.weights.metadata import TrainingFacts
from trainer.weights.roles import DOWN, KRONECKER, UP

ADAPTER = "default"  # peft's own name for the one adapter

Beside = Callable[[Any], Magnitudes | None]
"""Puts beside one of peft's layers what peft has not; gives what has a strength of its own."""


def inject(
    model: DiffusionModel,
    targets: Sequence[Target],
    config: Callable[[Target], Any],
    seed_of: Callable[[Target], int],
    beside: Beside | None = None,
    max_norm: float | None = None,
) -> "InjectedAdapter":
    """Put peft adapters beside the layers, their weights in float32 whatever the base's precision.

    Args:
        model: its networks are changed in place.
        targets: the layers, network by network.
        config: a network's layers -> a peft configuration.
        seed_of: decides the new weights of a network, independently of torch's global generator.
        beside: called for each new layer.
        max_norm: the greatest Frobenius norm that the change of a layer may have after a step.
    """
    from peft import inject_adapter_in_model

    magnitudes: list[Magnitudes] = []
    for target in targets:
        network = model.network(target.part)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(target))
            inject_adapter_in_model(config(target), network, adapter_name=ADAPTER)
        for layer in _adapted(model, target.part).values():
            for parameter in layer.parameters():
                if parameter.requires_grad:
                    # peft copies the dtype of the base layer; a 16-bit adapter would lose most of its small steps
                    parameter.data = parameter.data.float()
            extra = beside(layer) if beside is not None else None
            magnitudes += [extra] if extra is not None else []
        network.train(network.training)  # new layers, and the dropout in them, begin as for training
    return InjectedAdapter(model, targets, magnitudes, max_norm)


def check_readable(layer: nn.Module) -> None:
    """Make sure that the numbers of a layer's weight are there to be read.

    Raises:
        RecipeError: they stream, and what stands for them is empty.
    """
    tensors = (*layer.parameters(), *layer.buffers())
    if any(tensor.numel() > 1 and not any(tensor.stride()) for tensor in tensors):
        raise RecipeError(
            "adapter.decompose and adapter.initial begin with the base's weights, and these are not on the device.",
            where="model.resident",
            mend="Set model.resident to 1, or leave both out.",
        )


class InjectedAdapter(Trainable):
    """The peft layers inside the networks of a model."""

    def __init__(
        self,
        model: DiffusionModel,
        targets: Sequence[Target],
        magnitudes: Sequence[Magnitudes],
        max_norm: float | None,
    ) -> None:
        self._naming = model.naming
        self._targets = tuple(targets)
        self._magnitudes = magnitudes
        self._max_norm = max_norm
        self._layers: dict[str, Any] = {}  # peft's layers share no typed base
        self._parameters: dict[str, dict[str, nn.Parameter]] = {}  # by part, then by name
        self._fixed: dict[str, Tensor] = {}  # what is kept in checkpoints and not trained
        for target in targets:
            layers = _adapted(model, target.part)
            self._layers |= layers
            self._parameters[target.part] = {
                f"{layer}.{name.replace(f'.{ADAPTER}', '')}": parameter
                for layer, module in layers.items()
                for name, parameter in module.named_parameters()
                if parameter.requires_grad
            }
            self._fixed |= {
                f"{layer}.{name}": module.get_buffer(name)
                for layer, module in layers.items()
                for name in (origins.DOWN, origins.UP)
                if hasattr(module, name)  # buffers of some layers only; peft's layers have no typed base
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
        return {name: tensor.detach() for name, tensor in self._all().items()}

    @override
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        tensors = self._all()
        expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        given = {name: tuple(tensor.shape) for name, tensor in state.items()}
        wrong = sorted(expected.items() ^ given.items())
        if wrong:
            raise CheckpointError(
                f"These trained tensors do not fit the adapter: {len(wrong)} differences, {wrong[0][0]} first.",
                mend="Use the recipe that the file was trained with.",
            )
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(state[name])

    @override
    def write(self, path: Path, facts: TrainingFacts, settings: ExportSettings) -> Path:
        return export(path, self.adapter_state(), self._naming, facts, settings)

    @override
    def after_step(self) -> None:
        if self._max_norm is not None:
            for layer in self._layers.values():
                limit_norm(layer, ADAPTER, self._max_norm)

    @override
    def set_strength(self, strength: float) -> None:
        for layer in self._layers.values():
            layer.set_scale(ADAPTER, strength)
        for one in self._magnitudes:
            one.strength = strength

    def alphas(self) -> dict[str, float]:
        """The alpha of each adapted layer as files mean it, by its name in `state` without the tensor's own name.

        Rank-stabilised scaling is alpha / root of rank, and in files each change is scaled by alpha / rank.
        """
        found: dict[str, float] = {}
        for name, layer in self._layers.items():
            alphas = layer.lora_alpha if hasattr(layer, "lora_alpha") else layer.alpha  # peft calls it so of the others
            stabilised = getattr(layer, "use_rslora", {}).get(ADAPTER, False)  # LoRA's layers alone have it
            found[name] = float(alphas[ADAPTER]) * (math.sqrt(layer.r[ADAPTER]) if stabilised else 1.0)
        return found

    def adapter_state(self) -> AdapterState:
        """What is trained as files have it: without cores between halves, origins or scales that no file says."""
        alphas = self.alphas()
        named = self.state()
        for name, layer in self._layers.items():
            if f"{name}.{origins.DOWN}" in named:
                halves = [f"{name}.{role}" for role in (DOWN, UP, origins.DOWN, origins.UP)]
                named[halves[0]], named[halves[1]] = origins.joined(*(named.pop(half) for half in halves))
                alphas[name] *= 2.0  # of twice the rank
            elif _is_whole(named, name):  # peft scales a product of whole factors too, and in files nothing does
                first = f"{name}.{KRONECKER[0]}"
                named[first] = named[first] * (alphas[name] / layer.r[ADAPTER])
        return state_of(named, alphas)

    def scalings(self) -> dict[str, float]:
        """What the product of each layer's tensors, as they stand in `state`, is multiplied by."""
        return {name: alpha / self._layers[name].r[ADAPTER] for name, alpha in self.alphas().items()}

    def _all(self) -> dict[str, Tensor]:
        trained = {name: parameter for part in self._parameters.values() for name, parameter in part.items()}
        return trained | self._fixed


def _is_whole(named: Mapping[str, Tensor], layer: str) -> bool:
    """Whether both factors of a LoKr layer are whole, so that it has no rank."""
    roles = {role: named[name] for role in KRONECKER if (name := f"{layer}.{role}") in named}
    return bool(roles) and KRONECKER_PRODUCT.rank(roles) is None


def _adapted(model: DiffusionModel, part: str) -> dict[str, Any]:
    """The peft layers of a network by their canonical names, in the network's order."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = model.network(part).named_modules()
    return {model.naming.canonical(f"{part}.{path}"): m for path, m in modules if isinstance(m, BaseTunerLayer)}
