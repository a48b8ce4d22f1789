"""Ranks and alphas by part, kind of layer and block."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from trainer.adapters.lora import Lora
from trainer.core.device import Precision
from trainer.core.errors import RecipeError
from trainer.core.seeds import Seeds
from trainer.families.sd1 import Sd1

ALL = ("transformer", "convolution", "te1")


def sizes(folder: Path, **said: Any) -> dict[str, tuple[int, float]]:
    model = Sd1(weights=str(folder)).load(Precision.float32, torch.device("cpu"))
    adapter = Lora.model_validate({"rank": 4, "alpha": 2.0, "layers": ALL, **said})
    state = adapter.attach(model, Seeds(0)).adapter_state()
    return {layer: (state.rank(layer) or 0, state.alphas[layer]) for layer in state.layers()}


def test_convolutions_have_their_own_and_shortcuts_the_linear_ones(small_model: Path) -> None:
    """As conv_dim and conv_alpha of sd-scripts."""
    found = sizes(small_model, convolution={"rank": 3, "alpha": 7.0})
    wide = {layer for layer, size in found.items() if size == (3, 7.0)}
    assert wide
    assert wide == {layer for layer in found if layer.rpartition(".")[2] in {"conv", "conv1", "conv2"}}
    assert {found[layer] for layer in found.keys() - wide} == {(4, 2.0)}
    assert any(layer.endswith("conv_shortcut") for layer in found.keys() - wide)


def test_later_lines_count_more_and_alpha_goes_with_the_rank(small_model: Path) -> None:
    found = sizes(
        small_model,
        convolution={"rank": 1},
        ranks=[
            {"layers": ["te1"], "rank": 2},
            {"layers": ["attention", "feed_forward"], "rank": 6, "alpha": 5.0},
            {"blocks": ["mid_block"], "layers": ["attention"], "rank": 8},
            {"blocks": ["down_blocks.0.resnets"], "rank": 2, "alpha": 1.0},
        ],
    )
    expected = {
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": (2, 1.0),
        "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (6, 5.0),
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (8, 4.0),
        "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2": (6, 5.0),
        "unet.mid_block.attentions.0.proj_in": (4, 2.0),
        "unet.mid_block.resnets.0.conv1": (1, 0.5),
        "unet.down_blocks.0.resnets.0.conv1": (2, 1.0),
        "unet.down_blocks.0.resnets.0.time_emb_proj": (2, 1.0),
    }
    assert {layer: found[layer] for layer in expected} == expected


def test_a_block_of_a_text_encoder_has_a_name(small_model: Path) -> None:
    found = sizes(small_model, ranks=[{"blocks": ["encoder.layers.0"], "rank": 1}])
    assert {size for layer, size in found.items() if layer.startswith("text_encoder")} == {(1, 0.5)}
    assert {size for layer, size in found.items() if layer.startswith("unet")} == {(4, 2.0)}


@pytest.mark.parametrize(
    ("said", "where"),
    [
        ({"ranks": [{"layers": ["unet"], "rank": 2}, {"blocks": ["down_blocks.7"], "rank": 2}]}, "adapter.ranks.1"),
        ({"layers": ("attention",), "ranks": [{"layers": ["te1"], "rank": 2}]}, "adapter.ranks.0"),
        ({"layers": ("attention",), "convolution": {"rank": 2}}, "adapter.convolution"),
        ({"ranks": [{"layers": ["atention"], "rank": 2}]}, "adapter.ranks"),
        ({"ranks": [{"blocks": ["mid_block"], "layers": ["attention"], "rank": 17}]}, "adapter.rank"),
    ],
)
def test_what_means_no_layer_is_named(small_model: Path, said: dict[str, Any], where: str) -> None:
    with pytest.raises(RecipeError) as caught:
        sizes(small_model, **said)
    assert caught.value.where == where


def test_a_line_without_layers_is_refused() -> None:
    with pytest.raises(ValidationError, match="name layers or blocks"):
        Lora.model_validate({"ranks": [{"rank": 2}]})
