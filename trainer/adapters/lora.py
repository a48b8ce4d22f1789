"""LoRA: two thin matrices beside each chosen layer."""

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from trainer.adapters.injecting import inject, layers_named, width_of
from trainer.adapters.trainable import Adapter, Trainable
from trainer.core.errors import RecipeError
from trainer.core.seeds import Seeds
from trainer.families.model import DiffusionModel


class Lora(Adapter):
    """Two thin matrices beside each chosen layer; the base weights stay as they are.

    Source: Hu et al. 2021, arXiv:2106.09685, equation 3.
    """

    kind: Literal["lora"] = "lora"
    rank: PositiveInt = 16
    """The width between the two matrices: what can be learned, and the size of the file."""
    alpha: PositiveFloat = 16.0
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """The share of a layer's inputs that the adapter does not see in a step."""
    layers: tuple[str, ...] = Field(default=("attention",), min_length=1)
    """Which layers: attention, feed_forward, transformer (both, and the projections around them), convolution."""

    def attach(self, model: DiffusionModel, seeds: Seeds) -> Trainable:
        """Down projections at random, up projections zero: the model predicts as before.

        Raises:
            RecipeError: the family has no layers of those names, or the rank is greater than one of them is wide.
        """
        from peft import LoraConfig

        layers = layers_named(model, self.layers)
        narrowest = min(layers, key=lambda layer: width_of(model, layer))
        if self.rank > width_of(model, narrowest):
            raise RecipeError(
                f"The rank {self.rank} is greater than the layer {narrowest} is wide ({width_of(model, narrowest)}).",
                where="adapter.rank",
                mend=f"Choose a rank of at most {width_of(model, narrowest)}; a wider adapter learns nothing more.",
            )

        def config(targets: list[str]) -> Any:
            # peft annotates alpha as an integer and only ever divides it
            return LoraConfig(target_modules=targets, r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout)  # pyright: ignore[reportArgumentType]

        return inject(model, layers, config, seeds.integer("adapter"))
