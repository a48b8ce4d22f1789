from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from trainer.core.device import Precision
from trainer.core.errors import NonFiniteError, WeightsError
from trainer.weights.adapter_kinds import DoraState, state_of
from trainer.weights.export import ExportSettings, as_bytes, export, export_adapter
from trainer.weights.layouts import Layout
from trainer.weights.lora_state import LoraState
from trainer.weights.metadata import TrainingFacts
from trainer.weights.names import SD_NAMES
from trainer.weights.reading import read_adapter, read_lora

KEY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize("precision", list(Precision))
def test_what_was_trained_is_what_is_read(
    tmp_path: Path, a_lora: LoraState, some_facts: TrainingFacts, precision: Precision
) -> None:
    file = tmp_path / "blob.safetensors"
    export(file, a_lora, SD_NAMES, some_facts, ExportSettings(precision=precision))
    found = read_lora(file, SD_NAMES)
    assert found.layout == "kohya"
    assert found.state.alphas == a_lora.alphas
    assert found.state.tensors.keys() == a_lora.tensors.keys()
    for name, tensor in a_lora.tensors.items():
        assert torch.equal(found.state.tensors[name], tensor.to(precision.dtype)), name


def test_keys_shapes_and_metadata(tmp_path: Path, a_lora: LoraState, some_facts: TrainingFacts) -> None:
    file = tmp_path / "blob.safetensors"
    export(file, a_lora, SD_NAMES, some_facts, ExportSettings())
    with safe_open(file, framework="pt") as opened:
        shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118 - no mapping
        metadata = opened.metadata()
        alpha = opened.get_tensor(f"{KEY}.alpha")
    assert shapes[f"{KEY}.lora_down.weight"] == (4, 96)
    assert shapes[f"{KEY}.lora_up.weight"] == (32, 4)
    assert shapes["lora_unet_mid_block_resnets_0_conv1.lora_down.weight"] == (4, 32, 3, 3)
    assert shapes["lora_unet_mid_block_resnets_0_conv1.lora_up.weight"] == (48, 4, 1, 1)
    assert shapes["lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha"] == ()
    assert len(shapes) == 15
    assert alpha.dtype == torch.float32
    assert float(alpha) == 2.0
    assert {"sshs_model_hash", "sshs_legacy_hash", "ss_network_dim", "modelspec.title"} <= set(metadata)


def test_channels_last_and_shared_tensors_are_laid_out_plainly(
    tmp_path: Path, a_lora: LoraState, some_facts: TrainingFacts
) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    strided = {
        name: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor.T.contiguous().T
        for name, tensor in a_lora.tensors.items()
    }
    assert not all(tensor.is_contiguous() for tensor in strided.values())
    export(first, a_lora, SD_NAMES, some_facts, ExportSettings())
    export(second, replace(a_lora, tensors=strided), SD_NAMES, some_facts, ExportSettings())
    assert first.read_bytes() == second.read_bytes()


def test_equal_runs_give_equal_bytes() -> None:
    """safetensors itself writes the metadata in another order each time."""
    metadata = {f"ss_{number}": "é" * number for number in range(30)}
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, 2)}
    assert len({save(tensors, metadata=metadata) for _ in range(5)}) > 1
    assert len({as_bytes(tensors, metadata) for _ in range(5)}) == 1


def test_the_fixed_header_is_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    tensors = {"b": torch.randn(3), "a": torch.zeros(2, 2, dtype=torch.float16), "c": torch.tensor(4)}
    file.write_bytes(as_bytes(tensors, {"z": "é\n", "a": '"'}))
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"z": "é\n", "a": '"'}
        assert all(torch.equal(opened.get_tensor(name), tensor) for name, tensor in tensors.items())


def test_a_weight_that_is_not_finite_is_never_written(
    tmp_path: Path, a_lora: LoraState, some_facts: TrainingFacts
) -> None:
    file = tmp_path / "blob.safetensors"
    name = next(iter(a_lora.tensors))
    for value, precision in [(torch.nan, "float32"), (torch.inf, "float32"), (1e6, "float16")]:
        broken = a_lora.tensors[name].clone()
        broken.view(-1)[3] = value
        state = replace(a_lora, tensors={**a_lora.tensors, name: broken})
        with pytest.raises(NonFiniteError):
            export(file, state, SD_NAMES, some_facts, ExportSettings(precision=Precision(precision)))
    assert list(tmp_path.iterdir()) == []


