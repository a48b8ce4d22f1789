"""The very keys and shapes that inference programs were seen to load, per family and kind; and how many there are."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trainer.families.sd1
import trainer.families.sd2
import trainer.families.sdxl
from trainer.families.model import DiffusionModel
from trainer.families.published import published_configs
from trainer.weights.adapter_kinds import state_of
from trainer.weights.layouts import to_kohya
from trainer.weights.live_layers import live_layers
from trainer.weights.metadata import KnownFamily
from trainer.weights.names import SD_NAMES, SDXL_NAMES

RANK = 4
DOWN0 = "unet.down_blocks.0.attentions.0"
XL4 = "unet.down_blocks.1.attentions.0"
TEXT = "text_model.encoder.layers"

# our layer -> the shape of its weight in the published model
LAYERS: dict[str, dict[str, tuple[int, ...]]] = {
    "sd1": {
        f"{DOWN0}.proj_in": (320, 320, 1, 1),
        f"{DOWN0}.transformer_blocks.0.attn2.to_k": (320, 768),
        "unet.down_blocks.0.resnets.0.conv1": (320, 320, 3, 3),
        f"text_encoder.{TEXT}.0.self_attn.q_proj": (768, 768),
    },
    "sd2": {
        f"{DOWN0}.proj_in": (320, 320),
        f"{DOWN0}.transformer_blocks.0.attn2.to_k": (320, 1024),
        "unet.mid_block.resnets.0.conv1": (1280, 1280, 3, 3),
        f"text_encoder.{TEXT}.22.mlp.fc1": (4096, 1024),
    },
    "sdxl": {
        f"{XL4}.proj_in": (640, 640),
        f"{XL4}.transformer_blocks.0.attn2.to_k": (640, 2048),
        "unet.mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj": (10240, 1280),
        "unet.down_blocks.0.resnets.0.conv1": (320, 320, 3, 3),
        f"text_encoder.{TEXT}.0.self_attn.q_proj": (768, 768),
        f"text_encoder_2.{TEXT}.31.mlp.fc2": (1280, 5120),
    },
}
KOHYA = {
    "sd1": (
        "lora_unet_down_blocks_0_attentions_0_proj_in",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
        "lora_unet_down_blocks_0_resnets_0_conv1",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    ),
    "sd2": (
        "lora_unet_down_blocks_0_attentions_0_proj_in",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
        "lora_unet_mid_block_resnets_0_conv1",
        "lora_te_text_model_encoder_layers_22_mlp_fc1",
    ),
    "sdxl": (
        "lora_unet_input_blocks_4_1_proj_in",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
        "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj",
        "lora_unet_input_blocks_1_0_in_layers_2",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_31_mlp_fc2",
    ),
}
# kind -> ends of keys -> shapes of the layers above, in their order; r stands for RANK
r = RANK
SHAPES: dict[tuple[str, str], dict[str, list[list[int]]]] = {
    ("sd1", "lora"): {
        "lora_down.weight": [[r, 320, 1, 1], [r, 768], [r, 320, 3, 3], [r, 768]],
        "lora_up.weight": [[320, r, 1, 1], [320, r], [320, r, 1, 1], [768, r]],
    },
    ("sd2", "lora"): {
        "lora_down.weight": [[r, 320], [r, 1024], [r, 1280, 3, 3], [r, 1024]],
        "lora_up.weight": [[320, r], [320, r], [1280, r, 1, 1], [4096, r]],
    },
    ("sdxl", "lora"): {
        "lora_down.weight": [[r, 640], [r, 2048], [r, 1280], [r, 320, 3, 3], [r, 768], [r, 5120]],
        "lora_up.weight": [[640, r], [640, r], [10240, r], [320, r, 1, 1], [768, r], [1280, r]],
    },
    ("sd1", "loha"): {
        "hada_w1_a": [[320, r], [320, r], [320, r], [768, r]],
        "hada_w1_b": [[r, 320], [r, 768], [r, 2880], [r, 768]],
    },
    ("sd2", "loha"): {
        "hada_w1_a": [[320, r], [320, r], [1280, r], [4096, r]],
        "hada_w1_b": [[r, 320], [r, 1024], [r, 11520], [r, 1024]],
    },
    ("sdxl", "loha"): {
        "hada_w1_a": [[640, r], [640, r], [10240, r], [320, r], [768, r], [1280, r]],
        "hada_w1_b": [[r, 640], [r, 2048], [r, 1280], [r, 2880], [r, 768], [r, 5120]],
    },
    ("sd1", "lokr"): {
        "lokr_w1": [[8, 8]] * 4,
        "lokr_w2_a": [[40, r], [40, r], [40, r], [96, r]],
        "lokr_w2_b": [[r, 40], [r, 96], [r, 360], [r, 96]],
    },
    ("sd2", "lokr"): {
        "lokr_w1": [[8, 8]] * 4,
        "lokr_w2_a": [[40, r], [40, r], [160, r], [512, r]],
        "lokr_w2_b": [[r, 40], [r, 128], [r, 1440], [r, 128]],
    },
    ("sdxl", "lokr"): {
        "lokr_w1": [[8, 8]] * 6,
        "lokr_w2_a": [[80, r], [80, r], [1280, r], [40, r], [96, r], [160, r]],
        "lokr_w2_b": [[r, 80], [r, 256], [r, 160], [r, 360], [r, 96], [r, 640]],
    },
    ("sd1", "dora"): {"dora_scale": [[1, 320, 1, 1], [1, 768], [1, 320, 1, 1], [1, 768]]},
    ("sd2", "dora"): {"dora_scale": [[1, 320], [1, 1024], [1, 1280, 1, 1], [1, 1024]]},
    ("sdxl", "dora"): {"dora_scale": [[1, 640], [1, 2048], [1, 1280], [1, 320, 1, 1], [1, 768], [1, 5120]]},
}
for family in LAYERS:
    for half in ("a", "b"):
        SHAPES[family, "loha"][f"hada_w2_{half}"] = SHAPES[family, "loha"][f"hada_w1_{half}"]
    SHAPES[family, "dora"] |= SHAPES[family, "lora"]


def tensors_of(kind: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A layer's tensors as a trainer would make them for a weight of this shape."""
    out, inner, kernel = shape[0], torch.Size(shape[1:]).numel(), shape[2:]
    pair = {"lora_A.weight": torch.ones(RANK, *shape[1:]), "lora_B.weight": torch.ones(out, RANK, *(1 for _ in kernel))}
    if kind == "lora":
        return pair
    if kind == "dora":
        return pair | {"dora_scale": torch.ones(1, shape[1], *(1 for _ in kernel))}
    if kind == "loha":
        sides = {"a": torch.ones(out, RANK), "b": torch.ones(RANK, inner)}
        return {f"hada_{w}_{half}": tensor for w in ("w1", "w2") for half, tensor in sides.items()}
    thin = {"lokr_w2_a": torch.ones(out // 8, RANK), "lokr_w2_b": torch.ones(RANK, inner // 8)}
    return {"lokr_w1": torch.ones(8, 8), **thin}


@pytest.mark.parametrize(("family", "kind"), sorted(SHAPES))
def test_keys_and_shapes_are_those_that_programs_load(family: str, kind: str) -> None:
    tensors = {
        f"{layer}.{role}": tensor
        for layer, shape in LAYERS[family].items()
        for role, tensor in tensors_of(kind, shape).items()
    }
    naming = SDXL_NAMES if family == "sdxl" else SD_NAMES
    found = to_kohya(state_of(tensors, dict.fromkeys(LAYERS[family], 2.0)), naming, torch.float16)
    expected = {
        f"{name}.{ending}": shape
        for ending, shapes in SHAPES[family, kind].items()
        for name, shape in zip(KOHYA[family], shapes, strict=True)
    } | {f"{name}.alpha": [] for name in KOHYA[family]}
    assert {key: list(tensor.shape) for key, tensor in found.items()} == expected
    alphas = {key: float(tensor) for key, tensor in found.items() if key.endswith(".alpha")}
    assert set(alphas.values()) == ({2.0} if kind in {"lora", "dora"} else {float(RANK)})
    assert all(
        tensor.dtype == (torch.float32 if key.endswith("alpha") else torch.float16) for key, tensor in found.items()
    )


def test_whole_factors_of_a_lokr_keep_their_kernel() -> None:
    layer = "unet.mid_block.resnets.0.conv1"
    state = state_of({f"{layer}.lokr_w1": torch.ones(8, 8), f"{layer}.lokr_w2": torch.ones(160, 160, 3, 3)}, {})
    shapes = {key: list(tensor.shape) for key, tensor in to_kohya(state, SD_NAMES, torch.float32).items()}
    name = "lora_unet_mid_block_resnets_0_conv1"
    assert shapes == {f"{name}.lokr_w1": [8, 8], f"{name}.lokr_w2": [160, 160, 3, 3], f"{name}.alpha": []}


MODELS: dict[KnownFamily, type[DiffusionModel]] = {
    "sd1": trainer.families.sd1.Sd1Model,
    "sd2": trainer.families.sd2.Sd2Model,
    "sdxl": trainer.families.sdxl.SdxlModel,
}
# text encoders, U-Net, U-Net with convolutions; parameters at rank 4 of U-Net and text, without convolutions
COUNTS: dict[KnownFamily, tuple[list[int], int, int, int, int]] = {
    "sd1": ([72], 192, 278, 1_695_744, 663_552),
    "sd2": ([138], 192, 278, 1_728_512, 1_695_744),
    "sdxl": ([72, 192], 722, 788, 10_639_360, 3_612_672),
}


def networks_of(family: KnownFamily) -> dict[str, nn.Module]:
    """The published networks, without memory."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    configs = published_configs(family, "epsilon")
    kinds: dict[str, Any] = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    unet: Any = UNet2DConditionModel  # its `from_config` is typed as a pair
    with torch.device("meta"):
        networks = {part: kinds[part](CLIPTextConfig(**configs[part])) for part in kinds if part in configs}
        return {"unet": unet.from_config(configs["unet"]), **networks}


def size_at_rank_4(weight: Tensor) -> int:
    return RANK * (weight.shape[0] + weight[0].numel())


@pytest.mark.parametrize("family", sorted(MODELS))
def test_counts_of_modules_and_parameters_are_those_of_sd_scripts(family: KnownFamily) -> None:
    model = MODELS[family]
    texts, plain, with_convolutions, of_unet, of_text = COUNTS[family]
    networks = networks_of(family)
    words = dict.fromkeys(model.text_parts.values(), model.adaptable_text)
    sets = {
        "plain": {"unet": model.adaptable["transformer"], **words},
        "wide": {"unet": f"{model.adaptable['transformer']}|{model.adaptable['convolution']}"},
    }
    found: dict[str, dict[str, list[str]]] = {}
    for name, patterns in sets.items():
        found[name] = {
            part: [
                layer
                for layer, path in live_layers(networks[part], part, model.naming).items()
                if re.fullmatch(pattern, path)
            ]
            for part, pattern in patterns.items()
        }
    assert [len(found["plain"][part]) for part in model.text_parts.values()] == texts
    assert len(found["plain"]["unet"]) == plain
    assert len(found["wide"]["unet"]) == with_convolutions
    assert len(live_layers(networks["unet"], "unet", model.naming)) == with_convolutions  # nothing else is adaptable
    sizes = {"unet": 0, "text": 0}
    for part, layers in found["plain"].items():
        places = live_layers(networks[part], part, model.naming)
        total = sum(size_at_rank_4(networks[part].get_parameter(f"{places[layer]}.weight")) for layer in layers)
        sizes["unet" if part == "unet" else "text"] += total
    assert sizes == {"unet": of_unet, "text": of_text}
    layers = [layer for part in found["wide"] for layer in found["wide"][part]]
    kohya = {model.naming.to_kohya(layer) for layer in layers}
    assert len(kohya) == len(layers)
    assert {model.naming.from_kohya(name) for name in kohya} == set(layers)
