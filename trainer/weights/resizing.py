"""An adapter at another rank."""

import torch

from trainer.core.progress import Phases
from trainer.weights.adapter_state import AdapterState
from trainer.weights.fitting import FitReport, Fitting
from trainer.weights.lora_state import LoraState
from trainer.weights.low_rank import RankRule
from trainer.weights.products import Base, product_of, whole_change


def resize(
    adapter: AdapterState, rule: RankRule, dtype: torch.dtype, base: Base, progress: Phases
) -> tuple[LoraState, FitReport]:
    """The LoRA nearest to an adapter, with as much rank a layer as `rule` gives.

    A LoRA's layers keep their scale: the new alpha is the new rank times the old alpha / rank, so that the strength
    stays what it was, in drawing and in further training. Other kinds become a LoRA with alpha = rank. Of a LoRA the
    result is the truncated singular value decomposition of each change, exactly, though no change is built.

    Args:
        adapter: of any kind.
        rule: one rank for all, or a share of each layer's energy.
        dtype: of the new tensors.
        base: the model that the adapter belongs to; a DoRA needs its weights.
        progress: is told of it.

    Raises:
        WeightsError: nothing is left, or the adapter needs a base.
        NonFiniteError: a change is not finite, or overflows in `dtype`.

    Source: Eckart and Young 1936, Psychometrika 1, p. 211: no other matrix of this rank is nearer.
    """
    fitting = Fitting(dtype)
    layers = adapter.layers()
    for number, layer in enumerate(layers):
        product = product_of(adapter, layer)
        if product is None:
            fitting.approximate(layer, whole_change(adapter, layer, base), rule)
        else:
            fitting.shorten(layer, product, rule)
        progress("resizing", number + 1, len(layers))
    return fitting.state(), fitting.report()
