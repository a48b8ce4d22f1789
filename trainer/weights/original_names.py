"""Where each tensor of a model lies in a single-file checkpoint, which keeps the names of the model's first authors.

The tables are drawn from configurations in the words of diffusers and transformers, so they hold for every size. They
also say which tensors a network has and of what shapes, so a file is checked against them before anything is built.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from trainer.core.errors import WeightsError
from trainer.weights.metadata import KnownFamily
from trainer.weights.original_encoders import clip_places, vae_places
from trainer.weights.original_unet import unet_places
from trainer.weights.places import Place

Part = Literal["unet", "vae", "text_encoder", "text_encoder_2"]
"""A network of a model, by its folder in the diffusers layout."""

PARTS: Final[Mapping[KnownFamily, tuple[Part, ...]]] = MappingProxyType(
    {
        "sd1": ("unet", "vae", "text_encoder"),
        "sd2": ("unet", "vae", "text_encoder"),
        "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
    }
)
"""The networks that a family has."""

_PREFIXES: Final[Mapping[tuple[KnownFamily, Part], str]] = MappingProxyType(
    {
        ("sd1", "text_encoder"): "cond_stage_model.transformer.",
        ("sd2", "text_encoder"): "cond_stage_model.model.",
        ("sdxl", "text_encoder"): "conditioner.embedders.0.transformer.",
        ("sdxl", "text_encoder_2"): "conditioner.embedders.1.model.",
    }
)
_COMMON_PREFIXES: Final[Mapping[Part, str]] = MappingProxyType(
    {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
)


def prefix_of(family: KnownFamily, part: Part) -> str:
    """What stands before every key of a network in an original checkpoint."""
    return _COMMON_PREFIXES.get(part) or _PREFIXES[family, part]


def places_of(family: KnownFamily, part: Part, config: Mapping[str, Any]) -> tuple[Place, ...]:
    """The tensors of a network and where they lie in an original checkpoint, behind `prefix_of` it.

    Raises:
        WeightsError: the configuration is of another kind of network, or is none.
    """
    try:
        if part == "unet":
            return unet_places(config)
        if part == "vae":
            return vae_places(config)
        second = part == "text_encoder_2"
        return clip_places(config, projection=second, stacked=second or family == "sd2")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise WeightsError(
            f"The configuration of the {part} cannot be understood: {type(error).__name__} at {error}.",
            mend="Take the configuration of the model that these weights come from.",
        ) from error
