"""How large the adapter of each layer is: one rank and alpha, and others where a recipe says so."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import nn
from typing_extensions import Self

from trainer.adapters.parts import UNET, Target, check_words
from trainer.core.errors import RecipeError
from trainer.core.settings import Settings
from trainer.families.model import DiffusionModel

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Size:
    """Of the adapter beside one layer."""

    rank: int
    alpha: float  # as the recipe means it: the change is scaled by alpha / rank, or by alpha / root of rank


class ConvolutionSize(Settings):
    """Rank and alpha of the 3x3 convolutions, as `conv_dim` and `conv_alpha` of other trainers."""

    rank: PositiveInt
    """Their rank."""
    alpha: PositiveFloat | None = None
    """Their alpha; absent: in the same proportion to the rank as the adapter's."""


class LayerSize(Settings):
    """Rank and alpha of some layers, where they are not the adapter's."""

    layers: tuple[str, ...] = ()
    """Which layers, in the words of adapter.layers, or unet for all of the denoiser; absent: of any kind."""
    blocks: tuple[str, ...] = ()
    """Which blocks, such as mid_block, down_blocks.0 or up_blocks.1.attentions.2; of a text encoder such as
    encoder.layers.11. Absent: all."""
    rank: PositiveInt
    """Their rank."""
    alpha: PositiveFloat | None = None
    """Their alpha; absent: in the same proportion to the rank as the adapter's."""

    @model_validator(mode="after")
    def _means_some_layers(self) -> Self:
        if not self.layers and not self.blocks:
            raise ValueError("name layers or blocks; for all layers there is adapter.rank.")
        return self

    def means(self, model: DiffusionModel, target: Target, path: str) -> bool:
        """Whether a layer is among them."""
        block = path.removeprefix("text_model.")
        of_block = not self.blocks or any(block == name or block.startswith(f"{name}.") for name in self.blocks)
        patterns = [model.adaptable[word] for word in self.layers if word in model.adaptable]
        of_kind = target.word == UNET and any(re.fullmatch(pattern, path) for pattern in patterns)
        return of_block and (not self.layers or target.word in self.layers or of_kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a recipe says of ranks and alphas; what stands later counts more."""

    plain: Size
    convolution: ConvolutionSize | None
    special: Sequence[LayerSize]

    def check(self, model: DiffusionModel) -> None:
        """Make sure that the family knows the words.

        Raises:
            RecipeError: it does not.
        """
        for line in self.special:
            check_words(model, [word for word in line.layers if word != UNET], "adapter.ranks")

    def of(self, model: DiffusionModel, targets: Sequence[Target]) -> Mapping[str, Mapping[str, Size]]:
        """The size of each layer: part -> path inside the network -> size.

        Raises:
            RecipeError: the family does not know a word, or what is said is of no layer that is trained.
        """
        self.check(model)
        used = [False] * len(self.special)
        wide = False
        found: dict[str, dict[str, Size]] = {}
        for target in targets:
            network = model.network(target.part)
            sizes = found.setdefault(target.part, {})
            for path in target.layers:
                sizes[path] = self.plain
                if self.convolution is not None and is_wide(network.get_submodule(path)):
                    sizes[path], wide = self._size(self.convolution), True
                for number, line in enumerate(self.special):
                    if line.means(model, target, path):
                        sizes[path], used[number] = self._size(line), True
        if self.convolution is not None and not wide:
            raise _idle("adapter.convolution")
        if not all(used):
            raise _idle(f"adapter.ranks.{used.index(False)}")
        return found

    def _size(self, said: ConvolutionSize | LayerSize) -> Size:
        alpha = self.plain.alpha / self.plain.rank * said.rank if said.alpha is None else said.alpha
        return Size(said.rank, alpha)


def is_wide(layer: nn.Module) -> bool:
    """Whether a layer is a convolution of more than one pixel."""
    return isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)


@dataclass(frozen=True, slots=True)
class Numbers:
    """Ranks and alphas of layers as peft's configurations say them."""

    rank: int  # of most layers
    alpha: float  # likewise
    ranks: Mapping[str, int]  # pattern of all layers that have another one -> that
    alphas: Mapping[str, float]  # likewise


def numbers(sizes: Mapping[str, Size]) -> Numbers:
    """The sizes of a network's layers, by their paths, in peft's words.

    peft asks each pattern for each layer, so that a pattern a layer would take long for a large network: there is one
    for each number.
    """
    ranks = {path: size.rank for path, size in sizes.items()}
    alphas = {path: size.alpha for path, size in sizes.items()}
    rank, alpha = (Counter(of_layers.values()).most_common(1)[0][0] for of_layers in (ranks, alphas))
    return Numbers(int(rank), alpha, _patterns(ranks, int(rank)), _patterns(alphas, alpha))


def _patterns(of_layers: Mapping[str, Number], usual: Number) -> dict[str, Number]:
    paths: dict[Number, list[str]] = {}
    for path, number in of_layers.items():
        if number != usual:
            paths.setdefault(number, []).append(re.escape(path))
    return {"|".join(found): number for number, found in paths.items()}


def _idle(where: str) -> RecipeError:
    return RecipeError(
        "A rank is given here, and no layer that is trained is meant by it.",
        where=where,
        mend="Leave it out, or add its layers to adapter.layers.",
    )
