"""Whether weights are what a recipe takes them for, and whether their parts belong together."""

from collections.abc import Mapping
from typing import Any, Final

from trainer.core.errors import WeightsError
from trainer.families.autoencoder import factor_of
from trainer.families.source import WeightsSource
from trainer.weights.metadata import KnownFamily, KnownPrediction

TITLES: Final[Mapping[KnownFamily, str]] = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
}
_XL_FACTOR: Final = 0.13025
_OLD_FACTOR: Final = 0.18215
_ALMOST: Final = 1e-4


def check_facts(
    source: WeightsSource, family: KnownFamily, prediction: KnownPrediction | None, *, zero_terminal_snr: bool | None
) -> None:
    """Make sure that weights are what a recipe says.

    Args:
        source: the weights.
        family: as the recipe says.
        prediction: as the recipe says; None: as the weights say.
        zero_terminal_snr: as the recipe says; None: as the weights say.

    Raises:
        WeightsError: they are something else, or something that cannot be trained.
    """
    facts = source.facts
    if facts.family != family:
        raise WeightsError(
            f"The recipe asks for {TITLES[family]}, and these weights are {TITLES[facts.family]}.",
            where=source.where,
            mend=f"Set model.kind to {facts.family} or auto, or name other weights in model.weights.",
        )
    if facts.inpainting:
        raise _inpainting(source)
    if prediction is not None and prediction != facts.prediction and not facts.prediction_guessed:
        raise WeightsError(
            f"The recipe says that these weights predict {prediction}, and they themselves say {facts.prediction}.",
            where=source.where,
            mend="Leave model.prediction out; to train towards another prediction, set objective.prediction.",
        )
    ends_in_noise = facts.zero_terminal_snr if zero_terminal_snr is None else zero_terminal_snr
    if ends_in_noise and (prediction or facts.prediction) == "epsilon":
        raise WeightsError(
            "Weights that predict epsilon cannot have a last step of pure noise: in it, epsilon tells nothing of the "
            "picture.",
            where=source.where,
            mend="Set model.zero_terminal_snr: false; or model.prediction: velocity, if the weights predict that.",
        )


def check_parts(source: WeightsSource, *, own_vae: bool) -> None:
    """Make sure that the parts belong together, by their configurations.

    Args:
        source: the weights.
        own_vae: whether the autoencoder came with them.

    Raises:
        WeightsError: they do not.
    """
    unet, vae = source.config("unet"), source.config("vae")
    channels, latents = unet.get("in_channels"), vae.get("latent_channels")
    if channels == unet.get("out_channels") != latents:
        raise _misfit(source, f"the U-Net has {channels} channels and the autoencoder {latents}", "model.vae")
    if channels != latents:
        raise _inpainting(source)
    if vae.get("latents_mean") is not None or vae.get("latents_std") is not None:
        raise _misfit(source, "the autoencoder scales each channel by itself, which is not supported", "model.vae")
    foreign = _OLD_FACTOR if source.facts.family == "sdxl" else _XL_FACTOR
    if not own_vae and abs(factor_of(vae) - foreign) < _ALMOST:
        raise _misfit(
            source, f"the autoencoder is one of another family (its factor is {factor_of(vae):g})", "model.vae"
        )
    _check_words(source, unet)


def _check_words(source: WeightsSource, unet: Mapping[str, Any]) -> None:
    """Make sure that the U-Net reads what the text encoders say."""
    width = int(source.config("text_encoder")["hidden_size"])
    if source.facts.family == "sdxl":
        second = source.config("text_encoder_2")
        width += int(second["hidden_size"])
        vector = int(second["projection_dim"]) + 6 * int(unet["addition_time_embed_dim"])
        if unet.get("projection_class_embeddings_input_dim") != vector:
            raise _misfit(source, "the U-Net reads other sizes or words; it may be a refiner", "model.weights")
    elif unet.get("class_embed_type") is not None or unet.get("num_class_embeds") is not None:
        raise _misfit(
            source, "the U-Net reads more than words, as one that varies or enlarges pictures", "model.weights"
        )
    if unet.get("cross_attention_dim") != width:
        asked = unet.get("cross_attention_dim")
        raise _misfit(source, f"the U-Net reads words of {asked} numbers, and they have {width}", "model.weights")


def _misfit(source: WeightsSource, why: str, key: str) -> WeightsError:
    return WeightsError(
        f"The parts of these weights do not fit together: {why}.",
        where=source.where,
        mend=f"Name another {'autoencoder' if key == 'model.vae' else 'model'} in {key}.",
    )


def _inpainting(source: WeightsSource) -> WeightsError:
    return WeightsError(
        "These weights are an inpainting or otherwise extended model, which is not supported: its U-Net reads more "
        "than the noisy picture.",
        where=source.where,
        mend="Name the plain model that it was made from in model.weights.",
    )
