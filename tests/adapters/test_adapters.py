"""What every adapter promises."""

from pathlib import Path

import pytest
import torch

from trainer.adapters.attaching import attach_lora
from trainer.adapters.lora import Lora
from trainer.batch import Conditioning
from trainer.core.device import Precision
from trainer.core.errors import CheckpointError, RecipeError, WeightsError
from trainer.core.seeds import Seeds
from trainer.families.model import DiffusionModel
from trainer.families.sd1 import Sd1
from trainer.weights.lora_state import LoraState

WORDS = Conditioning(tokens=torch.randn(2, 77, 16, generator=torch.Generator().manual_seed(0)))
NOISY = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
T = torch.tensor([10, 700])


def open_small(folder: Path, precision: Precision = Precision.float32) -> DiffusionModel:
    return Sd1(weights=str(folder)).load(precision, torch.device("cpu"))


def predict(model: DiffusionModel) -> torch.Tensor:
    with torch.inference_mode():
        return model.predict(NOISY, T, WORDS).float()


@pytest.mark.parametrize("layers", [("attention",), ("transformer",), ("attention", "convolution")])
def test_silent_until_the_first_step_and_when_silenced(small_model: Path, layers: tuple[str, ...]) -> None:
    model = open_small(small_model)
    before = predict(model)
    trainable = Lora(rank=2, layers=layers).attach(model, Seeds(0))
    torch.testing.assert_close(predict(model), before)
    trainable.load_state({n: torch.full_like(t, 0.1) for n, t in trainable.state().items()})
    assert not torch.allclose(predict(model), before, atol=1e-3)
    with trainable.silenced():
        torch.testing.assert_close(predict(model), before)
    assert not torch.allclose(predict(model), before, atol=1e-3)


@pytest.mark.parametrize("precision", list(Precision))
def test_trained_weights_are_float32_and_the_base_is_frozen(small_model: Path, precision: Precision) -> None:
    model = open_small(small_model, precision)
    trainable = Lora(rank=2, layers=("transformer", "convolution")).attach(model, Seeds(0))
    trained = set(trainable.parameters())
    assert trained
    for parameter in model.denoiser.parameters():
        if parameter in trained:
            assert parameter.dtype == torch.float32
            assert parameter.requires_grad
        else:
            assert parameter.dtype == precision.dtype
            assert not parameter.requires_grad


def test_the_start_follows_the_seed_alone(small_model: Path) -> None:
    def start(seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        return Lora(rank=2).attach(open_small(small_model), Seeds(seed)).state()

    first, again, other = start(0, 1), start(0, 2), start(1, 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_unknown_layers_are_named(small_model: Path) -> None:
    with pytest.raises(RecipeError, match="no layers called atention") as caught:
        Lora(layers=("atention",)).attach(open_small(small_model), Seeds(0))
    assert "attention" in str(caught.value.mend)


def test_a_foreign_state_is_refused(small_model: Path) -> None:
    trainable = Lora(rank=2).attach(open_small(small_model), Seeds(0))
    state = trainable.state()
    with pytest.raises(CheckpointError, match="1 differences"):
        trainable.load_state(dict(list(state.items())[1:]))
    with pytest.raises(CheckpointError):
        trainable.load_state({name: tensor[:, :1] for name, tensor in state.items()})


def test_a_file_attaches_with_its_own_ranks_and_alphas(small_model: Path) -> None:
    model = open_small(small_model)
    trainable = Lora(rank=3, alpha=1.5, layers=("attention", "convolution")).attach(model, Seeds(0))
    state = {
        name: 0.2 * torch.randn(t.shape, generator=torch.Generator().manual_seed(9))
        for name, t in trainable.state().items()
    }
    trainable.load_state(state)
    again = open_small(small_model)
    attach_lora(again, LoraState(tensors=state, alphas=trainable.alphas()))
    torch.testing.assert_close(predict(again), predict(model))


def test_a_file_for_another_model_is_refused(small_model: Path) -> None:
    tensors = {"unet.down_blocks.7.resnets.0.conv1.lora_A.weight": torch.zeros(2, 4, 3, 3)}
    tensors["unet.down_blocks.7.resnets.0.conv1.lora_B.weight"] = torch.zeros(4, 2, 1, 1)
    with pytest.raises(WeightsError, match="1 layers that the denoiser does not have"):
        attach_lora(
            open_small(small_model), LoraState(tensors=tensors, alphas={"unet.down_blocks.7.resnets.0.conv1": 2})
        )


def test_a_rank_wider_than_a_layer_is_refused(small_model: Path) -> None:
    with pytest.raises(RecipeError, match=r"rank 64 is greater than the layer .* is wide \(8\)"):
        Lora(rank=64).attach(open_small(small_model), Seeds(0))
