"""How many layers and numbers the words of a recipe mean in the real networks, built from their published
configurations without weights; the expected ones were counted in sd-scripts' own networks.
"""

import json
from importlib.resources import files
from typing import Any

import pytest
import torch
from torch import nn

from trainer.adapters.injecting import InjectedAdapter
from trainer.adapters.lora import Lora
from trainer.core.seeds import Seeds
from trainer.families.model import DiffusionModel
from trainer.families.sd1 import Sd1Model
from trainer.families.sd2 import Sd2Model
from trainer.families.sdxl import SdxlModel


def real_model(family: type[DiffusionModel], configuration: str) -> DiffusionModel:
    """A model of the family whose networks have their true sizes and no numbers."""
    configurations: dict[str, Any] = json.loads(
        (files("trainer.families") / "configs" / f"{configuration}.json").read_text(encoding="utf-8")
    )

    def build(part: str) -> nn.Module:
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        own = configurations[part]
        with torch.device("meta"):
            if part == "unet":
                network: Any = UNet2DConditionModel.from_config(own)
            elif own["architectures"] == ["CLIPTextModelWithProjection"]:
                network = CLIPTextModelWithProjection(CLIPTextConfig(**own))
            else:
                network = CLIPTextModel(CLIPTextConfig(**own))
        return network.to(torch.bfloat16).requires_grad_(requires_grad=False)

    class WithoutNumbers(family):
        def __init__(self) -> None:
            self._built: dict[str, nn.Module] = {}

        def network(self, part: str) -> nn.Module:
            if part not in self._built:
                self._built[part] = build(part)
            return self._built[part]

        def keep_text_encoders(self) -> None:
            pass

    return WithoutNumbers()  # pyright: ignore[reportAbstractUsage] - every family's own class is whole


def attached(model: DiffusionModel, *layers: str) -> InjectedAdapter:
    with torch.device("meta"):
        return Lora(rank=4, layers=layers).attach(model, Seeds(0))


def counted(trainable: InjectedAdapter) -> dict[str, tuple[int, int]]:
    """Layers and numbers by part."""
    layers = list(trainable.alphas())
    state = trainable.state()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    return {
        part: (
            sum(layer.startswith(f"{part}.") for layer in layers),
            sum(tensor.numel() for name, tensor in state.items() if name.startswith(f"{part}.")),
        )
        for part in trainable.parts
    }


SD1, SD2, SDXL = (Sd1Model, "sd1"), (Sd2Model, "sd2_768"), (SdxlModel, "sdxl")


@pytest.mark.parametrize(
    ("model", "layers", "expected"),
    [
        (SD1, ("transformer", "te1"), {"unet": (192, 1_695_744), "text_encoder": (72, 663_552)}),
        (SD2, ("transformer", "te1"), {"unet": (192, 1_728_512), "text_encoder": (138, 1_695_744)}),
        ((Sd2Model, "sd2_512"), ("te1",), {"text_encoder": (138, 1_695_744)}),
    ],
    ids=["sd1", "sd2", "sd2-512"],
)
def test_the_transformer_and_the_text_encoder_are_those_of_sd_scripts(
    model: tuple[type[DiffusionModel], str], layers: tuple[str, ...], expected: dict[str, tuple[int, int]]
) -> None:
    assert counted(attached(real_model(*model), *layers)) == expected


def test_both_text_encoders_of_sdxl_are_those_of_sd_scripts() -> None:
    found = counted(attached(real_model(*SDXL), "transformer", "te1", "te2"))
    assert found["unet"] == (722, 10_639_360)
    assert found["text_encoder"][0] == 72
    assert found["text_encoder_2"][0] == 192
    assert found["text_encoder"][1] + found["text_encoder_2"][1] == 3_612_672


@pytest.mark.parametrize(("model", "layers"), [(SD1, 278), (SD2, 278), (SDXL, 788)], ids=["sd1", "sd2", "sdxl"])
def test_convolutions_are_those_of_sd_scripts(model: tuple[type[DiffusionModel], str], layers: int) -> None:
    assert counted(attached(real_model(*model), "transformer", "convolution"))["unet"][0] == layers


def test_the_words_of_sdxl_share_its_layers_out() -> None:
    """5.81 and 4.66 million numbers; what is left of the transformer are its projections."""
    attention = counted(attached(real_model(*SDXL), "attention"))["unet"]
    both = counted(attached(real_model(*SDXL), "attention", "feed_forward"))["unet"]
    feed_forward = (both[0] - attention[0], both[1] - attention[1])
    assert (attention[0], round(attention[1] / 1e6, 2)) == (560, 5.81)
    assert (feed_forward[0], round(feed_forward[1] / 1e6, 2)) == (140, 4.66)
    assert 722 - both[0] == 22
