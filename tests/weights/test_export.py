from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from trainer.core.device import Precision
from trainer.core.errors import NonFiniteError, WeightsError
from trainer.weights.export import ExportSettings, as_bytes, export
from trainer.weights.lora_state import LoraState
from trainer.weights.metadata import TrainingFacts
from trainer.weights.names import SD_NAMES
from trainer.weights.reading import read_lora

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
