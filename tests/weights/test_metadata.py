import hashlib
import re
from dataclasses import replace

import pytest
import torch

from trainer.weights.metadata import TrainingFacts, as_metadata, hashes_of

GOLDEN = {
    "ss_output_name": "blob",
    "ss_sd_model_name": "bundled",
    "ss_new_sd_model_hash": "ab" * 32,
    "ss_v2": "False",
    "ss_base_model_version": "sd_v1_v",
    "ss_network_module": "networks.lora",
    "ss_network_dim": "4",
    "ss_network_alpha": "2",
    "ss_network_args": '{"conv_dim": "4", "conv_alpha": "2"}',
    "ss_learning_rate": "0.001",
    "ss_unet_lr": "0.001",
    "ss_optimizer": "adamw_8bit",
    "ss_steps": "300",
    "ss_max_train_steps": "400",
    "ss_epoch": "2",
    "ss_total_batch_size": "8",
    "ss_resolution": "(64, 64)",
    "ss_seed": "7",
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.architecture": "stable-diffusion-v1/lora",
    "modelspec.implementation": "diffusers",
    "modelspec.title": "blob",
    "modelspec.resolution": "64x64",
    "modelspec.prediction_type": "v",
    "modelspec.trigger_phrase": "blobby",
}


def test_what_a_file_says_of_itself(some_facts: TrainingFacts) -> None:
    found = as_metadata(some_facts)
    assert re.fullmatch(r"sd-trainer/\d.*", found.pop("modelspec.implementation_version"))
    assert found == GOLDEN


def test_times_only_when_given(some_facts: TrainingFacts) -> None:
    found = as_metadata(replace(some_facts, started=1700000000.0, finished=1700000300.0))
    assert found["ss_training_started_at"] == "1700000000.0"
    assert found["modelspec.date"] == "2023-11-14T22:18:20+00:00"


@pytest.mark.parametrize(
    ("family", "prediction", "version", "architecture"),
    [
        ("sd1", "epsilon", "sd_v1", "stable-diffusion-v1/lora"),
        ("sd2", "epsilon", "sd_v2", "stable-diffusion-v2-512/lora"),
        ("sd2", "velocity", "sd_v2_v", "stable-diffusion-v2-768-v/lora"),
        ("sdxl", "epsilon", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
    ],
)
def test_families_are_called_as_other_tools_sort_them(
    some_facts: TrainingFacts, family: str, prediction: str, version: str, architecture: str
) -> None:
    facts = replace(some_facts, family=family, prediction=prediction)  # pyright: ignore[reportArgumentType]
    found = as_metadata(facts)
    assert (found["ss_base_model_version"], found["modelspec.architecture"]) == (version, architecture)
    assert found["ss_v2"] == str(family == "sd2")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/home/MARKER/models/noise.safetensors", "noise"),
        (r"C:\Users\MARKER\noise.safetensors", "noise"),
        ("../MARKER/noise_v1.5", "noise_v1.5"),
        ("MARKER/noise", "noise"),
        ("bundled", "bundled"),
    ],
)
def test_folders_are_nobodys_business(some_facts: TrainingFacts, given: str, kept: str) -> None:
    found = as_metadata(replace(some_facts, base=given))
    assert found["ss_sd_model_name"] == kept
    assert not any("MARKER" in text for text in found.values())


def test_hashes_are_those_of_the_bytes(some_facts: TrainingFacts) -> None:
    """Against a file put together here by hand: header, then the tensors from the widest dtype on, by name."""
    big = torch.arange(400_000, dtype=torch.float32)
    small = torch.ones(3, dtype=torch.float16)
    body = big.numpy().tobytes() + small.numpy().tobytes()
    first = hashes_of({"b": small, "a": big}, as_metadata(some_facts))
    assert first["sshs_model_hash"] == hashlib.sha256(body).hexdigest()
    other = hashes_of({"a": big, "b": small}, as_metadata(replace(some_facts, trigger="another")))
    assert other == first
    # the window at 1 MiB lies wholly in the tensors; where it begins there depends on the length of the ss_ header
    window = next(
        shift for shift in range(0, 8192, 4)
        if hashlib.sha256(body[0x100000 - shift : 0x110000 - shift]).hexdigest()[:8] == first["sshs_legacy_hash"]
    )  # fmt: skip
    assert window > 8
