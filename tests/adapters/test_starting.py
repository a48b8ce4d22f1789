"""A run may begin where another has ended."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from trainer.adapters import AnyAdapter
from trainer.adapters.beside_layers import AdapterBesideLayers
from trainer.adapters.lora import Lora
from trainer.adapters.trainable import Trainable
from trainer.core.device import Precision
from trainer.core.errors import WeightsError
from trainer.core.seeds import Seeds
from trainer.core.tensors import write_tensors
from trainer.families.model import DiffusionModel
from trainer.families.sd1 import Sd1
from trainer.weights.adapter_digests import digest_of_adapter
from trainer.weights.export import ExportSettings, export
from trainer.weights.lora_state import LoraState
from trainer.weights.metadata import TrainingFacts

ADAPTER = Lora(rank=3, alpha=1.5, layers=("transformer", "te1"))
FACTS = TrainingFacts(
    name="x", family="sd1", prediction="epsilon", resolution=(16, 16), steps=1, epoch=1, steps_asked=1, batch=1, seed=0,
    optimizer="adamw", rate=1e-3,
)  # fmt: skip

Written = Callable[[dict[str, Tensor], dict[str, float]], dict[str, Tensor]]


def open_small(folder: Path) -> DiffusionModel:
    return Sd1(weights=str(folder)).load(Precision.float32, torch.device("cpu"))


def kohya(tensors: dict[str, Tensor], alphas: dict[str, float]) -> dict[str, Tensor]:
    """Under kohya's names, made here by hand."""
    written: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, half = name.rsplit(".lora_", 1)
        part, path = layer.split(".", 1)
        module = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part] + path.replace(".", "_")
        written[f"{module}.lora_{'down' if half.startswith('A') else 'up'}.weight"] = tensor
        written[f"{module}.alpha"] = torch.tensor(alphas[layer])
    return written


def diffusers(tensors: dict[str, Tensor], alphas: dict[str, float]) -> dict[str, Tensor]:
    return {**tensors, **{f"{layer}.alpha": torch.tensor(alpha) for layer, alpha in alphas.items()}}


def trained(trainable: Trainable) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in trainable.state().items()}


@pytest.mark.parametrize("layout", [kohya, diffusers])
def test_training_goes_on_from_the_weights_of_the_file(small_model: Path, tmp_path: Path, layout: Written) -> None:
    model = open_small(small_model)
    trainable = ADAPTER.attach(model, Seeds(0))
    wanted = trained(trainable)
    path = tmp_path / "before.safetensors"
    write_tensors(path, layout(wanted, trainable.alphas()))
    adapter = ADAPTER.model_copy(update={"start": path})
    adapter.check(model)
    adapter.begin(trainable, model)
    state = trainable.state()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert adapter.files == {"adapter.start": path}


def test_training_goes_on_from_peft_s_folder(small_model: Path, tmp_path: Path) -> None:
    model = open_small(small_model)
    trainable = ADAPTER.attach(model, Seeds(0))
    wanted = trained(trainable)
    state = LoraState(tensors=wanted, alphas=trainable.alphas())
    folder = export(tmp_path / "before.safetensors", state, model.naming, FACTS, ExportSettings(layout="peft"))
    assert folder.is_dir()
    adapter = ADAPTER.model_copy(update={"start": folder})
    adapter.check(model)
    adapter.begin(trainable, model)
    assert all(torch.equal(trainable.state()[name], tensor) for name, tensor in wanted.items())
    before = digest_of_adapter(folder)
    assert before == digest_of_adapter(folder)
    file = next(folder.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert digest_of_adapter(folder) != before


def test_a_file_of_16_bits_is_trained_on_in_32(small_model: Path, tmp_path: Path) -> None:
    model = open_small(small_model)
    trainable = ADAPTER.attach(model, Seeds(0))
    wanted = {name: tensor.half() for name, tensor in trained(trainable).items()}
    write_tensors(tmp_path / "half.safetensors", kohya(wanted, trainable.alphas()))
    ADAPTER.model_copy(update={"start": tmp_path / "half.safetensors"}).begin(trainable, model)
    state = trainable.state()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in wanted.items())


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"rank": 2}, "its rank is 3 and adapter.rank is 2"),
        ({"alpha": 3.0}, "its alpha is 1.5 and adapter.alpha is 3"),
        ({"rank": 2, "alpha": 3.0}, "its rank is 3 and adapter.rank is 2; its alpha is 1.5 and adapter.alpha is 3"),
        ({"layers": ("transformer",)}, r"6 layers that adapter.layers leaves out, text_encoder\.text_model\.encoder"),
        ({"layers": ("transformer", "te1", "convolution")}, r"it lacks \d+ layers of adapter.layers, unet\."),
    ],
)
def test_a_file_that_is_not_what_the_recipe_trains_is_refused(
    small_model: Path, tmp_path: Path, recipe: dict[str, object], says: str
) -> None:
    before = ADAPTER.attach(open_small(small_model), Seeds(0))
    path = tmp_path / "before.safetensors"
    write_tensors(path, kohya(trained(before), before.alphas()))
    model = open_small(small_model)
    adapter = Lora.model_validate({**ADAPTER.model_dump(), **recipe, "start": path})
    trainable = adapter.attach(model, Seeds(0))
    untouched = {name: tensor.clone() for name, tensor in trainable.state().items()}
    with pytest.raises(WeightsError, match=says) as caught:
        adapter.begin(trainable, model)
    assert caught.value.where == str(path)
    assert all(torch.equal(untouched[name], tensor) for name, tensor in trainable.state().items())


