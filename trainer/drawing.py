"""What a person names -> a model that draws it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trainer.adapters.attaching import attach_adapter
from trainer.adapters.attaching_words import attach_words
from trainer.core.device import Precision, pick_device
from trainer.core.errors import RecipeError, WeightsError
from trainer.core.log import logger
from trainer.core.run_folder import RunFolder
from trainer.core.seeds import Seeds
from trainer.core.tensors import Header, is_pickle, read_header, read_tensors
from trainer.families.auto import Auto
from trainer.families.clip import TokenLimit
from trainer.families.fitting import TITLES
from trainer.families.loading import open_weights
from trainer.families.model import DiffusionModel
from trainer.loop.checkpoints import Checkpoints
from trainer.recipe.reading import read_recipe
from trainer.recipe.recipe import Recipe
from trainer.weights.bundles import BUNDLED, bundled_words
from trainer.weights.embeddings import Embedding, read_embedding
from trainer.weights.metadata import KnownFamily
from trainer.weights.reading import read_adapter
from trainer.weights.recognising import family_of, kind_of

_TOKEN_LIMITS: Final[Mapping[str, TokenLimit]] = {"150": 150, "225": 225}  # as sd-scripts writes it
_CLIP_SKIPS: Final = {str(number) for number in range(1, 13)}


def open_for_drawing(source: Path, base: str, strength: float) -> tuple[DiffusionModel, int]:
    """The model that `source` means, its adapter attached, and the resolution it was trained at.

    Args:
        source: a recipe file or a run folder (the result, or else the newest checkpoint, or else the base alone), or a
            file of an adapter, of new words or of a whole model.
        base: the base model of a file that is no whole one.
        strength: how strongly the adapter acts.

    Raises:
        TrainerError: there is no such thing, or its parts do not fit.
    """
    if source.suffix == ".safetensors" or is_pickle(source):
        header = read_header(source)
        if kind_of(list(header.tensors)) == "checkpoint":
            model = Auto(weights=str(source)).load(Precision.float32, pick_device())
            return model, model.resolution
        model = _base_for(header, source, base).load(Precision.float32, pick_device())
        resolution = header.metadata.get("modelspec.resolution", "").split("x")[0]
        _attach_file(model, source, strength, _words_of(source, header))
        return model, int(resolution) if resolution.isdigit() else model.resolution
    recipe = read_recipe(source / "recipe.yaml" if source.is_dir() else source)
    model = recipe.model.load(recipe.precision, pick_device())
    folder = RunFolder(source.resolve()) if source.is_dir() else RunFolder(recipe.runs / recipe.name)
    model.prediction = recipe.objective.prediction or model.prediction
    result = recipe.export.result(folder.result)
    if result.exists() and recipe.adapter.makes_model:
        model = _whole(recipe, result, strength)
    elif result.exists():
        files = recipe.adapter.word_files(result)
        words = {word: read_embedding(path).embedding for word, path in files.items()}
        _attach_file(model, result, strength, words)
    elif (state := Checkpoints(folder, recipe.checkpoints).newest()) is not None:
        trainable = recipe.adapter.attach(model, Seeds(recipe.seed))
        trainable.load_state(state.trained)
        trainable.set_strength(strength)
        logger.info("This run is not finished: drawing with its checkpoint after step %d.", state.step)
    else:
        logger.info("There is nothing trained yet: drawing with the base model.")
    return model, recipe.data.resolution


def _base_for(header: Header, lora: Path, base: str) -> Auto:
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


def _words_of(path: Path, header: Header) -> dict[str, Embedding]:
    """The new words in a file: of an embedding the one that it names, or else, as programs do, is called after."""
    if kind_of(list(header.tensors)) != "textual inversion":
        return bundled_words(read_tensors(path)) if any(key.startswith(BUNDLED) for key in header.tensors) else {}
    embedding = read_embedding(path).embedding
    word = header.metadata.get("modelspec.trigger_phrase") or embedding.token or path.stem
    logger.info("The word of this file is %s.", word)
    return {word: embedding}


def _attach_file(model: DiffusionModel, path: Path, strength: float, words: Mapping[str, Embedding]) -> None:
    """Attach an adapter, new words, or both."""
    if path.is_dir() or kind_of(list(read_header(path).tensors)) != "textual inversion":
        attach_adapter(model, read_adapter(path, model.naming).state).set_strength(strength)
    if words:
        attach_words(model, words).set_strength(strength)


def _whole(recipe: Recipe, result: Path, strength: float) -> DiffusionModel:
    """The model that a run has made, or the one that it began with.

    Raises:
        RecipeError: something between the two is asked for.
    """
    if strength not in (0.0, 1.0):
        raise RecipeError(
            f"A whole model has no strength, and {strength:g} is asked for.",
            where="--strength",
            mend="Leave it out; 0 draws with the base.",
        )
    said = {"weights": str(result), "vae": None, "loras": (), "prediction": None, "zero_terminal_snr": None}
    settings = recipe.model.model_copy(update=said) if strength else recipe.model
    return settings.load(recipe.precision, pick_device())
