from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.core.device import Precision
from trainer.core.errors import NonFiniteError, WeightsError
from trainer.weights.embeddings import Embedding, export_embedding, read_embedding
from trainer.weights.export import ExportSettings
from trainer.weights.inspecting import describe
from trainer.weights.metadata import TrainingFacts, as_metadata

ONE = {"text_encoder": (3, 768)}
BOTH = {"text_encoder": (3, 768), "text_encoder_2": (3, 1280)}


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {part: torch.randn(shape, generator=draw) * 0.02 for part, shape in shapes.items()}


@pytest.mark.parametrize(
    ("shapes", "keys", "family"),
    [
        (ONE, {"emb_params": [3, 768]}, "sd1"),
        ({"text_encoder": (1, 1024)}, {"emb_params": [1, 1024]}, "sd2"),
        (BOTH, {"clip_g": [3, 1280], "clip_l": [3, 768]}, "sdxl"),
    ],
)
@pytest.mark.parametrize("precision", list(Precision))
def test_the_file_holds_just_what_programs_look_for(
    tmp_path: Path,
    some_facts: TrainingFacts,
    shapes: dict[str, tuple[int, ...]],
    keys: dict[str, list[int]],
    family: str,
    precision: Precision,
) -> None:
    vectors = drawn(shapes)
    metadata = as_metadata(replace(some_facts, kind="embedding"))
    file = tmp_path / "word.safetensors"
    assert export_embedding(file, Embedding(vectors), metadata, ExportSettings(precision=precision)) == file
    with safe_open(file, framework="pt") as opened:
        found = {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118 - no mapping
        told = opened.metadata()
    assert found == keys
    assert told["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert "ss_network_module" not in told
    assert len(told["sshs_model_hash"]) == 64
    back = read_embedding(file, {part: shape[1] for part, shape in shapes.items()})
    assert (back.layout, back.embedding.token) == ("plain", None)
    assert all(torch.equal(back.embedding.vectors[part], vectors[part].to(precision.dtype)) for part in vectors)
    report = describe(file)
    assert (report.kind, report.family) == ("textual inversion", family)
    assert {part.name for part in report.parts} == set(shapes)
    assert len(report.layers) == sum(shape[0] for shape in shapes.values())
    assert report.suspicious == ()


@pytest.mark.parametrize(
    ("key", "shape", "layout", "token"),
    [
        ("<cat-toy>", (768,), "diffusers", "<cat-toy>"),
        ("<cat-toy>", (2, 768), "diffusers", "<cat-toy>"),
        ("string_to_param.*", (2, 768), "a1111", None),
        ("*", (2, 768), "a1111", None),
        ("emb_params", (768,), "plain", None),
    ],
)
def test_other_programs_forms_are_read(
    tmp_path: Path, key: str, shape: tuple[int, ...], layout: str, token: str | None
) -> None:
    tensor = drawn({key: shape})[key]
    save_file({key: tensor}, tmp_path / "word.safetensors")
    found = read_embedding(tmp_path / "word.safetensors")
    assert (found.layout, found.embedding.token) == (layout, token)
    assert torch.equal(found.embedding.vectors["text_encoder"], tensor.reshape(-1, 768))
    assert describe(tmp_path / "word.safetensors").trigger == token


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"clip_l": torch.ones(2, 768)},
        {"clip_g": torch.ones(2, 1280)},
        {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(3, 1280)},
        {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280), "alpha": torch.ones(1)},
        {"emb_params": torch.ones(2, 768), "step": torch.ones(1)},
        {"emb_params": torch.ones(2, 768, 1)},
        {"emb_params": torch.tensor(1.0)},
        {"emb_params": torch.ones(0, 768)},
        {"emb_params": torch.ones(76, 768)},
        {"emb_params": torch.ones(2, 768, dtype=torch.int32)},
        {"emb_params": torch.full((2, 768), torch.nan)},
        {"lora_unet_mid_block_resnets_0_conv1.lora_down.weight": torch.ones(2), "b": torch.ones(2)},
    ],
)
def test_what_is_no_embedding_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "word.safetensors")
    with pytest.raises(WeightsError):
        read_embedding(tmp_path / "word.safetensors")


def test_an_embedding_of_another_family_is_refused(tmp_path: Path) -> None:
    file = export_embedding(tmp_path / "word.safetensors", Embedding(drawn(ONE)), {}, ExportSettings())
    with pytest.raises(WeightsError, match="768, and the model's are of 768 and 1280"):
        read_embedding(file, {"text_encoder": 768, "text_encoder_2": 1280})
    with pytest.raises(WeightsError, match="768, and the model's are of 1024"):
        read_embedding(file, {"text_encoder": 1024})


def test_numbers_that_are_none_are_never_written(tmp_path: Path) -> None:
    for value, precision in ((torch.nan, "float32"), (1e6, "float16")):
        vectors = drawn(BOTH)
        vectors["text_encoder_2"][1, 5] = value
        with pytest.raises(NonFiniteError):
            settings = ExportSettings(precision=Precision(precision))
            export_embedding(tmp_path / "word.safetensors", Embedding(vectors), {}, settings)
    with pytest.raises(WeightsError):
        export_embedding(tmp_path / "a.safetensors", Embedding({"unet": torch.ones(1, 8)}), {}, ExportSettings())
    assert list(tmp_path.iterdir()) == []


def test_vectors_that_look_wrong_are_named(tmp_path: Path) -> None:
    vectors = torch.full((5, 768), 0.014)
    vectors[1] = 0
    vectors[2] = 3
    vectors[3, 7] = torch.inf
    save_file({"emb_params": vectors}, tmp_path / "word.safetensors")
    found = {layer.name: layer.suspicion for layer in describe(tmp_path / "word.safetensors").suspicious}
    assert list(found) == ["emb_params[1]", "emb_params[2]", "emb_params[3]"]
    words = ("zero", "huge", "NaN")
    assert all(word in (suspicion or "") for word, suspicion in zip(words, found.values(), strict=True))
