"""Small LoRAs with real names."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from trainer.weights.lora_state import LoraState
from trainer.weights.metadata import TrainingFacts

SHAPES = {
    "unet.down_blocks.1.attentions.0.proj_in": ((4, 32, 1, 1), (32, 4, 1, 1)),
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": ((4, 96), (32, 4)),
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0": ((4, 32), (32, 4)),
    "unet.mid_block.resnets.0.conv1": ((4, 32, 3, 3), (48, 4, 1, 1)),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": ((4, 24), (24, 4)),
}


@pytest.fixture
def a_lora() -> LoraState:
    """Two kinds of layers in two networks, rank 4, alpha 2, all numbers from one seed."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for layer, (down, up) in SHAPES.items():
        tensors[f"{layer}.lora_A.weight"] = torch.randn(down, generator=generator)
        tensors[f"{layer}.lora_B.weight"] = torch.randn(up, generator=generator) * 0.01
    return LoraState(tensors=tensors, alphas=dict.fromkeys(SHAPES, 2.0))


@pytest.fixture
def some_facts() -> TrainingFacts:
    return TrainingFacts(
        name="blob", family="sd1", prediction="velocity", resolution=(64, 64), rank=4, alpha=2.0, convolutions=True,
        steps=300, steps_asked=400, epoch=2, batch=8, seed=7, optimizer="adamw_8bit", rate=1e-3, trigger="blobby",
        base="bundled", base_hash="ab" * 32,
    )  # fmt: skip


@pytest.fixture
def kohya_names() -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """Our tensors under kohya's names, made by hand: independent of the code that is tested."""

    def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            layer, ending = name[: -len(".lora_A.weight")], name[-len("A.weight") :]
            part, path = layer.split(".", 1)
            module = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part] + path.replace(".", "_")
            out[f"{module}.lora_{'down' if ending.startswith('A') else 'up'}.weight"] = tensor
        return out

    return renamed
