import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from trainer.cli.weights import app
from trainer.core.errors import WeightsError
from trainer.weights.change_norms import change_norm
from trainer.weights.export import ExportSettings, export
from trainer.weights.inspecting import describe
from trainer.weights.layouts import Layout
from trainer.weights.lora_state import LoraState
from trainer.weights.metadata import TrainingFacts
from trainer.weights.names import SD_NAMES

BLOCK = "down_blocks_1_attentions_0_transformer_blocks_0"


def test_our_own_file(tmp_path: Path, a_lora: LoraState, some_facts: TrainingFacts) -> None:
    file = tmp_path / "blob.safetensors"
    export(file, a_lora, SD_NAMES, some_facts, ExportSettings())
    report = describe(file)
    assert (report.kind, report.family, report.prediction) == ("lora", "sd1 (custom size)", "v")
    assert (report.trigger, report.base) == ("blobby", "bundled")
    assert report.suspicious == ()
    parts = {part.name: part for part in report.parts}
    assert (parts["unet"].modules, parts["unet"].ranks, parts["unet"].alphas) == (4, (4,), (2.0,))
    assert parts["text_encoder"].modules == 1
    assert parts["unet"].dtypes == ("F32",)
    assert report.parameters == sum(t.numel() for t in a_lora.tensors.values()) + 5  # an alpha a layer
    for layer in report.layers:
        expected = a_lora.change(SD_NAMES.from_kohya(layer.name))
        assert layer.norm is not None
        assert math.isclose(layer.norm, float(expected.norm()), rel_tol=1e-5)


@pytest.mark.parametrize("layout", ["diffusers", "peft"])
def test_our_own_files_in_other_layouts(
    tmp_path: Path, a_lora: LoraState, some_facts: TrainingFacts, layout: Layout
) -> None:
    """Ranks, alphas and norms are those of the kohya file, though the alphas lie in configurations."""
    kohya = tmp_path / "blob.safetensors"
    export(kohya, a_lora, SD_NAMES, some_facts, ExportSettings())
    other = export(tmp_path / "other.safetensors", a_lora, SD_NAMES, some_facts, ExportSettings(layout=layout))
    expected, report = describe(kohya), describe(other)
    for one in (report, expected):
        assert (one.kind, one.family, one.trigger, one.base) == ("lora", "sd1 (custom size)", "blobby", "bundled")
    for part, wanted in zip(report.parts, expected.parts, strict=True):
        assert (part.name, part.modules, part.ranks, part.alphas) == (wanted.name, wanted.modules, (4,), (2.0,))
    norms = [sorted(layer.norm or 0 for layer in one.layers) for one in (report, expected)]
    torch.testing.assert_close(torch.tensor(norms[0]), torch.tensor(norms[1]))
    if layout == "peft":
        assert describe(other / "unet").parts == report.parts[1:]
        assert report.bytes == sum(file.stat().st_size for file in other.rglob("*.safetensors"))


@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr whole"])
def test_norms_of_products_are_those_of_the_built_matrices(kind: str) -> None:
    draw = torch.Generator().manual_seed(3)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    if kind == "loha":
        roles = {"hada_w1_a": some(6, 2), "hada_w1_b": some(2, 9), "hada_w2_a": some(6, 2), "hada_w2_b": some(2, 9)}
        first, second = roles["hada_w1_a"] @ roles["hada_w1_b"], roles["hada_w2_a"] @ roles["hada_w2_b"]
        built = 0.5 * first * second  # alpha 1, rank 2
    elif kind == "lokr":
        roles = {"lokr_w1": some(2, 3), "lokr_w2_a": some(4, 2), "lokr_w2_b": some(2, 5)}
        built = 0.5 * torch.kron(roles["lokr_w1"], roles["lokr_w2_a"] @ roles["lokr_w2_b"])
    else:
        roles = {"lokr_w1": some(2, 3), "lokr_w2": some(4, 5)}
        built = torch.kron(roles["lokr_w1"], roles["lokr_w2"])  # alpha counts for nothing
    found = change_norm("a layer", roles, alpha=1.0)
    assert found is not None
    assert math.isclose(found[0], float(built.norm()), rel_tol=1e-9)
    assert found[1] == built.numel()


