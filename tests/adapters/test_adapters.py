"""What is refused, what is said, and what a finished file does; the promises of all are in tests/contracts."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from trainer.adapters.attaching import attach_lora
from trainer.adapters.lora import Lora
from trainer.adapters.parts import Rates
from trainer.core.device import Precision
from trainer.core.errors import CheckpointError, RecipeError, WeightsError
from trainer.core.seeds import Seeds
from trainer.families.model import DiffusionModel
from trainer.families.sd1 import Sd1
from trainer.optim.optimizers import AdamW
from trainer.weights.lora_state import LoraState

NOISY = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
T = torch.tensor([10, 700])


def open_small(folder: Path, precision: Precision = Precision.float32) -> DiffusionModel:
    return Sd1(weights=str(folder)).load(precision, torch.device("cpu"))


def predict(model: DiffusionModel) -> torch.Tensor:
    with torch.no_grad():
        return model.predict(NOISY, T, model.encode_words(["a red ball", ""])).float()


@pytest.mark.parametrize("word", ["atention", "te2"])
def test_unknown_layers_are_named_before_anything_is_loaded(small_model: Path, word: str) -> None:
    model = open_small(small_model)
    adapter = Lora(layers=("te1", word))
    with pytest.raises(RecipeError, match=f"no layers called {word}") as caught:
        adapter.check(model)
    assert "attention, convolution, feed_forward, te1, transformer" in str(caught.value.mend)
    assert ("Stable Diffusion XL alone" in str(caught.value.mend)) == (word == "te2")
    with pytest.raises(RecipeError, match=f"no layers called {word}"):
        adapter.attach(model, Seeds(0))


def test_each_part_learns_at_its_own_rate(small_model: Path) -> None:
    adapter = Lora(rank=2, layers=("attention", "te1"), rates=Rates(te1=5e-5))
    optimizer = AdamW(rate=1e-4).build(adapter.attach(open_small(small_model), Seeds(0)).groups())
    assert [(group["name"], group["lr"]) for group in optimizer.param_groups] == [("unet", 1e-4), ("te1", 5e-5)]
    with pytest.raises(ValidationError, match=r"rates.te2 is given, and nothing of that part is trained"):
        Lora(layers=("attention", "te1"), rates=Rates(te2=1e-5))
    with pytest.raises(ValidationError, match=r"rates.unet"):
        Lora(layers=("te1",), rates=Rates(unet=1e-5))


@pytest.mark.parametrize(
    ("layers", "parts"),
    [(("attention",), ("unet",)), (("te1",), ("text_encoder",)), (("te1", "attention"), ("unet", "text_encoder"))],
)
def test_parts_are_those_that_are_trained(small_model: Path, layers: tuple[str, ...], parts: tuple[str, ...]) -> None:
    adapter = Lora(rank=2, layers=layers)
    trainable = adapter.attach(open_small(small_model), Seeds(0))
    assert trainable.parts == parts
    assert adapter.trains_words == ("text_encoder" in parts)


def test_a_foreign_state_is_refused(small_model: Path) -> None:
    trainable = Lora(rank=2).attach(open_small(small_model), Seeds(0))
    state = trainable.state()
    with pytest.raises(CheckpointError, match="1 differences"):
        trainable.load_state(dict(list(state.items())[1:]))
    with pytest.raises(CheckpointError):
        trainable.load_state({name: tensor[:, :1] for name, tensor in state.items()})


def test_a_file_attaches_with_its_own_ranks_and_alphas(small_model: Path) -> None:
    model = open_small(small_model)
    trainable = Lora(rank=3, alpha=1.5, layers=("attention", "convolution", "te1")).attach(model, Seeds(0))
    state = {
        name: 0.2 * torch.randn(t.shape, generator=torch.Generator().manual_seed(9))
        for name, t in trainable.state().items()
    }
    trainable.load_state(state)
    again = open_small(small_model)
    before = predict(again)
    attached = attach_lora(again, LoraState(tensors=state, alphas=trainable.alphas()))
    torch.testing.assert_close(predict(again), predict(model))
    again.release_encoders()
    torch.testing.assert_close(predict(again), predict(model))
    attached.set_strength(0)
    torch.testing.assert_close(predict(again), before)


def test_a_matrix_in_the_model_may_be_a_convolution_of_one_pixel_in_the_file(small_model: Path) -> None:
    """As in kohya's files for Stable Diffusion 2."""
    model = open_small(small_model)
    trainable = Lora(rank=2).attach(model, Seeds(0))
    state = {name: torch.full_like(tensor, 0.1) for name, tensor in trainable.state().items()}
    trainable.load_state(state)
    as_pixels = {name: tensor[:, :, None, None] for name, tensor in state.items()}
    again = open_small(small_model)
    attach_lora(again, LoraState(tensors=as_pixels, alphas=trainable.alphas()))
    torch.testing.assert_close(predict(again), predict(model))


def test_a_file_for_another_model_is_refused(small_model: Path) -> None:
    tensors = {"unet.down_blocks.7.resnets.0.conv1.lora_A.weight": torch.zeros(2, 4, 3, 3)}
    tensors["unet.down_blocks.7.resnets.0.conv1.lora_B.weight"] = torch.zeros(4, 2, 1, 1)
    with pytest.raises(WeightsError, match="1 layers that the model does not have"):
        attach_lora(
            open_small(small_model), LoraState(tensors=tensors, alphas={"unet.down_blocks.7.resnets.0.conv1": 2})
        )


def test_a_rank_wider_than_a_layer_is_refused(small_model: Path) -> None:
    with pytest.raises(RecipeError, match=r"rank 64 is greater than the layer .* is wide \(8\)"):
        Lora(rank=64).attach(open_small(small_model), Seeds(0))
