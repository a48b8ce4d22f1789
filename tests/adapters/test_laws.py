"""What the forms of a LoRA do to a weight, against the papers' formulas; what is left out by chance; and norms."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from trainer.adapters.injecting import InjectedAdapter
from trainer.adapters.loha import Loha
from trainer.adapters.lokr import Lokr
from trainer.adapters.lora import Lora
from trainer.core.device import Precision
from trainer.core.errors import RecipeError
from trainer.core.seeds import Seeds
from trainer.families.model import DiffusionModel
from trainer.families.quantising import QuantisedLinear, Quantiser
from trainer.families.sd1 import Sd1
from trainer.weights.export import ExportSettings
from trainer.weights.metadata import TrainingFacts
from trainer.weights.reading import read_adapter

NOISY = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
T = torch.tensor([10, 700])
LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"  # with a bias
WIDE = "mid_block.resnets.0.conv1"
FACTS = TrainingFacts(
    name="x", family="sd1", prediction="epsilon", resolution=(16, 16), steps=1, epoch=1, steps_asked=1, batch=1, seed=0,
    optimizer="adamw", rate=1e-3,
)  # fmt: skip


def open_small(folder: Path, precision: Precision = Precision.float32) -> DiffusionModel:
    return Sd1(weights=str(folder)).load(precision, torch.device("cpu"))


def predict(model: DiffusionModel) -> Tensor:
    with torch.no_grad():
        return model.predict(NOISY, T, model.encode_words(["a red ball", ""])).float()


def drawn(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(trainable: InjectedAdapter, size: float = 0.5) -> None:
    state = {
        name: tensor * (1 + 0.3 * drawn(*tensor.shape)) if name.endswith("dora_scale") else size * drawn(*tensor.shape)
        for name, tensor in trainable.state().items()
        if "origin" not in name
    }
    trainable.load_state(trainable.state() | state)


def layer_of(model: DiffusionModel, path: str) -> Any:
    return model.denoiser.get_submodule(path)


def inputs_of(layer: Any) -> Tensor:
    base = layer.base_layer
    return drawn(2, base.in_channels, 5, 5) if isinstance(base, nn.Conv2d) else drawn(2, 3, base.in_features)


def product(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    """What the layer's base would say with another weight."""
    base = layer.base_layer
    if isinstance(base, nn.Conv2d):
        return nn.functional.conv2d(x, weight, base.bias, base.stride, base.padding)
    return nn.functional.linear(x, weight, base.bias)


@pytest.mark.parametrize("path", [LINEAR, WIDE])
@pytest.mark.parametrize("axis", ["inputs", "outputs"])
def test_dora_gives_directions_their_lengths(small_model: Path, axis: Any, path: str) -> None:
    """arXiv:2402.09353, equation 5: m (W + s B A) / ||W + s B A||; the bias is no part of the weight."""
    model = open_small(small_model)
    trainable = Lora(rank=2, alpha=3.0, layers=("attention", "convolution"), decompose=axis).attach(model, Seeds(0))
    layer = layer_of(model, path)
    weight: Tensor = layer.base_layer.weight
    dims = [d for d in range(weight.ndim) if d != (1 if axis == "inputs" else 0)]
    assert torch.equal(layer.dora_scale.detach(), torch.linalg.vector_norm(weight, dim=dims, keepdim=True))
    trained(trainable)
    up, down = (pair["default"].weight.flatten(1) for pair in (layer.lora_B, layer.lora_A))
    moved = weight + (1.5 * (up @ down)).view(weight.shape)
    lengths = torch.linalg.vector_norm(moved, dim=dims, keepdim=True)
    x = inputs_of(layer)
    expected = product(layer, x, layer.dora_scale * moved / lengths)
    torch.testing.assert_close(layer(x), expected)


def test_the_norm_of_dora_gets_no_gradient(small_model: Path) -> None:
    """arXiv:2402.09353, section 4.3: the gradient of the LoRA is that of a plain one times m / norm."""
    model = open_small(small_model)
    trainable = Lora(rank=2, decompose="outputs").attach(model, Seeds(0))
    trained(trainable)
    layer = layer_of(model, LINEAR)
    x, up = inputs_of(layer), layer.lora_B["default"].weight
    moved = layer.base_layer.weight + layer.scaling["default"] * up @ layer.lora_A["default"].weight
    gain = (layer.dora_scale.flatten() / moved.norm(dim=1)).detach()
    towards = drawn(2, 3, 16)
    layer(x).backward(towards)
    hidden = layer.lora_A["default"](x).detach()
    expected = torch.einsum("bto,btr->or", towards * gain, hidden) * layer.scaling["default"]
    torch.testing.assert_close(up.grad, expected)


