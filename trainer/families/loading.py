"""Weights as a recipe names them -> where they lie and what they are."""

from pathlib import Path
from typing import Final

from trainer.core.errors import WeightsError
from trainer.core.tensors import is_pickle, refused_pickle
from trainer.families.folder_weights import FolderWeights
from trainer.families.hub import from_hub, is_hub_name
from trainer.families.published import published_configs
from trainer.families.single_file import SingleFile
from trainer.families.standalone_vae import vae_in_file, vae_in_folder
from trainer.families.stored_parts import StoredPart, StoredWeights

BUNDLED: Final = "bundled"
_BUNDLED_FOLDER: Final = Path(__file__).parent / "bundled_base"


def open_weights(weights: str, vae: str | None = None) -> StoredWeights:
    """The base model that `weights` names: `bundled`, a folder, a hub name, or one .safetensors file.

    Args:
        weights: as a recipe says it; a hub name may carry its revision, owner/model@revision.
        vae: a file, a folder or a hub name with an autoencoder that stands in for the model's own.

    Raises:
        WeightsError: there is no such thing, or it is a pickle, broken, or of a kind that is not read.
    """
    path, revision = _find(weights, "model.weights")
    source = SingleFile(path) if path.is_file() else FolderWeights(_whole(path), revision=revision)
    if vae is not None:
        source.parts["vae"] = _open_vae(vae, source)
    return source


def _open_vae(vae: str, source: StoredWeights) -> StoredPart:
    path, _ = _find(vae, "model.vae")
    family = source.facts.family
    if path.is_dir():
        return vae_in_folder(path, family)
    own = source.parts.get("vae")
    replaced = published_configs(family, source.facts.prediction)["vae"] if own is None else own.config
    return vae_in_file(path, family, replaced)


def _find(name: str, where: str) -> tuple[Path, str | None]:
    """The file or folder of that name, and the hub's commit where it comes from there."""
    if name == BUNDLED:
        return _BUNDLED_FOLDER, None
    path = Path(name).expanduser()
    if is_pickle(path):
        raise refused_pickle(path)
    if path.is_dir() or (path.is_file() and path.suffix == ".safetensors"):
        return path, None
    if path.exists():
        raise WeightsError(
            "Weights are read from .safetensors files and from folders, and this is neither.",
            where=str(path),
            mend="Get the .safetensors version of this model.",
        )
    if path.suffix == ".safetensors":
        raise WeightsError("There is no such file.", where=str(path), mend=f"Check the path in {where}.")
    if is_hub_name(name):
        return from_hub(name, where)
    raise WeightsError(
        f"There are no weights called {name!r}.",
        where=where,
        mend="Give `bundled`, a .safetensors file, a folder in the diffusers layout, or a hub name: owner/model.",
    )


def _whole(folder: Path) -> Path:
    if not (folder / "model_index.json").is_file():
        raise WeightsError(
            "This folder is no model in the diffusers layout: it holds no model_index.json.",
            where=str(folder),
            mend="Name the folder that holds model_index.json, unet/, vae/, text_encoder/ and tokenizer/; or a "
            ".safetensors file.",
        )
    return folder
