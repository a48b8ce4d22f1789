import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.weights.lora_state import LoraState
from trainer.weights.names import SD_NAMES, SDXL_NAMES, Naming
from trainer.weights.reading import read_adapter, read_lora

LAYER = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
KEY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
OUT = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
Rename = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def written(folder: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    file = folder / "lora.safetensors"
    save_file(dict(tensors), file, metadata=metadata)
    return file


def with_ending(tensors: Mapping[str, Tensor], down: str, up: str) -> dict[str, Tensor]:
    return {k.replace(".lora_A.weight", down).replace(".lora_B.weight", up): v for k, v in tensors.items()}


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (".lora_A.weight", ".lora_B.weight"),
        (".lora.down.weight", ".lora.up.weight"),
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ],
)
def test_diffusers_layouts_without_alpha_mean_alpha_is_rank(
    tmp_path: Path, a_lora: LoraState, down: str, up: str
) -> None:
    found = read_lora(written(tmp_path, with_ending(a_lora.tensors, down, up)), SD_NAMES)
    assert found.layout == "diffusers"
    assert found.state.alphas == dict.fromkeys(a_lora.alphas, 4.0)
    assert all(torch.equal(found.state.tensors[name], tensor) for name, tensor in a_lora.tensors.items())


def test_the_processors_of_early_diffusers(tmp_path: Path, a_lora: LoraState) -> None:
    old = OUT.removesuffix(".to_out.0") + ".processor.to_out_lora"
    tensors = {
        f"{old}.down.weight": a_lora.tensors[f"{OUT}.lora_A.weight"],
        f"{old}.up.weight": a_lora.tensors[f"{OUT}.lora_B.weight"],
    }
    assert read_lora(written(tmp_path, tensors), SD_NAMES).state.layers() == [OUT]


def test_alpha_of_diffusers_header(tmp_path: Path, a_lora: LoraState) -> None:
    said = {"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {r"^mid_block\.resnets\.0\.conv1": 3, "to_k": 5}}
    file = written(tmp_path, a_lora.tensors, {"lora_adapter_metadata": json.dumps(said)})
    alphas = read_lora(file, SD_NAMES).state.alphas
    assert alphas["unet.mid_block.resnets.0.conv1"] == 3.0
    assert alphas[LAYER] == 5.0
    assert alphas[OUT] == 8.0
    assert alphas["text_encoder.text_model.encoder.layers.0.self_attn.q_proj"] == 4.0


@pytest.mark.parametrize(("stabilised", "alpha"), [(False, 8.0), (True, 8.0 * math.sqrt(4))])
def test_peft_layout_with_its_configuration(tmp_path: Path, a_lora: LoraState, stabilised: bool, alpha: float) -> None:
    tensors = {f"base_model.model.{name.split('.', 1)[1]}": tensor for name, tensor in a_lora.tensors.items()}
    file = written(tmp_path, tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "use_rslora": stabilised}))
    found = read_lora(file, SD_NAMES)
    assert found.layout == "peft"
    assert found.state.layers() == a_lora.layers()
    assert set(found.state.alphas.values()) == {alpha}


def test_integer_alphas_are_as_good(tmp_path: Path, a_lora: LoraState, kohya_names: Rename) -> None:
    tensors = kohya_names(a_lora.tensors) | {f"{KEY}.alpha": torch.tensor(3)}
    alphas = read_lora(written(tmp_path, tensors), SD_NAMES).state.alphas
    assert alphas[LAYER] == 3.0
    assert alphas[OUT] == 4.0


