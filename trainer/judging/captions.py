"""Whether the words of training pictures fit them: what pictures cost with their own words and with others'."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.core.progress import Phases
from trainer.evaluation.scores import Wide
from trainer.evaluation.still import BANDS, fixed_losses
from trainer.families.model import DiffusionModel
from trainer.judging.pictures import RunPictures

_OTHERS: Final = 6  # captions of other pictures that each picture is asked with
_TURNS: Final = 2  # moments and noises, the same for all captions
_NOISY: Final = (BANDS - 2, BANDS - 1)  # in much noise words decide what is there
_WORD: Final = re.compile(r"\w+")
_COMMON: Final = 0.5  # the share of captions in which a word of the whole set stands


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionFit:
    """How the words of each picture fit; gain and harm in shares of its usual loss, [M]."""

    gain: Wide
    """How much less it costs with its own words than with those of other pictures."""
    harm: Wide
    """How much more other pictures cost with its words than with those of still others."""

    foreign: NDArray[np.bool_]
    """Whether they are without any of the words that most captions of the set have."""

    @property
    def misfit(self) -> Wide:
        """Harm without gain: above 0 where its words help it less than they hurt others."""
        return self.harm - self.gain


def fit_of_captions(model: DiffusionModel, pictures: RunPictures, progress: Phases) -> CaptionFit | None:
    """How the captions fit the pictures whose losses are measured; None where all have the same words.

    A wrong caption gains its own picture nothing as long as it is not learned by heart, and what is foreign to the set
    hurts every picture that is asked with it. So an early checkpoint is the one to ask: it knows what is trained, and
    no single picture yet.
    """
    examples = pictures.asked
    own = pictures.still(examples, model).captions()
    others = [others_captions(own, turn) for turn in range(1, _OTHERS + 1)]
    asked = [own, *(words for words in others if words is not None)]
    if len(asked) <= _OTHERS:
        return None
    found: list[Wide] = []
    for words in asked:
        progress("asking what words fit", len(found), len(asked))
        found.append(_losses(model, pictures, words))
    progress("asking what words fit", len(found), len(asked))
    losses = np.stack(found)  # [1 + others M cells]
    losses /= np.median(losses[1:], axis=0)
    means = losses.mean(-1)
    hurt: dict[str, list[float]] = {}
    for words, harm in zip(asked[1:], means[1:] - 1, strict=True):
        for text, more in zip(words, harm.tolist(), strict=True):
            hurt.setdefault(text, []).append(more)
    foreign = foreign_captions(own, pictures.recipe.data.captions.trigger)
    return CaptionFit(gain=1 - means[0], harm=_means(own, hurt), foreign=foreign)


def foreign_captions(captions: Sequence[str], trigger: str) -> NDArray[np.bool_]:
    """Whether each caption has none of the words that at least half of all have, [M]; none is where there are no such.

    Args:
        captions: [M].
        trigger: which all have, and which says nothing.
    """
    words = [set(_WORD.findall(text.casefold())) - set(_WORD.findall(trigger.casefold())) for text in captions]
    counts = Counter(word for own in words for word in own)
    common = {word for word, count in counts.items() if count >= _COMMON * len(captions)}
    return np.array([bool(common) and not own & common for own in words])


def others_captions(captions: Sequence[str], turn: int) -> list[str] | None:
    """For each picture the words of another one, which differ from its own; None where all words are the same.

    Args:
        captions: [M] of the pictures.
        turn: from 1; each gives other words, as long as there are such.
    """
    count = len(captions)
    if len(set(captions)) < 2:
        return None
    found: list[str] = []
    for place, own in enumerate(captions):
        following = (captions[(place + further) % count] for further in range(1, count))
        different = [text for text in following if text != own]
        found.append(different[turn * len(different) // (_OTHERS + 1)])
    return found


def _losses(model: DiffusionModel, pictures: RunPictures, captions: Sequence[str]) -> Wide:
    batches = pictures.batches(pictures.asked, model, captions)
    objective = pictures.recipe.objective
    turns = [fixed_losses(model, batches, objective, turn=turn, bands=_NOISY) for turn in range(_TURNS)]
    return np.concatenate(turns, axis=1)


def _means(captions: Sequence[str], values: Mapping[str, Sequence[float]]) -> Wide:
    return np.array([np.mean(values[text]) if text in values else 0.0 for text in captions])
