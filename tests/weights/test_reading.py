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
from trainer.weights.names import SD_NAMES
from trainer.weights.reading import read_lora

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
