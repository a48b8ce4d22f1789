"""What a file says of itself: the keys that other tools sort and show LoRAs by, and nothing that is private."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Literal

from torch import Tensor

from trainer import __version__

KnownFamily = Literal["sd1", "sd2", "sdxl"]
KnownPrediction = Literal["epsilon", "velocity", "sample"]
PublishedKind = Literal["lora", "loha", "lokr", "dora", "embedding", "checkpoint"]

_IMPLEMENTATIONS = {"sdxl": "https://github.com/Stability-AI/generative-models"}
_WEIGHT_SUFFIXES = {".safetensors", ".ckpt", ".bin", ".pt", ".pth"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFacts:
    """What is known of a training run and may be published with its result."""

    name: str  # of the run: the title under which programs list the file
    family: KnownFamily
    prediction: KnownPrediction
    resolution: tuple[int, int]  # width and height, pixels
    kind: PublishedKind = "lora"
    parts: tuple[str, ...] = ("unet",)  # the networks that are changed
    rank: int | None = None  # of most layers; of adapters these are taken from the trained tensors at export
    alpha: float | None = None
    convolutions: bool = False  # whether 3x3 convolutions are trained too
    convolution_rank: int | None = None  # theirs; None as the others
    convolution_alpha: float | None = None
    arguments: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # of the kind, as LyCORIS' words
    steps: int  # at this save
    epoch: int  # at this save
    steps_asked: int  # of the whole run
    batch: int  # pictures a step, over all processes and passes
    seed: int
    optimizer: str  # such as adamw_8bit
    rate: float  # the learning rate at its highest, of the U-Net
    text_rates: tuple[float, ...] = ()  # of the text encoders that are trained
    rate_schedule: str | None = None  # such as cosine
    precision: str | None = None  # of the frozen base: float32, bfloat16, float16
    base: str | None = None  # name of the base weights; of a path only the last word is kept
    base_hash: str | None = None  # SHA-256 in hexadecimal
    vae: str | None = None  # of a separate autoencoder, likewise
    clip_skip: int | None = None  # 1 is the last layer
    token_limit: int = 75  # tokens of a caption that were read
    zero_terminal_snr: bool = False  # whether the last step of the schedule was pure noise
    trigger: str | None = None
    tags: Mapping[str, int] | None = None  # how often each tag was seen; only where a person asks for it
    thumbnail: str | None = None  # a data URL, as `thumbnails.as_thumbnail` makes it
    started: float | None = None  # Unix time; times are left out by default, so that equal runs give equal bytes
    finished: float | None = None


def as_metadata(facts: TrainingFacts) -> dict[str, str]:
    """The keys of kohya's scripts (`ss_`) and of the model specification (`modelspec.`), all values as text.

    No paths, user, host, captions, tag counts or file names. A pure function of the facts.

    Source: sd-scripts' `networks.lora`; https://github.com/Stability-AI/ModelSpec version 1.0.1.
    """
    unet = "unet" in facts.parts
    found: dict[str, str | int | float | None] = {
        "ss_output_name": facts.name,
        "ss_sd_model_name": _last_word(facts.base),
        "ss_new_sd_model_hash": facts.base_hash,
        "ss_vae_name": _last_word(facts.vae),
        "ss_v2": str(facts.family == "sd2"),
        "ss_base_model_version": _base_model_version(facts),
        **_network(facts),
        "ss_learning_rate": facts.rate,
        "ss_unet_lr": facts.rate if unet else None,
        "ss_text_encoder_lr": _rates(facts.text_rates),
        "ss_lr_scheduler": facts.rate_schedule,
        "ss_optimizer": facts.optimizer,
        "ss_steps": facts.steps,
        "ss_max_train_steps": facts.steps_asked,
        "ss_epoch": facts.epoch,
        "ss_total_batch_size": facts.batch,
        "ss_resolution": f"({facts.resolution[0]}, {facts.resolution[1]})",
        "ss_mixed_precision": None if facts.precision is None else _kohya_precision(facts.precision),
        "ss_seed": facts.seed,
        "ss_clip_skip": facts.clip_skip,
        "ss_max_token_length": facts.token_limit if facts.token_limit > 75 else None,  # absent: 75, as elsewhere
        "ss_zero_terminal_snr": True if facts.zero_terminal_snr else None,
        # one group, called as the run: the names of folders are nobody's business
        "ss_tag_frequency": None if facts.tags is None else json.dumps({facts.name: dict(facts.tags)}),
        "ss_training_started_at": facts.started,
        "ss_training_finished_at": facts.finished,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": _architecture(facts),
        "modelspec.implementation": _IMPLEMENTATIONS.get(facts.family, "diffusers"),
        "modelspec.implementation_version": f"sd-trainer/{__version__}",
        "modelspec.title": facts.name,
        "modelspec.resolution": f"{facts.resolution[0]}x{facts.resolution[1]}",
        "modelspec.prediction_type": "v" if facts.prediction == "velocity" else facts.prediction,
        "modelspec.encoder_layer": facts.clip_skip,
        "modelspec.trigger_phrase": facts.trigger,
        "modelspec.thumbnail": facts.thumbnail,
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
    base = {"sd1": "stable-diffusion-v1", "sd2": second, "sdxl": "stable-diffusion-xl-v1-base"}[facts.family]
    return base + {"embedding": "/textual-inversion", "checkpoint": ""}.get(facts.kind, "/lora")


def _network(facts: TrainingFacts) -> dict[str, str | int | None]:
    """The keys by which programs tell a LoRA from what LyCORIS makes; empty for what is no adapter."""
    if facts.kind in {"embedding", "checkpoint"}:
        return {}
    arguments = dict(facts.arguments)
    if facts.convolutions:
        rank = facts.convolution_rank or facts.rank
        alpha = facts.convolution_alpha or facts.alpha
        arguments |= (
            {} if rank is None or alpha is None else {"conv_dim": str(rank), "conv_alpha": _plain_number(alpha)}
        )
    return {
        "ss_network_module": "networks.lora" if facts.kind == "lora" else "lycoris.kohya",
        "ss_network_dim": facts.rank,
        "ss_network_alpha": None if facts.alpha is None else _plain_number(facts.alpha),
        "ss_network_args": json.dumps(arguments) if arguments else None,
    }


def _rates(rates: tuple[float, ...]) -> str | None:
    """One number, or a list where the text encoders learn at different rates."""
    if not rates:
        return None
    return str(rates[0]) if len(set(rates)) == 1 else json.dumps(list(rates))


def _kohya_precision(precision: str) -> str:
    return {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}.get(precision, precision)


def _plain_number(number: float) -> str:
    """`16` for 16.0: some readers take the rank and alpha for integers."""
    return str(int(number)) if float(number).is_integer() else str(number)


def _last_word(name: str | None) -> str | None:
    """The name of weights without the folders that lead to them, which are nobody's business."""
    if name is None:
        return None
    last = PurePosixPath(PureWindowsPath(name).as_posix()).name
    suffix = PurePosixPath(last).suffix
    return last.removesuffix(suffix) if suffix in _WEIGHT_SUFFIXES else last


def _date(moment: float) -> str:
    return datetime.fromtimestamp(moment, tz=timezone.utc).replace(microsecond=0).isoformat()
