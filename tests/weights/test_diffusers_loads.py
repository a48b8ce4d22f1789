"""What we export is what programs that know nothing of us load: every layer, with the right change of weight."""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import trainer
from trainer.core.device import Precision
from trainer.core.errors import WeightsError
from trainer.weights.adapter_kinds import state_of
from trainer.weights.adapter_state import AdapterState
from trainer.weights.embeddings import Embedding, export_embedding
from trainer.weights.export import ExportSettings, export
from trainer.weights.inspecting import describe
from trainer.weights.layouts import Layout
from trainer.weights.live_layers import live_layers
from trainer.weights.lora_state import LoraState
from trainer.weights.metadata import TrainingFacts
from trainer.weights.names import SD_NAMES, SDXL_NAMES, Naming
from trainer.weights.reading import read_adapter, read_lora

BASE = Path(trainer.__file__).parent / "families" / "bundled_base"
FAMILIES = ("sd1", "sd2", "sdxl")
NAMINGS: Mapping[str, Naming] = {"sd1": SD_NAMES, "sd2": SD_NAMES, "sdxl": SDXL_NAMES}
Pipelines = Callable[[str], Any]
WORD = "<word>"


@pytest.fixture(scope="module")
def a_pipeline() -> Pipelines:
    """A new tiny random pipeline of a family, without an autoencoder, the same each time."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    def tokenizer() -> Any:
        return CLIPTokenizer.from_pretrained(BASE / "tokenizer")

    def clip(width: int, kind: Any) -> Any:
        words = len(tokenizer())
        return kind(
            CLIPTextConfig(
                vocab_size=words, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
                num_attention_heads=2, projection_dim=width, bos_token_id=words - 2, eos_token_id=words - 1,
            )
        )  # fmt: skip

    def unet(family: str) -> Any:
        # diffusers types some of these as tuples of one
        told: dict[str, Any] = {"block_out_channels": (8, 16, 24), "norm_num_groups": 4, "layers_per_block": 2}
        if family == "sdxl":
            told |= {
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "cross_attention_dim": 36, "attention_head_dim": (1, 2, 3), "transformer_layers_per_block": (1, 1, 2),
                "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
                "projection_class_embeddings_input_dim": 44,
            }  # fmt: skip
        else:
            told |= {
                "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
                "cross_attention_dim": 16, "use_linear_projection": family == "sd2",
                "attention_head_dim": (1, 2, 3) if family == "sd2" else 2,
            }  # fmt: skip
        return UNet2DConditionModel(**told)

    def build(family: str) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            parts: dict[str, Any] = {
                "vae": None, "text_encoder": clip(16, CLIPTextModel), "tokenizer": tokenizer(), "unet": unet(family),
                "scheduler": DDIMScheduler(),
            }  # fmt: skip
            if family == "sdxl":
                encoder = clip(20, CLIPTextModelWithProjection)
                return StableDiffusionXLPipeline(**parts, text_encoder_2=encoder, tokenizer_2=tokenizer())
            parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            return StableDiffusionPipeline(**parts)

    return build


def networks_of(pipeline: Any, naming: Naming) -> dict[str, nn.Module]:
    return {part: getattr(pipeline, part) for part in naming.parts}


def weights_of(pipeline: Any, naming: Naming) -> dict[str, Tensor]:
    """The base's weights by our names of layers."""
    return {
        layer: network.get_parameter(f"{path}.weight").detach().clone()
        for part, network in networks_of(pipeline, naming).items()
        for layer, path in live_layers(network, part, naming).items()
    }


