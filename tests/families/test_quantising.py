"""Frozen weights in few bits: near the plain ones, small in memory, and good enough to train on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.adapters.lora import Lora
from trainer.batch import Conditioning
from trainer.core.device import Precision
from trainer.core.seeds import Seeds
from trainer.core.tensors import write_tensors
from trainer.families.loading import open_weights
from trainer.families.merged_weights import MergedWeights
from trainer.families.model import DiffusionModel
from trainer.families.quantising import FORMS, QuantisedLinear, Quantiser, Quantized, chosen_layers
from trainer.families.sd1 import Sd1
from trainer.families.sdxl import Sdxl
from trainer.weights.base_loras import BaseLora
from trainer.weights.names import SD_NAMES

CPU = torch.device("cpu")
FORM_NAMES: tuple[Quantized, ...] = ("int8", "float8", "nf4")
# relative errors, root mean square: of normal weights, and of the bundled base's prediction
ERRORS = {"int8": (0.012, 0.005), "float8": (0.03, 0.02), "nf4": (0.1, 0.06)}
BITS = {"int8": 8.5, "float8": 8.5, "nf4": 4.3}

forms = pytest.mark.parametrize("form", FORM_NAMES)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def a_layer(form: Quantized, dtype: torch.dtype = torch.float32) -> tuple[QuantisedLinear, nn.Linear]:
    chance = torch.Generator().manual_seed(0)
    plain = nn.Linear(320, 192)
    with torch.no_grad():
        plain.weight.normal_(std=0.05, generator=chance)
    plain.requires_grad_(requires_grad=False)
    quantised = QuantisedLinear(plain, Quantiser(form, dtype, CPU))
    quantised.take(plain.weight)
    return quantised, plain


def asked(model: DiffusionModel) -> tuple[Tensor, Tensor, Conditioning]:
    chance = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 4, 8, 8, generator=chance)
    return noisy, torch.tensor([100, 700]), model.encode_words(["red heart", "blobby, angry face"])


@forms
def test_a_weight_comes_back_nearly_as_it_was_and_is_small(form: Quantized) -> None:
    quantised, plain = a_layer(form)
    assert relative(quantised.weight, plain.weight) < ERRORS[form][0]
    held = sum(
        buffer.numel() * buffer.element_size() for name, buffer in quantised.named_buffers() if "levels" not in name
    )
    assert 8 * held / plain.weight.numel() < BITS[form]
    assert not quantised.state_dict().keys() - {"bias"}


@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_product_and_gradient_are_those_of_the_unpacked_weight(form: Quantized, dtype: torch.dtype) -> None:
    quantised, plain = a_layer(form, dtype)
    own = torch.randn(3, 5, 320, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
    answer = quantised(own)
    expected = nn.functional.linear(own, quantised.weight, plain.bias.to(dtype))
    assert answer.dtype == dtype
    assert torch.equal(answer, expected)
    found, wanted = (torch.autograd.grad(one.float().square().sum(), own)[0] for one in (answer, expected))
    torch.testing.assert_close(found, wanted)


@forms
def test_rows_of_nought_and_of_extremes_stay_finite(form: Quantized) -> None:
    plain = nn.Linear(64, 3, bias=False).requires_grad_(requires_grad=False)
    plain.weight[0], plain.weight[1], plain.weight[2] = 0.0, 1e-30, 6e4
    quantised = QuantisedLinear(plain, Quantiser(form, torch.float16, CPU))
    quantised.take(plain.weight)
    assert torch.isfinite(quantised.weight).all()
    assert not quantised.weight[0].any() or form == "nf4"  # there, blocks share what their scales are counted from


@forms
def test_backward_keeps_no_unpacked_weight(form: Quantized) -> None:
    quantised, plain = a_layer(form)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        quantised(torch.randn(1, 320, requires_grad=True))
    assert 0 < sum(kept) < plain.weight.numel() * 2


@forms
def test_only_linear_layers_of_transformer_blocks_are_quantised(small_sdxl: Path, form: Quantized) -> None:
    network = Sdxl(weights=str(small_sdxl), quantize=form).load(Precision.bfloat16, CPU).denoiser
    quantised = {path for path, module in network.named_modules() if isinstance(module, QuantisedLinear)}
    linear = {path for path, module in network.named_modules() if isinstance(module, nn.Linear)}
    assert quantised == {path for path in linear if ".transformer_blocks." in path}
    assert not chosen_layers(network)
    assert {"time_embedding.linear_1", "add_embedding.linear_1", "mid_block.attentions.0.proj_in"} <= linear - quantised
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}


@forms
def test_the_bundled_base_predicts_nearly_the_same(form: Quantized) -> None:
    answers: list[Tensor] = []
    for settings in (Sd1(), Sd1(quantize=form)):
        model = settings.load(Precision.float32, CPU)
        with torch.no_grad():
            answers.append(model.predict(*asked(model)))
    assert 0 < relative(answers[1], answers[0]) < ERRORS[form][1]


@forms
def test_a_lora_learns_on_it(form: Quantized) -> None:
    model = Sd1(quantize=form).load(Precision.bfloat16, CPU)
    trainable = Lora(rank=4).attach(model, Seeds(0))
    model.use_gradient_checkpointing()
    assert all(parameter.dtype == torch.float32 for parameter in trainable.parameters())
    optimizer = torch.optim.AdamW(trainable.parameters(), lr=3e-3)
    noisy, t, words = asked(model)
    target = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(3))
    losses: list[float] = []
    model.denoiser.train()
    for _ in range(6):
        with torch.autocast("cpu", torch.bfloat16):
            predicted = model.predict(noisy, t, words)
        loss = (predicted.float() - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.97 * losses[0]


@forms
def test_merged_weights_are_quantised_as_a_sum(small_model: Path, form: Quantized, tmp_path: Path) -> None:
    source = open_weights(str(small_model))
    layer = next(path for path in chosen_layers(source.load("unet", torch.float32)) if path.endswith("attn2.to_k"))
    outer, inner = source.load("unet", torch.float32).get_parameter(f"{layer}.weight").shape
    name = SD_NAMES.to_kohya(f"unet.{layer}")
    chance = torch.Generator().manual_seed(0)
    tensors = {
        f"{name}.lora_down.weight": torch.randn(2, inner, generator=chance),
        f"{name}.lora_up.weight": torch.randn(outer, 2, generator=chance),
        f"{name}.alpha": torch.tensor(2.0),
    }
    write_tensors(tmp_path / "lora.safetensors", tensors, {})
    merged = MergedWeights(source, [BaseLora(file=tmp_path / "lora.safetensors")], SD_NAMES)
    plain: Any = merged.load("unet", torch.float32).get_submodule(layer)
    found: Any = merged.load("unet", torch.float32, Quantiser(form, torch.float32, CPU)).get_submodule(layer)
    assert isinstance(found, QuantisedLinear)
    assert relative(found.weight, plain.weight) < 1.3 * ERRORS[form][0]


def test_every_form_is_tested() -> None:
    assert set(FORM_NAMES) == set(FORMS)
