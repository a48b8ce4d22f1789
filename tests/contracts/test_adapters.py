"""What every adapter promises, for each word that a family knows."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from trainer.adapters import AnyAdapter
from trainer.adapters.trainable import Adapter, Trainable
from trainer.batch import Conditioning
from trainer.core.device import Precision
from trainer.core.seeds import Seeds
from trainer.families.model import DiffusionModel
from trainer.families.sd1 import Sd1, Sd1Model

ADAPTERS: list[Any] = [member for member in get_args(AnyAdapter) if isinstance(member, type)]
WORDS = [(word,) for word in (*Sd1Model.adaptable, *Sd1Model.text_parts)] + [
    ("attention", "feed_forward"),
    ("transformer", "convolution", "te1"),
]
CAPTIONS = ["a red ball", ""]
NOISY = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
T = torch.tensor([10, 700])

every_adapter = pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda member: member.__name__)
all_words = pytest.mark.parametrize("words", WORDS, ids="+".join)


def open_small(folder: Path, precision: Precision = Precision.float32) -> DiffusionModel:
    return Sd1(weights=str(folder)).load(precision, torch.device("cpu"))


def predict(model: DiffusionModel) -> torch.Tensor:
    """What the model makes of words and noise, text encoder included."""
    with torch.no_grad():
        return model.predict(NOISY, T, model.encode_words(CAPTIONS)).float()


def something(trainable: Trainable) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in trainable.state().items()}


def test_there_are_adapters() -> None:
    assert ADAPTERS


@every_adapter
@all_words
def test_silent_until_the_first_step_and_when_silenced(
    small_model: Path, adapter: type[Adapter], words: tuple[str, ...]
) -> None:
    model = open_small(small_model)
    before = predict(model)
    trainable = adapter.model_validate({"rank": 2, "layers": words}).attach(model, Seeds(0))
    torch.testing.assert_close(predict(model), before)
    trainable.load_state(something(trainable))
    assert not torch.allclose(predict(model), before, atol=1e-3)
    trainable.set_strength(0.5)
    half = predict(model)
    trainable.set_strength(1.0)
    assert not torch.allclose(half, predict(model), atol=1e-4)
    with trainable.silenced():
        torch.testing.assert_close(predict(model), before)
    assert not torch.allclose(predict(model), before, atol=1e-3)


@every_adapter
@all_words
def test_gradients_reach_every_layer(small_model: Path, adapter: type[Adapter], words: tuple[str, ...]) -> None:
    model = open_small(small_model)
    trainable = adapter.model_validate({"rank": 2, "layers": words}).attach(model, Seeds(0))
    trainable.load_state(something(trainable))
    live: Conditioning = model.encode_words_live(CAPTIONS)
    model.predict(NOISY, T, live).float().square().mean().backward()
    gradients = [parameter.grad for parameter in trainable.parameters()]
    assert gradients
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)


@every_adapter
@pytest.mark.parametrize("precision", list(Precision))
def test_trained_weights_are_float32_and_the_base_is_frozen(
    small_model: Path, adapter: type[Adapter], precision: Precision
) -> None:
    model = open_small(small_model, precision)
    words = ("transformer", "convolution", "te1")
    trainable = adapter.model_validate({"rank": 2, "layers": words}).attach(model, Seeds(0))
    trained = set(trainable.parameters())
    assert trainable.parts == ("unet", "text_encoder")
    for part in trainable.parts:
        parameters = list(model.network(part).parameters())
        assert any(parameter in trained for parameter in parameters)
        for parameter in parameters:
            assert parameter.requires_grad == (parameter in trained)
            if parameter in trained:
                assert parameter.dtype == torch.float32
    assert {p.dtype for p in model.denoiser.parameters() if p not in trained} == {precision.dtype}


@every_adapter
def test_the_start_follows_the_seed_alone_and_each_part_by_itself(small_model: Path, adapter: type[Adapter]) -> None:
    def start(seed: int, noise: int, *words: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        return adapter.model_validate({"rank": 2, "layers": words}).attach(open_small(small_model), Seeds(seed)).state()

    first, again, other = start(0, 1, "attention"), start(0, 2, "attention"), start(1, 1, "attention")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    both, words_alone = start(0, 1, "attention", "te1"), start(0, 1, "te1")
    assert both.keys() == first.keys() | words_alone.keys()
    assert all(torch.equal(both[name], tensor) for name, tensor in (first | words_alone).items())


@every_adapter
def test_layers_have_the_names_that_files_have(small_model: Path, adapter: type[Adapter]) -> None:
    """Whichever version of transformers built the text encoder, with `text_model.` in its paths or without."""
    model = open_small(small_model)
    trainable = adapter.model_validate({"rank": 2, "layers": ("attention", "te1")}).attach(model, Seeds(0))
    layers = list(trainable.alphas())
    assert all(model.naming.canonical(layer) == layer for layer in layers)
    assert {name.partition(".")[0] for name in layers} == {"unet", "text_encoder"}
    assert all(any(name.startswith(f"{layer}.") for layer in layers) for name in trainable.state())
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj" in map(model.naming.to_kohya, layers)
