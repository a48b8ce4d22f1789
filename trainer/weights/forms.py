"""The mathematical forms in which an adapter holds one layer's change of weight: two matrices, or products of them.

Dimensions: out and in are the layer's, r is the rank, k k the kernel of a convolution; inner = in, or in·k·k.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from trainer.core.errors import WeightsError
from trainer.weights.roles import DOWN, HADAMARD, KRONECKER, MIDDLE, SCALE, UP

_FLOATS = {torch.float32, torch.float16, torch.bfloat16, torch.float64}

Roles = Mapping[str, Tensor]
"""The tensors of one layer by their roles."""


class Form(ABC):
    """How the change of one layer follows from its tensors."""

    names: ClassVar[frozenset[str]]  # the roles that a layer of this form may have

    def check(self, layer: str, roles: Roles) -> None:
        """Make sure that the tensors are all there and fit together; for layers of any size.

        Raises:
            WeightsError: one is missing, foreign, of a wrong shape or of a wrong dtype, or the rank is above the
                layer's.
        """
        foreign = sorted(set(roles) - self.names - {SCALE})
        if foreign:
            raise WeightsError(f"This layer has tensors of two kinds of adapters; {foreign[0]} is odd.", where=layer)
        self._check_fit(layer, roles)

    @abstractmethod
    def _check_fit(self, layer: str, roles: Roles) -> None: ...

    @abstractmethod
    def rank(self, roles: Roles) -> int | None:
        """The width of the thin matrices; None where there are none."""

    @abstractmethod
    def size(self, roles: Roles) -> tuple[int, int]:
        """Out and inner."""

    @abstractmethod
    def product(self, roles: Roles) -> Tensor:
        """The change at scale 1, [out inner], in the tensors' own precision."""

    @abstractmethod
    def norm(self, roles: Roles) -> float:
        """The Frobenius norm of the product, without building it where that can be avoided."""

    @abstractmethod
    def times(self, roles: Roles, factor: float) -> dict[str, Tensor]:
        """The tensors, one of them multiplied in float32, so that the product is `factor` times as great."""

    def scale(self, roles: Roles, alpha: float) -> float:
        """What the product is multiplied by: alpha / rank."""
        rank = self.rank(roles)
        return 1.0 if rank is None else alpha / rank


class Pair(Form):
    """up @ down: LoRA. Hu et al. 2021, arXiv:2106.09685, equation 3.

    down is [r in] or [r in k k], up is [out r] or [out r 1 1].
    """

    names: ClassVar[frozenset[str]] = frozenset((DOWN, UP))

    @override
    def _check_fit(self, layer: str, roles: Roles) -> None:
        _need(layer, roles, (DOWN, UP))
        check_pair(layer, roles[DOWN], roles[UP])

    @override
    def rank(self, roles: Roles) -> int:
        return roles[DOWN].shape[0]

    @override
    def size(self, roles: Roles) -> tuple[int, int]:
        return roles[UP].shape[0], math.prod(roles[DOWN].shape[1:])

    @override
    def product(self, roles: Roles) -> Tensor:
        return roles[UP].flatten(1) @ roles[DOWN].flatten(1)

    @override
    def norm(self, roles: Roles) -> float:
        # ||up down||² = trace(upᵀ up · down downᵀ), two small matrices of rank by rank
        low, high = roles[DOWN].double().flatten(1), roles[UP].double().flatten(1)
        square = float(((high.T @ high) * (low @ low.T)).sum())
        return math.sqrt(max(square, 0.0)) if math.isfinite(square) else math.nan

    @override
    def times(self, roles: Roles, factor: float) -> dict[str, Tensor]:
        return {**roles, UP: roles[UP].float() * factor}


