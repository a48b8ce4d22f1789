import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from trainer.weights.adapter_kinds import state_of
from trainer.weights.embeddings import Embedding, export_embedding
from trainer.weights.export import ExportSettings, export
from trainer.weights.layouts import Layout
from trainer.weights.metadata import PublishedKind, TrainingFacts, as_metadata, hashes_of
from trainer.weights.names import SD_NAMES
from trainer.weights.network_facts import described
from trainer.weights.thumbnails import as_thumbnail

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


WORDS: dict[PublishedKind, str] = {
    "embedding": "/textual-inversion",
    "checkpoint": "",
    "lora": "/lora",
    "lokr": "/lora",
}


@pytest.mark.parametrize("kind", sorted(WORDS))
def test_the_architecture_says_what_sort_of_file_it_is(some_facts: TrainingFacts, kind: PublishedKind) -> None:
    found = as_metadata(replace(some_facts, kind=kind, family="sdxl"))
    assert found["modelspec.architecture"] == f"stable-diffusion-xl-v1-base{WORDS[kind]}"
    assert found["modelspec.implementation"] == "https://github.com/Stability-AI/generative-models"
    assert ("ss_network_module" in found) == (kind in {"lora", "lokr"})


WIDE, TO_K = "unet.mid_block.resnets.0.conv1", "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"