def test_states_that_are_no_whole_lora_are_refused(
    tmp_path: Path, a_lora: LoraState, some_facts: TrainingFacts
) -> None:
    name = next(iter(a_lora.tensors))
    tensors = dict(a_lora.tensors)
    wrong = {
        "half": replace(a_lora, tensors={key: value for key, value in tensors.items() if key != name}),
        "no alpha": replace(a_lora, alphas={}),
        "lone alpha": replace(a_lora, alphas={**a_lora.alphas, "unet.mid_block.resnets.1.conv1": 1.0}),
        "foreign": replace(a_lora, tensors={**tensors, "unet.conv_in.weight": torch.ones(2, 2)}),
        "shape": replace(a_lora, tensors={**tensors, name: torch.ones(5, 32, 1, 1)}),
        "integers": replace(a_lora, tensors={**tensors, name: torch.ones(4, 32, 1, 1, dtype=torch.int64)}),
        "empty": LoraState(tensors={}, alphas={}),
    }
    for state in wrong.values():
        with pytest.raises(WeightsError):
            export(tmp_path / "blob.safetensors", state, SD_NAMES, some_facts, ExportSettings())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_gives_back_something_else_is_found_and_the_old_file_stays(
    tmp_path: Path, a_lora: LoraState, some_facts: TrainingFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "blob.safetensors"
    export(file, a_lora, SD_NAMES, some_facts, ExportSettings())
    before = file.read_bytes()
    plain = Path.write_bytes

    def failing(path: Path, content: bytes) -> int:
        return plain(path, content[:-1] + bytes([content[-1] ^ 1]))

    monkeypatch.setattr(Path, "write_bytes", failing)
    with pytest.raises(WeightsError, match="reads back differently"):
        export(file, a_lora, SD_NAMES, some_facts, ExportSettings())
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_the_peft_layout_is_a_folder_for_each_network(
    tmp_path: Path, a_lora: LoraState, some_facts: TrainingFacts
) -> None:
    settings = ExportSettings(layout="peft")
    folder = export(tmp_path / "blob.v1.safetensors", a_lora, SD_NAMES, some_facts, settings)
    names = {"adapter_model.safetensors", "adapter_config.json"}
    assert folder == tmp_path / "blob.v1"
    assert {str(file.relative_to(folder)) for file in folder.rglob("*.*")} == {
        f"{part}/{name}" for part in ("unet", "text_encoder") for name in names
    }
    before = {file: file.read_bytes() for file in folder.rglob("*.*")}
    export(tmp_path / "blob.v1.safetensors", a_lora, SD_NAMES, some_facts, settings)
    assert {file: file.read_bytes() for file in folder.rglob("*.*")} == before
    # an adapter of fewer networks in the same place leaves nothing of the old one behind
    unet = {name: tensor for name, tensor in a_lora.tensors.items() if name.startswith("unet.")}
    alphas = {layer: alpha for layer, alpha in a_lora.alphas.items() if layer.startswith("unet.")}
    export(tmp_path / "blob.v1.safetensors", LoraState(unet, alphas), SD_NAMES, some_facts, settings)
    assert read_adapter(folder, SD_NAMES).state.layers() == sorted(alphas)


def test_metadata_of_another_file_are_kept_and_hashes_made_anew(tmp_path: Path, a_lora: LoraState) -> None:
    given = {"ss_output_name": "old", "sshs_model_hash": "wrong", "lora_adapter_metadata": "wrong", "format": "pt"}
    for layout, extra in (("kohya", set[str]()), ("diffusers", {"lora_adapter_metadata", "format"})):
        path = export_adapter(
            tmp_path / "a.safetensors",
            a_lora,
            SD_NAMES,
            given,
            ExportSettings(layout=layout),  # pyright: ignore[reportArgumentType]
        )
        metadata = read_adapter(path, SD_NAMES).metadata
        assert set(metadata) == {"ss_output_name", "sshs_model_hash", "sshs_legacy_hash", *extra}
        assert "wrong" not in metadata.values()


@pytest.mark.parametrize("layout", ["diffusers", "peft"])
def test_lengths_of_columns_are_kohyas_alone(
    tmp_path: Path, a_lora: LoraState, some_facts: TrainingFacts, layout: Layout
) -> None:
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    for scale in ({f"{layer}.dora_scale": torch.ones(1, 96)}, {f"{layer}.dora_scale": torch.ones(32, 1)}):
        state = DoraState({**a_lora.tensors, **scale}, a_lora.alphas)  # the second has lengths of one layer only
        with pytest.raises(WeightsError, match="DoRA") as caught:
            export(tmp_path / "a.safetensors", state, SD_NAMES, some_facts, ExportSettings(layout=layout))
        assert "kohya" in (caught.value.mend or "")
    assert list(tmp_path.iterdir()) == []


def test_a_lokr_that_peft_would_build_otherwise_is_refused(tmp_path: Path, some_facts: TrainingFacts) -> None:
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{layer}.lokr_w1": torch.ones(4, 2), f"{layer}.lokr_w2": torch.ones(2, 4)}
    state = state_of(tensors, {})
    with pytest.raises(WeightsError, match="other shapes"):
        export(tmp_path / "a.safetensors", state, SD_NAMES, some_facts, ExportSettings(layout="peft"))
    export(tmp_path / "a.safetensors", state, SD_NAMES, some_facts, ExportSettings())


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_layers_may_have_no_effect(
    tmp_path: Path, a_lora: LoraState, some_facts: TrainingFacts, layout: Layout
) -> None:
    """Alphas of zero in one layer and in all."""
    first = a_lora.layers()[0]
    for alphas in ({**a_lora.alphas, first: 0.0}, dict.fromkeys(a_lora.alphas, 0.0)):
        state = replace(a_lora, alphas=alphas)
        path = export(tmp_path / "a.safetensors", state, SD_NAMES, some_facts, ExportSettings(layout=layout))
        found = read_adapter(path, SD_NAMES).state
        for layer in state.layers():
            torch.testing.assert_close(found.change(layer), state.change(layer))
