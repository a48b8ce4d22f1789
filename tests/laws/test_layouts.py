"""Laws of the layouts: whatever way an adapter goes through them, it comes back as the same bytes."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.core.device import Precision
from trainer.core.tensors import read_tensors
from trainer.weights.adapter_kinds import state_of
from trainer.weights.adapter_state import AdapterState
from trainer.weights.even_alphas import even_alphas
from trainer.weights.export import ExportSettings, export_adapter
from trainer.weights.layouts import Layout
from trainer.weights.names import SD_NAMES, SDXL_NAMES, Naming
from trainer.weights.peft_configs import is_wide, sides
from trainer.weights.reading import read_adapter

UNET = {
    "unet.down_blocks.0.resnets.1.conv2": (8, 6, 3, 3),
    "unet.down_blocks.0.downsamplers.0.conv": (6, 6, 3, 3),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (8, 8),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (8, 12),
    "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": (32, 8),
    "unet.up_blocks.1.resnets.2.conv_shortcut": (8, 14, 1, 1),
    "unet.up_blocks.1.resnets.2.time_emb_proj": (8, 16),
}
TEXT = {"mlp.fc1": (24, 12), "self_attn.out_proj": (12, 12)}
TEXT_1 = {f"text_encoder.text_model.encoder.layers.1.{name}": shape for name, shape in TEXT.items()}
TEXT_2 = {f"text_encoder_2.text_model.encoder.layers.1.{name}": shape for name, shape in TEXT.items()}
PROJECTION = "unet.mid_block.attentions.0.proj_in"
LAYERS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "sd1": {**UNET, **TEXT_1, PROJECTION: (8, 8, 1, 1)},
    "sd2": {**UNET, **TEXT_1, PROJECTION: (8, 8)},
    "sdxl": {**UNET, **TEXT_1, **TEXT_2, PROJECTION: (8, 8)},
}
NAMINGS: Mapping[str, Naming] = {"sd1": SD_NAMES, "sd2": SD_NAMES, "sdxl": SDXL_NAMES}
# what each layout can say
SAYABLE: Mapping[str, tuple[Layout, ...]] = {
    "lora": ("kohya", "diffusers", "peft"),
    "dora of rows": ("kohya", "diffusers", "peft"),
    "dora of columns": ("kohya",),
    "loha": ("kohya", "peft"),
    "lokr": ("kohya", "peft"),
}


@st.composite
def adapters(draw: st.DrawFn) -> tuple[str, str, AdapterState]:
    """Family, kind, and an adapter over some of its layers, of any ranks and alphas."""
    family = draw(st.sampled_from(sorted(LAYERS)))
    kind = draw(st.sampled_from(sorted(SAYABLE)))
    layers = draw(st.lists(st.sampled_from(sorted(LAYERS[family])), min_size=1, unique=True))
    chance = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    alpha = st.floats(2**-7, 64, width=32) | st.sampled_from([1.0, 2.0, 4.0])
    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for layer in layers:
        alphas[layer] = draw(alpha)
        made = tensors_of(kind, LAYERS[family][layer], draw(st.integers(1, 4)))
        for role, shape in made.items():
            drawn = torch.randn(shape, generator=chance)
            tensors[f"{layer}.{role}"] = drawn.abs() + 0.1 if role == "dora_scale" else drawn
    return family, kind, state_of(tensors, alphas)


def tensors_of(kind: str, shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
    """Role -> shape, for a weight of this shape."""
    out, ones = shape[0], (1,) * (len(shape) - 2)
    inner = torch.Size(shape[1:]).numel()
    if kind == "loha":
        halves = {"a": (out, rank), "b": (rank, inner)}
        return {f"hada_{w}_{half}": size for w in ("w1", "w2") for half, size in halves.items()}
    if kind == "lokr":  # as peft builds it with the factor 2
        thin: dict[str, tuple[int, ...]] = {"lokr_w2_a": (out // 2, rank), "lokr_w2_b": (rank, inner // 2)}
        whole: dict[str, tuple[int, ...]] = {"lokr_w2": (out // 2, shape[1] // 2, *shape[2:])}
        return {"lokr_w1": (2, 2), **(thin if rank < max(out, shape[1]) / 4 else whole)}
    pair: dict[str, tuple[int, ...]] = {"lora_A.weight": (rank, *shape[1:]), "lora_B.weight": (out, rank, *ones)}
    if kind == "dora of rows":
        pair["dora_scale"] = (out, 1, *ones)
    if kind == "dora of columns":
        pair["dora_scale"] = (1, shape[1], *ones)
    return pair


def sent(state: AdapterState, family: str, layout: Layout, folder: Path, precision: Precision) -> AdapterState:
    """The state after a way through a layout's files."""
    settings_ = ExportSettings(layout=layout, precision=precision)
    path = export_adapter(folder / f"{layout}.safetensors", state, NAMINGS[family], {}, settings_)
    file = read_adapter(path, NAMINGS[family])
    assert file.layout == layout
    return file.state


