"""Weights are found by their name, out of every kind of folder, and loaded with hardly more memory than they use."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.families.hub import files_wanted
from trainer.families.loading import BUNDLED, open_weights
from trainer.families.published import published_configs
from trainer.weights.original_names import places_of, prefix_of

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(small_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_model, tmp_path / "model"))


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(dict(change(load_file(path))), path)


def test_networks_are_those_that_diffusers_and_transformers_load(model: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    source = open_weights(str(model))
    source.check()
    expected: dict[Any, Any] = {
        "unet": UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.bfloat16),
        "vae": AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.bfloat16),
        "text_encoder": CLIPTextModel.from_pretrained(model / "text_encoder", dtype=torch.bfloat16),
    }
    for part, theirs in expected.items():
        ours: Any = source.load(part, torch.bfloat16)
        assert {n: (t.dtype, t.shape) for n, t in ours.state_dict().items()} == {
            n: (t.dtype, t.shape) for n, t in theirs.state_dict().items()
        }
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), name
        # what is in no file: buffers, and how attention is computed
        assert {n: b.tolist() for n, b in ours.named_buffers()} == {n: b.tolist() for n, b in theirs.named_buffers()}
        if part == "text_encoder":
            assert ours.config._attn_implementation == theirs.config._attn_implementation
        else:
            assert [type(p) for p in ours.attn_processors.values()] == [
                type(p) for p in theirs.attn_processors.values()
            ]


def test_the_bundled_base_is_a_model_like_any_other() -> None:
    source = open_weights(BUNDLED)
    source.check()
    assert (source.facts.family, source.facts.prediction, source.facts.precision) == ("sd1", "velocity", "float16")
    assert source.tokenizer().name == "tokenizer"


def split(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    names = sorted(tensors)
    return [{name: tensors[name] for name in names[half::2]} for half in (0, 1)]


@pytest.mark.parametrize("form", ["fp16", "sharded", "sharded fp16", "another name", "both"])
def test_weights_are_found_under_every_name(small_model: Path, model: Path, form: str) -> None:
    path, stem = model / UNET, "diffusion_pytorch_model"
    tensors = load_file(path)
    if form == "both":  # the plain files count
        save_file({name: tensor + 1 for name, tensor in tensors.items()}, path.with_name(f"{stem}.fp16.safetensors"))
    else:
        path.unlink()
    if form == "fp16":
        save_file(tensors, path.with_name(f"{stem}.fp16.safetensors"))
    if form == "another name":
        save_file(tensors, path.with_name("weights.safetensors"))
    for number, half in enumerate(split(tensors), 1) if form.startswith("sharded") else ():
        variant = ".fp16" if "fp16" in form else ""
        save_file(half, path.with_name(f"{stem}{variant}-0000{number}-of-00002.safetensors"))
    source, plain = open_weights(str(model)), open_weights(str(small_model))
    source.check()
    assert source.digest("unet") == plain.digest("unet")
    found, expected = (one.load("unet", torch.float32).state_dict() for one in (source, plain))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_old_names_of_diffusers_and_transformers_are_read(model: Path) -> None:
    source = open_weights(str(model))
    expected, digest = source.load("text_encoder", torch.float32).state_dict(), source.digest("text_encoder")
    old = model / "text_encoder" / "model.safetensors"
    places = {"text_model.embeddings.position_ids": torch.arange(77).unsqueeze(0)}  # which transformers once stored
    rewrite(old, lambda ts: {f"text_model.{n.removeprefix('text_model.')}": t for n, t in ts.items()} | places)
    again = open_weights(str(model))
    again.check()
    found = again.load("text_encoder", torch.float32).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert again.digest("text_encoder") == digest
    with pytest.raises(WeightsError, match="changed since it was opened"):
        source.load("text_encoder", torch.float32)


def test_digests_follow_content_and_not_history(model: Path) -> None:
    parts = ("unet", "vae", "text_encoder", "tokenizer")
    before = {part: open_weights(str(model)).digest(part) for part in parts}
    change(model / "unet" / "config.json", _name_or_path="elsewhere", _diffusers_version="0")
    assert {part: open_weights(str(model)).digest(part) for part in parts} == before
    change(model / "vae" / "config.json", scaling_factor=0.7)
    rewrite(model / UNET, lambda ts: ts | {"conv_in.bias": ts["conv_in.bias"].nextafter(torch.tensor(9.0))})
    change(model / "tokenizer" / "tokenizer_config.json", model_max_length=78)
    after = {part: open_weights(str(model)).digest(part) for part in parts}
    assert {part for part in parts if after[part] != before[part]} == {"vae", "unet", "tokenizer"}


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "another family .FluxPipeline"),
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "another family .StableDiffusion3Pipeline"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "predicts 'flow'"),
        ("unet/config.json", {"block_out_channels": [8, 24]}, "by the model's configuration it should be"),
        ("unet/config.json", {"layers_per_block": 2}, "U-Net of this model lacks"),
        ("unet/config.json", {"down_block_types": ["AttnDownBlock2D"] * 2}, "that we do not know"),
        ("unet/config.json", {"transformer_layers_per_block": 10**12}, "cannot be understood"),
    ],
)
def test_folders_whose_files_contradict_each_other_are_refused(
    model: Path, file: str, changes: dict[str, object], says: str
) -> None:
    change(model / file, **changes)
    with pytest.raises(WeightsError, match=says):
        open_weights(str(model)).check()


def test_facts_of_folders(model: Path) -> None:
    assert open_weights(str(model)).facts.said == (
        "family sd1: unet/config.json",
        "prediction velocity: scheduler_config.json",
    )
    change(model / "unet" / "config.json", in_channels=9, cross_attention_dim=1024)
    change(model / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True, prediction_type="epsilon")
    facts = open_weights(str(model)).facts
    assert (facts.family, facts.prediction, facts.inpainting, facts.zero_terminal_snr) == ("sd2", "epsilon", True, True)
    change(model / "model_index.json", _class_name="StableDiffusionXLPipeline", force_zeros_for_empty_prompt=False)
    facts = open_weights(str(model)).facts
    assert (facts.family, facts.zeroed_negative) == ("sdxl", False)


def test_damaged_and_missing_files_are_named(model: Path, tmp_path: Path) -> None:
    def expect(says: str, weights: Path = model) -> None:
        with pytest.raises(WeightsError, match=says):
            open_weights(str(weights)).check()

    path = model / UNET
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    expect("no whole safetensors file")
    path.unlink()
    expect("has no U-Net")
    path.with_suffix(".BIN").write_bytes(whole)
    expect("can run code")
    shutil.rmtree(model / "unet")
    expect("part of this model is missing")
    expect("no model_index.json", tmp_path)
    expect("no such file", tmp_path / "absent.safetensors")
    (tmp_path / "notes.md").write_text("weights")
    expect("this is neither", tmp_path / "notes.md")


def test_a_folder_lacks_its_autoencoder_only_until_another_is_named(small_model: Path, model: Path) -> None:
    shutil.rmtree(model / "vae")
    with pytest.raises(WeightsError, match="has no autoencoder"):
        open_weights(str(model)).check()
    open_weights(str(model), vae=str(small_model)).check()


def test_a_missing_tokenizer_is_named(model: Path) -> None:
    shutil.rmtree(model / "tokenizer")
    with pytest.raises(WeightsError, match="tokenizer of this model cannot be loaded"):
        open_weights(str(model)).tokenizer()


REPOSITORY = [
    "README.md", "model.safetensors", "model.ckpt", "model_index.json", "unet/config.json", "unet/model.py",
    "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.bin", "unet/deep/diffusion_pytorch_model.safetensors",
    "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "text_encoder/config.json", "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors", "text_encoder/model.safetensors.index.json",
    "safety_checker/model.safetensors", "scheduler/scheduler_config.json",
]  # fmt: skip


def test_of_a_repository_only_what_is_read_is_wanted() -> None:
    assert files_wanted(REPOSITORY) == [
        "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
        "text_encoder/model-00001-of-00002.safetensors", "text_encoder/model-00002-of-00002.safetensors",
        "tokenizer/merges.txt", "tokenizer/vocab.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors",
    ]  # fmt: skip
    alone = ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "README.md"]
    assert files_wanted(alone) == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_a_hub_model_is_pinned_to_its_commit(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    commit = "0" * 39 + "a"
    asked: list[tuple[str, str | None]] = []

    files = [SimpleNamespace(rfilename=name) for name in REPOSITORY]

    def model_info(_: object, name: str, *, revision: str | None) -> SimpleNamespace:
        asked.append((name, revision))
        return SimpleNamespace(sha=commit, siblings=files)

    def snapshot_download(name: str, *, revision: str, allow_patterns: list[str]) -> str:
        assert (name, revision, allow_patterns) == ("owner/model", commit, files_wanted(REPOSITORY))
        return str(small_model)

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    for name in ("owner/model", "owner/model@v1.0"):
        source = open_weights(name)
        assert source.revision == commit
        source.check()
    assert asked == [("owner/model", None), ("owner/model", "v1.0")]


def test_a_model_that_is_not_here_is_named_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, where in (("owner/model-that-is-not-here", "model.weights"), ("nothing here", "model.weights")):
        with pytest.raises(WeightsError) as caught:
            open_weights(name)
        assert caught.value.where == where
    with pytest.raises(WeightsError) as caught:
        open_weights(BUNDLED, vae="owner/model-that-is-not-here")
    assert caught.value.where == "model.vae"


MEASURE = """
import sys
import torch
from trainer.families.loading import open_weights

