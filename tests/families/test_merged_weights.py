"""A LoRA that is merged into the base model is part of it, wherever the base model is loaded."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.adapters.attaching import attach_lora
from trainer.adapters.lora import Lora
from trainer.core.device import Precision
from trainer.core.errors import NonFiniteError, WeightsError
from trainer.core.seeds import Seeds
from trainer.core.tensors import write_tensors
from trainer.families.loading import open_weights
from trainer.families.merged_weights import MergedWeights
from trainer.families.model import DiffusionModel
from trainer.families.sd1 import Sd1
from trainer.families.source import Part
from trainer.weights.base_loras import BaseLora
from trainer.weights.lora_state import LoraState
from trainer.weights.names import SD_NAMES

CPU = torch.device("cpu")


def open_small(folder: Path) -> DiffusionModel:
    return Sd1(weights=str(folder)).load(Precision.float32, CPU)


def a_lora(folder: Path, *layers: str, seed: int = 0) -> LoraState:
    trainable = Lora(rank=2, alpha=3.0, layers=layers).attach(open_small(folder), Seeds(0))
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: 0.3 * torch.randn(t.shape, generator=generator) for name, t in trainable.state().items()}
    return LoraState(tensors=tensors, alphas=trainable.alphas())


def written(state: LoraState, path: Path) -> Path:
    alphas = {f"{layer}.alpha": torch.tensor(alpha) for layer, alpha in state.alphas.items()}
    write_tensors(path, {**state.tensors, **alphas})
    return path


def weights_of(source: MergedWeights, part: Part, dtype: torch.dtype = torch.float32) -> Mapping[str, Tensor]:
    return source.load(part, dtype).state_dict()


def test_weights_are_base_plus_strength_times_change(small_model: Path, tmp_path: Path) -> None:
    one, two = a_lora(small_model, "transformer", "convolution", "te1"), a_lora(small_model, "attention", seed=1)
    loras = [
        BaseLora(file=written(one, tmp_path / "one.safetensors"), strength=0.8),
        BaseLora(file=written(two, tmp_path / "two.safetensors"), strength=-0.5),
    ]
    source = open_weights(str(small_model))
    merged = MergedWeights(source, loras, SD_NAMES)
    changed = 0
    parts: tuple[Part, ...] = ("unet", "text_encoder")
    for part in parts:
        before, after = source.load(part, torch.float32).state_dict(), weights_of(merged, part)
        assert before.keys() == after.keys()
        for name, weight in before.items():
            wanted = weight.clone()
            layer = f"{part}.{name.removesuffix('.weight')}"
            for state, strength in ((one, 0.8), (two, -0.5)):
                for candidate in {layer, layer.replace("text_encoder.", "text_encoder.text_model.", 1)}:
                    if candidate in state.alphas and name.endswith(".weight"):
                        change = state.up(candidate).flatten(1) @ state.down(candidate).flatten(1) * (3.0 / 2)
                        wanted += strength * change.reshape(weight.shape)
            changed += not torch.equal(wanted, weight)
            torch.testing.assert_close(after[name], wanted, atol=1e-6, rtol=0)
    assert changed == len(one.alphas)


def test_merged_and_attached_are_the_same_model(small_model: Path, tmp_path: Path) -> None:
    state = a_lora(small_model, "transformer", "te1")
    path = written(state, tmp_path / "one.safetensors")
    attached, plain = open_small(small_model), open_small(small_model)
    attach_lora(attached, state).set_strength(0.7)
    merged = MergedWeights(open_weights(str(small_model)), [BaseLora(file=path, strength=0.7)], SD_NAMES)
    parts: tuple[Part, ...] = ("unet", "text_encoder")
    for part in parts:
        plain.set_network(part, merged.load(part, torch.float32))
    noisy, t = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([300])
    with torch.no_grad():
        one, other = (m.predict(noisy, t, m.encode_words(["a red ball"])) for m in (attached, plain))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_sum_is_made_in_float32_and_rounded_once(small_model: Path, tmp_path: Path) -> None:
    state = a_lora(small_model, "attention")
    loras = [BaseLora(file=written(state, tmp_path / "one.safetensors"), strength=s) for s in (0.001, 0.002, -0.003)]
    source = open_weights(str(small_model))
    before = source.load("unet", torch.bfloat16).state_dict()
    after = weights_of(MergedWeights(source, loras, SD_NAMES), "unet", torch.bfloat16)
    # the three cancel each other; rounded one by one, they would not
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_digest_changes_where_weights_change_and_nowhere_else(small_model: Path, tmp_path: Path) -> None:
    source = open_weights(str(small_model))
    unet = written(a_lora(small_model, "attention"), tmp_path / "unet.safetensors")
    words = written(a_lora(small_model, "te1"), tmp_path / "words.safetensors")

    def digests(*loras: BaseLora) -> dict[str, str]:
        merged = MergedWeights(source, loras, SD_NAMES)
        return {part: merged.digest(part) for part in ("unet", "text_encoder", "vae", "tokenizer")}

    plain = {part: source.digest(part) for part in ("unet", "text_encoder", "vae", "tokenizer")}
    assert digests() == plain

    def different(found: dict[str, str]) -> set[str]:
        return {part for part in plain if found[part] != plain[part]}

    assert different(digests(BaseLora(file=unet))) == {"unet"}
    assert different(digests(BaseLora(file=words))) == {"text_encoder"}
    assert digests(BaseLora(file=words)) != digests(BaseLora(file=words, strength=0.5))
    assert digests(BaseLora(file=words)) == digests(BaseLora(file=words))


def test_a_misfit_is_named(small_model: Path, tmp_path: Path) -> None:
    source = open_weights(str(small_model))
    pair = {"lora_A.weight": torch.zeros(2, 8), "lora_B.weight": torch.zeros(8, 2)}
    elsewhere = "unet.down_blocks.7.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{elsewhere}.{half}": tensor for half, tensor in pair.items()}
    path = written(LoraState(tensors=tensors, alphas={elsewhere: 2.0}), tmp_path / "elsewhere.safetensors")
    with pytest.raises(
        WeightsError, match=r"elsewhere\.safetensors changes 1 layers that the base model does not have"
    ):
        MergedWeights(source, [BaseLora(file=path)], SD_NAMES).load("unet", torch.float32)
    state = a_lora(small_model, "attention")
    wider = {n: torch.ones([side + (side != 2) for side in t.shape]) for n, t in state.tensors.items()}
    path = written(LoraState(tensors=wider, alphas=state.alphas), tmp_path / "wider.safetensors")
    with pytest.raises(WeightsError):
        MergedWeights(source, [BaseLora(file=path)], SD_NAMES).load("unet", torch.float32)
    with pytest.raises(WeightsError, match="no such file"):
        MergedWeights(source, [BaseLora(file=tmp_path / "absent.safetensors")], SD_NAMES).check()


def test_a_sum_that_overflows_is_refused(small_model: Path, tmp_path: Path) -> None:
    path = written(a_lora(small_model, "attention"), tmp_path / "one.safetensors")
    merged = MergedWeights(open_weights(str(small_model)), [BaseLora(file=path, strength=1e7)], SD_NAMES)
    assert merged.load("unet", torch.float32)
    with pytest.raises(NonFiniteError, match="float16"):
        merged.load("unet", torch.float16)