def hostile(good: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    down, up = good[f"{KEY}.lora_down.weight"], good[f"{KEY}.lora_up.weight"]

    def but(**changed: Tensor) -> dict[str, Tensor]:
        return good | {f"{KEY}.{role.replace('__', '.')}": tensor for role, tensor in changed.items()}

    nan = down.clone()
    nan[1, 2] = torch.nan
    return {
        "down missing": {k: v for k, v in good.items() if k != f"{KEY}.lora_down.weight"},
        "up missing": {k: v for k, v in good.items() if k != f"{KEY}.lora_up.weight"},
        "nan": but(lora_down__weight=nan),
        "infinity": but(lora_up__weight=up / 0),
        "alpha nan": but(alpha=torch.tensor(torch.nan)),
        "alpha of two": but(alpha=torch.ones(2)),
        "ranks differ": but(lora_down__weight=torch.ones(3, 96)),
        "rank above layer": but(lora_down__weight=torch.ones(33, 96), lora_up__weight=torch.ones(32, 33)),
        "rank zero": but(lora_down__weight=torch.ones(0, 96), lora_up__weight=torch.ones(32, 0)),
        "vector": but(lora_down__weight=torch.ones(96)),
        "scalar": but(lora_down__weight=torch.tensor(1.0)),
        "kernel in up": but(lora_down__weight=torch.ones(4, 96, 1, 1), lora_up__weight=torch.ones(32, 4, 3, 3)),
        "integers": but(lora_down__weight=torch.ones(4, 96, dtype=torch.int32)),
        "booleans": but(lora_down__weight=torch.ones(4, 96, dtype=torch.bool)),
        "complex": but(lora_down__weight=torch.ones(4, 96, dtype=torch.complex64)),
        "foreign key": good | {"model.diffusion_model.out.2.weight": torch.ones(2, 2)},
        "foreign layer": good | {"lora_unet_down_blocks_0_evil.alpha": torch.tensor(1.0)},
        "alpha alone": good | {"lora_unet_mid_block_resnets_1_conv1.alpha": torch.tensor(1.0)},
        "dora": but(dora_scale=torch.ones(1, 96)),
        "same layer twice": good | {f"{LAYER}.lora_A.weight": down.clone()},
        "empty": {},
    }


KINDS = sorted(hostile({f"{KEY}.lora_down.weight": torch.ones(4, 96), f"{KEY}.lora_up.weight": torch.ones(32, 4)}))


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_content_is_refused_by_name(tmp_path: Path, a_lora: LoraState, kohya_names: Rename, kind: str) -> None:
    file = written(tmp_path, hostile(kohya_names(a_lora.tensors))[kind])
    with pytest.raises(WeightsError) as caught:
        read_lora(file, SD_NAMES)
    assert caught.value.where


@pytest.mark.parametrize(
    "said",
    [
        "no json", "[1]", "[" * 100_000, '{"unet.lora_alpha": "NaN"}', '{"unet.lora_alpha": NaN}',
        '{"unet.alpha_pattern": {"(a+)+$": 1}}', '{"unet.lora_alpha": true}',
    ],
)  # fmt: skip
def test_hostile_configurations_are_refused(tmp_path: Path, a_lora: LoraState, said: str) -> None:
    with pytest.raises(WeightsError):
        read_lora(written(tmp_path, a_lora.tensors, {"lora_adapter_metadata": said}), SD_NAMES)


def test_broken_containers_and_pickles_are_refused(tmp_path: Path, a_lora: LoraState) -> None:
    good = written(tmp_path, a_lora.tensors).read_bytes()
    broken = {
        "cut.safetensors": good[:-100], "longer.safetensors": good + b"x", "no header.safetensors": good[:20],
        "nothing.safetensors": b"", "text.safetensors": b"hello, this is not a model", "old.ckpt": good,
        "old.pt": b"\x80\x04N.", "really a pickle.safetensors": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00.",
    }  # fmt: skip
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError):
            read_lora(tmp_path / name, SD_NAMES)
    with pytest.raises(WeightsError, match="no such file"):
        read_lora(tmp_path / "absent.safetensors", SD_NAMES)


XL = "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1."


def xl_pairs(*names: str) -> dict[str, Tensor]:
    ones = {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(6, 2)}
    return {f"{name}.{ending}": tensor.clone() for name in names for ending, tensor in ones.items()}


def test_a_file_may_mix_the_names_of_blocks_but_name_no_layer_twice(tmp_path: Path) -> None:
    """diffusers drops half of such a file in silence."""
    original = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
    other = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_k"
    found = read_lora(written(tmp_path, xl_pairs(original, other)), SDXL_NAMES).state
    assert found.layers() == [f"{XL}to_k", f"{XL}to_q"]
    twice = xl_pairs(original, other, other[:-1] + "q")
    with pytest.raises(WeightsError, match="same layer"):
        read_lora(written(tmp_path, twice), SDXL_NAMES)
    with pytest.raises(WeightsError, match="same layer"):
        read_lora(written(tmp_path, xl_pairs(original) | {f"{original}.lora_A.weight": torch.ones(2, 8)}), SDXL_NAMES)


@pytest.mark.parametrize(
    ("name", "naming"),
    [
        ("lora_unet_input_blocks_4_1_proj_in", SD_NAMES),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", SD_NAMES),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", SDXL_NAMES),
        ("lora_transformer_single_transformer_blocks_0_attn_to_q", SDXL_NAMES),
    ],
)
def test_a_lora_of_another_family_is_refused(tmp_path: Path, name: str, naming: Naming) -> None:
    with pytest.raises(WeightsError) as caught:
        read_adapter(written(tmp_path, xl_pairs(name)), naming)
    assert caught.value.where == name
    assert "family" in (caught.value.mend or "")


def test_both_encoders_of_sdxl_in_pefts_layout_need_their_folders(tmp_path: Path) -> None:
    tensors = {
        "base_model.model.encoder.layers.0.mlp.fc1.lora_A.weight": torch.ones(2, 8),
        "base_model.model.encoder.layers.0.mlp.fc1.lora_B.weight": torch.ones(6, 2),
    }
    with pytest.raises(WeightsError, match="may be of text_encoder or of text_encoder_2"):
        read_adapter(written(tmp_path, tensors), SDXL_NAMES)
    for part in ("text_encoder", "text_encoder_2"):
        (tmp_path / part).mkdir()
        save_file(tensors, tmp_path / part / "adapter_model.safetensors")
    layer = "text_model.encoder.layers.0.mlp.fc1"
    for path, layers in (
        (tmp_path, [f"text_encoder.{layer}", f"text_encoder_2.{layer}"]),
        (tmp_path / "text_encoder_2", [f"text_encoder_2.{layer}"]),
        (tmp_path / "text_encoder" / "adapter_model.safetensors", [f"text_encoder.{layer}"]),
    ):
        found = read_adapter(path, SDXL_NAMES)
        assert (found.layout, found.state.layers()) == ("peft", layers)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"no adapter_model\.safetensors"):
        read_adapter(tmp_path / "empty", SDXL_NAMES)


