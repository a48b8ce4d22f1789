"""Pivotal tuning: new words and a LoRA in one run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import PositiveFloat, model_validator
from torch import Tensor
from typing_extensions import Self, override

from trainer.adapters.injecting import InjectedAdapter
from trainer.adapters.lora import Lora
from trainer.adapters.textual_inversion import GROUP, TrainedWords, WordsAdapter
from trainer.adapters.trainable import Surroundings, Trainable
from trainer.core.errors import RecipeError
from trainer.core.seeds import Seeds
from trainer.families.model import DiffusionModel
from trainer.optim.groups import ParameterGroup
from trainer.weights.bundles import bundle
from trainer.weights.embeddings import file_of_word
from trainer.weights.export import ExportSettings
from trainer.weights.metadata import TrainingFacts


class Pivotal(WordsAdapter):
    """New words that say what the pictures show, and a LoRA that draws what the model could not, in one run.

    The result is the LoRA, and beside it one embedding file a word: both must be loaded. Source: Roich et al. 2021,
    arXiv:2106.05744, section 3, on the thought; Gal et al. 2022, arXiv:2208.01618, on the words.
    """

    kind: Literal["pivotal"] = "pivotal"
    lora: Lora = Lora()
    """The LoRA, with all that it may say by itself."""
    words_rate: PositiveFloat | None = None
    """The learning rate of the new words; absent: optimizer.rate. They mostly want ten times that of the LoRA."""
    bundle: bool = False
    """Whether the LoRA file holds the new words too, as A1111 reads them, besides their own files. ComfyUI passes over
    them, and diffusers does not load such a file."""

    @model_validator(mode="after")
    def _can_be_bundled(self) -> Self:
        dotted = [word.word for word in self.words if "." in word.word]
        if self.bundle and dotted:
            raise ValueError(f"A word that is bundled has no dots: {dotted[0]}.")
        return self

    @property
    @override
    def files(self) -> Mapping[str, Path]:
        return {key.replace("adapter.", "adapter.lora."): path for key, path in self.lora.files.items()}

    @override
    def word_files(self, result: Path) -> Mapping[str, Path]:
        beside = result if result.suffix else result.with_name(f"{result.name}.safetensors")
        return {word.word: file_of_word(beside, word.word, place + 1) for place, word in enumerate(self.words)}

    @override
    def check(self, model: DiffusionModel) -> None:
        super().check(model)
        self.lora.check(model)

    @override
    def check_export(self, model: DiffusionModel, settings: ExportSettings) -> None:
        self.lora.check_export(model, settings)
        if self.bundle and settings.layout != "kohya":
            raise RecipeError(
                f"Words are bundled into a file in kohya's layout, and this is to be {settings.layout}.",
                where="adapter.bundle",
                mend="Leave adapter.bundle or export.layout out.",
            )

    @override
    def check_surroundings(self, surroundings: Surroundings) -> None:
        self.lora.check_surroundings(surroundings)

    @override
    def attach(self, model: DiffusionModel, seeds: Seeds) -> "PivotalTrained":
        # first the LoRA: peft freezes all that it does not know
        lora = self.lora.attach(model, seeds)
        return PivotalTrained(lora, self.attach_words(model, seeds), self)

    @override
    def begin(self, trainable: Trainable, model: DiffusionModel) -> None:
        if isinstance(trainable, PivotalTrained):
            self.lora.begin(trainable.lora, model)


class PivotalTrained(Trainable):
    """A LoRA and new words inside a model."""

    def __init__(self, lora: InjectedAdapter, words: TrainedWords, settings: Pivotal) -> None:
        self.lora = lora
        self.words = words
        self._settings = settings

    @property
    @override
    def parts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.lora.parts, *self.words.parts)))

    @override
    def groups(self) -> list[ParameterGroup]:
        words = [
            ParameterGroup(group.name, group.parameters, self._settings.words_rate) for group in self.words.groups()
        ]
        return [*self.lora.groups(), *words]

    @override
    def state(self) -> dict[str, Tensor]:
        return self.lora.state() | self.words.state()

    @override
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        of_words = {name for name in state if name.endswith(f".{GROUP}")}
        self.lora.load_state({name: tensor for name, tensor in state.items() if name not in of_words})
        self.words.load_state({name: state[name] for name in of_words})

    @override
    def set_strength(self, strength: float) -> None:
        self.lora.set_strength(strength)
        self.words.set_strength(strength)

    @override
    def after_step(self) -> None:
        self.lora.after_step()
        self.words.after_step()

    @override
    def write(self, path: Path, facts: TrainingFacts, settings: ExportSettings) -> Path:
        """See `Trainable.write`; the words lie in files of their own beside it."""
        self.words.write_files(self._settings.word_files(settings.result(path)), facts, settings)
        result = self.lora.write(path, facts, settings)
        if self._settings.bundle:
            bundle(result, self.words.embeddings(), settings)
        return result