class Hadamard(Form):
    """(w1_a w1_b) ∘ (w2_a w2_b): LoHa. Hyeon-Woo et al. 2022, arXiv:2108.06098, equation 2.

    w1_a and w2_a are [out r], w1_b and w2_b are [r inner].
    """

    names: ClassVar[frozenset[str]] = frozenset(HADAMARD)

    @override
    def _check_fit(self, layer: str, roles: Roles) -> None:
        _need(layer, roles, HADAMARD)
        for w in ("hada_w1", "hada_w2"):
            _check_matrices(layer, roles[f"{w}_a"], roles[f"{w}_b"])
        if roles["hada_w1_a"].shape != roles["hada_w2_a"].shape or roles["hada_w1_b"].shape != roles["hada_w2_b"].shape:
            raise WeightsError("The two factors of this LoHa do not fit.", where=layer)
        _check_rank(layer, self.rank(roles), min(self.size(roles)))

    @override
    def rank(self, roles: Roles) -> int:
        return roles["hada_w1_b"].shape[0]

    @override
    def size(self, roles: Roles) -> tuple[int, int]:
        return roles["hada_w1_a"].shape[0], roles["hada_w1_b"].shape[1]

    @override
    def product(self, roles: Roles) -> Tensor:
        return (roles["hada_w1_a"] @ roles["hada_w1_b"]) * (roles["hada_w2_a"] @ roles["hada_w2_b"])

    @override
    def norm(self, roles: Roles) -> float:
        return float(self.product({role: tensor.double() for role, tensor in roles.items()}).norm())

    @override
    def times(self, roles: Roles, factor: float) -> dict[str, Tensor]:
        return {**roles, "hada_w1_a": roles["hada_w1_a"].float() * factor}


class Kronecker(Form):
    """kron(w1, w2), each whole or of two thin matrices: LoKr. Yeh et al. 2023, arXiv:2309.14859.

    w1 is [out1 in1] or w1_a [out1 r] with w1_b [r in1]. w2 is [out2 in2] or [out2 in2 k k], or w2_a [out2 r] with
    w2_b [r inner2]. out = out1·out2, inner = in1·inner2.
    """

    names: ClassVar[frozenset[str]] = frozenset(KRONECKER)

    @override
    def _check_fit(self, layer: str, roles: Roles) -> None:
        for w in ("lokr_w1", "lokr_w2"):
            if w in roles and {f"{w}_a", f"{w}_b"} & set(roles):
                raise WeightsError(f"This LoKr has {w} whole and in two halves.", where=layer)
            if w not in roles:
                _need(layer, roles, (f"{w}_a", f"{w}_b"))
                _check_matrices(layer, roles[f"{w}_a"], roles[f"{w}_b"])
                # thin matrices are used up to half the greater side, which may be above the smaller one
                _check_rank(layer, roles[f"{w}_b"].shape[0], max(roles[f"{w}_a"].shape[0], roles[f"{w}_b"].shape[1]))
            elif roles[w].ndim not in ((2,) if w == "lokr_w1" else (2, 4)) or not roles[w].numel():
                raise WeightsError(f"The shape {list(roles[w].shape)} is none of a {w}.", where=layer)
            else:
                _check_floats(layer, roles[w])

    @override
    def rank(self, roles: Roles) -> int | None:
        thin = [roles[role].shape[0] for role in ("lokr_w2_b", "lokr_w1_b") if role in roles]
        return thin[0] if thin else None

    @override
    def size(self, roles: Roles) -> tuple[int, int]:
        left, right = self._sides(roles, "lokr_w1"), self._sides(roles, "lokr_w2")
        return left[0] * right[0], left[1] * right[1]

    @override
    def product(self, roles: Roles) -> Tensor:
        return torch.kron(*self._factors(roles))

    @override
    def norm(self, roles: Roles) -> float:
        first, second = self._factors({role: tensor.double() for role, tensor in roles.items()})
        return float(first.norm() * second.norm())

    @override
    def times(self, roles: Roles, factor: float) -> dict[str, Tensor]:
        role = "lokr_w1" if "lokr_w1" in roles else "lokr_w1_a"
        return {**roles, role: roles[role].float() * factor}

    @staticmethod
    def _factors(roles: Roles) -> tuple[Tensor, Tensor]:
        """Both as matrices; a whole w2 of a convolution is flattened as the product will be."""
        first, second = (
            roles[w].flatten(1) if w in roles else roles[f"{w}_a"] @ roles[f"{w}_b"] for w in ("lokr_w1", "lokr_w2")
        )
        return first, second

    @staticmethod
    def _sides(roles: Roles, w: str) -> tuple[int, int]:
        if w in roles:
            return roles[w].shape[0], math.prod(roles[w].shape[1:])
        return roles[f"{w}_a"].shape[0], roles[f"{w}_b"].shape[1]


