"""The alphas with which a file means the same in every program."""

from collections import Counter
from collections.abc import Sequence

from trainer.weights.adapter_state import AdapterState
from trainer.weights.peft_configs import alpha_of, is_wide
from trainer.weights.roles import DOWN


def even_alphas(state: AdapterState) -> dict[str, float]:
    """The alpha that each layer is written with, in float32's numbers; whole states only.

    Of LoHa and LoKr it is the rank (1 where there is none): LyCORIS scales them in another way than the UIs. Of LoRA
    and DoRA it is one number a network: diffusers 0.42 reads kohya's files with the commonest alpha of a network for
    the attention layers of the U-Net and for all of a text encoder, whatever the layers' own. 3x3 convolutions may
    keep theirs, as `conv_alpha` of other trainers gives them.
    """
    alphas: dict[str, float] = {}
    parts: dict[str, list[str]] = {}
    for layer in state.layers():
        rank = state.rank(layer)
        if DOWN in state.roles(layer):
            parts.setdefault(layer.partition(".")[0], []).append(layer)
        else:
            alphas[layer] = float(rank or 1)
    for layers in parts.values():
        alphas |= _of_network(state, layers)
    return alphas


def _of_network(state: AdapterState, layers: Sequence[str]) -> dict[str, float]:
    own = {layer: alpha_of(state.alphas[layer]) for layer in layers}
    plain = [layer for layer in layers if not is_wide(layer)] or list(layers)
    # zero says that the layers do nothing; any other number can be made up for
    common = next((alpha for alpha, _ in Counter(own[layer] for layer in plain).most_common() if alpha), 0.0)
    if not common:
        return own
    evened = {layer: own[layer] if is_wide(layer) else common for layer in layers}
    counts = Counter(evened.values())
    kept = all(count < counts[common] for alpha, count in counts.items() if alpha != common)
    return evened if kept else dict.fromkeys(layers, common)
