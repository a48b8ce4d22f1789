"""What a run's result is, as far as whoever uses it must know."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trainer.adapters.full import FullFinetune
from trainer.adapters.loha import Loha
from trainer.adapters.lokr import Lokr
from trainer.adapters.pivotal import Pivotal
from trainer.adapters.textual_inversion import TextualInversion
from trainer.core.errors import TrainerError
from trainer.core.tensors import read_header
from trainer.drawing.opening import title_of_weights
from trainer.families.hub import is_hub_name
from trainer.recipe.recipe import Recipe
from trainer.reporting.programs import Nature, Result

_BUNDLED: Final = "trainer/families/bundled_base"


def result_of(recipe: Recipe, path: Path, strength: float = 1.0) -> Result:
    """What a run's result is, or will be.

    Args:
        recipe: of the run.
        path: `RunFolder.result`, whether it is there yet or not.
        strength: at which it is recommended.
    """
    file = recipe.export.result(path)
    tensors, metadata = _header(file)
    weights = recipe.model.weights
    bundled = weights == "bundled"
    return Result(
        name=file.stem if file.suffix == ".safetensors" else file.name,
        file=file.name,
        nature=_nature(recipe),
        base="the small model that comes with the package" if bundled else title_of_weights(weights),
        base_code=_BUNDLED if bundled else _for_diffusers(weights),
        trigger=recipe.data.captions.trigger,
        words={word: own.name for word, own in recipe.adapter.word_files(file).items()},
        strength=strength,
        velocity=metadata.get("modelspec.prediction_type") == "v",
        two_encoders="clip_g" in tensors,
        bundled=bundled,
    )


def is_public(weights: str) -> bool:
    """Whether these are a name on the hub, and no path of this machine."""
    return is_hub_name(weights) and not weights.endswith(".safetensors") and not Path(weights).exists()


def _for_diffusers(weights: str) -> str:
    return weights.partition("@")[0] if is_public(weights) else f"path/to/{title_of_weights(weights)}"


def _header(file: Path) -> tuple[Mapping[str, object], Mapping[str, str]]:
    """Tensors and metadata of the file, as far as it is there."""
    if not file.is_file():
        return {}, {}
    try:
        header = read_header(file)
    except TrainerError:
        return {}, {}
    return header.tensors, header.metadata


def _nature(recipe: Recipe) -> Nature:
    adapter, layout = recipe.adapter, recipe.export.layout
    if isinstance(adapter, FullFinetune):
        return "model folder" if layout == "folder" else "model"
    if layout == "peft":
        return "peft folder"
    if isinstance(adapter, TextualInversion):
        return "words"
    if layout == "diffusers":
        return "diffusers file"
    if isinstance(adapter, (Loha, Lokr)):
        return "product"
    lora = adapter.lora if isinstance(adapter, Pivotal) else adapter
    return "lora" if lora.decompose is None else "dora"
