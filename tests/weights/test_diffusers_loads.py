"""What we export is what a program that knows nothing of us loads: every layer, with the right change of weight."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trainer
from trainer.core.device import Precision
from trainer.weights.export import ExportSettings, export
from trainer.weights.inspecting import describe
from trainer.weights.lora_state import LoraState
from trainer.weights.metadata import TrainingFacts
from trainer.weights.names import SD_NAMES
from trainer.weights.reading import read_lora

BASE = Path(trainer.__file__).parent / "families" / "bundled_base"
UNET_LAYERS = (
    r".*(attn[12]\.to_(q|k|v|out\.0)|proj_in|ff\.net\.(0\.proj|2)|conv1|conv_shortcut|time_emb_proj|samplers\.0\.conv)"
)
TEXT_LAYERS = r".*(q_proj|out_proj|fc1)"


def a_pipeline() -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(BASE, local_files_only=True, torch_dtype=torch.float32)


def with_peft(network: nn.Module, part: str, layers: str, seed: int) -> LoraState:
    """A LoRA that peft put into a network, its numbers drawn so that it does something, in peft's own names."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import get_peft_model_state_dict

    config = LoraConfig(r=6, lora_alpha=3, target_modules=layers)
    inject_adapter_in_model(config, network)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    found: Mapping[str, Tensor] = get_peft_model_state_dict(network, save_embedding_layers=False)
    for name, tensor in found.items():
        drawn = torch.randn(tensor.shape, generator=generator) * 0.02
        layer, ending = name[: -len(".lora_A.weight")], name[-len(".lora_A.weight") :]
        tensors[SD_NAMES.canonical(f"{part}.{layer}") + ending] = drawn
    names = {name.removesuffix(".lora_A.weight").removesuffix(".lora_B.weight") for name in tensors}
    return LoraState(tensors=tensors, alphas=dict.fromkeys(names, 3.0))


@pytest.fixture(scope="module")
def a_trained_lora() -> LoraState:
    pipeline = a_pipeline()
    unet = with_peft(pipeline.unet, "unet", UNET_LAYERS, 1)
    words = with_peft(pipeline.text_encoder, "text_encoder", TEXT_LAYERS, 2)
    return LoraState(tensors={**unet.tensors, **words.tensors}, alphas={**unet.alphas, **words.alphas})


def loaded_changes(pipeline: Any) -> dict[str, Tensor]:
    """The change of weight that each of a pipeline's adapted layers has after loading, by our names."""
    from peft.tuners.lora import LoraLayer

    def change(layer: Any) -> Tensor:  # each kind of LoraLayer has it, their base class does not
        return layer.get_delta_weight(layer.active_adapters[0]).detach()

    return {
        SD_NAMES.canonical(f"{part}.{name}"): change(layer)
        for part, network in (("unet", pipeline.unet), ("text_encoder", pipeline.text_encoder))
        for name, layer in network.named_modules()
        if isinstance(layer, LoraLayer)
    }


@pytest.mark.parametrize(("precision", "limit"), [("float32", 1e-5), ("float16", 2e-3)])
def test_diffusers_loads_every_layer_right(
    tmp_path: Path,
    a_trained_lora: LoraState,
    some_facts: TrainingFacts,
    caplog: pytest.LogCaptureFixture,
    precision: str,
    limit: float,
) -> None:
    file = tmp_path / "blob.safetensors"
    export(file, a_trained_lora, SD_NAMES, some_facts, ExportSettings(precision=Precision(precision)))
    pipeline = a_pipeline()
    logging.getLogger("diffusers").propagate = True
    with caplog.at_level(logging.INFO):
        pipeline.load_lora_weights(file)
    complaints = [
        r.getMessage() for r in caplog.records if "missing" in r.getMessage() or "unexpected" in r.getMessage()
    ]
    assert complaints == []
    found = loaded_changes(pipeline)
    assert sorted(found) == a_trained_lora.layers()
    for layer, change in found.items():
        expected = a_trained_lora.change(layer)
        assert change.shape == expected.shape, layer
        assert float((change - expected).norm() / expected.norm()) <= limit, layer


def test_what_diffusers_saves_is_what_we_read(
    tmp_path: Path, a_trained_lora: LoraState, some_facts: TrainingFacts
) -> None:
    """Through diffusers and back: our file in, its own layout out, our state again."""
    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict

    file = tmp_path / "blob.safetensors"
    export(file, a_trained_lora, SD_NAMES, some_facts, ExportSettings())
    pipeline = a_pipeline()
    pipeline.load_lora_weights(file)
    name = pipeline.unet.active_adapters()[0]
    layers: Any = get_peft_model_state_dict(pipeline.unet, adapter_name=name)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "theirs",
        unet_lora_layers=layers,
        unet_lora_adapter_metadata=pipeline.unet.peft_config[name].to_dict(),
    )
    back = read_lora(tmp_path / "theirs" / "pytorch_lora_weights.safetensors", SD_NAMES)
    assert back.layout == "diffusers"
    unet = [layer for layer in a_trained_lora.layers() if layer.startswith("unet.")]
    assert back.state.layers() == unet
    for layer in unet:
        torch.testing.assert_close(back.state.change(layer), a_trained_lora.change(layer), rtol=1e-5, atol=1e-7)


def test_the_bundled_base_says_what_it_is(tmp_path: Path, a_trained_lora: LoraState, some_facts: TrainingFacts) -> None:
    report = describe(BASE)
    assert (report.kind, report.family, report.prediction) == ("diffusers folder", "sd1 (custom size)", "v_prediction")
    parts = {part.name: part for part in report.parts}
    assert set(parts) == {"unet", "vae", "text_encoder"}
    pipeline = a_pipeline()
    for name, part in parts.items():
        assert part.parameters == sum(p.numel() for p in getattr(pipeline, name).parameters()), name
    file = tmp_path / "blob.safetensors"
    export(file, a_trained_lora, SD_NAMES, some_facts, ExportSettings())
    of_lora = describe(file)
    assert (of_lora.kind, of_lora.family) == ("lora", "sd1 (custom size)")
    assert of_lora.suspicious == ()
