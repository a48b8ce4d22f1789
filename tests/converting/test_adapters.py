import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainer.converting.adapters import Wishes, convert_adapter, merge_adapters, resize_adapter
from trainer.core.device import Precision
from trainer.core.errors import RecipeError, WeightsError
from trainer.core.progress import Silence
from trainer.weights.adapter_state import AdapterState
from trainer.weights.low_rank import FixedRank, RetainedEnergy
from trainer.weights.opening import OpenedAdapter, open_adapters

FAMILIES = ("sd1", "sd2", "sdxl")
AnAdapter = Callable[..., tuple[Path, AdapterState]]


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def opened(path: Path) -> OpenedAdapter:
    return open_adapters([path]).adapters[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("through", ["kohya", "diffusers", "peft"])
def test_layouts_there_and_back_give_the_same_bytes(
    an_adapter: AnAdapter, tmp_path: Path, family: str, through: Any
) -> None:
    source, state = an_adapter(family)
    wishes = Wishes(all_metadata=True, family=family if through == "peft" else None)  # pyright: ignore[reportArgumentType]
    one, two = tmp_path / ("folder" if through == "peft" else "one.safetensors"), tmp_path / "two.safetensors"
    done = convert_adapter(source, one, through, wishes)
    assert done.facts["to"] == through
    convert_adapter(one, two, "kohya", wishes)
    found = opened(two).state
    assert found.layers() == state.layers()
    if through == "peft":
        assert any("no place for metadata" in note for note in done.notes)
        assert load_file(two).keys() == load_file(source).keys()
        assert all(torch.equal(tensor, load_file(two)[name]) for name, tensor in load_file(source).items())
    else:
        assert two.read_bytes() == source.read_bytes()


def test_private_metadata_stay_behind_unless_asked_for(an_adapter: AnAdapter, tmp_path: Path) -> None:
    private = {"ss_dataset_dirs": '{"/home/ann/pictures": 1}', "ss_training_comment": "for Ann", "mystery": "x"}
    public = {"ss_optimizer": "adamw", "modelspec.author": "Ann", "ss_sd_model_name": "/home/ann/base.safetensors"}
    source, _ = an_adapter("sd1", metadata={**private, **public})
    out, all_of_it = tmp_path / "out.safetensors", tmp_path / "all.safetensors"
    done = convert_adapter(source, out, "kohya", Wishes())
    said = metadata_of(out)
    assert done.lists["metadata_left_out"] == ("mystery", "ss_dataset_dirs", "ss_tag_frequency", "ss_training_comment")
    assert any("4 metadata were left out" in note for note in done.notes)
    assert not {*private, "ss_tag_frequency"} & set(said)
    assert (said["ss_optimizer"], said["modelspec.author"]) == ("adamw", "Ann")
    assert "/home" not in json.dumps(said)
    convert_adapter(source, all_of_it, "kohya", Wishes(all_metadata=True))
    assert all_of_it.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("kind", ["loha", "dora"])
def test_other_kinds_change_layouts_too_or_it_is_said_why_not(an_adapter: AnAdapter, tmp_path: Path, kind: str) -> None:
    source, state = an_adapter("sd1", kind)
    convert_adapter(source, tmp_path / "folder", "peft", Wishes())
    found = opened(tmp_path / "folder").state
    assert (found.kind, found.layers()) == (kind, state.layers())
    if kind == "loha":
        with pytest.raises(WeightsError, match="diffusers cannot load a loha"):
            convert_adapter(source, tmp_path / "d.safetensors", "diffusers", Wishes())
        assert not (tmp_path / "d.safetensors").exists()


def test_rounding_is_said_and_embeddings_are_converted(an_adapter: AnAdapter, tmp_path: Path) -> None:
    source, _ = an_adapter("sd1")
    done = convert_adapter(source, tmp_path / "half.safetensors", "kohya", Wishes(precision=Precision.float16))
    assert "Each weight was rounded to float16." in done.notes
    assert (
        opened(tmp_path / "half.safetensors").state.tensors[next(iter(opened(source).state.tensors))].dtype
        == torch.float16
    )
    word = tmp_path / "word.safetensors"
    save_file({"blobby": torch.randn(3, 16)}, word)
    done = convert_adapter(word, tmp_path / "plain.safetensors", "kohya", Wishes())
    assert torch.equal(load_file(tmp_path / "plain.safetensors")["emb_params"], load_file(word)["blobby"])
    assert any("blobby" in note for note in done.notes)


@pytest.mark.parametrize("family", FAMILIES)
def test_resizing_writes_rank_alpha_and_what_was_done(an_adapter: AnAdapter, tmp_path: Path, family: str) -> None:
    source, state = an_adapter(family, metadata={"ss_network_dim": "2", "ss_network_alpha": "1", "ss_steps": "9"})
    out = tmp_path / "small.safetensors"
    done = resize_adapter(source, out, FixedRank(1), None, Wishes(), Silence())
    found = opened(out).state
    assert found.layers() == state.layers()
    assert {found.rank(layer) for layer in found.layers()} == {1}
    assert set(found.alphas.values()) == {0.5}  # 1 of 2 ranks is left, and so half of alpha
    said = metadata_of(out)
    assert (said["ss_network_dim"], said["ss_network_alpha"], said["ss_steps"]) == ("1", "0.5", "9")
    assert said["modelspec.title"] == said["ss_output_name"] == "small"
    assert "rank 1" in said["trainer.made"]
    assert done.fit is not None
    errors = [
        float((found.change(layer) - state.change(layer)).norm() ** 2) / float(state.change(layer).norm() ** 2)
        for layer in state.layers()
    ]
    assert math.isclose(done.fit.worst(1)[0].relative_error ** 2, max(errors), rel_tol=1e-4)
    assert done.as_json()["relative_error"] == done.fit.relative_error


def test_ranks_by_energy_are_called_dynamic(an_adapter: AnAdapter, tmp_path: Path) -> None:
    source, _ = an_adapter("sd1")
    out = tmp_path / "small.safetensors"
    resize_adapter(source, out, RetainedEnergy(0.7), None, Wishes(), Silence())
    state = opened(out).state
    assert {state.rank(layer) for layer in state.layers()} == {1, 2}
    assert metadata_of(out)["ss_network_dim"] == "Dynamic"


def test_merging_says_what_was_merged_and_no_more(an_adapter: AnAdapter, tmp_path: Path) -> None:
    alike = {"ss_sd_model_name": "base", "modelspec.trigger_phrase": "inky"}
    one, first = an_adapter("sdxl", seed=0, name="ink", metadata={**alike, "ss_seed": "1"})
    two, second = an_adapter("sdxl", seed=20, name="blob", metadata={**alike, "ss_seed": "2"})
    out = tmp_path / "both.safetensors"
    done = merge_adapters([(one, 0.7), (two, -0.5)], out, None, None, Wishes(), Silence())
    found = opened(out).state
    for layer in first.layers():
        expected = 0.7 * first.change(layer)
        expected = expected - 0.5 * second.change(layer) if layer in second.layers() else expected
        assert float((found.change(layer) - expected).norm() / expected.norm()) < 1e-6
    said = metadata_of(out)
    assert said["modelspec.merged_from"] == "ink-0, blob-20"
    assert json.loads(said["trainer.merged"]) == [["ink-0", 0.7], ["blob-20", -0.5]]
    assert (said["ss_sd_model_name"], said["modelspec.trigger_phrase"]) == ("base", "inky")
    assert "ss_seed" not in said
    assert str(tmp_path) not in json.dumps(said)
    assert done.facts["rank"] == "2 to 4"
    again = tmp_path / "again" / "both.safetensors"
    merge_adapters([(one, 0.7), (two, -0.5)], again, None, None, Wishes(), Silence())
    assert again.read_bytes() == out.read_bytes()


def test_a_dora_is_resized_and_merged_with_its_base(
    models: dict[str, Path], an_adapter: AnAdapter, tmp_path: Path
) -> None:
    from trainer.converting.opened_base import OpenedBase

    source, state = an_adapter("sd2", "dora")
    with pytest.raises(WeightsError, match="depends on the base"):
        resize_adapter(source, tmp_path / "a.safetensors", FixedRank(4), None, Wishes(), Silence())
    with pytest.raises(WeightsError, match="adapters are for sd2, and the base model is sdxl"):
        resize_adapter(source, tmp_path / "a.safetensors", FixedRank(4), str(models["sdxl"]), Wishes(), Silence())
    base = str(models["sd2"])
    resize_adapter(source, tmp_path / "a.safetensors", RetainedEnergy(1.0), base, Wishes(), Silence())
    merge_adapters([(source, 0.5)], tmp_path / "b.safetensors", RetainedEnergy(1.0), base, Wishes(), Silence())
    with OpenedBase(base) as opened_base:
        for layer in state.layers():
            expected = state.change(layer, opened_base.weight_of(layer))
            for name, strength in (("a", 1.0), ("b", 0.5)):
                found = opened(tmp_path / f"{name}.safetensors").state
                assert found.kind == "lora"
                assert float((found.change(layer) - strength * expected).norm() / expected.norm()) < 1e-5


def test_adapters_of_different_families_are_not_merged(an_adapter: AnAdapter, tmp_path: Path) -> None:
    one, _ = an_adapter("sd1", name="one")
    for other in ("sd2", "sdxl"):
        two, _ = an_adapter(other, name="two")
        with pytest.raises(WeightsError, match=rf"one-0\.safetensors is for sd1, two-0\.safetensors is for {other}"):
            merge_adapters([(one, 1.0), (two, 1.0)], tmp_path / "o.safetensors", None, None, Wishes(), Silence())
    with pytest.raises(WeightsError, match=r"one-0\.safetensors is for sd1"):
        merge_adapters([(one, 1.0)], tmp_path / "o.safetensors", None, None, Wishes(family="sdxl"), Silence())
    assert not (tmp_path / "o.safetensors").exists()


def test_nothing_is_overwritten_unasked(an_adapter: AnAdapter, tmp_path: Path) -> None:
    source, _ = an_adapter("sd1")
    content = source.read_bytes()
    with pytest.raises(RecipeError, match="already"):
        convert_adapter(source, source, "diffusers", Wishes())
    with pytest.raises(RecipeError, match="already"):
        resize_adapter(source, source, FixedRank(1), None, Wishes(), Silence())
    with pytest.raises(RecipeError, match="already"):
        merge_adapters([(source, 1.0)], source, None, None, Wishes(), Silence())
    assert source.read_bytes() == content
    resize_adapter(source, source, FixedRank(1), None, Wishes(force=True), Silence())
    state = opened(source).state
    assert {state.rank(layer) for layer in state.layers()} == {1}
    convert_adapter(source, tmp_path / "peft", "peft", Wishes())
    (tmp_path / "peft" / "old.txt").write_text("of the earlier time")
    convert_adapter(source, tmp_path / "peft", "peft", Wishes(force=True))
    assert not (tmp_path / "peft" / "old.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora-0.safetensors", "peft"]
