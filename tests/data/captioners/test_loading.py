"""Where captioners' weights come from: a folder, the hub's files on this disk, and never a pickle."""

import shutil
from pathlib import Path

import pytest
import torch

from trainer.core.errors import WeightsError
from trainer.data.captioners import loading
from trainer.data.captioners.blip import Blip
from trainer.data.captioners.loading import find_model

CPU = torch.device("cpu")


def on_the_hub(cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "owner/model") -> Path:
    """Lay `folder` down as huggingface_hub keeps a downloaded model."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    home = cache / f"models--{name.replace('/', '--')}"
    revision = "0123456789abcdef0123456789abcdef01234567"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(revision)
    return Path(shutil.copytree(folder, home / "snapshots" / revision))


def test_a_hub_name_is_found_on_this_disk_without_a_network(
    blip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = on_the_hub(tmp_path, blip_folder, monkeypatch)
    assert find_model("owner/model", None) == snapshot
    assert find_model("owner/model", "main") == snapshot


def test_half_a_download_is_not_taken_for_a_model(
    blip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = on_the_hub(tmp_path, blip_folder, monkeypatch)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="not on this disk"):
        find_model("owner/model", None)


def test_shards_that_are_not_there_are_named(blip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(blip_folder, tmp_path / "sharded"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    with pytest.raises(WeightsError, match="model-00002-of-00002"):
        find_model(str(folder), None)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("no/such/folder/here", "no folder"),
        ("owner/absent-model", "HF_HUB_OFFLINE"),
        ("bad name", "no folder"),
    ],
)
def test_what_is_nowhere_is_told(weights: str, says: str) -> None:
    with pytest.raises(WeightsError, match=says) as caught:
        find_model(weights, None)
    assert caught.value.mend


def test_pickles_are_never_opened(blip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(blip_folder, tmp_path / "pickled"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="could run code"):
        Blip(weights=str(folder)).open(CPU)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"\x00" * 40),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "own", "auto_map": {"AutoConfig": "own--Config"}}'),
        ("tokenizer.json", b"[]"),
        ("preprocessor_config.json", b"[]"),
    ],
)
def test_broken_files_are_one_message(blip_folder: Path, tmp_path: Path, name: str, content: bytes) -> None:
    folder = Path(shutil.copytree(blip_folder, tmp_path / "broken"))
    (folder / name).write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        Blip(weights=str(folder)).open(CPU)
    assert str(folder) in str(caught.value.where)


def test_weights_that_lack_a_part_are_refused(blip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(blip_folder, tmp_path / "partial"))
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if name.startswith("vision_model"))
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="lacks 1 weights"):
        Blip(weights=str(folder)).open(CPU)


def test_what_a_processor_checks_is_still_checked(qwen_folder: Path) -> None:
    """Only the part for videos may be absent."""
    processor = loading.load_processor(qwen_folder)
    assert processor.video_processor is None
    assert type(processor).__name__ == "Qwen2VLProcessor"
    with pytest.raises(TypeError):
        type(processor)(image_processor=None, tokenizer=processor.tokenizer, video_processor=None)
