"""What a file says of itself: the keys that other tools sort and show LoRAs by, and nothing that is private."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import PurePosixPath, PureWindowsPath
from typing import Literal

from torch import Tensor

from trainer import __version__

KnownFamily = Literal["sd1", "sd2", "sdxl"]
KnownPrediction = Literal["epsilon", "velocity", "sample"]

_WEIGHT_SUFFIXES = {".safetensors", ".ckpt", ".bin", ".pt", ".pth"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFacts:
    """What is known of a training run and may be published with its result."""

    name: str  # of the run: the title under which programs list the file
    family: KnownFamily
    prediction: KnownPrediction
    resolution: tuple[int, int]  # width and height, pixels
    rank: int
    alpha: float
    convolutions: bool = False  # whether layers outside the transformer blocks are trained too
    steps: int  # at this save
    epoch: int  # at this save
    steps_asked: int  # of the whole run
    batch: int  # pictures a step, over all processes and passes
    seed: int
    optimizer: str  # such as adamw_8bit
    rate: float  # the learning rate at its highest
    rate_schedule: str | None = None  # such as cosine
    precision: str | None = None  # of the frozen base: float32, bfloat16, float16
    base: str | None = None  # name of the base weights; of a path only the last word is kept
    base_hash: str | None = None  # SHA-256 in hexadecimal
    trigger: str | None = None
    started: float | None = None  # Unix time; times are left out by default, so that equal runs give equal bytes
    finished: float | None = None


def as_metadata(facts: TrainingFacts) -> dict[str, str]:
    """The keys of kohya's scripts (`ss_`) and of the model specification (`modelspec.`), all values as text.

    No paths, user, host, captions, tag counts or file names. A pure function of the facts.

    Source: sd-scripts' `networks.lora`; https://github.com/Stability-AI/ModelSpec version 1.0.1.
    """
    base = None if facts.base is None else _last_word(facts.base)
    found: dict[str, str | int | float | None] = {
        "ss_output_name": facts.name,
        "ss_sd_model_name": base,
        "ss_new_sd_model_hash": facts.base_hash,
        "ss_v2": str(facts.family == "sd2"),
        "ss_base_model_version": _base_model_version(facts),
        "ss_network_module": "networks.lora",
        "ss_network_dim": facts.rank,
        "ss_network_alpha": _plain_number(facts.alpha),
        "ss_network_args": _network_arguments(facts),
        "ss_learning_rate": facts.rate,
        "ss_unet_lr": facts.rate,
        "ss_lr_scheduler": facts.rate_schedule,
        "ss_optimizer": facts.optimizer,
        "ss_steps": facts.steps,
        "ss_max_train_steps": facts.steps_asked,
        "ss_epoch": facts.epoch,
        "ss_total_batch_size": facts.batch,
        "ss_resolution": f"({facts.resolution[0]}, {facts.resolution[1]})",
        "ss_mixed_precision": None if facts.precision is None else _kohya_precision(facts.precision),
        "ss_seed": facts.seed,
        "ss_training_started_at": facts.started,
        "ss_training_finished_at": facts.finished,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": _architecture(facts),
        "modelspec.implementation": "diffusers",
        "modelspec.implementation_version": f"sd-trainer/{__version__}",
        "modelspec.title": facts.name,
        "modelspec.resolution": f"{facts.resolution[0]}x{facts.resolution[1]}",
        "modelspec.prediction_type": "v" if facts.prediction == "velocity" else facts.prediction,
        "modelspec.trigger_phrase": facts.trigger,
        "modelspec.date": None if facts.finished is None else _date(facts.finished),
    }
    return {key: str(value) for key, value in found.items() if value is not None}


def hashes_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The two hashes by which web UIs and model sites know a LoRA.

    `sshs_model_hash` covers all that follows the header, so it stays when the metadata change; `sshs_legacy_hash` is
    the first 8 digits of a hash over 64 KiB at 1 MiB of a file that carries only the `ss_` keys.

    Args:
        tensors: as they will be written.
        metadata: as they will be written.
    """
    from safetensors.torch import save

    # the order of the keys in a header is arbitrary, but its length is not: bytes at 1 MiB do not depend on it
    content = save(dict(tensors), metadata={key: text for key, text in metadata.items() if key.startswith("ss_")})
    start = 8 + int.from_bytes(content[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(memoryview(content)[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
    }


def _base_model_version(facts: TrainingFacts) -> str:
    if facts.family == "sdxl":
        return "sdxl_base_v1-0"
    return {"sd1": "sd_v1", "sd2": "sd_v2"}[facts.family] + ("_v" if facts.prediction == "velocity" else "")


def _architecture(facts: TrainingFacts) -> str:
    second = "stable-diffusion-v2-768-v" if facts.prediction == "velocity" else "stable-diffusion-v2-512"
    return {"sd1": "stable-diffusion-v1", "sd2": second, "sdxl": "stable-diffusion-xl-v1-base"}[facts.family] + "/lora"


def _network_arguments(facts: TrainingFacts) -> str | None:
    if not facts.convolutions:
        return None
    return json.dumps({"conv_dim": str(facts.rank), "conv_alpha": _plain_number(facts.alpha)})


def _kohya_precision(precision: str) -> str:
    return {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}.get(precision, precision)


def _plain_number(number: float) -> str:
    """`16` for 16.0: some readers take the rank and alpha for integers."""
    return str(int(number)) if float(number).is_integer() else str(number)


def _last_word(name: str) -> str:
    """The name of weights without the folders that lead to them, which are nobody's business."""
    last = PurePosixPath(PureWindowsPath(name).as_posix()).name
    suffix = PurePosixPath(last).suffix
    return last.removesuffix(suffix) if suffix in _WEIGHT_SUFFIXES else last


def _date(moment: float) -> str:
    return datetime.fromtimestamp(moment, tz=timezone.utc).replace(microsecond=0).isoformat()