def test_a_file_for_a_model_of_another_size_is_refused(small_model: Path, tmp_path: Path) -> None:
    model = open_small(small_model)
    trainable = ADAPTER.attach(model, Seeds(0))
    other = {name: torch.ones([n + (n not in (1, 3)) for n in t.shape]) for name, t in trained(trainable).items()}
    write_tensors(tmp_path / "other.safetensors", diffusers(other, trainable.alphas()))
    with pytest.raises(WeightsError, match=r"in the file and .* in the model"):
        ADAPTER.model_copy(update={"start": tmp_path / "other.safetensors"}).begin(trainable, model)


def test_a_file_of_another_family_is_refused_before_anything_is_loaded(small_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "xl.safetensors"
    write_tensors(
        path,
        {
            f"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_{half}.weight": torch.ones(2, 2)
            for half in ("up", "down")
        },
    )
    with pytest.raises(WeightsError):
        ADAPTER.model_copy(update={"start": path}).check(open_small(small_model))


FORMS: dict[str, dict[str, Any]] = {
    "dora": {"kind": "lora", "decompose": "inputs", "alpha": 1.5},
    "dora of outputs": {"kind": "lora", "decompose": "outputs"},
    "rank-stabilised": {"kind": "lora", "scaling": "rank-stabilised", "alpha": 1.5},
    "alphas of two kinds": {"kind": "lora", "ranks": [{"layers": ["attention"], "rank": 2, "alpha": 7.0}]},
    "loha": {"kind": "loha", "alpha": 1.5},
    "lokr": {"kind": "lokr", "rank": 1, "alpha": 1.5},
    "lokr of whole factors": {"kind": "lokr", "rank": 8, "alpha": 1.5},
}


def adapter_of(form: str) -> AdapterBesideLayers:
    said = {"rank": 3, "layers": ("transformer", "convolution", "te1"), **FORMS[form]}
    found: Any = TypeAdapter(AnyAdapter).validate_python(said)
    assert isinstance(found, AdapterBesideLayers)
    return found


@pytest.mark.parametrize("layout", ["kohya", "peft"])
@pytest.mark.parametrize("form", FORMS)
def test_every_kind_goes_on_from_its_own_file(small_model: Path, tmp_path: Path, form: str, layout: Any) -> None:
    """Also where files have other alphas than the recipe: what was multiplied into a tensor is taken out again."""
    if layout == "peft" and form == "dora":
        pytest.skip("peft has no lengths of inputs")
    model, adapter = open_small(small_model), adapter_of(form)
    trainable = adapter.attach(model, Seeds(0))
    wanted = trained(trainable)
    trainable.load_state(wanted)
    path = trainable.write(tmp_path / "before.safetensors", FACTS, ExportSettings(layout=layout))
    again = open_small(small_model)
    begun = adapter.attach(again, Seeds(1))
    going_on = adapter.model_copy(update={"start": path})
    going_on.check(again)
    going_on.begin(begun, again)
    for name, tensor in begun.state().items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-6, rtol=1e-5)


def test_a_file_of_another_kind_is_refused(small_model: Path, tmp_path: Path) -> None:
    model = open_small(small_model)
    path = adapter_of("loha").attach(model, Seeds(0)).write(tmp_path / "x.safetensors", FACTS, ExportSettings())
    for form, kind in (("dora", "dora"), ("rank-stabilised", "lora"), ("lokr", "lokr")):
        adapter = adapter_of(form).model_copy(update={"start": path})
        with pytest.raises(WeightsError, match=f"This is a loha, and the recipe trains a {kind}"):
            adapter.check(model)
        trainable = adapter.attach(open_small(small_model), Seeds(0))
        with pytest.raises(WeightsError, match=f"it is a loha and the recipe trains a {kind}"):
            adapter.begin(trainable, model)
