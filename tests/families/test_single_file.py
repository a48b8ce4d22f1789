"""A checkpoint as model sites offer it: what it is, and that its networks are those of diffusers' own converters."""

import json
import math
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.core.tensors import DTYPES, Header, TensorFacts, read_header
from trainer.families.deriving import derived, with_pooled
from trainer.families.loading import open_weights
from trainer.families.model_facts import SPREAD_KEY, facts_of
from trainer.families.published import published_configs, published_scheduler
from trainer.families.stored_parts import StoredWeights
from trainer.weights.checkpoint import write_checkpoint, write_folder
from trainer.weights.metadata import KnownFamily
from trainer.weights.original_names import PARTS, Part, places_of, prefix_of

FAMILIES: tuple[KnownFamily, ...] = ("sd1", "sd2", "sdxl")
UNET = "model.diffusion_model."

Rewrite = Callable[..., Path]


def small(family: KnownFamily) -> dict[str, dict[str, Any]]:
    """Configurations of few and narrow layers that follow the family's rules, with CLIP's own vocabulary."""
    configs, double = published_configs(family, "epsilon"), family == "sdxl"
    levels = len(configs["unet"]["block_out_channels"])
    configs["unet"] |= {"block_out_channels": [32, 64, 64, 64][:levels], "cross_attention_dim": 64 + 128 * double}
    configs["unet"] |= {} if family == "sd1" else {"attention_head_dim": [1] * levels}
    configs["vae"] |= {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1}
    for part in PARTS[family][2:]:
        configs[part] |= {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 1, "num_hidden_layers": 2}
    if double:
        # diffusers tells the two text encoders apart by their widths
        configs["text_encoder_2"] |= {"hidden_size": 128, "num_attention_heads": 2, "projection_dim": 64}
        configs["unet"] |= {"transformer_layers_per_block": [1, 2, 3], "addition_time_embed_dim": 8}
        configs["unet"]["projection_class_embeddings_input_dim"] = 64 + 6 * 8
    return configs


Change = Callable[[dict[str, Any]], dict[str, Any]]


def without(*beginnings: str) -> Change:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(beginnings)}


