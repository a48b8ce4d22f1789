"""What every trainable promises, for new words, pivotal tuning and whole models."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from trainer.adapters import AnyAdapter
from trainer.adapters.trainable import Adapter, Trainable
from trainer.core.device import Precision
from trainer.core.errors import CheckpointError
from trainer.core.seeds import Seeds
from trainer.families.model import DiffusionModel
from trainer.families.sd1 import Sd1
from trainer.weights.export import ExportSettings
from trainer.weights.metadata import TrainingFacts

WORDS = [{"word": "<blob>", "vectors": 3, "start": "red ball"}, {"word": "zwx", "vectors": 2}]
FORMS: Mapping[str, dict[str, Any]] = {
    "words": {"kind": "textual_inversion", "words": WORDS},
    "words, free": {"kind": "textual_inversion", "words": WORDS[:1], "keep_length": False},
    "pivotal": {"kind": "pivotal", "words": WORDS, "lora": {"rank": 2}, "words_rate": 1e-2},
    "pivotal, text": {"kind": "pivotal", "words": WORDS, "lora": {"rank": 2, "layers": ["attention", "te1"]}},
    "full": {"kind": "full"},
    "full, all": {"kind": "full", "layers": ["unet", "te1"], "rates": {"te1": 1e-6}},
    "full, bfloat16": {"kind": "full", "layers": ["attention", "te1"], "weights": "bfloat16"},
    "full, late": {"kind": "full", "layers": ["convolution"], "fused": False},
}
CAPTIONS = ["a <blob> and a red ball", "zwx, blue"]
NOISY = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
T = torch.tensor([10, 700])
FACTS = TrainingFacts(
    name="x", family="sd1", prediction="epsilon", resolution=(16, 16), steps=1, epoch=1, steps_asked=1, batch=1, seed=0,
    optimizer="adamw", rate=1e-3,
)  # fmt: skip

every_form = pytest.mark.parametrize("form", FORMS)


def adapter_of(form: str) -> Adapter:
    return TypeAdapter[Adapter](AnyAdapter).validate_python(FORMS[form])


def open_small(folder: Path) -> DiffusionModel:
    return Sd1(weights=str(folder)).load(Precision.float32, torch.device("cpu"))


def attached(form: str, model: DiffusionModel, seed: int = 0) -> Trainable:
    adapter = adapter_of(form)
    adapter.check(model)
    return adapter.attach(model, Seeds(seed))


def predict(model: DiffusionModel, captions: list[str] | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model.predict(NOISY, T, model.encode_words(captions or CAPTIONS)).float()


def something(trainable: Trainable) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in trainable.state().items()
    }


@every_form
def test_silenced_it_is_the_base_and_then_again_what_it_was(small_model: Path, form: str) -> None:
    model = open_small(small_model)
    trainable = attached(form, model)
    with trainable.silenced():  # before the first step
        before = predict(model)
    base = open_small(small_model)
    for part in trainable.parts if form == "full, bfloat16" else ():
        base.hold_in(part, torch.bfloat16)
    assert torch.equal(before, predict(base))
    trainable.load_state(something(trainable))
    state = {name: tensor.clone() for name, tensor in trainable.state().items()}
    full = predict(model)
    assert not torch.allclose(full, before, atol=1e-3)
    trainable.set_strength(0.5)
    half = predict(model)
    assert not torch.allclose(half, full, atol=1e-4)
    assert not torch.allclose(half, before, atol=1e-4)
    assert all(torch.equal(state[name], tensor) for name, tensor in trainable.state().items())
    with trainable.silenced():
        assert torch.equal(predict(model), before)
        assert all(torch.equal(state[name], tensor) for name, tensor in trainable.state().items())
    assert torch.equal(predict(model), full)
    assert all(torch.equal(state[name], tensor) for name, tensor in trainable.state().items())


@every_form
def test_gradients_reach_all_that_is_trained_and_nothing_else(small_model: Path, form: str) -> None:
    model = open_small(small_model)
    trainable = attached(form, model)
    trainable.load_state(something(trainable))
    live = model.encode_words_live(CAPTIONS) if adapter_of(form).trains_words else model.encode_words(CAPTIONS)
    model.predict(NOISY, T, live).float().square().mean().backward()
    trained = {id(parameter) for parameter in trainable.parameters()}
    assert trained
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trainable.parameters())
    # a bias before a norm over its own group has none but rounding; all else learns
    assert sum(bool(p.grad.any()) for p in trainable.parameters() if p.grad is not None) > 0.9 * len(trained)
    for part in ("unet", "text_encoder"):
        for parameter in model.network(part).parameters():
            assert parameter.requires_grad == (id(parameter) in trained)


@every_form
def test_the_state_is_all_that_is_trained_and_is_checked(small_model: Path, form: str) -> None:
    model = open_small(small_model)
    trainable = attached(form, model)
    new = something(trainable)
    trainable.load_state(new)
    assert all(torch.equal(new[name], tensor) for name, tensor in trainable.state().items())
    parameters = {p.data_ptr() for p in trainable.parameters()}
    assert {tensor.data_ptr() for tensor in trainable.state().values()} == parameters
    other = open_small(small_model)
    second = attached(form, other, seed=1)
    second.load_state(new)
    assert torch.equal(predict(model), predict(other))
    name = next(iter(new))
    for wrong in ({k: v for k, v in new.items() if k != name}, new | {name: new[name][..., :1]}, new | {"x.y": NOISY}):
        with pytest.raises(CheckpointError):
            second.load_state(wrong)


@every_form
def test_the_start_follows_the_seed_alone(small_model: Path, form: str) -> None:
    def start(seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        return attached(form, open_small(small_model), seed).state()

    first, again, other = start(0, 1), start(0, 2), start(1, 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    draws = form.startswith("pivotal") or form == "words"  # zwx begins by chance
    assert any(not torch.equal(first[name], other[name]) for name in first) == draws


@every_form
def test_groups_have_names_rates_and_each_parameter_once(small_model: Path, form: str) -> None:
    trainable = attached(form, open_small(small_model))
    groups = trainable.groups()
    parameters = [id(p) for group in groups for p in group.parameters]
    assert len(set(parameters)) == len(parameters)
    rates = {group.name: group.rate for group in groups}
    assert len(rates) == len(groups)
    assert rates.get("words") == (1e-2 if form == "pivotal" else None)
    assert rates.get("te1") == (1e-6 if form == "full, all" else None)
    # a second asking gives the same parameters: averages and clipping ask anew
    assert [id(p) for group in trainable.groups() for p in group.parameters] == parameters


@every_form
def test_what_is_written_draws_the_same(small_model: Path, tmp_path: Path, form: str) -> None:
    from trainer.adapters.attaching import attach_adapter
    from trainer.adapters.attaching_words import attach_words
    from trainer.weights.embeddings import read_embedding
    from trainer.weights.reading import read_adapter

    model = open_small(small_model)
    trainable, adapter = attached(form, model), adapter_of(form)
    trainable.load_state(something(trainable))
    layout = "folder" if adapter.makes_model else "kohya"
    result = trainable.write(tmp_path / "x.safetensors", replace(FACTS), ExportSettings(layout=layout))
    assert result == ExportSettings(layout=layout).result(tmp_path / "x.safetensors")
    if adapter.makes_model:
        again = open_small(result)
        for part in trainable.parts if form == "full, bfloat16" else ():
            again.hold_in(part, torch.bfloat16)
    else:
        again = open_small(small_model)
        if form.startswith("pivotal"):
            attach_adapter(again, read_adapter(result, again.naming).state)
        files = adapter.word_files(result)
        assert set(files) == set(adapter.new_words)
        attach_words(again, {word: read_embedding(path).embedding for word, path in files.items()})
    torch.testing.assert_close(predict(again), predict(model), atol=1e-5, rtol=1e-4)
