"""An autoencoder that stands in for a model's own: a file in either layout, or a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from trainer.core.errors import WeightsError
from trainer.core.tensors import Header, TensorFacts, read_header
from trainer.families.deriving import derived
from trainer.families.folder_files import canonical
from trainer.families.folder_weights import folder_part
from trainer.families.stored_parts import Stored, StoredPart
from trainer.weights.checkpoint_metadata import configs_in
from trainer.weights.metadata import KnownFamily
from trainer.weights.original_names import places_of, prefix_of

_WHERE: Final = "model.vae"
_ARCHITECTURES: Final[Mapping[str, tuple[KnownFamily, ...]]] = {
    "stable-diffusion-xl": ("sdxl",),
    "stable-diffusion-v1": ("sd1", "sd2"),  # these two share their autoencoder
    "stable-diffusion-v2": ("sd1", "sd2"),
}


def vae_in_folder(folder: Path, family: KnownFamily) -> StoredPart:
    """The autoencoder in a folder: its own, or that of a whole model.

    Raises:
        WeightsError: there is none, or it is broken, a pickle, or of another family.
    """
    inner = folder / "vae"
    part = folder_part(inner if inner.is_dir() else folder, "vae", family)
    _check_latents(part, str(folder))
    return part


def vae_in_file(path: Path, family: KnownFamily, published: Mapping[str, Any]) -> StoredPart:
    """The autoencoder in a file: alone, or within a checkpoint.

    Args:
        path: of a .safetensors file with original names, with or without `first_stage_model.`, or diffusers names.
        family: of the model that it is for.
        published: configuration of the autoencoder that it stands in for; what shapes do not tell is taken from it.

    Raises:
        WeightsError: there is none, or it is broken, a pickle, or of another family.
    """
    header = read_header(path)
    _check_architecture(header, family, path)
    found = _keys(header)
    shapes = {key: facts.shape for key, (_, facts) in found.items()}
    config = configs_in(header.metadata).get("vae") or derived("vae", family, shapes, published, str(path))
    part = StoredPart("vae", family, config, {})
    _check_latents(part, str(path))
    tensors: dict[str, Stored] = {}
    for place in places_of(family, "vae", config):
        if place.key in found and place.key != place.name:
            tensors[place.name] = Stored(path, *found[place.key], place.form)
        elif place.name in found:
            tensors[place.name] = Stored(path, *found[place.name])
    return StoredPart("vae", family, config, tensors)


def _keys(header: Header) -> "dict[str, tuple[str, TensorFacts]]":
    """The autoencoder's tensors by their keys without a prefix, and in the newer of diffusers' names."""
    prefix = prefix_of("sd1", "vae")
    within = any(name.startswith(prefix) for name in header.tensors)
    return {
        canonical(name.removeprefix(prefix), "vae"): (name, facts)
        for name, facts in header.tensors.items()
        if not within or name.startswith(prefix)
    }


def _check_architecture(header: Header, family: KnownFamily, path: Path) -> None:
    """The autoencoders of SD1 and SDXL have the same shapes: only what a file says of itself tells them apart."""
    said = header.metadata.get("modelspec.architecture", "")
    for beginning, families in _ARCHITECTURES.items():
        if said.startswith(beginning) and family not in families:
            raise WeightsError(
                f"This autoencoder says that it belongs to {said}, and the model is {family}.",
                where=str(path),
                mend=f"Name an autoencoder of the model's family in {_WHERE}, or none.",
            )


def _check_latents(part: StoredPart, where: str) -> None:
    channels = part.config.get("latent_channels")
    if channels != 4:
        raise WeightsError(
            f"This autoencoder makes latents of {channels} channels, and Stable Diffusion's have 4.",
            where=where,
            mend=f"Name an autoencoder of the model's family in {_WHERE}, or none.",
        )