def put(name: str, tensor: Any) -> Change:
    return lambda tensors: tensors | {name: tensor}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small random checkpoints, one a family, and beside each the same model as a folder."""
    found: dict[str, Path] = {}
    for family in FAMILIES:
        configs, generator = small(family), torch.Generator().manual_seed(0)
        states: dict[Part, dict[str, Tensor]] = {
            part: {
                p.name: torch.randn(p.shape, generator=generator) * 0.05 for p in places_of(family, part, configs[part])
            }
            for part in PARTS[family]
        }
        path = found[family] = tmp_path_factory.mktemp(family) / "model.safetensors"
        write_checkpoint(path, family, states, configs, {}, torch.float16)
        source = open_weights(str(path))
        tokenizers = {name: source.tokenizer(name) for name in ("tokenizer", "tokenizer_2")[: len(PARTS[family]) - 2]}
        write_folder(path.with_name("folder"), family, states, configs, tokenizers, torch.float16)
    return found


@pytest.fixture
def rewritten(checkpoints: dict[str, Path], tmp_path: Path) -> Rewrite:
    """A copy of a checkpoint with other tensors and metadata; without our own, as from anywhere else."""

    def rewrite(
        family: str,
        change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] = dict[str, Tensor],
        metadata: dict[str, str] | None = None,
    ) -> Path:
        path = tmp_path / f"{family}.safetensors"
        save_file(dict(change(load_file(checkpoints[family]))), path, metadata=metadata)
        return path

    return rewrite


def assert_same(network: torch.nn.Module, other: torch.nn.Module) -> None:
    found, expected = network.state_dict(), other.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ours", [True, False], ids=["our own file", "any file"])
def test_networks_are_those_of_the_folder(
    checkpoints: dict[str, Path], rewritten: Rewrite, family: KnownFamily, ours: bool
) -> None:
    single = open_weights(str(checkpoints[family] if ours else rewritten(family)))
    folder = open_weights(str(checkpoints[family].with_name("folder")))
    single.check()
    for part in PARTS[family]:
        assert {key: single.config(part)[key] for key in small(family)[part]} == small(family)[part]
        network, expected = single.load(part, torch.float32), folder.load(part, torch.float32)
        assert type(network) is type(expected)
        assert_same(network, expected)
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not ours or single.digest(part) == folder.digest(part)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_reads_the_same_networks_out_of_the_file(checkpoints: dict[str, Path], family: KnownFamily) -> None:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    folder = str(checkpoints[family].with_name("folder"))
    pipe: Any = kind.from_single_file(
        str(checkpoints[family]), config=folder, local_files_only=True, torch_dtype=torch.float32, safety_checker=None
    )
    source = open_weights(str(checkpoints[family]))
    tokens = torch.tensor([[49406, 320, 1125, 49407]])
    for part in PARTS[family]:
        ours, theirs = source.load(part, torch.float32), getattr(pipe, part)
        assert_same(ours, theirs)
        if part.startswith("text"):  # with the buffers that no file holds
            assert torch.equal(ours(tokens)[0], theirs(tokens)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_configurations_of_published_sizes_follow_from_shapes(family: KnownFamily) -> None:
    for prediction in ("epsilon", "velocity"):
        configs = published_configs(family, prediction)
        for part in PARTS[family]:
            shapes = {place.key: place.original_shape for place in places_of(family, part, configs[part])}
            emptied = {
                key: value for key, value in configs[part].items() if key not in ("block_out_channels", "hidden_size")
            }
            found = derived(part, family, shapes, emptied, "here")
            found = with_pooled(found, configs["text_encoder_2"]) if part == "unet" and family == "sdxl" else found
            assert {key: found[key] for key in configs[part]} == configs[part], part


def test_the_last_layer_of_sd2_may_be_there_or_not() -> None:
    config = published_configs("sd2", "velocity")["text_encoder"]
    for layers in (23, 24):
        places = places_of("sd2", "text_encoder", config | {"num_hidden_layers": layers})
        found = derived("text_encoder", "sd2", {place.key: place.original_shape for place in places}, config, "here")
        assert found["num_hidden_layers"] == 23


@pytest.mark.parametrize(
    ("family", "markers", "metadata", "expected"),
    [
        ("sd1", (), {}, "epsilon by a guess"),
        ("sd2", (), {}, "velocity by a guess"),
        ("sdxl", (), {}, "epsilon by a guess"),
        ("sdxl", ("v_pred",), {}, "velocity by marker v_pred"),
        ("sdxl", ("v_pred", "ztsnr"), {}, "velocity, zero by markers v_pred and ztsnr"),
        ("sdxl", ("ztsnr",), {}, "epsilon by a guess"),
        ("sd1", ("v_pred",), {"modelspec.prediction_type": "epsilon"}, "velocity by marker v_pred"),
        ("sd1", (), {"modelspec.prediction_type": "v"}, "velocity by modelspec.prediction_type"),
        ("sd2", (), {"modelspec.architecture": "stable-diffusion-v2-512"}, "epsilon by modelspec.architecture"),
        ("sd2", (), {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "velocity by modelspec.architecture"),
        ("sd2", (), {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}, "velocity, zero by modelspec"),
        ("sd1", (), {"ss_base_model_version": "sd_v1_v"}, "velocity by ss_base_model_version"),
        ("sd1", (), {"trainer.configs": "[" * 9999}, "epsilon by a guess"),
        ("sd1", (), {"trainer.configs": '{"scheduler": {"prediction_type": ["v_prediction"]}}'}, "epsilon by a guess"),
        (
            "sd1",
            (),
            {"trainer.configs": '{"scheduler": {"prediction_type": "v_prediction"}}'},
            "velocity by its metadata",
        ),
    ],
)
def test_what_a_file_says_of_itself(
    checkpoints: dict[str, Path], family: str, markers: tuple[str, ...], metadata: dict[str, str], expected: str
) -> None:
    tensors = {**read_header(checkpoints[family]).tensors, **dict.fromkeys(markers, TensorFacts("F32", (0,)))}
    facts = facts_of(Header(tensors=tensors, metadata=metadata), "here")
    prediction, by = expected.split(" by ")
    zero = prediction.endswith(", zero")
    assert (facts.family, facts.precision) == (family, "float16")
    assert facts.said[1].startswith(f"prediction {facts.prediction}: ")
    assert by in facts.said[1]
    assert (facts.prediction, facts.zero_terminal_snr) == (prediction.removesuffix(", zero"), zero)
    assert facts.prediction_guessed == (by == "a guess")
    scheduler = published_scheduler(facts)
    assert scheduler["prediction_type"] == {"velocity": "v_prediction", "epsilon": "epsilon"}[facts.prediction]
    assert scheduler.get("rescale_betas_zero_snr", False) == zero


@pytest.mark.parametrize(("deviation", "prediction"), [(0.05, "epsilon"), (0.15, "velocity")])
def test_the_two_sd2_are_told_by_the_spread_of_one_tensor(
    rewritten: Rewrite, deviation: float, prediction: str
) -> None:
    wave = torch.tensor([-deviation, deviation]).repeat(16)
    facts = open_weights(str(rewritten("sd2", put(SPREAD_KEY, wave)))).facts
    assert facts.prediction == prediction
    assert facts.prediction_guessed
    assert "spread" in facts.said[1]


def test_inpainting_is_told(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tensors = {
        **read_header(checkpoints["sd1"]).tensors,
        f"{UNET}input_blocks.0.0.weight": TensorFacts("F16", (32, 9, 3, 3)),
    }
    source = open_weights(str(hollow(tmp_path / "hollow.safetensors", tensors)))
    source.check()
    assert source.facts.inpainting
    assert source.config("unet")["in_channels"] == 9


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "is an adapter"),
        (["unet.mid_block.attentions.0.proj_in.lora_A.weight"], "is an adapter"),
        (["lora_unet_mid_block_attentions_0_proj_in.hada_w1_a"], "is an adapter"),
        (["emb_params"], "textual inversion"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "Flux"),
        ([f"{UNET}double_blocks.0.img_attn.norm.key_norm.scale"], "Flux"),
        ([f"{UNET}joint_blocks.0.x_block.mlp.fc1.weight"], "Stable Diffusion 3"),
        (["down_blocks.0.resnets.0.conv1.weight"], "U-Net alone"),
        (["first_stage_model.decoder.conv_in.weight"], "autoencoder alone"),
        (["cond_stage_model.transformer.text_model.final_layer_norm.bias"], "text encoder alone"),
        (["something"], "of an unknown kind"),
        ([f"{UNET}input_blocks.0.0.weight"], "reads no words"),
        (
            [f"{UNET}input_blocks.0.0.weight", f"{UNET}label_emb.0.0.weight", "conditioner.embedders.0.model.x"],
            "refiner",
        ),
        ([f"{UNET}input_blocks.0.0.weight", f"{UNET}label_emb.0.0.weight"], "varies or enlarges"),
        ([f"{UNET}input_blocks.0.0.weight", "edm_mean"], "EDM"),
        ([f"{UNET}input_blocks.0.0.weight", f"{UNET}out.2.scale_weight"], "quantised"),
    ],
)
def test_other_files_are_refused_by_their_name(names: list[str], says: str) -> None:
    tensors = {name: TensorFacts("F16", (4, 4, 3, 3)) for name in names}
    with pytest.raises(WeightsError, match=says):
        facts_of(Header(tensors=tensors, metadata={}), "here")


def test_a_unet_that_reads_other_channels_is_refused() -> None:
    tensors = {
        f"{UNET}input_blocks.0.0.weight": TensorFacts("F16", (320, 8, 3, 3)),
        "cond_stage_model.model.x": TensorFacts("F16", (1,)),
    }
    with pytest.raises(WeightsError, match="reads 8 channels"):
        facts_of(Header(tensors=tensors, metadata={}), "here")


def hollow(path: Path, tensors: Mapping[str, TensorFacts]) -> Path:
    """A file with a whole header, and a hole where its weights should be: nothing but the header can be read of it."""
    entries: dict[str, Any] = {}
    reached = 0
    for name, facts in tensors.items():
        size = DTYPES[facts.dtype].itemsize * math.prod(facts.shape)
        entries[name] = {"dtype": facts.dtype, "shape": facts.shape, "data_offsets": (reached, reached + size)}
        reached += size
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(file.tell() + reached)
    return path


@pytest.mark.parametrize(
    ("family", "change", "says"),
    [
        ("sd1", without("first_stage_model."), "has no autoencoder"),
        ("sdxl", without("conditioner.embedders.1."), "has no second text encoder"),
        ("sd1", without("cond_stage_model."), "has no text encoder"),
        ("sd1", without(f"{UNET}middle_block.1.norm."), "U-Net of this model lacks 2 weights"),
        ("sd1", without("first_stage_model.decoder.conv_in.weight"), "lacks the weight decoder.conv_in.weight"),
        ("sd1", put(f"{UNET}middle_block.1.norm.weight", TensorFacts("F16", (63,))), r"has the shape \[63\]"),
        ("sd1", put(f"{UNET}middle_block.1.norm.weight", TensorFacts("I32", (64,))), "format I32"),
        ("sd1", put(f"{UNET}middle_block.9.weight", TensorFacts("F16", (1,))), "1 weights that its family's does not"),
        ("sd1", without(f"{UNET}input_blocks.2.1."), "not built as that of its family"),
        ("sd2", put("cond_stage_model.model.token_embedding.weight", TensorFacts("F16", (6076, 64))), "knows 6076"),
    ],
)
def test_damaged_checkpoints_are_refused_before_anything_is_loaded(
    checkpoints: dict[str, Path], tmp_path: Path, family: str, change: Change, says: str
) -> None:
    path = hollow(tmp_path / "hollow.safetensors", read_header(checkpoints[family]).tensors)
    open_weights(str(path)).check()
    with pytest.raises(WeightsError, match=says):
        open_weights(str(hollow(path, change(dict(read_header(checkpoints[family]).tensors))))).check()


@pytest.mark.parametrize(
    ("value", "dtype", "says"),
    [
        (float("nan"), torch.float32, "NaN or infinite"),
        (float("-inf"), torch.bfloat16, "NaN or infinite"),
        (1e5, torch.float16, "too large for float16"),
    ],
)
def test_weights_that_are_not_finite_are_named(rewritten: Rewrite, value: float, dtype: torch.dtype, says: str) -> None:
    name = f"{UNET}middle_block.1.norm.weight"
    source = open_weights(str(rewritten("sd1", put(name, torch.zeros(64).index_fill(0, torch.tensor([5]), value)))))
    with pytest.raises(WeightsError, match=says) as caught:
        source.load("unet", dtype)
    assert name in str(caught.value)


def test_early_and_sgm_names_of_text_encoders_are_read(rewritten: Rewrite) -> None:
    def early(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in tensors.items()}

    def sgm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace("cond_stage_model.", "conditioner.embedders.0."): t for name, t in tensors.items()}

    for family, change in (("sd1", early), ("sd1", sgm), ("sd2", sgm)):
        source = open_weights(str(rewritten(family, change)))
        assert source.facts.family == family
        source.check()
        source.load("text_encoder", torch.float32)


def test_pickles_and_broken_files_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    armed = tmp_path / "model.ckpt"
    armed.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(WeightsError, match="can run code"):
        open_weights(str(armed))
    content = checkpoints["sd1"].read_bytes()
    for name, damaged in {
        "short": content[:-1],
        "long": content + b"\0",
        "text": b"no tensors here, only words",
    }.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match="no whole safetensors file"):
            open_weights(str(path))


def test_tokenizers_are_clips(checkpoints: dict[str, Path]) -> None:
    from transformers import CLIPTokenizerFast  # pyright: ignore[reportAttributeAccessIssue] - an alias

    xl = open_weights(str(checkpoints["sdxl"]))
    expected: list[tuple[StoredWeights, Literal["tokenizer", "tokenizer_2"], int]] = [
        (open_weights(str(checkpoints["sd1"])), "tokenizer", 49407),
        (open_weights(str(checkpoints["sd2"])), "tokenizer", 0),
        (xl, "tokenizer", 49407),
        (xl, "tokenizer_2", 0),
    ]
    for source, part, padding in expected:
        tokenizer: Any = CLIPTokenizerFast.from_pretrained(source.tokenizer(part))
        assert len(tokenizer) == 49408
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (49406, 49407, padding)
        ids = tokenizer("A photo of a CAT", padding="max_length", max_length=9, truncation=True).input_ids
        assert ids == [49406, 320, 1125, 539, 320, 2368, 49407, padding, padding]
        assert tokenizer("naïve café 漢字 🙂 #1").input_ids[1:-1] == tokenizer("NAÏVE  CAFÉ 漢字 🙂 #1").input_ids[1:-1]


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("form", ["original", "diffusers", "old diffusers", "folder", "model folder"])
def test_another_autoencoder_takes_the_place_of_the_models(
    checkpoints: dict[str, Path], tmp_path: Path, form: str, prefix: str
) -> None:
    folder = checkpoints["sdxl"].with_name("folder")
    path = tmp_path / "vae.safetensors"
    if form == "original":
        own = prefix_of("sdxl", "vae")
        tensors = load_file(checkpoints["sdxl"])
        save_file({prefix + n.removeprefix(own): t for n, t in tensors.items() if n.startswith(own)}, path)
    elif form.endswith("diffusers"):
        tensors = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
        words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, old in words.items() if form == "old diffusers" else ():
            tensors = {n.replace(f".{new}.", f".{old}."): t for n, t in tensors.items()}
        save_file(tensors, path)
    else:
        path = folder / "vae" if form == "folder" else folder
    source = open_weights(str(checkpoints["sd1"]), vae=str(path))
    source.check()
    assert_same(source.load("vae", torch.float32), open_weights(str(folder)).load("vae", torch.float32))
    # only a configuration tells the factor; a file has none and takes the place of the model's own
    assert source.config("vae")["scaling_factor"] == (0.13025 if path.is_dir() else 0.18215)


def test_autoencoders_of_other_families_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = checkpoints["sdxl"].with_name("folder")
    tensors = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    path = tmp_path / "vae.safetensors"
    save_file(tensors, path, metadata={"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"})
    open_weights(str(checkpoints["sdxl"]), vae=str(path)).check()
    with pytest.raises(WeightsError, match="says that it belongs to stable-diffusion-xl"):
        open_weights(str(checkpoints["sd1"]), vae=str(path))
    tensors["decoder.conv_in.weight"] = torch.zeros(64, 16, 3, 3)
    save_file(tensors, path)
    with pytest.raises(WeightsError, match="latents of 16 channels"):
        open_weights(str(checkpoints["sd1"]), vae=str(path))


def test_a_file_without_an_autoencoder_takes_another(
    checkpoints: dict[str, Path], rewritten: Rewrite, tmp_path: Path
) -> None:
    path = rewritten("sd1", without("first_stage_model."))
    shutil.copytree(checkpoints["sd1"].with_name("folder") / "vae", tmp_path / "vae")
    open_weights(str(path), vae=str(tmp_path / "vae")).check()
