"""A base model in a folder in the diffusers layout."""

from pathlib import Path
from typing import Any, Literal

from typing_extensions import override

from trainer.core.errors import WeightsError
from trainer.families.folder_files import read_json, stored_tensors
from trainer.families.model_facts import precision_of, prediction_in
from trainer.families.source import ModelFacts, Part
from trainer.families.stored_parts import StoredPart, StoredWeights
from trainer.weights.metadata import KnownFamily
from trainer.weights.original_names import PARTS


class FolderWeights(StoredWeights):
    """A folder with model_index.json and a sub-folder for each part."""

    def __init__(self, folder: Path, *, revision: str | None = None) -> None:
        """Small files and headers are read; no weight is.

        Args:
            folder: with model_index.json.
            revision: the hub's commit, where it comes from there.

        Raises:
            WeightsError: a file is missing, broken or a pickle, or it is a model of another kind.
        """
        self.folder = folder
        self.where = str(folder)
        self.revision = revision
        family = _family_of(folder)
        self.parts = {}
        for part in PARTS[family]:
            if (folder / part).is_dir():
                self.parts[part] = folder_part(folder / part, part, family)
        self.facts = _facts(folder, family, self.part("unet"))

    @override
    def scheduler(self) -> dict[str, Any]:
        return read_json(self.folder, "scheduler/scheduler_config.json")

    @override
    def tokenizer(self, part: Literal["tokenizer", "tokenizer_2"] = "tokenizer") -> Path:
        folder = self.folder / part
        if not any((folder / name).is_file() for name in ("tokenizer.json", "merges.txt")):
            raise WeightsError(
                "The tokenizer of this model cannot be loaded.",
                where=str(folder),
                mend="Download the model again, whole.",
            )
        return folder


def folder_part(folder: Path, part: Part, family: KnownFamily) -> StoredPart:
    """One network in a folder with its config.json.

    Raises:
        WeightsError: weights or configuration are missing or broken, or the weights are pickles.
    """
    tensors = stored_tensors(folder, part)
    return StoredPart(part, family, read_json(folder, "config.json"), tensors)


def _family_of(folder: Path) -> KnownFamily:
    """The family by the U-Net's configuration, which pipelines of all kinds share."""
    pipeline = str(read_json(folder, "model_index.json").get("_class_name", ""))
    if not pipeline.startswith("StableDiffusion") or pipeline.startswith("StableDiffusion3"):
        raise WeightsError(
            f"These weights are of another family ({pipeline or 'unnamed'}).",
            where=str(folder),
            mend="Stable Diffusion 1.x, 2.x and XL can be trained.",
        )
    unet = read_json(folder, "unet/config.json")
    if unet.get("addition_embed_type") == "text_time":
        if not (folder / "text_encoder").is_dir() and (folder / "text_encoder_2").is_dir():
            raise WeightsError(
                "These weights are the refiner of Stable Diffusion XL, which cannot be trained.",
                where=str(folder),
                mend="Name the base model.",
            )
        return "sdxl"
    if "XL" in pipeline:
        return "sdxl"
    return "sd2" if unet.get("use_linear_projection") or unet.get("cross_attention_dim") == 1024 else "sd1"


def _facts(folder: Path, family: KnownFamily, unet: StoredPart) -> ModelFacts:
    scheduler = read_json(folder, "scheduler/scheduler_config.json")
    prediction = prediction_in(scheduler, f"{folder}, scheduler/scheduler_config.json")
    said = f"prediction {prediction}: scheduler_config.json"
    return ModelFacts(
        family=family,
        prediction=prediction,
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr", False)),
        inpainting=unet.config.get("in_channels") == 9,
        precision=precision_of(stored.facts for stored in unet.tensors.values()),
        zeroed_negative=bool(read_json(folder, "model_index.json").get("force_zeros_for_empty_prompt", True)),
        said=(f"family {family}: unet/config.json", said),
    )
