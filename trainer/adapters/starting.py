"""A finished LoRA -> the values that a new run begins with."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from trainer.adapters.trainable import Trainable
from trainer.core.errors import WeightsError
from trainer.weights.live_layers import in_shape
from trainer.weights.lora_state import LoraState
from trainer.weights.names import Naming
from trainer.weights.reading import read_lora


def start_from(trainable: Trainable, path: Path, naming: Naming) -> None:
    """Put the weights of a LoRA file into attached layers, as they were saved.

    Args:
        trainable: attached as the recipe says.
        path: a LoRA in any layout that is read.
        naming: of the family.

    Raises:
        WeightsError: the file cannot be read; or its layers, ranks or alphas are not those that the recipe asks for.
    """
    given = read_lora(path, naming).state
    wanted = LoraState(tensors=trainable.state(), alphas=trainable.alphas())
    differences = [*_of_layers(given, wanted), *_of_numbers(given, wanted)]
    tensors = {} if differences else _fitted(given, wanted)
    for name, tensor in tensors.items():
        ours, theirs = list(wanted.tensors[name].shape), list(tensor.shape)
        if ours != theirs:
            differences.append(f"{name} is {theirs} in the file and {ours} in the model")
            break
    if differences:
        raise WeightsError(
            f"This LoRA is not what the recipe trains: {'; '.join(differences)}.",
            where=str(path),
            mend="Write into `adapter` what the file is (`trainer weights inspect` shows layers, rank and alpha), or "
            "take another file in adapter.start.",
        )
    trainable.load_state(tensors)


def _of_layers(given: LoraState, wanted: LoraState) -> list[str]:
    ours, theirs = set(wanted.layers()), set(given.layers())
    surplus, lacking = sorted(theirs - ours), sorted(ours - theirs)
    said = [f"it changes {len(surplus)} layers that adapter.layers leaves out, {surplus[0]} first"] if surplus else []
    return said + ([f"it lacks {len(lacking)} layers of adapter.layers, {lacking[0]} first"] if lacking else [])


def _of_numbers(given: LoraState, wanted: LoraState) -> list[str]:
    """Ranks and alphas that differ, in the layers that both have."""
    common = sorted(set(given.layers()) & set(wanted.layers()))
    said: list[str] = []
    numbers: Mapping[str, Callable[[LoraState, str], float]] = {
        "rank": lambda state, layer: state.down(layer).shape[0],
        "alpha": lambda state, layer: state.alphas[layer],
    }
    for word, number in numbers.items():
        layer = next((layer for layer in common if number(given, layer) != number(wanted, layer)), None)
        if layer is not None:
            said.append(f"its {word} is {number(given, layer):g} and adapter.{word} is {number(wanted, layer):g}")
    return said


def _fitted(given: LoraState, wanted: LoraState) -> dict[str, Tensor]:
    return {name: in_shape(tensor, wanted.tensors[name].shape) for name, tensor in given.tensors.items()}
