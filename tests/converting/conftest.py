"""Small random models of each family, as a folder and as a single file, and adapters for them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.converting.opened_base import OpenedBase
from trainer.families.loading import open_weights
from trainer.families.published import published_configs
from trainer.weights.adapter_kinds import DoraState, LohaState
from trainer.weights.adapter_state import AdapterState
from trainer.weights.checkpoint import write_checkpoint, write_folder
from trainer.weights.export import ExportSettings, export_adapter
from trainer.weights.lora_state import LoraState
from trainer.weights.metadata import KnownFamily
from trainer.weights.opening import NAMINGS
from trainer.weights.original_names import PARTS, Part, places_of
from trainer.weights.stored_model import layers_of

FAMILIES: tuple[KnownFamily, ...] = ("sd1", "sd2", "sdxl")
Change = Callable[[str, Tensor], Tensor]


def configurations(family: KnownFamily) -> dict[str, dict[str, Any]]:
    """Of few and narrow layers that follow the family's rules, with CLIP's own vocabulary."""
    configs, double = published_configs(family, "epsilon"), family == "sdxl"
    levels = len(configs["unet"]["block_out_channels"])
    configs["unet"] |= {"block_out_channels": [32] * levels, "cross_attention_dim": 16 + 16 * double}
    configs["unet"] |= {} if family == "sd1" else {"attention_head_dim": [4] * levels}
    configs["vae"] |= {"block_out_channels": [32, 32], "layers_per_block": 1}
    configs["vae"] |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    for part in PARTS[family][2:]:
        configs[part] |= {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    if double:
        configs["text_encoder_2"]["projection_dim"] = 16
        configs["unet"] |= {"transformer_layers_per_block": [1, 2, 2], "addition_time_embed_dim": 8}
        configs["unet"]["projection_class_embeddings_input_dim"] = 16 + 6 * 8
    return configs


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Single files in float16, one a family; beside each the same model as a folder, `folder`."""
    found: dict[str, Path] = {}
    for family in FAMILIES:
        configs, generator = configurations(family), torch.Generator().manual_seed(0)
        states: dict[Part, dict[str, Tensor]] = {
            part: {
                p.name: torch.randn(p.shape, generator=generator) * 0.05 for p in places_of(family, part, configs[part])
            }
            for part in PARTS[family]
        }
        path = found[family] = tmp_path_factory.mktemp(family) / "model.safetensors"
        write_checkpoint(path, family, states, configs, {"modelspec.title": "A model"}, torch.float16)
        source = open_weights(str(path))
        tokenizers = {name: source.tokenizer(name) for name in ("tokenizer", "tokenizer_2")[: len(PARTS[family]) - 2]}
        write_folder(path.with_name("folder"), family, states, configs, tokenizers, torch.float16)
    return found


@pytest.fixture
def rewritten(tmp_path: Path) -> Callable[[Path, Change], Path]:
    """A copy of a single file with other tensors, by their keys in the file; its metadata stay."""

    def rewrite(model: Path, change: Change) -> Path:
        path = tmp_path / "rewritten.safetensors"
        with safe_open(model, framework="pt") as file:
            tensors = {key: change(key, file.get_tensor(key)).contiguous() for key in file.keys()}  # noqa: SIM118
            save_file(tensors, path, metadata=file.metadata())
        return path

    return rewrite


@pytest.fixture
def an_adapter(models: dict[str, Path], tmp_path: Path) -> Callable[..., tuple[Path, AdapterState]]:
    """Writes an adapter for a small model: for every twentieth of its layers, in each network."""

    def make(
        family: KnownFamily, kind: str = "lora", seed: int = 0, name: str = "", **more: Any
    ) -> tuple[Path, AdapterState]:
        with OpenedBase(str(models[family])) as base:
            layers = layers_of(base, base.naming)
            shapes = {layer: base.tensors[layers[layer]].shape for layer in sorted(layers)[seed::20]}
        state = adapter_of(kind, shapes, seed)
        path = tmp_path / f"{name or kind}-{seed}.safetensors"
        versions = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
        metadata = {"ss_base_model_version": versions[family], "ss_tag_frequency": json.dumps({"folder": {"tag": 3}})}
        export_adapter(path, state, NAMINGS[family], metadata | more.get("metadata", {}), ExportSettings())
        return path, state

    return make


def adapter_of(kind: str, shapes: Mapping[str, tuple[int, ...]], seed: int) -> AdapterState:
    """A random adapter of rank 2 and alpha 1."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.1

    tensors: dict[str, Tensor] = {}
    for layer, (out, *inner) in shapes.items():
        flat, ones = int(torch.Size(inner).numel()), (1,) * (len(inner) - 1)
        if kind == "loha":
            for word in ("hada_w1", "hada_w2"):
                tensors |= {f"{layer}.{word}_a": some(out, 2), f"{layer}.{word}_b": some(2, flat)}
        else:
            tensors |= {f"{layer}.lora_A.weight": some(2, *inner), f"{layer}.lora_B.weight": some(out, 2, *ones)}
        if kind == "dora":
            tensors[f"{layer}.dora_scale"] = some(out, 1, *ones).abs() + 0.3
    return {"lora": LoraState, "loha": LohaState, "dora": DoraState}[kind](tensors, dict.fromkeys(shapes, 1.0))
