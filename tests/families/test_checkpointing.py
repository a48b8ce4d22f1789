"""Gradient checkpointing: the same gradients to the bit, less kept, and nothing done before the first trained layer."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainer.adapters.lora import Lora
from trainer.batch import Conditioning
from trainer.core.device import Precision
from trainer.core.seeds import Seeds
from trainer.families.model import DiffusionModel
from trainer.families.offloading import blocks_of
from trainer.families.sd1 import Sd1
from trainer.families.sdxl import Sdxl

CPU = torch.device("cpu")


def a_model(folder: Path, every: int | None, *, family: Any = Sd1, dropout: float = 0.2) -> tuple[DiffusionModel, Any]:
    model = family(weights=str(folder)).load(Precision.float32, CPU)
    trainable = Lora(rank=2, dropout=dropout, layers=("attention", "convolution")).attach(model, Seeds(0))
    chance = torch.Generator().manual_seed(1)
    for parameter in trainable.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=chance)
    if every is not None:
        model.use_gradient_checkpointing(every)
    model.denoiser.train()
    return model, trainable


def gradients(model: DiffusionModel, trainable: Any, seed: int) -> list[Tensor]:
    """Of all trained tensors, and the prediction last; dropout is the same for a seed."""
    chance = torch.Generator().manual_seed(seed)
    noisy = torch.randn(2, 4, 4, 4, generator=chance)
    words = model.encode_words(["red", "blue"])
    torch.manual_seed(seed)
    predicted = model.predict(noisy, torch.tensor([3, 900]), words)
    grads = torch.autograd.grad(predicted.square().sum(), list(trainable.parameters()))
    return [*grads, predicted.detach()]


def kept_bytes(model: DiffusionModel) -> int:
    """What a forward pass keeps for the backward pass, without counting parameters."""
    own = {parameter.data_ptr() for parameter in model.denoiser.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    words = Conditioning(tokens=torch.ones(1, 77, 16))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        answer = model.predict(torch.ones(1, 4, 8, 8), torch.tensor([5]), words)
    assert answer.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("every", [1, 2])
def test_gradients_are_the_same_bits(small_model: Path, every: int) -> None:
    plain, again = a_model(small_model, None), a_model(small_model, every)
    for seed in (1, 2, 3):  # blocks without chance are told from the others by their first pass
        assert all(torch.equal(a, b) for a, b in zip(gradients(*plain, seed), gradients(*again, seed), strict=True))


def test_gradients_are_the_same_bits_for_two_text_states(small_sdxl: Path) -> None:
    plain, again = (a_model(small_sdxl, every, family=Sdxl) for every in (None, 2))
    assert all(torch.equal(a, b) for a, b in zip(gradients(*plain, 1), gradients(*again, 1), strict=True))


def test_half_keeps_more_than_all_and_less_than_none(small_model: Path) -> None:
    none, half, whole = (kept_bytes(a_model(small_model, every)[0]) for every in (None, 2, 1))
    assert whole < half < none


def test_every_second_block_is_computed_again(small_model: Path) -> None:
    for every, share in ((1, 1.0), (2, 0.5)):
        model, trainable = a_model(small_model, every)
        with patch("trainer.families.checkpointing.checkpoint", wraps=checkpoint) as run:
            gradients(model, trainable, 1)
        # one residual block in the middle is left out by diffusers
        assert abs(run.call_count - share * (len(blocks_of(model.denoiser)) - 1)) <= 1


def test_chance_is_kept_only_where_it_is_asked_for(small_model: Path) -> None:
    for dropout, wanted in ((0.0, {False}), (0.5, {True})):
        model, trainable = a_model(small_model, 1, dropout=dropout)
        gradients(model, trainable, 1)
        with patch("trainer.families.checkpointing.checkpoint", wraps=checkpoint) as run:
            gradients(model, trainable, 2)
        assert {call.kwargs["preserve_rng_state"] for call in run.call_args_list} == wanted


@pytest.mark.parametrize("every", [None, 1])
def test_nothing_is_recorded_before_the_first_trained_layer(small_model: Path, every: int | None) -> None:
    model = Sd1(weights=str(small_model)).load(Precision.float32, CPU)
    trainable = Lora(rank=2).attach(model, Seeds(0))
    for name, parameter in model.denoiser.named_parameters():
        parameter.requires_grad = parameter.requires_grad and name.startswith("up_blocks.1.")
    if every is not None:
        model.use_gradient_checkpointing(every)
    model.denoiser.train()
    recorded: dict[str, bool] = {}

    def note(name: str) -> Any:
        def hook(_: Any, __: Any, answer: Any) -> None:
            first = answer[0] if isinstance(answer, tuple) else answer
            recorded[name] = bool(first.requires_grad)

        return hook

    for name, module in model.denoiser.named_modules():
        if name in {"conv_in", "down_blocks.0", "mid_block", "up_blocks.0", "up_blocks.1"}:
            module.register_forward_hook(note(name))
    model.predict(torch.ones(1, 4, 4, 4), torch.tensor([5]), Conditioning(tokens=torch.ones(1, 77, 16)))
    assert recorded == {
        "conv_in": False, "down_blocks.0": False, "mid_block": False, "up_blocks.0": False, "up_blocks.1": True,
    }  # fmt: skip
    assert list(trainable.parameters())
