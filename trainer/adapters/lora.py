"""LoRA: two thin matrices beside each chosen layer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self, override

from trainer.adapters.injecting import inject
from trainer.adapters.parts import TEXT_WORDS, UNET, Rates, Target, check_words, targets_of, width_of
from trainer.adapters.starting import start_from
from trainer.adapters.trainable import Adapter, Trainable
from trainer.core.errors import RecipeError
from trainer.core.seeds import Seeds
from trainer.families.model import DiffusionModel
from trainer.weights.reading import read_lora


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
    """Which layers: attention, feed_forward, transformer (both, and the projections around them), convolution; and te1,
    the text encoder, and te2, the second one of Stable Diffusion XL. With te1 or te2, words are encoded anew in every
    step instead of read from the cache."""
    rates: Rates = Rates()
    """Learning rates of the denoiser's layers (unet) and of the text encoders (te1, te2), where they are not
    optimizer.rate: a text encoder mostly wants less."""
    start: Path | None = None
    """A LoRA to go on from: a file in kohya's or diffusers' layout, or peft's folder. Its layers, rank and alpha must
    be those of the recipe."""

    @model_validator(mode="after")
    def _rates_are_of_trained_parts(self) -> Self:
        strangers = [word for word in self.rates.given if word not in self._parts]
        if strangers:
            raise ValueError(
                f"rates.{strangers[0]} is given, and nothing of that part is trained: layers is "
                f"[{', '.join(self.layers)}]."
            )
        return self

    @property
    def _parts(self) -> set[str]:
        """The parts that are trained, as `rates` calls them."""
        return {word if word in TEXT_WORDS else UNET for word in self.layers}

    @property
    @override
    def trains_words(self) -> bool:
        return not self._parts.isdisjoint(TEXT_WORDS)

    @property
    @override
    def files(self) -> Mapping[str, Path]:
        return {} if self.start is None else {"adapter.start": self.start}

    @override
    def check(self, model: DiffusionModel) -> None:
        check_words(model, self.layers)
        if self.start is not None and self.start.exists():  # a run that goes on does not need it any more
            read_lora(self.start, model.naming)

    @override
    def attach(self, model: DiffusionModel, seeds: Seeds) -> Trainable:
        """Down projections at random, up projections zero: the model predicts as before.

        Raises:
            RecipeError: the family has no layers of those names, or the rank is greater than one of them is wide.
        """
        from peft import LoraConfig

        targets = targets_of(model, self.layers, self.rates)
        for target in targets:
            self._check_rank(model, target)

        def config(target: Target) -> Any:
            # peft annotates alpha as an integer and only ever divides it
            return LoraConfig(
                target_modules=list(target.layers),
                r=self.rank,
                lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType]
                lora_dropout=self.dropout,
            )

        def seed_of(target: Target) -> int:
            # each part by itself, so that the denoiser begins alike with and without the text encoders
            return seeds.integer("adapter") if target.word == UNET else seeds.integer("adapter", target.word)

        return inject(model, targets, config, seed_of)

    @override
    def begin(self, trainable: Trainable, model: DiffusionModel) -> None:
        if self.start is not None:
            start_from(trainable, self.start, model.naming)

    def _check_rank(self, model: DiffusionModel, target: Target) -> None:
        network = model.network(target.part)
        narrowest = min(target.layers, key=lambda layer: width_of(network, layer))
        widest = width_of(network, narrowest)
        if self.rank > widest:
            raise RecipeError(
                f"The rank {self.rank} is greater than the layer {narrowest} is wide ({widest}).",
                where="adapter.rank",
                mend=f"Choose a rank of at most {widest}; a wider adapter learns nothing more.",
            )
