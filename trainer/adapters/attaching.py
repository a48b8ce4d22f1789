"""A finished adapter of any kind -> layers inside a model, for drawing with it."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.adapters.injecting import InjectedAdapter, inject
from trainer.adapters.parts import Target, parts_of
from trainer.adapters.sizes import Size, numbers
from trainer.core.errors import WeightsError
from trainer.families.model import DiffusionModel
from trainer.weights.adapter_state import AdapterState
from trainer.weights.live_layers import in_shape, live_layers
from trainer.weights.lora_state import LoraState

_OTHER_BASE = "Name the base model that it was trained on with --base."


class Acting(Protocol):
    """What acts inside a model as strongly as is said."""

    def set_strength(self, strength: float) -> None:
        """Act `strength` times as much as trained; 0 is the base model alone."""
        ...


def attach_adapter(model: DiffusionModel, state: AdapterState) -> Acting:
    """Put an adapter as it stands in a file into the model, text encoders too; each layer keeps its rank and alpha.

    Raises:
        WeightsError: it changes layers that this model does not have, or layers of other sizes.
    """
    return attach_lora(model, state) if isinstance(state, LoraState) else AttachedChanges(model, state)


def attach_lora(model: DiffusionModel, state: LoraState) -> InjectedAdapter:
    """The same for a LoRA, of which peft computes the two thin products alone.

    Raises:
        WeightsError: as of `attach_adapter`.
    """
    places = places_of(model, state.layers())

    def config(target: Target) -> Any:
        from peft import LoraConfig

        names = places[target.part]
        layers = {path: names[path] for path in target.layers}
        sizes = {path: Size(state.down(name).shape[0], state.alphas[name]) for path, name in layers.items()}
        found = numbers(sizes)
        return LoraConfig(
            target_modules=list(target.layers),
            r=found.rank,
            rank_pattern=dict(found.ranks),
            # peft annotates alphas as integers and only ever divides them
            lora_alpha=found.alpha,  # pyright: ignore[reportArgumentType]
            alpha_pattern=dict(found.alphas),  # pyright: ignore[reportArgumentType]
        )

    words = parts_of(model)
    targets = [Target(word=words[part], part=part, layers=list(names)) for part, names in places.items()]
    trainable = inject(model, targets, config, seed_of=lambda target: 0)
    own = trainable.state()
    tensors = {name: in_shape(tensor, own[name].shape) for name, tensor in state.tensors.items()}
    misfits = [name for name, tensor in tensors.items() if tensor.shape != own[name].shape]
    if misfits:
        name = misfits[0]
        raise WeightsError(
            f"This LoRA does not fit the model: {name} is {list(state.tensors[name].shape)} in the file and "
            f"{list(own[name].shape)} in the model.",
            mend=_OTHER_BASE,
        )
    trainable.load_state(tensors)
    return trainable


class AttachedChanges:
    """The changes of an adapter of any kind, each beside its layer; the layers' weights stay as they are.

    A change is built from its thin tensors whenever the layer is asked, so it takes no memory while others are. As in
    programs that draw, a strength multiplies the whole change, of a DoRA too.
    """

    def __init__(self, model: DiffusionModel, state: AdapterState) -> None:
        """Hooked into the model's layers, at full strength.

        Raises:
            WeightsError: the model has not the layers that it changes, or they are of other sizes.
        """
        self._strength = 1.0
        for part, names in places_of(model, state.layers()).items():
            for path, name in names.items():
                layer = model.network(part).get_submodule(path)
                self._put_beside(layer, _of_layer(state, name, layer), name)

    def set_strength(self, strength: float) -> None:
        """See `Acting`."""
        self._strength = strength

    def _put_beside(self, layer: nn.Module, state: AdapterState, name: str) -> None:
        weight: Any = layer.weight  # linear layers and convolutions have one
        state.change(name, weight)  # fits, or raises

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self._strength:
                return None
            weight: Any = module.weight
            change = state.change(name, weight) * self._strength
            return output + _product(module, inputs[0].to(change.dtype), change).to(output.dtype)

        layer.register_forward_hook(add)


def places_of(model: DiffusionModel, layers: list[str]) -> Mapping[str, Mapping[str, str]]:
    """Where the layers of a file lie in a model: part -> path inside its network -> the layer's canonical name.

    Text encoders that are among them stay in memory from now on.

    Raises:
        WeightsError: the model does not have one of them.
    """
    changed = {layer.partition(".")[0] for layer in layers}
    if changed & set(model.text_parts.values()):
        model.keep_text_encoders()
    found: dict[str, dict[str, str]] = {}
    for part in parts_of(model):
        if part in changed:
            known = live_layers(model.network(part), part, model.naming)
            found[part] = {known[layer]: layer for layer in layers if layer in known}
    foreign = set(layers) - {layer for names in found.values() for layer in names.values()}
    if foreign:
        raise WeightsError(
            f"This adapter changes {len(foreign)} layers that the model does not have, {min(foreign)} among them.",
            mend=_OTHER_BASE,
        )
    return found


def _of_layer(state: AdapterState, name: str, layer: nn.Module) -> AdapterState:
    """One layer's share of an adapter, where the layer is."""
    weight: Any = layer.weight
    device = weight.device
    tensors = {f"{name}.{role}": tensor.to(device, torch.float32) for role, tensor in state.roles(name).items()}
    return type(state)(tensors=tensors, alphas={name: state.alphas[name]})


def _product(module: nn.Module, inputs: Tensor, weight: Tensor) -> Tensor:
    """What the layer would make of the inputs with this weight and no bias."""
    if isinstance(module, nn.Conv2d):
        return functional.conv2d(inputs, weight, None, module.stride, module.padding, module.dilation, module.groups)
    return functional.linear(inputs, weight)
