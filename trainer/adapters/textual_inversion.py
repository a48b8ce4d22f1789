"""Textual inversion: new words, of which nothing but the vectors is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, PositiveInt, field_validator, model_validator
from torch import Tensor, nn
from typing_extensions import Self, override

from trainer.adapters.trainable import Adapter, Trainable
from trainer.core.errors import CheckpointError, RecipeError
from trainer.core.seeds import Seeds
from trainer.core.settings import Settings
from trainer.families.model import DiffusionModel
from trainer.families.new_words import WordTable
from trainer.optim.groups import ParameterGroup
from trainer.weights.embeddings import Embedding, export_embedding, file_of_word, plain_word
from trainer.weights.export import ExportSettings
from trainer.weights.metadata import TrainingFacts, as_metadata

GROUP = "words"
"""The parameter group of new words, as logs and checkpoints call it."""

_PULL = 0.1  # how much of the way, in powers, a vector goes back to the usual length in one step


class NewWord(Settings):
    """A word that is added to the model."""

    word: str = Field(min_length=1, max_length=60)
    """How it is written in captions and prompts, such as `<blob>`: without spaces and commas, and none that the model
    knows already."""
    vectors: PositiveInt = Field(default=4, le=75)
    """How many vectors it means: so many of the tokens that a caption may have. More hold more, and are harder to use
    together with other words."""
    start: str = ""
    """One or a few ordinary words that it begins as, repeated over the vectors; none: at random, spread as the model's
    own words are."""

    @field_validator("word")
    @classmethod
    def _is_one_word(cls, word: str) -> str:
        if any(sign.isspace() or sign == "," or not sign.isprintable() for sign in word):
            raise ValueError("A new word has no spaces, no commas and no invisible signs, such as <blob>.")
        return word


class WordsAdapter(Adapter):
    """What adapters with new words share."""

    words: tuple[NewWord, ...] = Field(min_length=1)
    """The new words. Each must stand in captions: write it there, or in data.captions.trigger, prefix or suffix."""
    keep_length: bool = True
    """Whether the vectors are drawn back, in every step, towards the length that the model's own words have. Vectors
    that grow long drown the other words of a prompt."""

    @model_validator(mode="after")
    def _words_differ(self) -> Self:
        if len({plain_word(word.word).lower() or word.word for word in self.words}) < len(self.words):
            raise ValueError("Two of the new words are the same, apart from signs and from large and small letters.")
        return self

    @property
    @override
    def new_words(self) -> Mapping[str, int]:
        return {word.word: word.vectors for word in self.words}

    @property
    @override
    def trains_words(self) -> bool:
        return True

    @override
    def word_files(self, result: Path) -> Mapping[str, Path]:
        return {word.word: file_of_word(result, word.word, place) for place, word in enumerate(self.words)}

    @override
    def check(self, model: DiffusionModel) -> None:
        """See `Adapter.check`.

        Raises:
            RecipeError: the model knows a word already, a start is longer than its word, or they have no room.
        """
        model.vocabulary.add({})
        for place, word in enumerate(self.words):
            for part in model.vocabulary.parts:
                _check_word(model, part, word, f"adapter.words.{place}")
        total = sum(self.new_words.values())
        if total > model.token_limit:
            raise RecipeError(
                f"The new words have {total} vectors, and a caption has room for {model.token_limit} tokens.",
                where="adapter.words",
                mend="Give them fewer vectors, or set model.token_limit to 150 or 225.",
            )

    @override
    def check_export(self, model: DiffusionModel, settings: ExportSettings) -> None:
        if settings.layout not in ("kohya", "diffusers"):
            raise RecipeError(
                f"New words cannot be written in the layout {settings.layout}.",
                where="export.layout",
                mend="Leave it out: all programs read the one form that embeddings have.",
            )

    @property
    @override
    def files(self) -> Mapping[str, Path]:
        return {}

    @override
    def begin(self, trainable: Trainable, model: DiffusionModel) -> None:
        """The words' beginning is in the recipe itself."""

    def attach_words(self, model: DiffusionModel, seeds: Seeds) -> "TrainedWords":
        """Put the new words into the model's text encoders.

        Raises:
            RecipeError: as of `check`.
        """
        self.check(model)
        model.keep_text_encoders()
        rows: dict[str, Tensor] = {}
        for part in model.vocabulary.parts:
            rows[part] = torch.cat([_first_vectors(model, part, word, seeds) for word in self.words])
        model.vocabulary.add(self.new_words)
        return TrainedWords(model, model.vocabulary.place(rows), keep_length=self.keep_length)


