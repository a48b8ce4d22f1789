"""The parts of a model that can be trained: which layers the words of a recipe mean, in which network."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import PositiveFloat
from torch import nn

from trainer.core.errors import RecipeError
from trainer.core.settings import Settings
from trainer.families.model import DiffusionModel

UNET: Final = "unet"  # the denoiser: as recipes call it, and as files do
TEXT_WORDS: Final = ("te1", "te2")


class Rates(Settings):
    """The learning rate of each part, where it is not the optimiser's."""

    unet: PositiveFloat | None = None
    """Of the layers in the denoiser; absent: optimizer.rate."""
    te1: PositiveFloat | None = None
    """Of the first, or only, text encoder; absent: optimizer.rate."""
    te2: PositiveFloat | None = None
    """Of the second text encoder; absent: optimizer.rate."""

    def of(self, word: str) -> float | None:
        """The rate of a part; None where it is the optimiser's."""
        return self.given.get(word)

    @property
    def given(self) -> dict[str, float]:
        """The parts that have a rate of their own."""
        all_rates = {UNET: self.unet, "te1": self.te1, "te2": self.te2}
        return {word: rate for word, rate in all_rates.items() if rate is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Layers of one network that are adapted together."""

    word: str  # of recipes and logs: unet, te1, te2
    part: str  # the network, as `DiffusionModel.network` and files call it
    layers: Sequence[str]  # paths inside the network, in its order
    rate: float | None = None  # None: the optimiser's


def part_word(word: str) -> str:
    """The part of a word of `layers`, as rates and logs call it."""
    return word if word in TEXT_WORDS else UNET


def check_words(
    model: DiffusionModel, words: Sequence[str], where: str = "adapter.layers", also: Sequence[str] = ()
) -> None:
    """Make sure that the family has layers of these names, or `also` knows them; they stand at `where` in a recipe.

    Raises:
        RecipeError: it has not.
    """
    known = [*also, *model.adaptable, *model.text_parts]
    unknown = [word for word in words if word not in known]
    if unknown:
        only_sdxl = "te2 is the second text encoder, which Stable Diffusion XL alone has. " if "te2" in unknown else ""
        raise RecipeError(
            f"This family has no layers called {', '.join(unknown)}.",
            where=where,
            mend=f"{only_sdxl}Choose among: {', '.join(sorted(known))}.",
        )


def targets_of(model: DiffusionModel, words: Sequence[str], rates: Rates) -> list[Target]:
    """The layers that the words of a recipe mean, network by network, the denoiser first.

    Raises:
        RecipeError: the family does not know a word.
    """
    check_words(model, words)
    patterns: dict[str, tuple[str, str]] = {}  # word of the part -> its network, what to look for there
    in_denoiser = [model.adaptable[word] for word in words if word in model.adaptable]
    if in_denoiser:
        patterns[UNET] = UNET, "|".join(in_denoiser)
    for word, part in model.text_parts.items():
        if word in words:
            model.keep_text_encoders()  # before it is loaded: from now on it is part of the run
            patterns[word] = part, model.adaptable_text
    return [
        Target(word=word, part=part, layers=_layers(model.network(part), pattern), rate=rates.of(word))
        for word, (part, pattern) in patterns.items()
    ]


def parts_of(model: DiffusionModel) -> dict[str, str]:
    """The networks of a model that can be trained, the denoiser first, each with the word that recipes have for it."""
    return {UNET: UNET} | {part: word for word, part in model.text_parts.items()}


def width_of(network: nn.Module, layer: str) -> int:
    """The greatest rank that a change of this layer's weight can have."""
    # not by its weight: a quantised one would be unpacked for it
    found = network.get_submodule(layer)
    if isinstance(found, nn.Conv2d):
        return min(found.out_channels, found.in_channels // found.groups * math.prod(found.kernel_size))
    if isinstance(found, nn.Linear):
        return min(found.out_features, found.in_features)
    raise TypeError(f"An adapter sits at linear layers and convolutions, and {layer} is none.")


def _layers(network: nn.Module, pattern: str) -> list[str]:
    wanted = re.compile(pattern)
    layers = network.named_modules()
    return [path for path, layer in layers if isinstance(layer, (nn.Linear, nn.Conv2d)) and wanted.fullmatch(path)]
