"""A finished adapter -> the values that a new run begins with."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from trainer.adapters.injecting import InjectedAdapter
from trainer.core.errors import WeightsError
from trainer.weights.adapter_state import AdapterState
from trainer.weights.even_alphas import even_alphas
from trainer.weights.forms import form_of
from trainer.weights.live_layers import in_shape
from trainer.weights.names import Naming
from trainer.weights.peft_configs import alpha_of
from trainer.weights.reading import read_adapter


def start_from(trainable: InjectedAdapter, path: Path, naming: Naming) -> None:
    """Put the weights of an adapter file into attached layers, as they were saved.

    Args:
        trainable: attached as the recipe says.
        path: an adapter of the same kind in any layout that is read.
        naming: of the family.

    Raises:
        WeightsError: the file cannot be read; or its kind, layers, ranks or alphas are not those that the recipe asks
            for.
    """
    given, wanted = read_adapter(path, naming).state, trainable.adapter_state()
    live = trainable.state()
    if given.kind != wanted.kind:
        differences = [f"it is a {given.kind} and the recipe trains a {wanted.kind}"]
    else:
        differences = [*_of_layers(given, wanted), *_of_numbers(given, wanted)]
    tensors = {} if differences else _as_trained(given, trainable.scalings(), live)
    odd = next((name for name in sorted(tensors.keys() ^ live.keys())), None)
    if not differences and odd is not None:
        differences.append(f"{odd} is in {'the file' if odd in tensors else 'the model'} alone")
    for name in [] if differences else tensors:
        ours, theirs = list(live[name].shape), list(tensors[name].shape)
        if ours != theirs:
            differences.append(f"{name} is {theirs} in the file and {ours} in the model")
            break
    if differences:
        raise WeightsError(
            f"This adapter is not what the recipe trains: {'; '.join(differences)}.",
            where=str(path),
            mend="Write into `adapter` what the file is (`trainer weights inspect` shows layers, rank and alpha), or "
            "take another file in adapter.start.",
        )
    trainable.load_state(tensors)


def _of_layers(given: AdapterState, wanted: AdapterState) -> list[str]:
    ours, theirs = set(wanted.layers()), set(given.layers())
    surplus, lacking = sorted(theirs - ours), sorted(ours - theirs)
    said = [f"it changes {len(surplus)} layers that adapter.layers leaves out, {surplus[0]} first"] if surplus else []
    return said + ([f"it lacks {len(lacking)} layers of adapter.layers, {lacking[0]} first"] if lacking else [])


def _of_numbers(given: AdapterState, wanted: AdapterState) -> list[str]:
    """Ranks and alphas that differ, in the layers that both have."""
    common = sorted(set(given.layers()) & set(wanted.layers()))
    written = even_alphas(wanted)  # a file of just this recipe has these
    said: list[str] = []
    layer = next((layer for layer in common if given.rank(layer) != wanted.rank(layer)), None)
    if layer is not None:
        said.append(f"its rank is {_number(given.rank(layer))} and adapter.rank is {_number(wanted.rank(layer))}")

    def differs(layer: str) -> bool:
        theirs = alpha_of(given.alphas[layer])
        return given.rank(layer) is not None and theirs not in (alpha_of(wanted.alphas[layer]), written.get(layer))

    layer = next((layer for layer in common if differs(layer)), None)
    if layer is not None:
        said.append(f"its alpha is {given.alphas[layer]:g} and adapter.alpha is {wanted.alphas[layer]:g}")
    return said


def _number(rank: int | None) -> str:
    return "none" if rank is None else str(rank)


def _as_trained(given: AdapterState, scalings: Mapping[str, float], live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors in the live shapes, with what files multiply into one of them taken out again."""
    tensors: dict[str, Tensor] = {}
    for layer in given.layers():
        roles = given.roles(layer)
        factor = given.scale(layer) / scalings[layer]
        if not _close_to_one(factor):
            roles = form_of(roles).times(roles, factor)
        for role, tensor in roles.items():
            name = f"{layer}.{role}"
            tensors[name] = in_shape(tensor, live[name].shape) if name in live else tensor
    return tensors


def _close_to_one(factor: float) -> bool:
    """Whether nothing but the rounding of an alpha to float32 is between the two scales."""
    return abs(factor - 1.0) < 1e-6
