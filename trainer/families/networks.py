"""Networks without weights, built from a configuration by diffusers' and transformers' own classes."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn

from trainer.core.errors import WeightsError
from trainer.core.importing import import_libraries
from trainer.weights.original_names import Part


def empty_network(part: Part, config: Mapping[str, Any], where: str) -> nn.Module:
    """A network whose parameters have shapes and no memory; its buffers, which no file holds, are right.

    Args:
        part: which network.
        config: in the words of diffusers or transformers.
        where: for messages.

    Raises:
        WeightsError: the library cannot build such a network.
    """
    from accelerate import init_empty_weights

    build = _builder(part)
    try:
        with init_empty_weights(include_buffers=False):
            return build(dict(config))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"The {part} of this model cannot be built from its configuration: {first_line}",
            where=where,
            mend="Take the configuration of the model that these weights come from.",
        ) from error


def live_name(name: str, known: Collection[str]) -> str:
    """The name that a live network gives to the tensor of a canonical name.

    transformers put `text_model.` before the paths inside CLIPTextModel up to version 4, and no longer does.
    """
    return name if name in known else name.removeprefix("text_model.")


def _builder(part: Part) -> Callable[[dict[str, Any]], Any]:
    """What makes a network of a configuration; `Any`, since diffusers' methods return one of two things."""
    import_libraries()
    import diffusers
    import transformers

    if part == "unet":
        return diffusers.UNet2DConditionModel.from_config
    if part == "vae":
        return diffusers.AutoencoderKL.from_config
    encoder = transformers.CLIPTextModel if part == "text_encoder" else transformers.CLIPTextModelWithProjection
    return lambda config: encoder(transformers.CLIPTextConfig.from_dict(config))