def test_what_looks_wrong_is_said(tmp_path: Path, a_lora: LoraState) -> None:
    """One layer each with NaN, zero, too much, far more than the others, and half missing."""
    layers = [f"lora_unet_up_blocks_0_attentions_{n}_proj_in" for n in range(10)]
    tensors = {f"{layer}.lora_down.weight": torch.full((2, 8, 1, 1), 0.01) for layer in layers}
    tensors |= {f"{layer}.lora_up.weight": torch.full((8, 2, 1, 1), 0.01) for layer in layers}
    tensors[f"{layers[0]}.lora_up.weight"][0] = torch.nan
    tensors[f"{layers[1]}.lora_up.weight"].zero_()
    tensors[f"{layers[2]}.lora_up.weight"] *= 100_000
    tensors[f"{layers[3]}.lora_up.weight"] *= 100
    del tensors[f"{layers[4]}.lora_down.weight"]
    tensors[f"{layers[5]}.alpha"] = torch.tensor(torch.inf)
    tensors[f"{layers[6]}.lora_up.weight"] = torch.ones(8, 3, 1, 1)
    file = tmp_path / "odd.safetensors"
    save_file(tensors, file)
    found = {layer.name: layer.suspicion for layer in describe(file).suspicious}
    words = ["NaN", "zero", "huge", "median", "missing", "alpha", "shapes"]
    assert list(found) == layers[:7]
    assert all(word in (suspicion or "") for word, suspicion in zip(words, found.values(), strict=True)), found


@pytest.mark.parametrize("kind", ["loha", "lokr", "dora", "tucker"])
def test_what_looks_wrong_is_said_of_all_kinds(tmp_path: Path, kind: str) -> None:
    """A good layer, one that does nothing, one that does too much, one with NaN, one cut in half; in SDXL's names."""
    small = 0.1
    made: dict[str, dict[str, Tensor]] = {
        "loha": {
            "hada_w1_a": torch.full((8, 2), small), "hada_w1_b": torch.full((2, 8), small),
            "hada_w2_a": torch.full((8, 2), small), "hada_w2_b": torch.full((2, 8), small),
        },
        "lokr": {"lokr_w1": torch.full((2, 2), small), "lokr_w2": torch.full((4, 4), small)},
        "dora": {
            "lora_down.weight": torch.full((2, 8), small), "lora_up.weight": torch.full((8, 2), small),
            "dora_scale": torch.ones(1, 8),
        },
        "tucker": {
            "lora_down.weight": torch.full((2, 8, 1, 1), small), "lora_up.weight": torch.full((8, 2, 1, 1), small),
            "lora_mid.weight": torch.full((2, 2, 3, 3), small),
        },
    }  # fmt: skip
    names = [f"lora_unet_output_blocks_{number}_1_proj_in" for number in range(5)]
    role = next(iter(made[kind]))
    tensors = {f"{name}.{role}": tensor.clone() for name in names for role, tensor in made[kind].items()}
    tensors[f"{names[1]}.{role}"].zero_()
    tensors[f"{names[2]}.{role}"] *= 1e6
    tensors[f"{names[3]}.{role}"].view(-1)[1] = torch.nan
    del tensors[f"{names[4]}.{role}"]
    file = tmp_path / "odd.safetensors"
    save_file(tensors, file)
    report = describe(file)
    assert (report.kind, report.family) == ("lora" if kind == "tucker" else kind, "sdxl")
    found = {layer.name: layer.suspicion or "" for layer in report.suspicious}
    words = {names[1]: "zero", names[2]: "huge", names[3]: "NaN", names[4]: "missing"}
    if kind == "dora":
        del words[names[1]]  # its lengths may still change the weight
    assert list(found) == list(words)
    assert all(word in found[name] for name, word in words.items()), found


