"""What every adapter beside layers promises, for each of its forms and each word that a family knows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter

from trainer.adapters import AnyAdapter
from trainer.adapters.attaching import attach_adapter
from trainer.adapters.beside_layers import AdapterBesideLayers
from trainer.adapters.injecting import InjectedAdapter
from trainer.adapters.trainable import Trainable
from trainer.batch import Conditioning
from trainer.core.device import Precision
from trainer.core.seeds import Seeds
from trainer.families.model import DiffusionModel
from trainer.families.sd1 import Sd1, Sd1Model
from trainer.weights.export import ExportSettings
from trainer.weights.live_layers import live_layers
from trainer.weights.metadata import TrainingFacts
from trainer.weights.reading import read_adapter

MEMBERS: list[Any] = list(get_args(get_args(AnyAdapter)[0]))
DROPOUTS = {"rank_dropout": 0.3, "module_dropout": 0.3}
FORMS: Mapping[str, dict[str, Any]] = {
    "lora": {"kind": "lora"},
    "lora, rank-stabilised": {"kind": "lora", "scaling": "rank-stabilised", "alpha": 3.0},
    "lora, sizes": {
        "kind": "lora",
        "alpha": 1.0,
        "convolution": {"rank": 3, "alpha": 5.0},
        "ranks": [{"layers": ["te1"], "rank": 1}, {"blocks": ["mid_block"], "rank": 4, "alpha": 1.5}],
    },
    "lora, dropouts": {"kind": "lora", "dropout": 0.3, **DROPOUTS},
    "dora, inputs": {"kind": "lora", "decompose": "inputs", "alpha": 3.0, "dropout": 0.2, **DROPOUTS},
    "dora, outputs": {"kind": "lora", "decompose": "outputs", "scaling": "rank-stabilised", "module_dropout": 0.3},
    "pissa": {"kind": "lora", "initial": "principal", "alpha": 3.0, "dropout": 0.2, "module_dropout": 0.3},
    "olora": {"kind": "lora", "initial": "orthogonal"},
    "loha": {"kind": "loha", "alpha": 3.0, **DROPOUTS},
    "loha, effective": {"kind": "loha", "effective_convolution": True},
    "lokr": {"kind": "lokr", "rank": 1, "alpha": 3.0, **DROPOUTS},
    "lokr, whole": {"kind": "lokr", "rank": 8, "alpha": 3.0, "factor": 2},
    "lokr, thin": {"kind": "lokr", "rank": 1, "factor": 4, "decompose_both": True, "effective_convolution": True},
}
WORDS = [(word,) for word in (*Sd1Model.adaptable, *Sd1Model.text_parts)] + [("attention", "feed_forward")]
ALL = ("transformer", "convolution", "te1")
CAPTIONS = ["a red ball", ""]
NOISY = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
T = torch.tensor([10, 700])
FACTS = TrainingFacts(
    name="x", family="sd1", prediction="epsilon", resolution=(16, 16), steps=1, epoch=1, steps_asked=1, batch=1, seed=0,
    optimizer="adamw", rate=1e-3,
)  # fmt: skip

every_form = pytest.mark.parametrize("form", FORMS)


def adapter_of(form: str, *words: str, **changes: Any) -> AdapterBesideLayers:
    said = {"rank": 2, "layers": words or ALL, **FORMS[form], **changes}
    found: Any = TypeAdapter(AnyAdapter).validate_python(said)
    assert isinstance(found, AdapterBesideLayers)
    return found


def open_small(folder: Path, precision: Precision = Precision.float32) -> DiffusionModel:
    return Sd1(weights=str(folder)).load(precision, torch.device("cpu"))


def predict(model: DiffusionModel) -> torch.Tensor:
    """What the model makes of words and noise, text encoder included."""
    with torch.no_grad():
        return model.predict(NOISY, T, model.encode_words(CAPTIONS)).float()


def backward(model: DiffusionModel) -> None:
    live: Conditioning = model.encode_words_live(CAPTIONS)
    model.predict(NOISY, T, live).float().square().mean().backward()


def something(trainable: Trainable) -> dict[str, torch.Tensor]:
    """Values of a size that changes what is predicted, and does not overturn it."""
    generator = torch.Generator().manual_seed(2)
    found: dict[str, torch.Tensor] = {}
    for name, tensor in trainable.state().items():
        noise = torch.randn(tensor.shape, generator=generator)
        found[name] = tensor * (1 + 0.3 * noise) if name.endswith("dora_scale") else 0.5 * noise
    return found


def attached(
    form: str, folder: Path, precision: Precision = Precision.float32
) -> tuple[DiffusionModel, InjectedAdapter]:
    """A model with an adapter that has been trained, so to say."""
    model = open_small(folder, precision)
    trainable = adapter_of(form).attach(model, Seeds(0))
    trainable.load_state(something(trainable))
    return model, trainable


def test_every_adapter_beside_layers_has_a_form_here() -> None:
    kinds = {member.model_fields["kind"].default for member in MEMBERS if issubclass(member, AdapterBesideLayers)}
    assert kinds == {str(said["kind"]) for said in FORMS.values()}
    assert len(kinds) >= 3


@pytest.mark.parametrize(
    ("form", "words"),
    [("lora", words) for words in WORDS] + [(form, ALL) for form in FORMS],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_silent_until_the_first_step_and_when_silenced(small_model: Path, form: str, words: tuple[str, ...]) -> None:
    model = open_small(small_model)
    before = predict(model)
    adapter = adapter_of(form, *words) if words == ALL else adapter_of(form, *words, ranks=())
    trainable = adapter.attach(model, Seeds(0))
    torch.testing.assert_close(predict(model), before)
    trainable.load_state(something(trainable))
    assert not torch.allclose(predict(model), before, atol=1e-3)
    trainable.set_strength(0.5)
    half = predict(model)
    trainable.set_strength(1.0)
    assert not torch.allclose(half, predict(model), atol=1e-4)
    with trainable.silenced():
        assert torch.equal(predict(model), before)
    assert not torch.allclose(predict(model), before, atol=1e-3)


@every_form
def test_gradients_reach_every_tensor(small_model: Path, form: str) -> None:
    model, trainable = attached(form, small_model)  # in evaluation mode: nothing is left out
    backward(model)
    gradients = [parameter.grad for parameter in trainable.parameters()]
    assert gradients
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)


@every_form
@pytest.mark.parametrize("precision", list(Precision))
def test_trained_weights_are_float32_and_the_base_is_frozen(small_model: Path, form: str, precision: Precision) -> None:
    model = open_small(small_model, precision)
    before = predict(model)
    trainable = adapter_of(form).attach(model, Seeds(0))
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
    torch.testing.assert_close(predict(model), before)
    for part in trainable.parts:
        model.network(part).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is Precision.bfloat16):  # as accelerate has it
        backward(model)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@every_form
def test_the_start_follows_the_seed_alone_and_each_part_by_itself(small_model: Path, form: str) -> None:
    def start(seed: int, noise: int, *words: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        adapter = adapter_of(form, *words, ranks=(), convolution=None)
        return adapter.attach(open_small(small_model), Seeds(seed)).state()

    first, again, other = start(0, 1, "attention"), start(0, 2, "attention"), start(1, 1, "attention")
    assert all(torch.equal(first[name], again[name]) for name in first)
    from_the_base = FORMS[form].get("initial", "random") != "random"
    assert any(not torch.equal(first[name], other[name]) for name in first) != from_the_base
    both, words_alone = start(0, 1, "attention", "te1"), start(0, 1, "te1")
    assert both.keys() == first.keys() | words_alone.keys()
    assert all(torch.equal(both[name], tensor) for name, tensor in (first | words_alone).items())


@every_form
def test_a_state_goes_into_another_run_whole(small_model: Path, form: str) -> None:
    model, trainable = attached(form, small_model)
    again = open_small(small_model)
    other = adapter_of(form).attach(again, Seeds(7))
    other.load_state({name: tensor.clone() for name, tensor in trainable.state().items()})
    assert torch.equal(predict(again), predict(model))


@every_form
def test_layers_have_the_names_that_files_have(small_model: Path, form: str) -> None:
    """Whichever version of transformers built the text encoder, with `text_model.` in its paths or without."""
    model, trainable = attached(form, small_model)
    layers = list(trainable.alphas())
    assert all(model.naming.canonical(layer) == layer for layer in layers)
    assert {name.partition(".")[0] for name in layers} == {"unet", "text_encoder"}
    assert all(any(name.startswith(f"{layer}.") for layer in layers) for name in trainable.state())
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj" in map(model.naming.to_kohya, layers)


@every_form
def test_the_file_changes_a_plain_model_as_the_live_one_is_changed(
    small_model: Path, tmp_path: Path, form: str
) -> None:
    model, trainable = attached(form, small_model)
    wanted, base = predict(model), predict(open_small(small_model))
    path = trainable.write(tmp_path / "x.safetensors", FACTS, ExportSettings())
    state = read_adapter(path, model.naming).state
    assert state.kind == adapter_of(form).file_kind
    added = open_small(small_model)
    added.keep_text_encoders()
    for part in trainable.parts:
        network = added.network(part)
        for layer, path in live_layers(network, part, added.naming).items():
            if layer in state.layers():
                weight = network.get_parameter(f"{path}.weight")
                weight.data += state.change(layer, weight)
    torch.testing.assert_close(predict(added), wanted, atol=1e-5, rtol=1e-4)
    drawn = open_small(small_model)
    acting = attach_adapter(drawn, state)
    torch.testing.assert_close(predict(drawn), wanted, atol=1e-5, rtol=1e-4)
    trainable.set_strength(0.4)
    acting.set_strength(0.4)
    torch.testing.assert_close(predict(drawn), predict(model), atol=1e-5, rtol=1e-4)
    acting.set_strength(0.0)
    assert torch.equal(predict(drawn), base)


@every_form
def test_chance_is_torchs_own_and_ends_with_training(small_model: Path, form: str) -> None:
    model, trainable = attached(form, small_model)

    def gradients(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        for parameter in trainable.parameters():
            parameter.grad = None
        backward(model)
        return [parameter.grad for parameter in trainable.parameters() if parameter.grad is not None]

    def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    resting = gradients(1)
    assert same(resting, gradients(2))
    for part in trainable.parts:
        model.network(part).train()
    training = gradients(1)
    assert same(training, gradients(1))
    leaves_out = any("dropout" in word for word in FORMS[form])
    assert same(training, gradients(2)) != leaves_out
    model.use_gradient_checkpointing()  # the second forward pass leaves out what the first did
    for one, other in zip(training, gradients(1), strict=True):
        torch.testing.assert_close(one, other)
    for part in trainable.parts:
        model.network(part).eval()
    for one, other in zip(resting, gradients(3), strict=True):
        torch.testing.assert_close(one, other)
