"""What a person names -> a model that draws it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trainer.adapters.attaching import attach_lora
from trainer.core.device import Precision, pick_device
from trainer.core.errors import WeightsError
from trainer.core.log import logger
from trainer.core.run_folder import RunFolder
from trainer.core.seeds import Seeds
from trainer.core.tensors import Header, is_pickle, read_header
from trainer.families.auto import Auto
from trainer.families.clip import TokenLimit
from trainer.families.fitting import TITLES
from trainer.families.loading import open_weights
from trainer.families.model import DiffusionModel
from trainer.loop.checkpoints import Checkpoints
from trainer.recipe.reading import read_recipe
from trainer.weights.metadata import KnownFamily
from trainer.weights.reading import read_lora
from trainer.weights.recognising import family_of, kind_of

_TOKEN_LIMITS: Final[Mapping[str, TokenLimit]] = {"150": 150, "225": 225}  # as sd-scripts writes it
_CLIP_SKIPS: Final = {str(number) for number in range(1, 13)}


def open_for_drawing(source: Path, base: str, strength: float) -> tuple[DiffusionModel, int]:
    """The model that `source` means, its adapter attached, and the resolution it was trained at.

    Args:
        source: a recipe file or a run folder (the result, or else the newest checkpoint, or else the base alone), or a
            LoRA file.
        base: the base model of a LoRA file.
        strength: how strongly the adapter acts.

    Raises:
        TrainerError: there is no such thing, or its parts do not fit.
    """
    if source.suffix == ".safetensors" or is_pickle(source):
        header = read_header(source)
        model = _base_for(header, source, base).load(Precision.float32, pick_device())
        resolution = header.metadata.get("modelspec.resolution", "").split("x")[0]
        _attach_file(model, source, strength)
        return model, int(resolution) if resolution.isdigit() else model.resolution
    recipe = read_recipe(source / "recipe.yaml" if source.is_dir() else source)
    model = recipe.model.load(recipe.precision, pick_device())
    folder = RunFolder(source.resolve()) if source.is_dir() else RunFolder(recipe.runs / recipe.name)
    model.prediction = recipe.objective.prediction or model.prediction
    result = recipe.export.result(folder.result)
    if result.exists():
        _attach_file(model, result, strength)
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


def _attach_file(model: DiffusionModel, path: Path, strength: float) -> None:
    attach_lora(model, read_lora(path, model.naming).state).set_strength(strength)
