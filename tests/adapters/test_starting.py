"""A run may begin where another has ended."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

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
    facts = TrainingFacts(
        name="x", family="sd1", prediction="epsilon", resolution=(16, 16), steps=1, epoch=1, steps_asked=1, batch=1,
        seed=0, optimizer="adamw", rate=1e-3,
    )  # fmt: skip
    state = LoraState(tensors=wanted, alphas=trainable.alphas())
    folder = export(tmp_path / "before.safetensors", state, model.naming, facts, ExportSettings(layout="peft"))
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