def kilobytes(word):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(word))

source = open_weights(sys.argv[1])
source.load("vae", torch.float32)  # what only the first loading needs: libraries, caches
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = kilobytes("VmRSS")
network = source.load("unet", getattr(torch, sys.argv[2]))
weights = sum(p.numel() * p.element_size() for p in network.parameters())
print(weights, (kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "bfloat16"), ("float16", "float32"), ("float16", "float16")]
)
def test_loading_needs_hardly_more_memory_than_the_weights(tmp_path: Path, stored: str, wanted: str) -> None:
    configs = published_configs("sd1", "epsilon")
    configs["unet"] |= {"block_out_channels": [96, 192, 384, 384]}
    configs["vae"] |= {"block_out_channels": [32, 32], "layers_per_block": 1}
    tensors: dict[str, Tensor] = {}
    for part in ("unet", "vae"):
        for place in places_of("sd1", part, configs[part]):
            tensors[prefix_of("sd1", part) + place.key] = torch.ones(place.original_shape, dtype=getattr(torch, stored))
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    answer = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), wanted], capture_output=True, text=True, check=True
    ).stdout
    weights, peak = (int(number) for number in answer.split()[-2:])
    assert weights > 100e6
    assert peak <= 1.2 * weights + 16e6  # of models as small as this one, what does not grow with them counts