def test_lengths_that_are_no_numbers_are_said(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_proj_in"
    file = tmp_path / "odd.safetensors"
    save_file(lora_of(8, name) | {f"{name}.dora_scale": torch.full((1, 8), torch.inf)}, file)
    assert [layer.suspicion for layer in describe(file).suspicious] == ["NaN or infinity"]


def lora_of(width: int, module: str = f"lora_unet_{BLOCK}_attn2_to_k") -> dict[str, Tensor]:
    return {f"{module}.lora_down.weight": torch.ones(2, width), f"{module}.lora_up.weight": torch.ones(4, 2)}


KNOWN: dict[str, tuple[dict[str, Tensor], str, str]] = {
    "sd1 lora": (lora_of(768), "lora", "sd1"),
    "sd2 lora": (lora_of(1024), "lora", "sd2"),
    "sdxl lora": (lora_of(2048, "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"), "lora", "sdxl"),
    "diffusers lora": (
        {
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.lora_A.weight": torch.ones(2, 768),
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.lora_B.weight": torch.ones(4, 2),
        },
        "lora",
        "sd1",
    ),
    "lora of unknown width": (lora_of(96), "lora", "unknown"),
    "dora": ({**lora_of(768), f"lora_unet_{BLOCK}_attn2_to_k.dora_scale": torch.ones(1, 768)}, "dora", "sd1"),
    "loha": (
        {
            f"lora_unet_{BLOCK}_attn2_to_k.hada_{w}_{half}": torch.ones(shape)
            for w in ("w1", "w2")
            for half, shape in (("a", (4, 2)), ("b", (2, 1024)))
        },
        "loha",
        "sd2",
    ),
    "lokr": (
        {
            f"lora_unet_{BLOCK}_attn2_to_k.lokr_w1": torch.ones(8, 8),
            f"lora_unet_{BLOCK}_attn2_to_k.lokr_w2_a": torch.ones(40, 2),
            f"lora_unet_{BLOCK}_attn2_to_k.lokr_w2_b": torch.ones(2, 96),
        },
        "lokr",
        "sd1",
    ),
    "sd1 embedding": ({"emb_params": torch.ones(3, 768)}, "textual inversion", "sd1"),
    "sdxl embedding": ({"clip_l": torch.ones(3, 768), "clip_g": torch.ones(3, 1280)}, "textual inversion", "sdxl"),
    "sd2 checkpoint": (
        {
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.ones(4, 1024),
            "first_stage_model.decoder.conv_in.weight": torch.ones(2, 2),
            "cond_stage_model.model.ln_final.weight": torch.ones(2),
        },
        "checkpoint",
        "sd2",
    ),
    "sdxl checkpoint": (
        {
            "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": torch.ones(4, 2048),
            "conditioner.embedders.1.model.ln_final.weight": torch.ones(2),
        },
        "checkpoint",
        "sdxl",
    ),
    "sdxl lora of diffusers' names": (
        lora_of(64, "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_q"),
        "lora",
        "sdxl",
    ),
    "sdxl lora of another size": (
        lora_of(96, "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"),
        "lora",
        "sdxl (custom size)",
    ),
    "lora of sd1's text encoder": (
        lora_of(768, "lora_te_text_model_encoder_layers_0_self_attn_q_proj"),
        "lora",
        "sd1",
    ),
    "lora of sd2's text encoder": (lora_of(1024, "lora_te_text_model_encoder_layers_0_mlp_fc1"), "lora", "sd2"),
    "lora of sdxl's first text encoder": (
        lora_of(768, "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"),
        "lora",
        "sdxl",
    ),
    "peft dora": (
        {
            "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.lora_A.weight": torch.ones(2, 768),
            "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.lora_B.weight": torch.ones(4, 2),
            "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.lora_magnitude_vector": torch.ones(
                4
            ),
        },
        "dora",
        "sd1",
    ),
    "sdxl loha": (
        {
            f"lora_unet_output_blocks_0_1_transformer_blocks_0_attn2_to_k.hada_{w}_{half}": torch.ones(shape)
            for w in ("w1", "w2")
            for half, shape in (("a", (4, 2)), ("b", (2, 2048)))
        },
        "loha",
        "sdxl",
    ),
    "embedding of diffusers": ({"<word>": torch.ones(2, 1024)}, "textual inversion", "sd2"),
    "something else": ({"weight": torch.ones(2), "bias.b": torch.ones(2)}, "unknown", "unknown"),
}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_kind_and_family_are_told_by_keys_and_shapes(tmp_path: Path, name: str) -> None:
    tensors, kind, family = KNOWN[name]
    file = tmp_path / "file.safetensors"
    save_file(tensors, file)
    report = describe(file)
    assert (report.kind, report.family) == (kind, family)
    assert report.parameters == sum(tensor.numel() for tensor in tensors.values())


def test_broken_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(KNOWN["sd2 checkpoint"][0], file)
    whole = file.read_bytes()
    pickle = tmp_path / "model.ckpt"
    pickle.write_bytes(whole)
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "model_index.json").write_text('{"../../outside": ["diffusers", "UNet2DConditionModel"]}')
    for path in (pickle, tmp_path / "absent", tmp_path / "empty folder"):
        with pytest.raises(WeightsError):
            describe(path)
    for content in (whole[:-1], whole + b"x", whole[:30], b""):
        file.write_bytes(content)
        with pytest.raises(WeightsError):
            describe(file)
    with pytest.raises(Exception, match="leaves its folder"):
        describe(tmp_path / "evil")


def test_the_command_shows_and_writes_the_report(tmp_path: Path, a_lora: LoraState, some_facts: TrainingFacts) -> None:
    file, out = tmp_path / "blob.safetensors", tmp_path / "report.json"
    facts = replace(some_facts, trigger="[red]\x1b[31mblobby")
    export(file, a_lora, SD_NAMES, facts, ExportSettings())
    result = CliRunner().invoke(app, ["inspect", str(file), "--json", str(out)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "sd1 (custom size)" in result.output
    assert "[red]\\x1b[31mblobby" in result.output  # neither markup nor an escape sequence
    assert "\x1b[31m" not in result.output
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["kind"] == "lora"
    assert len(report["layers"]) == 5
    assert report["suspicious"] == 0
    assert report["parts"][1]["ranks"] == [4]
