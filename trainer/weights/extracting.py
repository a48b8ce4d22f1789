"""The difference of two models as a LoRA."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.core.errors import NonFiniteError, WeightsError
from trainer.core.progress import Phases
from trainer.weights.fitting import FitReport, Fitting
from trainer.weights.lora_state import LoraState
from trainer.weights.low_rank import RankRule
from trainer.weights.names import Naming
from trainer.weights.stored_model import StoredModel, layers_of


@dataclass(frozen=True, slots=True)
class Extraction:
    """What was taken out of a tuned model."""

    state: LoraState
    fit: FitReport
    beyond: tuple[str, ...]
    """Tensors that differ too, and that no LoRA holds: biases, norms, embeddings, the first and last convolution."""

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**self.fit.as_json(), "beyond": list(self.beyond)}


def extract(
    base: StoredModel, tuned: StoredModel, naming: Naming, rule: RankRule, dtype: torch.dtype, progress: Phases
) -> Extraction:
    """The LoRA that, on `base`, comes nearest to `tuned`: linear layers and convolutions of U-Net and text encoders.

    One tensor of each model is in memory at a time. Layers that do not differ are left out; where the two files are of
    different number formats, what the coarser one cannot tell apart does not differ.

    Args:
        base: what the LoRA will be used with.
        tuned: a full fine-tune of it, or a merge.
        naming: of their family.
        rule: how much rank a layer gets.
        dtype: of the new tensors.
        progress: is told of it.

    Raises:
        WeightsError: the models hold different layers or shapes, or do not differ.
        NonFiniteError: a weight is not finite.
    """
    parts = set(naming.parts)
    names = [name for name in base.tensors if name.split(".")[0] in parts]
    _check_alike(base, tuned, names, parts)
    layer_of = {name: layer for layer, name in layers_of(base, naming).items()}
    fitting = Fitting(dtype)
    beyond: list[str] = []
    for number, name in enumerate(sorted(names)):
        change = _difference(base.read(name), tuned.read(name), name)
        if name in layer_of and change is not None:
            fitting.approximate(layer_of[name], change, rule)
        elif name in layer_of:
            fitting.leave_out(layer_of[name])
        elif change is not None:
            beyond.append(name)
        progress("extracting", number + 1, len(names))
    if not any(fit.rank for fit in fitting.report().layers):
        raise WeightsError(
            "These two models do not differ in any layer that a LoRA can change.",
            where=f"{base.where}, {tuned.where}",
            mend="Name the model that was trained further, and the one that it started from.",
        )
    return Extraction(fitting.state(), fitting.report(), tuple(beyond))


def _check_alike(base: StoredModel, tuned: StoredModel, names: list[str], parts: set[str]) -> None:
    """Make sure that both models hold the same tensors, in the same shapes."""
    other = {name for name in tuned.tensors if name.split(".")[0] in parts}
    alone = sorted(other ^ set(names))
    if alone:
        raise WeightsError(
            f"These two models are built differently: {len(alone)} weights are in one only, {alone[0]} among them.",
            where=f"{base.where}, {tuned.where}",
            mend="Name two models of one family, both with their text encoders.",
        )
    for name in names:
        one, two = base.tensors[name].shape, tuned.tensors[name].shape
        if one != two:
            raise WeightsError(
                f"These two models are built differently: a weight is {list(one)} in one and {list(two)} in the other.",
                where=name,
                mend="Name two models of one family and size; an inpainting model differs from a plain one.",
            )


def _difference(base: Tensor, tuned: Tensor, name: str) -> Tensor | None:
    """The difference, float32; None where they do not differ in the coarser of their formats."""
    if not (base.is_floating_point() and tuned.is_floating_point()):
        return None
    coarser = max((base.dtype, tuned.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    if torch.equal(base.to(coarser).float(), tuned.to(coarser).float()):  # 8 bits cannot be compared as they are
        return None
    change = tuned.float() - base.float()
    if not bool(torch.isfinite(change).all()):
        raise NonFiniteError("A weight of these models is not finite.", where=name, mend="Get the model again.")
    return change