@pytest.mark.parametrize("path", [LINEAR, WIDE])
@pytest.mark.parametrize("initial", ["principal", "orthogonal"])
def test_an_origin_trains_as_the_paper_s_split_weight_does(small_model: Path, initial: Any, path: str) -> None:
    """arXiv:2404.02948, equations 2 to 5: W x + s (B A - B0 A0) x with A and B from A0 and B0 on, and its gradients."""
    model = open_small(small_model)
    trainable = Lora(rank=2, alpha=3.0, layers=("attention", "convolution"), initial=initial).attach(model, Seeds(0))
    layer = layer_of(model, path)
    weight: Tensor = layer.base_layer.weight.detach()
    down0, up0, scale = layer.origin_down, layer.origin_up, 1.5
    left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    if initial == "principal":
        torch.testing.assert_close(
            scale * up0.flatten(1) @ down0.flatten(1), left[:, :2] * values[:2] @ right[:2], atol=1e-5, rtol=1e-4
        )
    else:
        directions = torch.linalg.qr(weight.flatten(1))
        torch.testing.assert_close(up0.flatten(1) @ down0.flatten(1), directions.Q[:, :2] @ directions.R[:2])
    trained(trainable, 0.1)
    down = (down0 + layer.lora_A["default"].weight.detach()).requires_grad_()
    up = (up0 + layer.lora_B["default"].weight.detach()).requires_grad_()
    residual = weight - scale * (up0.flatten(1) @ down0.flatten(1)).view(weight.shape)
    split = residual + scale * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
    x = inputs_of(layer)
    expected = product(layer, x, split)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)
    layer(x).square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(layer.lora_A["default"].weight.grad, down.grad, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(layer.lora_B["default"].weight.grad, up.grad, atol=1e-3, rtol=1e-3)


def test_small_steps_from_an_origin_survive_16_bits(small_model: Path, tmp_path: Path) -> None:
    """In the file too: it holds no difference of large numbers."""
    model = open_small(small_model, Precision.bfloat16)
    before = layer_of(model, LINEAR).weight.clone()
    trainable = Lora(rank=2, initial="principal").attach(model, Seeds(0))
    layer = layer_of(model, LINEAR)
    assert torch.equal(layer.base_layer.weight, before)
    trained(trainable, 1e-4)
    name = f"unet.{LINEAR}"
    wanted = trainable.adapter_state().change(name)
    assert 0 < float(wanted.norm()) < 1e-2
    path = trainable.write(tmp_path / "x.safetensors", FACTS, ExportSettings(precision=Precision.bfloat16))
    state = read_adapter(path, model.naming).state
    assert (state.kind, state.rank(name)) == ("lora", 4)
    assert float((state.change(name) - wanted).norm() / wanted.norm()) < 0.01


def test_rank_stabilised_files_say_it_with_alpha(small_model: Path, tmp_path: Path) -> None:
    """arXiv:2312.03732: scaled by alpha / root of rank; in a file by alpha / rank."""
    model = open_small(small_model)
    trainable = Lora(rank=4, alpha=3.0, scaling="rank-stabilised").attach(model, Seeds(0))
    trained(trainable)
    layer = layer_of(model, LINEAR)
    path = trainable.write(tmp_path / "x.safetensors", FACTS, ExportSettings())
    state = read_adapter(path, model.naming).state
    assert state.alphas[f"unet.{LINEAR}"] == pytest.approx(3 * math.sqrt(4))
    expected = 3 / math.sqrt(4) * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(state.change(f"unet.{LINEAR}"), expected.detach())


def test_dropped_ranks_are_the_share_asked_for_and_the_others_count_for_them(small_model: Path) -> None:
    model = open_small(small_model)
    trainable = Lora(rank=8, rank_dropout=0.25, layers=("attention", "convolution")).attach(model, Seeds(0))
    trained(trainable)
    torch.manual_seed(3)
    for path, axes in ((LINEAR, (1,)), (WIDE, (2, 3))):
        down = layer_of(model, path).lora_A["default"].train()
        x = drawn(800, *inputs_of(layer_of(model, path)).shape[1:])
        resting = down.eval()(x)
        ratio = (down.train()(x) / resting).detach()
        of_each = ratio.mean(axes)  # one chance for all places of an example
        torch.testing.assert_close(of_each, of_each.round(decimals=4).div(4 / 3).round() * (4 / 3), atol=1e-3, rtol=0)
        assert float((of_each < 0.5).float().mean()) == pytest.approx(0.25, abs=0.02)
        torch.testing.assert_close(down.eval()(x), resting)


@pytest.mark.parametrize("decompose", [None, "inputs", "outputs"])
def test_a_dropped_module_is_the_base_layer(small_model: Path, decompose: Any) -> None:
    model = open_small(small_model)
    trainable = Lora(rank=2, module_dropout=0.4, decompose=decompose).attach(model, Seeds(0))
    trained(trainable)
    layer = layer_of(model, LINEAR)
    x = inputs_of(layer)
    resting = layer(x)
    base = product(layer, x, layer.base_layer.weight)
    layer.train()
    torch.manual_seed(4)
    found = [layer(x) for _ in range(200)]
    dropped = [bool(torch.equal(one, base)) for one in found]
    assert all(gone or torch.allclose(one, resting) for gone, one in zip(dropped, found, strict=True))
    assert sum(dropped) / len(dropped) == pytest.approx(0.4, abs=0.1)


KINDS: list[Callable[..., Any]] = [Lora, Loha, Lokr]


@pytest.mark.parametrize("kind", KINDS)
def test_changes_longer_than_max_norm_are_shortened_to_it(small_model: Path, kind: Callable[..., Any]) -> None:
    model = open_small(small_model)
    adapter = kind(rank=2, alpha=3.0, layers=("attention", "convolution"), max_norm=1.0)
    trainable = adapter.attach(model, Seeds(0))
    trained(trainable)
    short = next(iter(trainable.alphas()))
    state = trainable.state()
    trainable.load_state(state | {name: 0.3 * t for name, t in state.items() if name.startswith(f"{short}.")})
    before = {layer: trainable.adapter_state().change(layer) for layer in trainable.alphas()}
    trainable.after_step()
    lengths = {layer: float(change.norm()) for layer, change in before.items()}
    assert min(lengths.values()) < 1 < max(lengths.values())
    for layer, change in before.items():
        after = trainable.adapter_state().change(layer)
        torch.testing.assert_close(after, change / max(1.0, lengths[layer]), atol=1e-5, rtol=1e-4)


def test_without_max_norm_a_step_is_left_as_it_is(small_model: Path) -> None:
    trainable = Lora(rank=2).attach(open_small(small_model), Seeds(0))
    trained(trainable)
    before = {name: tensor.clone() for name, tensor in trainable.state().items()}
    trainable.after_step()
    assert all(torch.equal(before[name], tensor) for name, tensor in trainable.state().items())


@pytest.mark.parametrize("form", ["int8", "nf4"])
@pytest.mark.parametrize(
    "adapter",
    [
        Lora(rank=2),
        Lora(rank=2, decompose="inputs"),
        Lora(rank=2, decompose="outputs"),
        Lora(rank=2, initial="principal"),
        Loha(rank=2),
        Lokr(rank=1),
    ],
    ids=lambda one: f"{one.kind} {getattr(one, 'decompose', None)} {getattr(one, 'initial', None)}",
)
def test_a_quantised_base_is_adapted_as_a_whole_one(small_model: Path, form: Any, adapter: Any) -> None:
    model = open_small(small_model)
    Quantiser(form, torch.float32, torch.device("cpu")).quantise(model.denoiser)
    assert isinstance(layer_of(model, LINEAR), QuantisedLinear)
    before = predict(model)
    trainable = adapter.attach(model, Seeds(0))
    torch.testing.assert_close(predict(model), before)
    trained(trainable)
    after = predict(model)
    assert not torch.allclose(after, before, atol=1e-3)
    model.predict(NOISY, T, model.encode_words(["", ""])).sum().backward()
    assert all(p.grad is not None and p.dtype == torch.float32 and p.grad.any() for p in trainable.parameters())
    unpacked = open_small(small_model)
    for path, layer in unpacked.denoiser.named_modules():
        if isinstance(layer, nn.Linear) and "transformer_blocks" in path.split("."):
            packed = layer_of(model, path)
            layer.weight.data = getattr(packed, "base_layer", packed).weight
    state = trainable.adapter_state()
    for name in state.layers():
        weight = unpacked.denoiser.get_submodule(name.removeprefix("unet.")).weight
        weight.data += state.change(name, weight)
    torch.testing.assert_close(predict(unpacked), after, atol=1e-4, rtol=1e-3)


def test_weights_that_stream_cannot_be_read_at_the_start(small_model: Path) -> None:
    model = open_small(small_model)
    layer = layer_of(model, LINEAR)
    layer.weight.data = torch.zeros(1).expand(layer.weight.shape)
    with pytest.raises(RecipeError, match="not on the device") as caught:
        Lora(rank=2, decompose="inputs").attach(model, Seeds(0))
    assert caught.value.where == "model.resident"


@pytest.mark.parametrize(
    "other", [{"decompose": "inputs"}, {"rank_dropout": 0.1}, {"max_norm": 1.0}, {"start": "x.safetensors"}]
)
def test_an_origin_stands_alone(other: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"principal cannot be together with {next(iter(other))}"):
        Lora.model_validate({"initial": "principal", **other})
    Lora.model_validate(other)


def test_what_no_file_can_say_is_refused_before_training(small_model: Path) -> None:
    model = open_small(small_model)
    with pytest.raises(RecipeError, match="cannot be written in the layout diffusers"):
        Lora(decompose="inputs").check_export(model, ExportSettings(layout="diffusers"))
    with pytest.raises(RecipeError, match="diffusers cannot load a loha"):
        Loha().check_export(model, ExportSettings(layout="diffusers"))
    Lora(decompose="outputs").check_export(model, ExportSettings(layout="diffusers"))
    Lora(decompose="inputs").check_export(model, ExportSettings())
    with pytest.raises(ValidationError, match="files are written without cores"):
        Lokr.model_validate({"effective_convolution": True, "start": "x.safetensors"})