class TextualInversion(WordsAdapter):
    """New words alone: the model stays as it is, and learns what they mean. The result is some kilobytes.

    Source: Gal et al. 2022, arXiv:2208.01618, section 4.2; section 5.1 on several vectors a word.
    """

    kind: Literal["textual_inversion"] = "textual_inversion"

    @override
    def attach(self, model: DiffusionModel, seeds: Seeds) -> "TrainedWords":
        return self.attach_words(model, seeds)


class TrainedWords(Trainable):
    """The vectors of new words inside the text encoders of a model."""

    def __init__(self, model: DiffusionModel, tables: Mapping[str, WordTable], *, keep_length: bool) -> None:
        self._vocabulary = model.vocabulary
        self._tables = tables
        self._keep_length = keep_length
        # the usual length of the model's own words, by which new ones are held
        self._length = {part: float(model.vocabulary.table(part).float().norm(dim=-1).mean()) for part in tables}

    @property
    @override
    def parts(self) -> tuple[str, ...]:
        return tuple(self._tables)

    @override
    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(name=GROUP, parameters=list(self._rows().values()))]

    @override
    def state(self) -> dict[str, Tensor]:
        return {f"{part}.{GROUP}": rows.detach() for part, rows in self._rows().items()}

    @override
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        own = self.state()
        wrong = sorted({(k, tuple(v.shape)) for k, v in own.items()} ^ {(k, tuple(v.shape)) for k, v in state.items()})
        if wrong:
            raise CheckpointError(
                f"These vectors do not fit the new words: {len(wrong)} differences, {wrong[0][0]} first.",
                mend="Use the recipe that they were trained with.",
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])

    @override
    def set_strength(self, strength: float) -> None:
        """See `Trainable.set_strength`; between 0 and 1 the words mean something between the middle of all and theirs.

        At 0 they are no new words any more, but text like any other.
        """
        self._vocabulary.heed(new_words=strength != 0)
        for table in self._tables.values():
            table.strength = strength

    @override
    def after_step(self) -> None:
        if not self._keep_length:
            return
        with torch.no_grad():
            for part, rows in self._rows().items():
                length = rows.norm(dim=-1, keepdim=True).clamp(min=1e-6)
                rows.mul_((self._length[part] / length) ** _PULL)

    @override
    def write(self, path: Path, facts: TrainingFacts, settings: ExportSettings) -> Path:
        """See `Trainable.write`; each further word gets a file of its own beside `path`."""
        files = {word: file_of_word(path, word, place) for place, word in enumerate(self._vocabulary.spans())}
        self.write_files(files, facts, settings)
        return path

    def write_files(self, files: Mapping[str, Path], facts: TrainingFacts, settings: ExportSettings) -> None:
        """Write each word into its file, and read it back."""
        words = self.embeddings()
        for word, path in files.items():
            said = replace(facts, kind="embedding", parts=self.parts, trigger=word, thumbnail=None)
            export_embedding(path, words[word], as_metadata(said), settings)

    def embeddings(self) -> dict[str, Embedding]:
        """The vectors of each new word."""
        spans = self._vocabulary.spans()
        return {
            word: Embedding({part: rows.detach()[span] for part, rows in self._rows().items()}, word)
            for word, span in spans.items()
        }

    def _rows(self) -> dict[str, nn.Parameter]:
        return {part: table.rows for part, table in self._tables.items()}


def _check_word(model: DiffusionModel, part: str, word: NewWord, where: str) -> None:
    if len(model.vocabulary.tokens(part, word.word)) < 2:
        raise RecipeError(
            f"{word.word} is a word that the model knows already.",
            where=f"{where}.word",
            mend=f"Choose another one, such as <{word.word.strip('<>') or 'new'}>.",
        )
    given = len(model.vocabulary.tokens(part, word.start))
    if given > word.vectors:
        raise RecipeError(
            f"The start of {word.word} is {given} tokens long, and the word has {word.vectors} vectors.",
            where=f"{where}.start",
            mend=f"Shorten it, or set vectors to {given}.",
        )


def _first_vectors(model: DiffusionModel, part: str, word: NewWord, seeds: Seeds) -> Tensor:
    """What a new word begins as, [n D], float32."""
    table = model.vocabulary.table(part).float()
    like: Sequence[int] = model.vocabulary.tokens(part, word.start)
    if like:
        return table[[like[place % len(like)] for place in range(word.vectors)]]
    noise = seeds.normal(f"new word {word.word} {part}", 0, range(word.vectors), table.shape[1:]).to(table.device)
    return table.mean(0) + table.std(0) * noise