def test_pefts_scale_of_whole_factors_is_put_into_one(tmp_path: Path) -> None:
    """alpha / r multiplies them in peft, and nothing does in kohya's files."""
    first, second = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), torch.ones(4, 5)
    path = f"base_model.model.{XL.removeprefix('unet.')}to_q"
    (tmp_path / "unet").mkdir()
    save_file({f"{path}.lokr_w1": first, f"{path}.lokr_w2": second}, tmp_path / "unet" / "adapter_model.safetensors")
    for said, factor in (
        ({"r": 4, "alpha": 6}, 1.5),
        ({"r": 4, "alpha": 6, "alpha_pattern": {"to_q": 1}, "rank_pattern": {"attn1.to_q": 8}}, 0.125),
        ({"r": 4, "alpha": 4}, 1.0),
        ({}, 1.0),
    ):
        (tmp_path / "unet" / "adapter_config.json").write_text(json.dumps(said))
        state = read_adapter(tmp_path, SDXL_NAMES).state
        torch.testing.assert_close(state.change(f"{XL}to_q"), torch.kron(first, second) * factor)
    (tmp_path / "unet" / "adapter_config.json").write_text(json.dumps({"r": 0, "alpha": 4}))
    with pytest.raises(WeightsError, match="rank"):
        read_adapter(tmp_path, SDXL_NAMES)


def test_alphas_of_pefts_products(tmp_path: Path) -> None:
    path = f"base_model.model.{XL.removeprefix('unet.')}to_q"
    shapes = {"hada_w1_a": (6, 2), "hada_w1_b": (2, 8), "hada_w2_a": (6, 2), "hada_w2_b": (2, 8)}
    file = written(tmp_path, {f"{path}.{role}": torch.ones(shape) for role, shape in shapes.items()})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LOHA", "r": 2, "alpha": 3}))
    state = read_adapter(file, SDXL_NAMES).state
    torch.testing.assert_close(state.change(f"{XL}to_q"), torch.full((6, 8), 1.5 * 4))


def test_only_loras_pass_where_only_loras_are_meant(tmp_path: Path, a_lora: LoraState, kohya_names: Rename) -> None:
    file = written(tmp_path, kohya_names(a_lora.tensors) | {f"{KEY}.dora_scale": torch.ones(1, 96)})
    assert read_adapter(file, SD_NAMES).state.kind == "dora"
    with pytest.raises(WeightsError, match="dora, and a plain LoRA"):
        read_lora(file, SD_NAMES)


def test_a_core_between_the_halves_is_read(tmp_path: Path) -> None:
    key = "lora_unet_mid_block_resnets_0_conv1"
    tensors = {
        f"{key}.lora_down.weight": torch.ones(2, 5, 1, 1),
        f"{key}.lora_mid.weight": torch.ones(2, 2, 3, 3),
        f"{key}.lora_up.weight": torch.ones(4, 2, 1, 1),
        f"{key}.alpha": torch.tensor(1.0),
    }
    state = read_lora(written(tmp_path, tensors), SD_NAMES).state
    torch.testing.assert_close(state.change("unet.mid_block.resnets.0.conv1"), torch.full((4, 5, 3, 3), 2.0))


@pytest.mark.parametrize(
    "changed",
    [
        {"hada_w1_a": None},
        {"hada_w2_b": torch.full((2, 8), torch.nan)},
        {"hada_w2_b": torch.ones(3, 8)},
        {"hada_w1_a": torch.ones(6, 2, dtype=torch.int64)},
        {"alpha": torch.tensor(torch.inf)},
        {"lokr_w1": torch.ones(2, 2)},
        {"diff": torch.ones(6, 8)},
        {"hada_w1_a": torch.tensor(1.0), "hada_w2_a": torch.tensor(1.0)},
    ],
)
def test_hostile_products_are_refused(tmp_path: Path, changed: dict[str, Tensor | None]) -> None:
    name = "lora_unet_mid_block_attentions_0_proj_in"
    good = {"hada_w1_a": torch.ones(6, 2), "hada_w1_b": torch.ones(2, 8)}
    good |= {"hada_w2_a": torch.ones(6, 2), "hada_w2_b": torch.ones(2, 8)}
    assert read_adapter(written(tmp_path, {f"{name}.{k}": v for k, v in good.items()}), SD_NAMES).state.kind == "loha"
    tensors = {f"{name}.{role}": tensor for role, tensor in {**good, **changed}.items() if tensor is not None}
    with pytest.raises(WeightsError) as caught:
        read_adapter(written(tmp_path, tensors), SD_NAMES)
    assert caught.value.where