def adapter_for(weights: Mapping[str, Tensor], kind: str) -> AdapterState:
    """An adapter over all layers, with numbers that do something, of two ranks and three alphas."""
    draw = torch.Generator().manual_seed(1)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw) * 0.1

    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for number, (layer, weight) in enumerate(weights.items()):
        rank = 2 if number % 3 else 3
        alphas[layer] = (1.0, 2.0, 0.3)[number % 3 if number % 5 else 0]
        out, inner, ones = weight.shape[0], weight[0].numel(), (1,) * (weight.ndim - 2)
        if kind == "loha":
            for w in ("w1", "w2"):
                tensors[f"{layer}.hada_{w}_a"] = some(out, rank)
                tensors[f"{layer}.hada_{w}_b"] = some(rank, inner)
        elif kind == "lokr":  # as peft builds it with the factor 2: every width here is even
            tensors[f"{layer}.lokr_w1"] = some(2, 2)
            if rank < max(out, weight.shape[1]) / 4:
                tensors[f"{layer}.lokr_w2_a"] = some(out // 2, rank)
                tensors[f"{layer}.lokr_w2_b"] = some(rank, inner // 2)
            else:
                tensors[f"{layer}.lokr_w2"] = some(out // 2, weight.shape[1] // 2, *weight.shape[2:])
        else:
            tensors[f"{layer}.lora_A.weight"] = some(rank, *weight.shape[1:])
            tensors[f"{layer}.lora_B.weight"] = some(out, rank, *ones)
            if kind == "dora":
                tensors[f"{layer}.dora_scale"] = some(out, 1, *ones).abs() + 0.5
    return state_of(tensors, alphas)


def changes_in(pipeline: Any, naming: Naming) -> dict[str, Tensor]:
    """What the adapter layers of a pipeline add to each weight, by our names, as they themselves merge it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[str, Tensor] = {}
    for part, network in networks_of(pipeline, naming).items():
        for path, layer in network.named_modules():
            if isinstance(layer, BaseTunerLayer):
                module: Any = layer  # each kind of tuner layer merges, their base class does not
                before = module.base_layer.weight.detach().clone()
                module.merge()
                name = naming.canonical(f"{part}.{path.removeprefix('base_model.model.')}")
                found[name] = module.base_layer.weight.detach() - before
    return found


def worst(found: Mapping[str, Tensor], state: AdapterState, weights: Mapping[str, Tensor]) -> float:
    """The greatest relative error of a layer, counting what merging itself rounds off the weight."""
    assert sorted(found) == state.layers()
    errors: list[float] = []
    for layer, change in found.items():
        expected = state.change(layer, weights[layer])
        assert change.shape == expected.shape, layer
        rounding = 2.0**-24 * float(weights[layer].norm())
        errors.append(max(0.0, float((change - expected).norm()) - rounding) / float(expected.norm()))
    return max(errors)


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    words = ("missing", "unexpected", "not been", "No LoRA keys", "not compatible")
    return [r.getMessage() for r in caplog.records if any(word in r.getMessage() for word in words)]


@pytest.fixture(autouse=True)
def _loud(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for library in ("diffusers", "transformers", "peft"):
        logging.getLogger(library).propagate = True


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_loads_every_layer_right(
    tmp_path: Path,
    a_pipeline: Pipelines,
    some_facts: TrainingFacts,
    caplog: pytest.LogCaptureFixture,
    family: str,
    layout: Layout,
) -> None:
    pipeline, naming = a_pipeline(family), NAMINGS[family]
    weights = weights_of(pipeline, naming)
    state = adapter_for(weights, "lora")
    file = tmp_path / "blob.safetensors"
    export(file, state, naming, some_facts, ExportSettings(layout=layout))
    pipeline.load_lora_weights(file)
    assert complaints(caplog) == []
    for part, network in networks_of(pipeline, naming).items():
        for path, layer in network.named_modules():
            if hasattr(layer, "get_delta_weight"):
                name = naming.canonical(f"{part}.{path}")
                change: Tensor = layer.get_delta_weight("default_0").detach()  # pyright: ignore[reportCallIssue]
                expected = state.change(name)
                assert float((change - expected).norm() / expected.norm()) <= 1e-5, name
    assert worst(changes_in(pipeline, naming), state, weights) <= 1e-5


def test_half_precision_rounds_and_no_more(tmp_path: Path, a_pipeline: Pipelines, some_facts: TrainingFacts) -> None:
    pipeline = a_pipeline("sd1")
    weights = weights_of(pipeline, SD_NAMES)
    state = adapter_for(weights, "lora")
    file = tmp_path / "blob.safetensors"
    export(file, state, SD_NAMES, some_facts, ExportSettings(precision=Precision.float16))
    pipeline.load_lora_weights(file)
    assert worst(changes_in(pipeline, SD_NAMES), state, weights) <= 2e-3


def test_diffusers_loads_a_dora_in_its_own_layout(
    tmp_path: Path, a_pipeline: Pipelines, some_facts: TrainingFacts, caplog: pytest.LogCaptureFixture
) -> None:
    family = "sdxl"  # with an encoder of each class that transformers has
    pipeline, naming = a_pipeline(family), NAMINGS[family]
    weights = weights_of(pipeline, naming)
    state = adapter_for(weights, "dora")
    file = tmp_path / "blob.safetensors"
    export(file, state, naming, some_facts, ExportSettings(layout="diffusers"))
    pipeline.load_lora_weights(file)
    assert complaints(caplog) == []
    assert worst(changes_in(pipeline, naming), state, weights) <= 1e-5


@pytest.mark.parametrize(
    ("family", "kind"), [("sd1", "lora"), ("sdxl", "lora"), ("sd1", "dora"), ("sd1", "loha"), ("sdxl", "lokr")]
)
def test_peft_loads_every_layer_right(
    tmp_path: Path, a_pipeline: Pipelines, some_facts: TrainingFacts, family: str, kind: str
) -> None:
    from peft import PeftModel, set_peft_model_state_dict

    pipeline, naming = a_pipeline(family), NAMINGS[family]
    weights = weights_of(pipeline, naming)
    state = adapter_for(weights, kind)
    folder = export(tmp_path / "blob.safetensors", state, naming, some_facts, ExportSettings(layout="peft"))
    assert folder == tmp_path / "blob"
    for part, network in networks_of(pipeline, naming).items():
        loaded: Any = PeftModel.from_pretrained(network, folder / part)
        again = set_peft_model_state_dict(loaded, load_file(folder / part / "adapter_model.safetensors"))
        assert again.unexpected_keys == []
        assert [key for key in again.missing_keys if "lora_" in key or "hada_" in key or "lokr_" in key] == []
    assert worst(changes_in(pipeline, naming), state, weights) <= 1e-5
    back = read_adapter(folder, naming)
    assert (back.layout, back.state.kind) == ("peft", kind)
    for layer, weight in weights.items():
        torch.testing.assert_close(
            back.state.change(layer, weight), state.change(layer, weight), rtol=1e-5, atol=1e-6, msg=layer
        )


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_lycoris_loads_every_layer_right(
    tmp_path: Path,
    a_pipeline: Pipelines,
    some_facts: TrainingFacts,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    kind: str,
) -> None:
    """LyCORIS loads with its own modules what sd-scripts trains; the web UIs' loaders were written after them."""
    kohya: Any = pytest.importorskip("lycoris.kohya")
    for targets in ("UNET_TARGET_REPLACE_MODULE", "UNET_TARGET_REPLACE_NAME", "TEXT_ENCODER_TARGET_REPLACE_MODULE"):
        monkeypatch.setattr(kohya.LycorisNetworkKohya, targets, [])  # it would make new layers for these first
    pipeline, naming = a_pipeline(family), NAMINGS[family]
    weights = weights_of(pipeline, naming)
    state = adapter_for(weights, kind)
    file = tmp_path / "blob.safetensors"
    export(file, state, naming, some_facts, ExportSettings())
    encoder = nn.ModuleDict({"text_model": pipeline.text_encoder})  # as transformers before version 5 names its layers
    network, _ = kohya.create_network_from_weights(1.0, str(file), None, encoder, pipeline.unet)
    found: dict[str, Tensor] = {}
    layers = {naming.to_kohya(layer): layer for layer in weights}
    for module in network.unet_loras + network.text_encoder_loras:
        layer = layers[module.lora_name]
        base = weights[layer]
        if kind == "dora":
            found[layer] = module.get_merged_weight(1.0, shape=base.shape)[0].detach() - base
        else:
            found[layer] = module.get_diff_weight(1.0, shape=base.shape)[0].detach().reshape(base.shape)
    assert worst(found, state, weights) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_what_diffusers_saves_is_what_we_read(
    tmp_path: Path, a_pipeline: Pipelines, some_facts: TrainingFacts, family: str
) -> None:
    """Through diffusers and back: our file in, its own layout out, our state again."""
    from peft.utils import get_peft_model_state_dict

    pipeline, naming = a_pipeline(family), NAMINGS[family]
    state = adapter_for(weights_of(pipeline, naming), "lora")
    file = tmp_path / "blob.safetensors"
    export(file, state, naming, some_facts, ExportSettings())
    pipeline.load_lora_weights(file)
    told: dict[str, Any] = {}
    for part, network in networks_of(pipeline, naming).items():
        layers: Any = get_peft_model_state_dict(network, adapter_name="default_0", save_embedding_layers=False)
        told[f"{part}_lora_layers"] = layers
        loaded: Any = network
        told[f"{part}_lora_adapter_metadata"] = loaded.peft_config["default_0"].to_dict()
    type(pipeline).save_lora_weights(tmp_path / "theirs", **told)
    theirs = tmp_path / "theirs" / "pytorch_lora_weights.safetensors"
    back = read_lora(theirs, naming)
    assert back.layout == "diffusers"
    assert back.state.layers() == state.layers()
    for layer in state.layers():
        torch.testing.assert_close(back.state.change(layer), state.change(layer), rtol=1e-5, atol=1e-7)
    # and our file in their layout has the names that they give
    ours = tmp_path / "ours.safetensors"
    export(ours, state, naming, some_facts, ExportSettings(layout="diffusers"))
    assert {_key(key) for key in keys_of(ours)} == {_key(key) for key in keys_of(theirs)}


def keys_of(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _key(key: str) -> str:
    """transformers 5 has dropped a word from the names of one encoder's layers; older programs need it."""
    return key.replace("text_encoder.text_model.", "text_encoder.")


def test_diffusers_takes_one_alpha_for_attention_and_text(tmp_path: Path, a_pipeline: Pipelines) -> None:
    """Why files have even alphas: where this fails, `even_alphas` has become needless for LoRAs."""
    pipeline = a_pipeline("sd1")
    weights = weights_of(pipeline, SD_NAMES)
    state = adapter_for(weights, "lora")
    raw: dict[str, Tensor] = {}
    for layer in state.layers():
        name = SD_NAMES.to_kohya(layer)
        raw[f"{name}.lora_down.weight"], raw[f"{name}.lora_up.weight"] = state.roles(layer).values()
        raw[f"{name}.alpha"] = torch.tensor(state.alphas[layer])
    save_file(raw, tmp_path / "uneven.safetensors")
    pipeline.load_lora_weights(tmp_path / "uneven.safetensors")
    found = changes_in(pipeline, SD_NAMES)
    wrong = [
        layer
        for layer, change in found.items()
        if not torch.allclose(change, state.change(layer), rtol=1e-2, atol=1e-5)
    ]
    assert wrong
    assert all("attn" in layer or layer.startswith("text_encoder.") for layer in wrong)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_products_have_no_layout_of_diffusers(
    tmp_path: Path, a_pipeline: Pipelines, some_facts: TrainingFacts, kind: str
) -> None:
    state = adapter_for(weights_of(a_pipeline("sd1"), SD_NAMES), kind)
    with pytest.raises(WeightsError, match="diffusers cannot load"):
        export(tmp_path / "a.safetensors", state, SD_NAMES, some_facts, ExportSettings(layout="diffusers"))
    assert list(tmp_path.iterdir()) == []


def test_the_bundled_base_says_what_it_is(tmp_path: Path, some_facts: TrainingFacts) -> None:
    from diffusers import StableDiffusionPipeline

    report = describe(BASE)
    assert (report.kind, report.family, report.prediction) == ("diffusers folder", "sd1 (custom size)", "v_prediction")
    parts = {part.name: part for part in report.parts}
    assert set(parts) == {"unet", "vae", "text_encoder"}
    pipeline: Any = StableDiffusionPipeline.from_pretrained(BASE, local_files_only=True, torch_dtype=torch.float32)
    for name, part in parts.items():
        assert part.parameters == sum(p.numel() for p in getattr(pipeline, name).parameters()), name
    file = tmp_path / "blob.safetensors"
    state = adapter_for(weights_of(pipeline, SD_NAMES), "lora")
    assert isinstance(state, LoraState)
    export(file, state, SD_NAMES, some_facts, ExportSettings())
    of_lora = describe(file)
    assert (of_lora.kind, of_lora.family) == ("lora", "sd1 (custom size)")
    assert of_lora.suspicious == ()
    assert math.isclose(
        sum(layer.norm or 0 for layer in of_lora.layers), sum(map(state.norm, state.layers())), rel_tol=1e-5
    )


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_diffusers_loads_embeddings(tmp_path: Path, a_pipeline: Pipelines, family: str, count: int) -> None:
    """SD1 and SD2 by one call; SDXL by one for each encoder, as its documentation says."""
    pipeline = a_pipeline(family)
    widths = {part: 20 if part.endswith("2") else 16 for part in NAMINGS[family].parts if part != "unet"}
    draw = torch.Generator().manual_seed(count)
    vectors = {part: torch.randn(count, width, generator=draw) for part, width in widths.items()}
    file = export_embedding(tmp_path / "word.safetensors", Embedding(vectors), {}, ExportSettings())
    if family == "sdxl":
        tensors = load_file(file)
        assert set(tensors) == {"clip_l", "clip_g"}
        first = {"text_encoder": pipeline.text_encoder, "tokenizer": pipeline.tokenizer}
        second = {"text_encoder": pipeline.text_encoder_2, "tokenizer": pipeline.tokenizer_2}
        pipeline.load_textual_inversion(tensors["clip_l"], token=WORD, **first)
        pipeline.load_textual_inversion(tensors["clip_g"], token=WORD, **second)
    else:
        pipeline.load_textual_inversion(file, token=WORD)
    for part in vectors:
        table = getattr(pipeline, part).get_input_embeddings().weight
        names = [WORD, *(f"{WORD}_{number}" for number in range(1, count))]
        rows = table[getattr(pipeline, part.replace("text_encoder", "tokenizer")).convert_tokens_to_ids(names)].detach()
        assert torch.equal(rows, vectors[part]), part
