"""LoHa, LoKr and DoRA, and tensors of any kind -> the state that they are."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from trainer.core.errors import WeightsError
from trainer.core.files import printable
from trainer.weights.adapter_state import AdapterKind, AdapterState
from trainer.weights.forms import HADAMARD_PRODUCT, KRONECKER_PRODUCT, PAIR, Form, Roles, form_of, without_tucker
from trainer.weights.lora_state import LoraState
from trainer.weights.roles import ALPHA, DOWN, SCALE, VECTOR, split_key

Axis = Literal["input", "output"]


class LohaState(AdapterState):
    """A LoHa: for each layer the entrywise product of two thin products.

    Tensors are `<layer>.hada_w1_a` [out rank], `.hada_w1_b` [rank inner], `.hada_w2_a` and `.hada_w2_b`, where inner is
    in, or in·k·k of a convolution.

    Source: Hyeon-Woo et al. 2022, arXiv:2108.06098, equation 2.
    """

    __slots__ = ()

    kind: ClassVar[AdapterKind] = "loha"
    _forms: ClassVar[tuple[Form, ...]] = (HADAMARD_PRODUCT,)


class LokrState(AdapterState):
    """A LoKr: for each layer the Kronecker product of two matrices, each whole or of two thin ones.

    Tensors are `<layer>.lokr_w1` [out1 in1] or `.lokr_w1_a` [out1 rank] and `.lokr_w1_b` [rank in1]; `.lokr_w2` [out2
    in2] or [out2 in2 k k], or `.lokr_w2_a` [out2 rank] and `.lokr_w2_b` [rank in2·k·k]. Where both are whole, alpha
    counts for nothing: all programs that read LoKr files have it so.

    Source: Yeh et al. 2023, arXiv:2309.14859.
    """

    __slots__ = ()

    kind: ClassVar[AdapterKind] = "lokr"
    _forms: ClassVar[tuple[Form, ...]] = (KRONECKER_PRODUCT,)


class DoraState(AdapterState):
    """A DoRA: a LoRA (or LoHa, LoKr) that changes the direction of a weight, and the lengths that it then has.

    `<layer>.dora_scale` holds the lengths: of the columns, one an input, as [1 in] or [1 in 1 1]; or of the rows, one
    an output, as [out 1] or [out 1 1 1]. The place of the ones tells which, also where the weight is square. The new
    weight is scale * (W + change) / norm(W + change), the norm taken over all other axes.

    Source: Liu et al. 2024, arXiv:2402.09353, equation 5 (columns).
    """

    __slots__ = ()

    kind: ClassVar[AdapterKind] = "dora"
    _forms: ClassVar[tuple[Form, ...]] = (PAIR, HADAMARD_PRODUCT, KRONECKER_PRODUCT)

    def axis(self, layer: str) -> Axis | None:
        """What the layer's lengths belong to; None where it has none and is changed plainly."""
        roles = self.roles(layer)
        return _axis(layer, roles) if SCALE in roles else None

    @override
    def change(self, layer: str, weight: Tensor | None = None) -> Tensor:
        axis = self.axis(layer)
        change = AdapterState.change(self, layer, weight)
        if axis is None:
            return change
        if weight is None:
            raise WeightsError("The change of a DoRA needs the base's weight.", where=layer)
        base = weight.detach().float()
        moved = base + change
        kept = 1 if axis == "input" else 0
        norm = torch.linalg.vector_norm(moved, dim=[d for d in range(moved.ndim) if d != kept], keepdim=True)
        lengths = self.roles(layer)[SCALE].detach().float()
        if lengths.numel() != norm.numel():
            raise WeightsError("This DoRA's magnitudes do not fit the layer's weight.", where=layer)
        # a row or column of zeros has no direction, and stays zero
        return lengths.reshape(norm.shape) * moved / norm.clamp_min(torch.finfo(torch.float32).tiny) - base

    @override
    def _check_layer(self, layer: str, roles: Roles) -> None:
        form_of(roles).check(layer, roles)
        if SCALE in roles:
            if not roles[SCALE].is_floating_point():
                raise WeightsError(f"Adapter weights must be floats, not {roles[SCALE].dtype}.", where=layer)
            _axis(layer, roles)


