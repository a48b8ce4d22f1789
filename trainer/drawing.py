"""What a person names -> a model that draws it."""

from pathlib import Path

from trainer.adapters.attaching import attach_lora
from trainer.core.device import Precision, pick_device
from trainer.core.log import logger
from trainer.core.run_folder import RunFolder
from trainer.core.seeds import Seeds
from trainer.core.tensors import is_pickle, read_header
from trainer.families.model import DiffusionModel
from trainer.families.sd1 import Sd1
from trainer.loop.checkpoints import Checkpoints
from trainer.recipe.reading import read_recipe
from trainer.weights.reading import read_lora


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
        model = Sd1(weights=base).load(Precision.float32, pick_device())
        resolution = read_header(source).metadata.get("modelspec.resolution", "512x512").split("x")[0]
        _attach_file(model, source, strength)
        return model, int(resolution) if resolution.isdigit() else 512
    recipe = read_recipe(source / "recipe.yaml" if source.is_dir() else source)
    model = recipe.model.load(recipe.precision, pick_device())
    folder = RunFolder(source.resolve()) if source.is_dir() else RunFolder(recipe.runs / recipe.name)
    if folder.result.is_file():
        _attach_file(model, folder.result, strength)
    elif (state := Checkpoints(folder, recipe.checkpoints).newest()) is not None:
        trainable = recipe.adapter.attach(model, Seeds(recipe.seed))
        trainable.load_state(state.trained)
        trainable.set_strength(strength)
        logger.info("This run is not finished: drawing with its checkpoint after step %d.", state.step)
    else:
        logger.info("There is nothing trained yet: drawing with the base model.")
    return model, recipe.data.resolution


def _attach_file(model: DiffusionModel, path: Path, strength: float) -> None:
    attach_lora(model, read_lora(path, model.naming).state).set_strength(strength)
