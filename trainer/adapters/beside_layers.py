"""What all adapters beside layers share: LoRA, LoHa and LoKr."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self, override

from trainer.adapters.injecting import Beside, InjectedAdapter, inject
from trainer.adapters.parts import TEXT_WORDS, UNET, Rates, Target, check_words, part_word, targets_of, width_of
from trainer.adapters.sizes import ConvolutionSize, LayerSize, Size, Sizes
from trainer.adapters.starting import start_from
from trainer.adapters.trainable import Adapter, Trainable
from trainer.core.errors import RecipeError, WeightsError
from trainer.core.seeds import Seeds
from trainer.families.model import DiffusionModel
from trainer.weights.adapter_state import AdapterKind
from trainer.weights.reading import read_adapter


class AdapterBesideLayers(Adapter):
    """Something small beside each chosen layer that changes its weight; the base weights stay as they are."""

    rank: PositiveInt = 16
    """The width between the thin matrices: what can be learned, and the size of the file."""
    alpha: PositiveFloat = 16.0
    """The update is scaled by alpha / rank."""
    layers: tuple[str, ...] = Field(default=("attention",), min_length=1)
    """Which layers: attention, feed_forward, transformer (both, and the projections around them), convolution; and te1,
    the text encoder, and te2, the second one of Stable Diffusion XL. With te1 or te2, words are encoded anew in every
    step instead of read from the cache."""
    convolution: ConvolutionSize | None = None
    """Rank and alpha of the 3x3 convolutions, where they are not those of the other layers."""
    ranks: tuple[LayerSize, ...] = ()
    """Rank and alpha of some layers by their kind, part or block; of two lines that mean a layer the later counts."""
    rates: Rates = Rates()
    """Learning rates of the denoiser's layers (unet) and of the text encoders (te1, te2), where they are not
    optimizer.rate: a text encoder mostly wants less."""
    module_dropout: float = Field(default=0.0, ge=0, lt=1)
    """The chance that a layer's adapter is left out in a step as a whole."""
    max_norm: PositiveFloat | None = None
    """The greatest norm that the change of a layer may have; after each step larger ones are scaled down to it. Values
    around 1 keep single layers from taking over. Absent: any."""
    start: Path | None = None
    """An adapter of this kind to go on from: a file in kohya's or diffusers' layout, or peft's folder. Its layers, rank
    and alpha must be those of the recipe."""

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
    @abstractmethod
    def file_kind(self) -> AdapterKind:
        """What files call the result."""

    @abstractmethod
    def config(self, target: Target, sizes: Mapping[str, Size]) -> Any:
        """Peft's configuration for the layers of one network.

        Args:
            target: the layers.
            sizes: of each of them, by its path.
        """

    @property
    def beside(self) -> Beside | None:
        """What is put beside each of peft's layers, where something is."""
        return None

    def widest(self, width: int) -> int | None:
        """The greatest rank that a layer of this width may have; None: any."""
        return width

    @property
    def _parts(self) -> set[str]:
        """The parts that are trained, as `rates` calls them."""
        return {part_word(word) for word in self.layers}

    @property
    def _sizes(self) -> Sizes:
        return Sizes(plain=Size(self.rank, self.alpha), convolution=self.convolution, special=self.ranks)

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
        self._sizes.check(model)
        if self.start is not None and self.start.exists():  # a run that goes on does not need it any more
            kind = read_adapter(self.start, model.naming).state.kind
            if kind != self.file_kind:
                raise WeightsError(
                    f"This is a {kind}, and the recipe trains a {self.file_kind}.",
                    where=str(self.start),
                    mend="Name a file of the same kind in adapter.start.",
                )

    @override
    def attach(self, model: DiffusionModel, seeds: Seeds) -> InjectedAdapter:
        """New layers that change nothing yet.

        Raises:
            RecipeError: the family has no layers of those names, or a rank is greater than its layer is wide.
        """
        targets = targets_of(model, self.layers, self.rates)
        sizes = self._sizes.of(model, targets)
        for target in targets:
            self._check_ranks(model, target, sizes[target.part])

        def seed_of(target: Target) -> int:
            # each part by itself, so that the denoiser begins alike with and without the text encoders
            return seeds.integer("adapter") if target.word == UNET else seeds.integer("adapter", target.word)

        def config(target: Target) -> Any:
            return self.config(target, sizes[target.part])

        return inject(model, targets, config, seed_of, self.beside, self.max_norm)

    @override
    def begin(self, trainable: Trainable, model: DiffusionModel) -> None:
        if self.start is not None and isinstance(trainable, InjectedAdapter):
            start_from(trainable, self.start, model.naming)

    def _check_ranks(self, model: DiffusionModel, target: Target, sizes: Mapping[str, Size]) -> None:
        network = model.network(target.part)
        widths = {layer: width_of(network, layer) for layer in target.layers}
        for layer in sorted(target.layers, key=lambda layer: widths[layer]):
            most = self.widest(widths[layer])
            if most is not None and sizes[layer].rank > most:
                raise RecipeError(
                    f"The rank {sizes[layer].rank} is greater than the layer {layer} is wide ({most}).",
                    where="adapter.rank",
                    mend=f"Choose a rank of at most {most}; a wider adapter learns nothing more.",
                )
