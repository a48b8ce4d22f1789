"""Finished words -> words of a model, for drawing with them."""

from collections.abc import Mapping

import torch

from trainer.adapters.textual_inversion import TrainedWords
from trainer.core.errors import WeightsError
from trainer.families.model import DiffusionModel
from trainer.weights.embeddings import Embedding


def attach_words(model: DiffusionModel, words: Mapping[str, Embedding]) -> TrainedWords:
    """Let a model know words as they stand in files; it forgets other new words.

    Args:
        model: from now on its text encoders stay in memory.
        words: how each is written, and what it means; at least one.

    Raises:
        WeightsError: they are for text encoders of other sizes.
    """
    model.keep_text_encoders()
    widths = {part: model.vocabulary.table(part).shape[1] for part in model.vocabulary.parts}
    for word, embedding in words.items():
        found = {part: vectors.shape[1] for part, vectors in embedding.vectors.items()}
        if found != widths:
            raise WeightsError(
                f"The word {word} is for text encoders of other sizes: it has {_said(found)}, and the model "
                f"{_said(widths)}.",
                mend="Name the base model that it was trained on with --base.",
            )
    model.vocabulary.add({word: len(embedding.vectors["text_encoder"]) for word, embedding in words.items()})
    rows = {part: torch.cat([one.vectors[part].float() for one in words.values()]) for part in widths}
    return TrainedWords(model, model.vocabulary.place(rows), keep_length=False)


def _said(widths: Mapping[str, int]) -> str:
    return " and ".join(str(width) for _, width in sorted(widths.items()))
