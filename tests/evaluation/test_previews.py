"""Previews: prompts understood once, memory that runs out survived, weights untouched."""

import logging
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from PIL import Image

from trainer.adapters.lora import Lora
from trainer.core.device import Precision
from trainer.core.run_folder import RunFolder
from trainer.core.seeds import Seeds
from trainer.evaluation.previews import Previews, PreviewSettings
from trainer.families.sd1 import Sd1
from trainer.sampling.generate import Drawing, draw, generate, understand
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import Ddim

OUT = torch.OutOfMemoryError("CUDA out of memory.")


@pytest.fixture
def previews(small_model: Path, tmp_path: Path) -> Previews:
    model = Sd1(weights=str(small_model)).load(Precision.float32, torch.device("cpu"))
    trainable = Lora(rank=2).attach(model, Seeds(0))
    folder = RunFolder(tmp_path / "run")
    folder.create()
    settings = PreviewSettings(prompts=("red", "blue"), draw=DrawSettings(steps=2))
    return Previews(settings=settings, folder=folder, resolution=16, model=model, trainable=trainable)


def test_prompts_are_encoded_once_and_encoders_leave(previews: Previews) -> None:
    model: Any = previews.model
    with patch.object(model, "encode_words", wraps=model.encode_words) as encode:
        previews.draw_base()
        first = encode.call_count
        previews.draw(1)
        previews.draw(2)
    assert first > 0
    assert encode.call_count == first
    assert set(model._networks) == {"unet"}


def test_words_that_are_trained_are_encoded_each_time(previews: Previews) -> None:
    previews.words_change = True
    model: Any = previews.model
    with patch.object(model, "encode_words", wraps=model.encode_words) as encode:
        previews.draw(1)
        first = encode.call_count
        previews.draw(2)
    assert encode.call_count == 2 * first


def test_without_memory_one_at_a_time_is_tried_and_then_training_goes_on(
    previews: Previews, caplog: pytest.LogCaptureFixture
) -> None:
    previews.draw_base()
    before = {name: tensor.clone() for name, tensor in previews.model.denoiser.state_dict().items()}
    previews.model.denoiser.train()
    chance = torch.get_rng_state()
    asked: list[int] = []

    def fail(noisy: torch.Tensor, *_: Any) -> torch.Tensor:
        asked.append(len(noisy))
        raise OUT

    with patch.object(previews.model, "predict", fail), caplog.at_level(logging.WARNING):
        assert previews.draw(1) is None
    assert asked == [4, 1]  # two prompts and their negatives; then each by itself
    assert "not enough memory for the previews" in caplog.text
    assert previews.model.denoiser.training
    assert torch.equal(chance, torch.get_rng_state())
    after = previews.model.denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert previews.draw(2) is not None


def test_without_memory_at_the_beginning_the_adapter_acts_again(previews: Previews) -> None:
    with torch.no_grad():
        for parameter in previews.trainable.parameters():
            parameter.fill_(0.3)
    words = previews.model.encode_words(["red"])
    asked = torch.ones(1, 4, 4, 4), torch.tensor([5]), words
    before = previews.model.predict(*asked)
    with patch.object(previews.model, "decode_latents", side_effect=MemoryError()):
        previews.draw_base()
    assert torch.equal(previews.model.predict(*asked), before)
    sheet = previews.draw(1)  # there is no row of the base's pictures to show above
    assert sheet is not None
    with Image.open(sheet) as drawn:
        assert drawn.height > 0


def test_other_errors_are_not_hidden(previews: Previews) -> None:
    with (
        patch.object(previews.model, "predict", side_effect=RuntimeError("shapes do not fit")),
        pytest.raises(RuntimeError, match="shapes do not fit"),
    ):
        previews.draw(1)


def test_few_rows_at_once_draw_the_same(small_model: Path) -> None:
    model = Sd1(weights=str(small_model)).load(Precision.float32, torch.device("cpu"))
    prompts = [Prompt(text="red", seed=1), Prompt(text="blue", seed=2), Prompt(text="green", seed=3)]
    settings = DrawSettings(steps=3)
    whole = generate(model, prompts, Ddim(), settings, (16, 24))
    how = Drawing(sampler=Ddim(), settings=settings, size=(16, 24), rows=4, decoding=0)
    seen: list[int] = []
    plain = model.predict

    def predict(noisy: torch.Tensor, *others: Any) -> torch.Tensor:
        seen.append(len(noisy))
        return plain(noisy, *others)

    with patch.object(model, "predict", predict):
        few = draw(model, understand(model, prompts), how)
    assert seen == [4, 2] * 3
    for one, other in zip(whole, few, strict=True):
        levels = [torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).int() for picture in (one, other)]
        assert int((levels[0] - levels[1]).abs().max()) <= 2
