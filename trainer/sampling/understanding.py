"""Prompts -> what they mean to a model, each text encoded once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from trainer.batch import Conditioning
from trainer.families.model import DiffusionModel
from trainer.sampling.emphasis import emphasised, without_weights
from trainer.sampling.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Rows:
    """Pictures' words that have equally many states, so that the network takes them at once."""

    places: Sequence[int]  # among the negatives, where there are such, and the texts behind them
    words: Conditioning


@dataclass(frozen=True, slots=True)
class Understood:
    """Prompts with what their texts mean, each text encoded once and kept on the CPU, [1 T D]."""

    prompts: Sequence[Prompt]
    wanted: Mapping[str, Conditioning]
    unwanted: Mapping[str, Conditioning]

    def rows(self, prompts: Sequence[Prompt], device: torch.device, *, guided: bool) -> list[Rows]:
        """Of the negatives of `prompts`, where there is guidance, and then of their texts.

        Long prompts have more states than short ones. They are asked for by themselves, and never filled up, so that a
        picture does not depend on its company.
        """
        positive = [self.wanted[prompt.text] for prompt in prompts]
        negative = [self.unwanted[prompt.negative] for prompt in prompts] if guided else []
        words = [*negative, *positive]
        by_length: dict[int, list[int]] = {}
        for place, one in enumerate(words):
            by_length.setdefault(one.tokens.shape[1], []).append(place)
        return [
            Rows(places, Conditioning.joined([words[place] for place in places]).to(device))
            for places in by_length.values()
        ]


def understand(model: DiffusionModel, prompts: Sequence[Prompt]) -> Understood:
    """What the texts of prompts mean to the model as it is now."""
    return Understood(
        prompts=prompts,
        wanted=_encoded(model, model.encode_words, (prompt.text for prompt in prompts)),
        unwanted=_encoded(model, model.encode_negatives, (prompt.negative for prompt in prompts)),
    )


def _encoded(
    model: DiffusionModel, encode: Callable[[Sequence[str]], Conditioning], texts: Iterable[str]
) -> dict[str, Conditioning]:
    states: dict[str, Conditioning] = {}
    plain: dict[str, list[str]] = {}  # words without weights -> the texts that mean them
    for text in sorted(set(texts)):
        prompt = emphasised(text)
        words = without_weights(prompt)
        if words is None or model.count_tokens(words) > model.token_limit:
            states[text] = model.encode_emphasised(prompt).to(torch.device("cpu"))
        else:
            plain.setdefault(words, []).append(text)
    distinct = sorted(plain)
    for start in range(0, len(distinct), 32):
        part = distinct[start : start + 32]
        for words, meaning in zip(part, encode(part).to(torch.device("cpu")).rows(), strict=True):
            states.update(dict.fromkeys(plain[words], meaning))
    return states
