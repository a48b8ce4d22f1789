"""The base model that a file was trained on, and the new words that a file brings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trainer.core.errors import WeightsError
from trainer.core.log import logger
from trainer.core.tensors import Header, read_tensors
from trainer.families.auto import Auto
from trainer.families.clip import TokenLimit
from trainer.families.fitting import TITLES
from trainer.families.loading import open_weights
from trainer.weights.bundles import BUNDLED, bundled_words
from trainer.weights.embeddings import Embedding, read_embedding
from trainer.weights.metadata import KnownFamily
from trainer.weights.recognising import family_of, kind_of

_TOKEN_LIMITS: Final[Mapping[str, TokenLimit]] = {"150": 150, "225": 225}  # as sd-scripts writes it
_CLIP_SKIPS: Final = {str(number) for number in range(1, 13)}


def base_for(header: Header, lora: Path, base: str) -> Auto:
    """The base model for a LoRA file, read in the way that the file says it was trained with.

    Raises:
        WeightsError: the file is for another family, or there is no such base.
    """
    facts, said = open_weights(base).facts, header.metadata
    seen = family_of(header, kind_of(list(header.tensors))).split(maxsplit=1)[0]  # "sd1 (custom size)"
    families: Mapping[str, KnownFamily] = {known: known for known in TITLES}
    family = families.get(seen)
    if family is not None and family != facts.family:
        raise WeightsError(
            f"This file is for {TITLES[family]}, and the base model is {TITLES[facts.family]}.",
            where=str(lora),
            mend="Name the base model that it was trained on with --base.",
        )
    skipped = said.get("ss_clip_skip", "") if family == "sd1" else ""  # of the others some programs write it in vain
    velocity = said.get("modelspec.prediction_type") == "v"
    return Auto(
        weights=base,
        token_limit=_TOKEN_LIMITS.get(said.get("ss_max_token_length", ""), 75),
        clip_skip=int(skipped) if skipped in _CLIP_SKIPS else None,
        # where the base does not say itself what it predicts, what was trained on it knows better
        prediction="velocity" if velocity and facts.prediction_guessed else None,
        zero_terminal_snr=True if velocity and said.get("ss_zero_terminal_snr") == "True" else None,
    )


def words_of(path: Path, header: Header) -> dict[str, Embedding]:
    """The new words in a file: of an embedding the one that it names, or else, as programs do, is called after."""
    if kind_of(list(header.tensors)) != "textual inversion":
        return bundled_words(read_tensors(path)) if any(key.startswith(BUNDLED) for key in header.tensors) else {}
    embedding = read_embedding(path).embedding
    word = header.metadata.get("modelspec.trigger_phrase") or embedding.token or path.stem
    logger.info("The word of this file is %s.", word)
    return {word: embedding}