def ones(layer: str, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {f"{layer}.{role.replace('__', '.')}": torch.ones(shape) for role, shape in shapes.items()}


def pair(layer: str, rank: int) -> dict[str, Tensor]:
    kernel = (3, 3) if layer == WIDE else ()
    up = (8, rank, *(1 for _ in kernel))
    return ones(layer, lora_A__weight=(rank, 8, *kernel), lora_B__weight=up)


THIN_LOKR = ones(TO_K, lokr_w1=(4, 4), lokr_w2_a=(6, 2), lokr_w2_b=(2, 6))
LOHA = ones(TO_K, hada_w1_a=(8, 3), hada_w1_b=(3, 8), hada_w2_a=(8, 3), hada_w2_b=(3, 8))
NETWORKS: dict[str, tuple[dict[str, Tensor], dict[str, str | None]]] = {
    "lora": (pair(TO_K, 4), {"module": "networks.lora", "dim": "4", "alpha": "2", "args": None}),
    "lora with convolutions": (
        pair(TO_K, 4) | pair(WIDE, 3),
        {"module": "networks.lora", "dim": "4", "alpha": "2", "args": '{"conv_dim": "3", "conv_alpha": "2"}'},
    ),
    "loha": (LOHA, {"module": "lycoris.kohya", "dim": "3", "alpha": "3", "args": '{"algo": "loha"}'}),
    "lokr": (
        THIN_LOKR,
        {
            "module": "lycoris.kohya", "dim": "2", "alpha": "2",
            "args": '{"algo": "lokr", "factor": "4", "decompose_both": "False"}',
        },
    ),
    "lokr of whole factors": (
        ones(TO_K, lokr_w1=(4, 4), lokr_w2=(6, 6)),
        {
            "module": "lycoris.kohya", "dim": None, "alpha": None,
            "args": '{"algo": "lokr", "factor": "4", "decompose_both": "False"}',
        },
    ),
    "dora": (
        pair(TO_K, 4) | ones(TO_K, dora_scale=(1, 8)),
        {
            "module": "lycoris.kohya", "dim": "4", "alpha": "2",
            "args": '{"algo": "locon", "dora_wd": "True", "wd_on_output": "False"}',
        },
    ),
    "dora of rows": (
        LOHA | ones(TO_K, dora_scale=(8, 1)),
        {
            "module": "lycoris.kohya", "dim": "3", "alpha": "3",
            "args": '{"algo": "loha", "dora_wd": "True", "wd_on_output": "True"}',
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(NETWORKS))
def test_networks_are_called_as_programs_tell_them_apart(some_facts: TrainingFacts, kind: str) -> None:
    tensors, expected = NETWORKS[kind]
    layers = {name.rsplit(".", 2)[0] if "lora_" in name else name.rsplit(".", 1)[0] for name in tensors}
    found = as_metadata(described(some_facts, state_of(tensors, dict.fromkeys(layers, 2.0))))
    assert {word: found.get(f"ss_network_{word}") for word in expected} == expected


def test_rates_of_the_networks_that_are_trained(some_facts: TrainingFacts) -> None:
    both = replace(some_facts, text_rates=(5e-5, 2e-5))
    found = as_metadata(described(both, state_of(pair(TO_K, 4) | pair(TEXT, 4), {})))
    assert (found["ss_unet_lr"], found["ss_text_encoder_lr"]) == ("0.001", "[5e-05, 2e-05]")
    found = as_metadata(described(replace(some_facts, text_rates=(5e-5, 5e-5)), state_of(pair(TEXT, 4), {})))
    assert "ss_unet_lr" not in found
    assert found["ss_text_encoder_lr"] == "5e-05"


def test_tags_are_counted_only_when_asked_and_under_the_runs_name(some_facts: TrainingFacts) -> None:
    assert "ss_tag_frequency" not in as_metadata(some_facts)
    found = as_metadata(replace(some_facts, tags={"cat": 3, "sitting": 1}))
    assert json.loads(found["ss_tag_frequency"]) == {"blob": {"cat": 3, "sitting": 1}}


def a_picture_with_secrets() -> Image.Image:
    """MARKER in its EXIF, its comment, its text and its colour profile."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    exif[0x010E] = "MARKER"
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "MARKER", zip=False)
    file = io.BytesIO()
    picture = Image.new("RGBA", (900, 600), (200, 30, 30, 255))
    picture.save(file, "PNG", exif=exif, pnginfo=text, icc_profile=b"MARKER")
    opened = Image.open(io.BytesIO(file.getvalue()))
    opened.load()
    opened.info["comment"] = b"MARKER"  # as JPEG and GIF have it
    assert file.getvalue().count(b"MARKER") >= 2
    return opened


def test_a_thumbnail_is_small_upright_and_nothing_but_pixels() -> None:
    url = as_thumbnail(a_picture_with_secrets())
    head, _, body = url.partition(",")
    assert head == "data:image/jpeg;base64"
    content = base64.b64decode(body)
    found = Image.open(io.BytesIO(content))
    assert (found.format, found.mode, found.size) == ("JPEG", "RGB", (171, 256))
    assert not found.getexif()
    assert set(found.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    assert b"MARKER" not in content
    assert len(url) < 20_000


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_no_path_name_caption_or_token_reaches_a_file(
    tmp_path: Path, some_facts: TrainingFacts, monkeypatch: pytest.MonkeyPatch, layout: Layout
) -> None:
    """Markers in every place from which a trainer could take them; the bytes of the files are searched."""
    for name in ("USER", "LOGNAME", "HOME", "HOSTNAME", "HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "MARKER")
    secret = tmp_path / "MARKER-home" / "MARKER-data"
    secret.mkdir(parents=True)
    monkeypatch.chdir(secret)
    facts = replace(
        some_facts, base=str(secret / "noise.safetensors"), vae=r"C:\Users\MARKER\vae.safetensors",
        thumbnail=as_thumbnail(a_picture_with_secrets()), finished=1700000300.0,
    )  # fmt: skip
    export(
        secret / "blob.safetensors",
        state_of(pair(TO_K, 4) | pair(TEXT, 4), {}),
        SD_NAMES,
        facts,
        ExportSettings(layout=layout),
    )
    metadata = as_metadata(replace(facts, kind="embedding"))
    export_embedding(
        secret / "word.safetensors", Embedding({"text_encoder": torch.ones(1, 8)}), metadata, ExportSettings()
    )
    files = [file for file in secret.rglob("*") if file.is_file()]
    assert len(files) >= 2
    for file in files:
        assert b"MARKER" not in file.read_bytes(), file.name
    found = as_metadata(facts)
    assert (found["ss_sd_model_name"], found["ss_vae_name"]) == ("noise", "vae")
