"""A finished LoRA -> layers inside a model, for drawing with it."""

from collections.abc import Mapping
from typing import Any

from trainer.adapters.injecting import inject
from trainer.adapters.parts import Target, parts_of
from trainer.adapters.trainable import Trainable
from trainer.core.errors import WeightsError
from trainer.families.model import DiffusionModel
from trainer.weights.live_layers import in_shape, live_layers
from trainer.weights.lora_state import LoraState

_OTHER_BASE = "Name the base model that it was trained on with --base."


def attach_lora(model: DiffusionModel, state: LoraState) -> Trainable:
    """Put a LoRA as it stands in a file into the model, text encoders too; each layer keeps its own rank and alpha.

    Raises:
        WeightsError: it changes layers that this model does not have, or layers of other sizes.
    """
    places = places_of(model, state.layers())

    def config(target: Target) -> Any:
        from peft import LoraConfig

        names = places[target.part]
        return LoraConfig(
            target_modules=list(target.layers),
            rank_pattern={path: state.down(names[path]).shape[0] for path in target.layers},
            # peft annotates alphas as integers and only ever divides them
            alpha_pattern={path: state.alphas[names[path]] for path in target.layers},  # pyright: ignore[reportArgumentType]
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
            f"This LoRA changes {len(foreign)} layers that the model does not have, {min(foreign)} among them.",
            mend=_OTHER_BASE,
        )
    return found