PAIR, HADAMARD_PRODUCT, KRONECKER_PRODUCT = Pair(), Hadamard(), Kronecker()


def form_of(roles: Roles) -> Form:
    """The form of a layer, by the roles that its tensors have."""
    if set(HADAMARD) & set(roles):
        return HADAMARD_PRODUCT
    return KRONECKER_PRODUCT if set(KRONECKER) & set(roles) else PAIR


def check_pair(layer: str, down: Tensor, up: Tensor) -> None:
    """Make sure that the halves of one layer fit each other.

    Raises:
        WeightsError: shapes or dtypes are not those of a linear layer's or a convolution's LoRA.
    """
    _check_floats(layer, down, up)
    linear = down.ndim == 2 and up.ndim == 2
    convolution = down.ndim == 4 and up.ndim == 4 and up.shape[2:] == (1, 1)
    if not (linear or convolution) or down.shape[0] != up.shape[1] or 0 in (*down.shape, *up.shape):
        raise WeightsError(
            f"The shapes {list(down.shape)} and {list(up.shape)} are not the two halves of a LoRA.", where=layer
        )
    _check_rank(layer, down.shape[0], min(up.shape[0], math.prod(down.shape[1:])))


def without_tucker(layer: str, roles: Roles) -> dict[str, Tensor]:
    """The same change without the core tensors that some programs put between the halves of a convolution.

    The rank stays; where there is a core [r r k k], it is multiplied into the half that reads the input, in float32.

    Source: LyCORIS, Yeh et al. 2023, arXiv:2309.14859, on Tucker decomposition.

    Raises:
        WeightsError: shapes do not fit.
    """
    found = dict(roles)
    if "lokr_t1" in found:
        raise WeightsError("A LoKr with a core in its first factor is not supported.", where=layer)
    if MIDDLE in found:
        _need(layer, found, (DOWN, UP))
        half = found[DOWN].flatten(1) if found[DOWN].ndim == 4 else found[DOWN]
        found[DOWN] = _with_core(layer, found.pop(MIDDLE), half)
    for core, w in (("hada_t1", "hada_w1"), ("hada_t2", "hada_w2"), ("lokr_t2", "lokr_w2")):
        if core in found:
            _need(layer, found, (f"{w}_a", f"{w}_b"))
            found[f"{w}_b"] = _with_core(layer, found.pop(core), found[f"{w}_b"]).flatten(1)
            found[f"{w}_a"] = found[f"{w}_a"].T if found[f"{w}_a"].ndim == 2 else found[f"{w}_a"]  # was [r out]
    return found


def _with_core(layer: str, core: Tensor, half: Tensor) -> Tensor:
    """[r in k k]: the core's output channels as the rank, its input channels joined to the half's, [r in]."""
    _check_floats(layer, core, half)
    if core.ndim != 4 or half.ndim != 2 or core.shape[1] != half.shape[0] or core.shape[0] != core.shape[1]:
        raise WeightsError(f"The core {list(core.shape)} does not fit a half {list(half.shape)}.", where=layer)
    return torch.einsum("rskl,si->rikl", core.float(), half.float())


def _need(layer: str, roles: Roles, names: tuple[str, ...]) -> None:
    for name in names:
        if name not in roles:
            raise WeightsError(f"Half of an adapted layer is missing: {name}.", where=layer)


def _check_matrices(layer: str, left: Tensor, right: Tensor) -> None:
    _check_floats(layer, left, right)
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0] or 0 in (*left.shape, *right.shape):
        raise WeightsError(f"The shapes {list(left.shape)} and {list(right.shape)} do not fit.", where=layer)


def _check_floats(layer: str, *tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.dtype not in _FLOATS:
            raise WeightsError(f"Adapter weights must be floats, and these are {tensor.dtype}.", where=layer)


def _check_rank(layer: str, rank: int, most: int) -> None:
    """A rank above the layer's own size adds nothing: such a file is broken or hostile."""
    if rank > most:
        raise WeightsError(f"An adapter of rank {rank} on a layer of rank {most}.", where=layer)
