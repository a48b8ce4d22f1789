"""Whole models are written in both layouts, and come back byte for byte."""

import filecmp
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from trainer.core.errors import NonFiniteError, WeightsError
from trainer.core.tensors import read_header
from trainer.families.loading import open_weights
from trainer.families.published import published_configs
from trainer.families.stored_parts import StoredWeights
from trainer.weights.checkpoint import write_checkpoint, write_folder
from trainer.weights.metadata import KnownFamily
from trainer.weights.original_names import PARTS, Part, places_of, prefix_of

FAMILIES: tuple[KnownFamily, ...] = ("sd1", "sd2", "sdxl")

Configs = dict[str, dict[str, Any]]
States = dict[Part, dict[str, Tensor]]


def small(family: KnownFamily) -> Configs:
    """Configurations of sizes that no rule of a family tells, with CLIP's own vocabulary."""
    configs = published_configs(family, "velocity")
    configs["unet"] |= {"block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 8}
    configs["unet"] |= {"attention_head_dim": 2, "cross_attention_dim": 16 + 24 * (family == "sdxl")}
    configs["unet"] |= {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "sample_size": 4}
    configs["unet"] |= {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "_name_or_path": "/home/somebody/secret"}
    configs["vae"] |= {
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "scaling_factor": 0.7,
    }
    configs["vae"] |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    for part in PARTS[family][2:]:
        configs[part] |= {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    if family == "sdxl":
        configs["unet"] |= {"transformer_layers_per_block": [2, 1], "addition_time_embed_dim": 8}
        configs["unet"]["projection_class_embeddings_input_dim"] = 20 + 6 * 8
        configs["text_encoder_2"] |= {"hidden_size": 24, "projection_dim": 20}
        configs["scheduler"] |= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    return configs


def states_of(family: KnownFamily, configs: Configs) -> States:
    generator = torch.Generator().manual_seed(0)
    return {
        part: {p.name: torch.randn(p.shape, generator=generator) * 0.1 for p in places_of(family, part, configs[part])}
        for part in PARTS[family]
    }


def tokenizers(source: StoredWeights) -> dict[str, Path]:
    names = ("tokenizer", "tokenizer_2")[: len(PARTS[source.facts.family]) - 2]
    return {name: source.tokenizer(name) for name in names}


def configs_of(source: StoredWeights) -> Configs:
    return {part: source.config(part) for part in (*PARTS[source.facts.family], "scheduler")}


def stored(source: StoredWeights, dtype: torch.dtype) -> States:
    """What the networks of a source hold, as they would be written again."""
    return {part: source.load(part, dtype).state_dict() for part in PARTS[source.facts.family]}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_folder_to_file_to_folder_gives_the_same_bytes(tmp_path: Path, family: KnownFamily, dtype: torch.dtype) -> None:
    first, single, second, again = (
        tmp_path / name for name in ("first", "one.safetensors", "second", "two.safetensors")
    )
    configs = small(family)
    write_checkpoint(single, family, states_of(family, configs), configs, {"modelspec.title": "small"}, dtype)
    source = open_weights(str(single))
    write_folder(first, family, states_of(family, configs), configs, tokenizers(source), dtype)
    assert read_header(single).metadata["modelspec.title"] == "small"

    folder = open_weights(str(first))
    folder.check()
    write_checkpoint(again, family, stored(folder, dtype), configs_of(folder), {"modelspec.title": "small"}, dtype)
    assert filecmp.cmp(single, again, shallow=False)

    source = open_weights(str(again))
    source.check()
    write_folder(second, family, stored(source, dtype), configs_of(source), tokenizers(source), dtype)
    files = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert files == sorted(str(path.relative_to(second)) for path in second.rglob("*") if path.is_file())
    assert filecmp.cmpfiles(first, second, files, shallow=False)[1:] == ([], [])
    for path in (single, *(first / name for name in files)):
        assert b"somebody/secret" not in path.read_bytes(), path


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_reads_the_folder(tmp_path: Path, family: KnownFamily) -> None:
    from diffusers import DiffusionPipeline

    configs, single = small(family), tmp_path / "one.safetensors"
    states = states_of(family, configs)
    write_checkpoint(single, family, states, configs, {}, torch.float32)
    write_folder(tmp_path / "model", family, states, configs, tokenizers(open_weights(str(single))), torch.float32)
    pipe: Any = DiffusionPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float32, local_files_only=True)
    for part in PARTS[family]:
        found = getattr(pipe, part).state_dict()
        for name, tensor in states[part].items():
            assert torch.equal(found[name if name in found else name.removeprefix("text_model.")], tensor), name
    assert pipe.tokenizer("a cat").input_ids == [49406, 320, 2368, 49407]
    assert pipe.scheduler.config.prediction_type == configs["scheduler"]["prediction_type"]


def test_single_files_hold_what_other_programs_ask_for(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    for family in FAMILIES:
        configs = small(family)
        write_checkpoint(path, family, states_of(family, configs), configs, {}, torch.float16)
        tensors = load_file(path)
        assert ("v_pred" in tensors) == (family != "sd1")
        assert ("ztsnr" in tensors) == (family == "sdxl")
        assert read_header(path).metadata["format"] == "pt"
        if family == "sd2":
            prefix = prefix_of("sd2", "text_encoder")
            layers = {name.split("resblocks.")[1].split(".")[0] for name in tensors if "resblocks." in name}
            assert layers == {"0", "1", "2"}  # the third stands for the one that nobody runs
            for kind in ("ln_1.weight", "attn.in_proj_weight", "mlp.c_proj.bias"):
                block = f"{prefix}transformer.resblocks"
                assert torch.equal(tensors[f"{block}.2.{kind}"], tensors[f"{block}.1.{kind}"])
            assert torch.equal(tensors[f"{prefix}text_projection"], torch.eye(16).half())
        else:
            first = prefix_of(family, "text_encoder")
            places = tensors[f"{first}text_model.embeddings.position_ids"]
            assert torch.equal(places, torch.arange(77).unsqueeze(0))
        if family != "sd1":
            last = prefix_of(family, PARTS[family][-1])
            assert float(tensors[f"{last}logit_scale"]) == pytest.approx(4.6, abs=0.01)


class MadeWhenAsked(Mapping[str, Tensor]):
    """A state whose tensors are made one by one, as merging and extracting make them."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self._state, self.asked = state, dict.fromkeys(state, 0)

    def __getitem__(self, name: str) -> Tensor:
        self.asked[name] += 1
        return self._state[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def __contains__(self, name: object) -> bool:
        return name in self._state


def test_tensors_may_be_made_as_they_are_asked_for(tmp_path: Path) -> None:
    configs = small("sd1")
    states = states_of("sd1", configs)
    lazy: dict[Part, MadeWhenAsked] = {part: MadeWhenAsked(state) for part, state in states.items()}
    write_checkpoint(tmp_path / "lazy.safetensors", "sd1", lazy, configs, {}, torch.float16)
    write_checkpoint(tmp_path / "eager.safetensors", "sd1", states, configs, {}, torch.float16)
    assert filecmp.cmp(tmp_path / "lazy.safetensors", tmp_path / "eager.safetensors", shallow=False)
    assert {count for state in lazy.values() for count in state.asked.values()} == {1}


def test_incomplete_and_wrong_models_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    configs = small("sd1")
    name = "mid_block.resnets.0.conv1.weight"

    def expect(kind: type[Exception], says: str, changes: Mapping[Part, dict[str, Tensor] | None]) -> None:
        states: States = {}
        for part, state in whole.items():
            changed = changes.get(part, state)
            states |= {} if changed is None else {part: changed}
        for target in ("one.safetensors", "model"):
            with pytest.raises(kind, match=says):
                if target == "model":
                    write_folder(tmp_path / target, "sd1", states, configs, {}, torch.float16)
                else:
                    write_checkpoint(tmp_path / target, "sd1", states, configs, {}, torch.float16)
            assert list(tmp_path.iterdir()) == []

    whole = states_of("sd1", configs)
    expect(WeightsError, "needs its vae", {"vae": None})
    expect(WeightsError, "lacks the weight", {"unet": {k: t for k, t in whole["unet"].items() if k != name}})
    expect(WeightsError, "should be", {"unet": whole["unet"] | {name: torch.zeros(3)}})
    for value in (float("nan"), 1e6):  # the second is infinite in float16
        expect(
            NonFiniteError, "not finite", {"unet": whole["unet"] | {name: torch.full_like(whole["unet"][name], value)}}
        )
    few = configs | {"text_encoder": configs["text_encoder"] | {"vocab_size": 6076}}
    with pytest.raises(WeightsError, match="knows 6076 tokens"):
        write_checkpoint(tmp_path / "one.safetensors", "sd1", whole, few, {}, torch.float16)


def test_a_folder_is_never_written_over(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="of this name already"):
        write_folder(tmp_path, "sd1", {}, {}, {}, torch.float16)


def test_a_folder_that_was_left_unfinished_is_no_obstacle(tmp_path: Path) -> None:
    left = tmp_path / ".model.unfinished" / "unet"
    left.mkdir(parents=True)
    (left / "rest").write_text("half")
    configs = small("sd1")
    write_folder(tmp_path / "model", "sd1", states_of("sd1", configs), configs, {}, torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["unet"] == [
        "diffusers",
        "UNet2DConditionModel",
    ]
