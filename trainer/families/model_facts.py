"""What a single-file checkpoint is, by its header: family, prediction, inpainting, number format."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from trainer.core.errors import WeightsError
from trainer.core.tensors import Header, TensorFacts
from trainer.families.foreign_files import refuse_foreign
from trainer.families.source import ModelFacts
from trainer.weights.checkpoint_metadata import configs_in
from trainer.weights.metadata import KnownFamily, KnownPrediction

UNET: Final = "model.diffusion_model."
SPREAD_KEY: Final = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
"""The tensor by whose spread ComfyUI tells the two Stable Diffusions 2 apart: above 0.09 they predict velocity."""

_SPREAD: Final = 0.09
_WORDS: Final[Mapping[str, KnownPrediction]] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "velocity",
    "v_prediction": "velocity",
    "sample": "sample",
}
_PRECISIONS: Final = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


@dataclass(frozen=True, slots=True)
class _Prediction:
    kind: KnownPrediction
    zero_terminal_snr: bool
    by: str  # how it was found
    guessed: bool = False


def facts_of(header: Header, where: str, spread: float | None = None) -> ModelFacts:
    """What a checkpoint is.

    Args:
        header: of the file.
        where: the file, for messages.
        spread: the deviation of `SPREAD_KEY`, where somebody read it; it tells what an SD2 predicts.

    Raises:
        WeightsError: the file is something else than a Stable Diffusion 1.x, 2.x or XL, and which, if that is known.
    """
    refuse_foreign(header, where)
    family, by = _family(header, where)
    channels = header.tensors[f"{UNET}input_blocks.0.0.weight"].shape[1]
    if channels not in (4, 9):
        raise WeightsError(
            f"The U-Net of this checkpoint reads {channels} channels: it needs more than a noisy picture, which is "
            "not supported.",
            where=where,
            mend="Name the plain model that it was made from in model.weights.",
        )
    prediction = _prediction(header, family, spread)
    said = f"prediction {prediction.kind}: {prediction.by}"
    return ModelFacts(
        family=family,
        prediction=prediction.kind,
        prediction_guessed=prediction.guessed,
        zero_terminal_snr=prediction.zero_terminal_snr,
        inpainting=channels == 9,
        precision=precision_of(facts for name, facts in header.tensors.items() if name.startswith(UNET)),
        said=(f"family {family}: {by}", said),
    )


def precision_of(tensors: Iterable[TensorFacts]) -> str:
    """The number format of most of the weights, in torch's word."""
    bytes_in: Counter[str] = Counter()
    for facts in tensors:
        bytes_in[facts.dtype] += facts.end - facts.begin
    most = bytes_in.most_common(1)
    return _PRECISIONS.get(most[0][0], most[0][0]) if most else "float32"


def prediction_in(scheduler: Mapping[str, Any], where: str) -> KnownPrediction:
    """What a `scheduler_config.json` of diffusers says that the U-Net predicts; silence means epsilon.

    Raises:
        WeightsError: it names a prediction that we do not know.
    """
    said = str(scheduler.get("prediction_type", "epsilon"))
    if said not in _WORDS:
        raise WeightsError(
            f"This model predicts {said!r}, which we do not know.",
            where=where,
            mend="Models that predict epsilon, v_prediction or sample can be trained.",
        )
    return _WORDS[said]


def _family(header: Header, where: str) -> tuple[KnownFamily, str]:
    names = header.tensors
    if f"{UNET}label_emb.0.0.weight" in names:
        return _conditioned(header, where)
    if _any(names, "cond_stage_model.transformer.", "conditioner.embedders.0.transformer."):
        return "sd1", "one CLIP text encoder"
    if _any(names, "cond_stage_model.model.", "conditioner.embedders.0.model."):
        return "sd2", "one OpenCLIP text encoder"
    for name, facts in names.items():
        if name.startswith(UNET) and name.endswith(".proj_in.weight"):
            flat = len(facts.shape) == 2
            return ("sd2" if flat else "sd1"), f"a U-Net with {'linear' if flat else '1x1'} projections"
    raise WeightsError(
        "The U-Net of this checkpoint reads no words, so it is no Stable Diffusion.",
        where=where,
        mend="Stable Diffusion 1.x, 2.x and XL can be trained.",
    )


def _conditioned(header: Header, where: str) -> tuple[KnownFamily, str]:
    """The family of a U-Net that reads one vector beside the words."""
    names = header.tensors
    if _any(names, "conditioner.embedders.1.", "conditioner.embedders.0.transformer."):
        return "sdxl", "SDXL's text encoders"
    context = next((f.shape[-1] for n, f in names.items() if n.endswith(".attn2.to_k.weight")), 0)
    if context == 2048:
        return "sdxl", "a U-Net that reads 2048 numbers a word"
    refiner = context == 1280 or _any(names, "conditioner.embedders.0.model.")
    kind = "the refiner of Stable Diffusion XL" if refiner else "a Stable Diffusion that varies or enlarges pictures"
    raise WeightsError(f"This checkpoint is {kind}, which cannot be trained.", where=where, mend="Name the base model.")


def _prediction(header: Header, family: KnownFamily, spread: float | None) -> _Prediction:
    own = configs_in(header.metadata).get("scheduler")
    if own is not None and str(own.get("prediction_type")) in _WORDS:
        zero = bool(own.get("rescale_betas_zero_snr", False))
        return _Prediction(_WORDS[str(own["prediction_type"])], zero, "the scheduler's settings in its metadata")
    if "v_pred" in header.tensors:
        zero = "ztsnr" in header.tensors
        return _Prediction("velocity", zero, f"it holds the marker{'s v_pred and ztsnr' if zero else ' v_pred'}")
    said = _said(header.metadata)
    if said is not None:
        return said
    if family == "sd2" and spread is not None:
        kind = "velocity" if spread > _SPREAD else "epsilon"
        by = f"a guess by the spread of one tensor, {spread:.3f} against {_SPREAD}, as ComfyUI; {_MEND}"
        return _Prediction(kind, False, by, guessed=True)
    published: KnownPrediction = "velocity" if family == "sd2" else "epsilon"
    return _Prediction(published, False, f"a guess, since the file does not say: as published; {_MEND}", guessed=True)


_MEND: Final = "model.prediction in the recipe says otherwise"


def _said(metadata: Mapping[str, str]) -> _Prediction | None:
    """What the metadata claim, in the words of the model specification and of sd-scripts."""
    zero = metadata.get("ss_zero_terminal_snr", "").lower() == "true"
    word = metadata.get("modelspec.prediction_type", "").strip().lower()
    if word in _WORDS:
        return _Prediction(_WORDS[word], zero and word != "epsilon", "modelspec.prediction_type")
    architecture = metadata.get("modelspec.architecture", "")
    if architecture.startswith("stable-diffusion-v2"):
        kind: KnownPrediction = "velocity" if "768-v" in architecture else "epsilon"
        return _Prediction(kind, zero and kind != "epsilon", "modelspec.architecture")
    if metadata.get("ss_base_model_version", "").endswith("_v"):
        return _Prediction("velocity", zero, "ss_base_model_version")
    return None


def _any(names: Iterable[str], *beginnings: str) -> bool:
    return any(name.startswith(beginnings) for name in names)