@given(adapters(), st.sampled_from(list(Precision)), st.data())
@settings(max_examples=60)
def test_every_layout_gives_back_the_same_bytes(
    adapter: tuple[str, str, AdapterState], precision: Precision, data: st.DataObject
) -> None:
    """a -> b -> a, for every pair of layouts that can say the kind, in every number format."""
    family, kind, state = adapter
    first: Layout = data.draw(st.sampled_from(SAYABLE[kind]))
    second: Layout = data.draw(st.sampled_from(SAYABLE[kind]))
    with tempfile.TemporaryDirectory() as folder:
        once = sent(state, family, first, Path(folder), precision)
        before = bytes_in(Path(folder), first)
        between = sent(once, family, second, Path(folder), precision)
        sent(between, family, first, Path(folder), precision)
        assert bytes_in(Path(folder), first) == before
    assert once.kind == between.kind == state.kind
    assert once.alphas == between.alphas
    assert once.tensors.keys() == between.tensors.keys()
    assert all(torch.equal(once.tensors[name], between.tensors[name]) for name in once.tensors)


def bytes_in(folder: Path, layout: Layout) -> dict[str, tuple[torch.dtype, list[int], bytes]]:
    """Each tensor of a layout's files: dtype, shape, bytes."""
    files = sorted((folder / layout).rglob("*.safetensors")) if layout == "peft" else [folder / f"{layout}.safetensors"]
    return {
        f"{file.parent.name}/{name}" if layout == "peft" else name: (
            tensor.dtype,
            list(tensor.shape),
            tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
        )
        for file in files
        for name, tensor in read_tensors(file).items()
    }


@given(adapters(), st.data())
@settings(max_examples=40)
def test_what_is_written_changes_weights_as_what_was_trained(
    adapter: tuple[str, str, AdapterState], data: st.DataObject
) -> None:
    """Alphas and scales may be written in another way; what they mean stays."""
    family, kind, state = adapter
    layout: Layout = data.draw(st.sampled_from(SAYABLE[kind]))
    with tempfile.TemporaryDirectory() as folder:
        found = sent(state, family, layout, Path(folder), Precision.float32)
    assert found.layers() == state.layers()
    for layer in state.layers():
        weight = torch.randn(LAYERS[family][layer], generator=torch.Generator().manual_seed(7))
        expected = state.change(layer, weight)
        assert float((found.change(layer, weight) - expected).norm()) <= 2e-6 * float(expected.norm()) + 1e-7
        assert found.rank(layer) == state.rank(layer)


@given(adapters())
@settings(max_examples=100)
def test_written_alphas_are_read_alike_by_all_programs(adapter: tuple[str, str, AdapterState]) -> None:
    """One number a network, but for 3x3 convolutions where the others are more; of products the rank."""
    _, _, state = adapter
    alphas = even_alphas(state)
    assert sorted(alphas) == state.layers()
    if state.kind in {"loha", "lokr"}:
        assert all(alpha == (state.rank(layer) or 1) for layer, alpha in alphas.items())
        return
    for part in {layer.partition(".")[0] for layer in alphas}:
        plain = {a for layer, a in alphas.items() if layer.startswith(f"{part}.") and not is_wide(layer)}
        assert len(plain) <= 1
        own = [a for layer, a in alphas.items() if layer.startswith(f"{part}.")]
        common = max(own, key=own.count)
        assert not plain or plain == {common}


@given(st.integers(1, 6000), st.sampled_from([-1, 2, 3, 4, 8, 16, 100]))
def test_sides_are_those_of_peft(dimension: int, factor: int) -> None:
    from peft.tuners.lokr.layer import factorization

    assert sides(dimension, factor) == factorization(dimension, factor)


@pytest.mark.parametrize("family", sorted(LAYERS))
def test_the_layers_of_these_laws_are_of_all_sorts(family: str) -> None:
    layers = [layer for layer in LAYERS[family] if layer.startswith("unet.")]
    assert {is_wide(layer) for layer in layers} == {True, False}
