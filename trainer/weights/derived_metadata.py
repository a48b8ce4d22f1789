"""What files say of themselves that were made out of other files."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from trainer.core.redacting import redacted_text
from trainer.weights.adapter_state import AdapterState
from trainer.weights.metadata import KnownFamily, KnownPrediction, TrainingFacts, as_metadata
from trainer.weights.network_facts import described

_PUBLIC: Final = re.compile(
    r"ss_(?:output_name|training_(?:started|finished)_at|v2|base_model_version"
    r"|sd_model_(?:name|hash)|new_sd_model_hash|vae_(?:name|hash)|new_vae_hash"
    r"|network_(?:module|dim|alpha|dropout|args)|scale_weight_norms"
    r"|learning_rate|unet_lr|text_encoder_lr|lr_scheduler|lr_warmup_steps|optimizer|max_grad_norm"
    r"|num_(?:epochs|train_images|reg_images|batches_per_epoch)|epoch|steps|max_train_steps"
    r"|gradient_accumulation_steps|total_batch_size|batch_size_per_device|resolution"
    r"|mixed_precision|full_fp16|full_bf16|fp8_base|gradient_checkpointing|cache_latents|lowram"
    r"|clip_skip|max_token_length|caption_(?:tag_)?dropout_rate|caption_dropout_every_n_epochs"
    r"|noise_offset|adaptive_noise_scale|multires_noise_(?:iterations|discount)|ip_noise_gamma"
    r"|zero_terminal_snr|min_snr_gamma|debiased_estimation|loss_type|huber_(?:schedule|scale|c)|prior_loss_weight"
    r"|seed|color_aug|flip_aug|random_crop|shuffle_caption|keep_tokens"
    r"|enable_bucket|bucket_no_upscale|min_bucket_reso|max_bucket_reso)"
)
"""Keys of sd-scripts that tell nothing of folders, files, captions or people."""

_STALE: Final = frozenset({"modelspec.hash_sha256"})  # hashes of what is no more
_NETWORK: Final = ("ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args")
_ORIGIN: Final = (
    *_NETWORK, "ss_output_name", "ss_sd_model_name", "ss_v2", "ss_base_model_version", "modelspec.sai_model_spec",
    "modelspec.architecture", "modelspec.implementation", "modelspec.implementation_version", "modelspec.title",
    "modelspec.prediction_type",
)  # fmt: skip
_TRIGGER: Final = "modelspec.trigger_phrase"
MADE: Final = "trainer.made"
"""How the file came about, in one sentence."""


@dataclass(frozen=True, slots=True)
class Carried:
    """Metadata of a file as another file may have them."""

    metadata: Mapping[str, str]
    dropped: tuple[str, ...]  # keys


def carried(metadata: Mapping[str, str], *, everything: bool = False) -> Carried:
    """The metadata without what is private or stale.

    Args:
        metadata: of any file.
        everything: keep also what may tell of folders, captions and people, such as tag counts.
    """
    kept: dict[str, str] = {}
    for key, text in metadata.items():
        public = _PUBLIC.fullmatch(key) is not None or key.startswith(("modelspec.", "trainer."))
        if key not in _STALE and (everything or public):
            kept[key] = text if everything else redacted_text(text)
    silent = ("sshs_", "lora_adapter_metadata", "format", *_STALE)  # made anew
    dropped = tuple(sorted(key for key in metadata if key not in kept and not key.startswith(silent)))
    return Carried(kept, dropped)


def of_network(state: AdapterState) -> dict[str, str]:
    """Kind, rank and alpha as sd-scripts says them; `Dynamic` where layers differ, as its own resizing tool has it."""
    found = as_metadata(described(_facts("", "sd1", "epsilon"), state))
    ranks = {state.rank(layer) for layer in state.layers()}
    if len(ranks) > 1:
        found |= {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}
        found.pop("ss_network_args", None)
    return {key: found[key] for key in _NETWORK if key in found}


def with_network(metadata: Mapping[str, str], state: AdapterState, name: str, made: str) -> dict[str, str]:
    """The metadata of an adapter that was made out of another one.

    Args:
        metadata: of that one, as carried.
        state: the new adapter.
        name: of the new file, without suffix.
        made: how it came about.
    """
    kept = {key: text for key, text in metadata.items() if key not in _NETWORK}
    return {**kept, **of_network(state), "ss_output_name": name, "modelspec.title": name, MADE: made}


def in_common(metadata: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What several files say alike, and all their trigger phrases."""
    first, *others = metadata
    found = {key: text for key, text in first.items() if all(other.get(key) == text for other in others)}
    phrases = dict.fromkeys(phrase for one in metadata if (phrase := one.get(_TRIGGER)))
    return {**found, _TRIGGER: ", ".join(phrases)} if phrases else found


def merged_from(names: Sequence[str], strengths: Sequence[float]) -> dict[str, str]:
    """The names of what was merged, and how strongly; no paths."""
    shares = [[name, strength] for name, strength in zip(names, strengths, strict=True)]
    return {"modelspec.merged_from": ", ".join(names), "trainer.merged": json.dumps(shares, ensure_ascii=False)}


def of_difference(
    state: AdapterState, name: str, base: str, family: KnownFamily, prediction: KnownPrediction
) -> dict[str, str]:
    """The metadata of a LoRA that nobody trained: family, base and network alone.

    Args:
        state: the LoRA.
        name: of its file, without suffix.
        base: the model that it is to be used with; of a path only the last word is kept.
        family: of both models.
        prediction: of both models.
    """
    facts = described(_facts(name, family, prediction, base), state)
    return {key: text for key, text in as_metadata(facts).items() if key in _ORIGIN} | of_network(state)


def of_checkpoint(name: str, family: KnownFamily, prediction: KnownPrediction) -> dict[str, str]:
    """What a whole model says of itself where nothing else is known of it."""
    found = as_metadata(replace(_facts(name, family, prediction), kind="checkpoint"))
    return {key: text for key, text in found.items() if key in _ORIGIN and key.startswith("modelspec.")}


def _facts(name: str, family: KnownFamily, prediction: KnownPrediction, base: str | None = None) -> TrainingFacts:
    """Facts whose keys about training are not used."""
    return TrainingFacts(
        name=name, family=family, prediction=prediction, resolution=(0, 0), steps=0, epoch=0, steps_asked=0, batch=0,
        seed=0, optimizer="", rate=0.0, base=base,
    )  # fmt: skip