def state_of(tensors: Mapping[str, Tensor], alphas: Mapping[str, float]) -> AdapterState:
    """The state that tensors are, by the ends of their names; checked, and without Tucker cores.

    Args:
        tensors: `<layer>.<role>`, the role in the spelling of any program; of a DoRA's lengths also peft's vectors.
        alphas: by layer; where one is missing it is the rank.

    Raises:
        WeightsError: they are no whole adapter, or layers of several kinds.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        split = split_key(name)
        if split is None or split[1] == ALPHA:
            raise WeightsError("This tensor belongs to no adapter.", where=printable(name[:200]))
        if split[1] in found.setdefault(split[0], {}):
            raise WeightsError("Two keys of this file mean the same layer.", where=printable(name[:200]))
        found[split[0]][split[1]] = tensor
    _turn_vectors(found)
    plain = {layer: _whole(layer, roles) for layer, roles in found.items()}
    kinds = {_KIND_OF[form_of(roles)] for roles in plain.values()}
    if len(kinds) > 1:
        names = ", ".join(sorted(kind.kind for kind in kinds))
        raise WeightsError(f"Layers of several kinds ({names}) in one adapter are not supported.")
    kind = DoraState if any(SCALE in roles for roles in plain.values()) else (kinds.pop() if kinds else LoraState)
    named = {f"{layer}.{role}": tensor for layer, roles in plain.items() for role, tensor in roles.items()}
    ranks = {layer: form_of(roles).rank(roles) for layer, roles in plain.items() if layer not in alphas}
    state = kind(named, {**alphas, **{layer: float(rank or 1) for layer, rank in ranks.items()}})
    state.check()
    return state


def _turn_vectors(layers: Mapping[str, dict[str, Tensor]]) -> None:
    """Give peft's vectors the name and the shape that say what they belong to, in place.

    diffusers' own converter to kohya's names calls them dora_scale and leaves them as they are; a scale without axes
    gives such a file away.
    """
    pefts = any(SCALE in roles and roles[SCALE].ndim == 1 for roles in layers.values())
    for layer, roles in layers.items():
        if pefts and SCALE in roles:
            roles.setdefault(VECTOR, roles.pop(SCALE))
        if VECTOR in roles:
            if SCALE in roles:
                raise WeightsError("This layer has magnitudes twice.", where=layer)
            roles[SCALE] = on_output(roles.pop(VECTOR))


def _whole(layer: str, roles: Roles) -> dict[str, Tensor]:
    """The layer's tensors without a core, checked."""
    plain = without_tucker(layer, roles)
    form_of(plain).check(layer, plain)
    return plain


def on_output(lengths: Tensor) -> Tensor:
    """The lengths of rows that peft writes, [out] or [1 out 1 1], in the shape that says so: [out 1] or [out 1 1 1].

    Raises:
        WeightsError: it is no such vector.
    """
    if lengths.ndim == 4 and lengths.shape[0] == 1 and lengths.numel() == lengths.shape[1]:
        return lengths.transpose(0, 1)
    if lengths.ndim != 1:
        raise WeightsError(f"The shape {list(lengths.shape)} is none of peft's magnitudes.")
    return lengths.unsqueeze(1)


def as_peft_vector(lengths: Tensor) -> Tensor:
    """The inverse of `on_output`."""
    return lengths.transpose(0, 1) if lengths.ndim == 4 else lengths.squeeze(1)


def _axis(layer: str, roles: Roles) -> Axis:
    """What the lengths belong to, by the place of the ones in their shape.

    Raises:
        WeightsError: they fit neither side.
    """
    lengths = roles[SCALE]
    outputs, inner = form_of(roles).size(roles)
    if lengths.ndim in {2, 4}:
        inputs = lengths.shape[1]
        # only a pair tells the inputs of a convolution; of the products they are known to divide the inner side
        fits = roles[DOWN].shape[1] == inputs if DOWN in roles else inputs > 0 and inner % inputs == 0
        if lengths.shape[0] == 1 and lengths.numel() == inputs and fits and (lengths.ndim == 4 or inputs == inner):
            return "input"
        if lengths.shape[0] == outputs and lengths.numel() == outputs:
            return "output"
    raise WeightsError(
        f"The magnitudes {list(lengths.shape)} fit no axis of a layer of {outputs} outputs and {inner} inputs.",
        where=layer,
        mend="They must be [1, inputs] or [outputs, 1], with two ones more for a convolution.",
    )


_KIND_OF: Mapping[Form, type[AdapterState]] = {
    PAIR: LoraState,
    HADAMARD_PRODUCT: LohaState,
    KRONECKER_PRODUCT: LokrState,
}
