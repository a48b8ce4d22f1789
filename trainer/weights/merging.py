"""Several adapters as one, and adapters inside a base model's weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.core.errors import NonFiniteError, RecipeError, WeightsError
from trainer.core.progress import Phases
from trainer.core.tensors import is_finite
from trainer.weights.adapter_state import AdapterState
from trainer.weights.fitting import FitReport, Fitting
from trainer.weights.lora_state import LoraState
from trainer.weights.low_rank import FixedRank, RankRule
from trainer.weights.products import Base, Product, joined, product_of, whole_change


@dataclass(frozen=True, slots=True)
class Weighted:
    """An adapter and how strongly it acts; 1 is as it was trained."""

    name: str  # for messages and metadata
    adapter: AdapterState
    strength: float


def merge(
    adapters: Sequence[Weighted], rule: RankRule | None, dtype: torch.dtype, base: Base, progress: Phases
) -> tuple[LoraState, FitReport]:
    """One LoRA that does what several adapters do together, each at its strength.

    Args:
        adapters: of one family; of any kinds, ranks, alphas and layers.
        rule: None joins the ranks, which is exact: a layer's rank is then the sum of the adapters' ranks, or the
            layer's own size where that is less. A rule gives the nearest LoRA of less rank.
        dtype: of the new tensors.
        base: the model that the adapters belong to; a DoRA needs its weights.
        progress: is told of it.

    Raises:
        RecipeError: an adapter's kind has no ranks to join, and no rule is given.
        WeightsError: two adapters change a layer of the same name and of different shapes; nothing is left; or an
            adapter needs a base.
        NonFiniteError: a change is not finite, or overflows in `dtype`.
    """
    fitting = Fitting(dtype)
    owners = owners_of(adapters)
    for number, (layer, acting) in enumerate(owners.items()):
        products = [product_of(one.adapter, layer, one.strength) for one in acting]
        known = [product for product in products if product is not None]
        if not acting:
            fitting.leave_out(layer)
        elif len(known) == len(acting):
            _add_products(fitting, layer, known, rule)
        elif rule is None:
            raise _needs_rank(acting[products.index(None)])
        else:
            fitting.approximate(layer, _sum_of_changes(layer, acting, base), rule)
        progress("merging", number + 1, len(owners))
    return fitting.state(), fitting.report()


def merged_weight(layer: str, weight: Tensor, acting: Sequence[Weighted], dtype: torch.dtype | None = None) -> Tensor:
    """A base's weight with the changes of adapters; the sum is made in float32.

    Each adapter sees the base as it was, not what the others made of it.

    Args:
        layer: its canonical name.
        weight: [out in] or [out in k k], of any dtype.
        acting: the adapters that change this layer.
        dtype: of the result; None means the weight's own.

    Raises:
        WeightsError: an adapter's change has another size than the weight.
        NonFiniteError: the sum is not finite, or overflows in the format of the result.
    """
    plain = weight.float()
    total = plain.clone()
    for one in acting:
        total += one.strength * one.adapter.change(layer, plain)
    merged = total.to(dtype or weight.dtype)
    if not is_finite(merged):
        raise NonFiniteError(
            f"The merged weight is not finite in {str(merged.dtype).removeprefix('torch.')}; nothing was written.",
            where=layer,
            mend="Merge with less strength, or write float32 or bfloat16.",
        )
    return merged


def owners_of(adapters: Sequence[Weighted]) -> dict[str, list[Weighted]]:
    """Which adapters act on each layer, in the order of the layers' names; none where all have no strength."""
    owners: dict[str, list[Weighted]] = {}
    for one in adapters:
        for layer in one.adapter.layers():
            acting = owners.setdefault(layer, [])
            if one.strength:
                acting.append(one)
    return dict(sorted(owners.items()))


def _add_products(fitting: Fitting, layer: str, products: Sequence[Product], rule: RankRule | None) -> None:
    for product in products[1:]:
        # 1x1 convolutions and linear layers are the same numbers, and tools disagree on which of them a layer is
        if product.up.shape[0] != products[0].up.shape[0] or product.down.shape[1] != products[0].down.shape[1]:
            raise _misfit(layer, products[0].shape, product.shape)
    together = joined(products)
    if rule is not None:
        fitting.shorten(layer, together, rule)
    elif together.rank > together.most:
        fitting.shorten(layer, together, FixedRank(together.most))  # still exact: no change has more rank than this
    else:
        fitting.keep(layer, together)


def _sum_of_changes(layer: str, acting: Sequence[Weighted], base: Base) -> Tensor:
    changes = [one.strength * whole_change(one.adapter, layer, base) for one in acting]
    for change in changes[1:]:
        if change.flatten(1).shape != changes[0].flatten(1).shape:
            raise _misfit(layer, changes[0].shape, change.shape)
    return torch.stack([change.reshape(changes[0].shape) for change in changes]).sum(0)


def _misfit(layer: str, one: torch.Size, other: torch.Size) -> WeightsError:
    return WeightsError(
        f"This layer is of the shape {list(one)} in one file and {list(other)} in another.",
        where=layer,
        mend="Merge only files that belong to one model.",
    )


def _needs_rank(one: Weighted) -> RecipeError:
    return RecipeError(
        f"{one.name} is no plain LoRA, so its ranks cannot be joined to others.",
        where="--rank",
        mend="Give the rank of the result, as --rank 32, or --energy 0.99.",
    )
