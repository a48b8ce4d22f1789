import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from trainer.converting.adapters import Wishes
from trainer.converting.bases import convert_base, extract_lora, merge_into_base
from trainer.converting.opened_base import OpenedBase
from trainer.core.device import Precision
from trainer.core.errors import NonFiniteError, RecipeError, WeightsError
from trainer.core.progress import Silence
from trainer.weights.adapter_state import AdapterState
from trainer.weights.export import ExportSettings, export_adapter
from trainer.weights.lora_state import LoraState
from trainer.weights.low_rank import FixedRank, RetainedEnergy
from trainer.weights.names import SD_NAMES
from trainer.weights.opening import open_adapters

FAMILIES = ("sd1", "sd2", "sdxl")
AnAdapter = Callable[..., tuple[Path, AdapterState]]
Rewritten = Callable[[Path, Callable[[str, Tensor], Tensor]], Path]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tensors_of(weights: Path) -> dict[str, Tensor]:
    with OpenedBase(str(weights)) as base:
        return {name: base.read(name) for name in base.tensors}


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_and_single_file_there_and_back_give_the_same_bytes(
    models: dict[str, Path], tmp_path: Path, family: str
) -> None:
    file, folder = tmp_path / "model.safetensors", tmp_path / "folder"
    convert_base(str(models[family].with_name("folder")), file, "single-file", Wishes(), Silence())
    convert_base(str(file), folder, "folder", Wishes(), Silence())
    assert files_of(folder) == files_of(models[family].with_name("folder"))
    again = tmp_path / "again" / "model.safetensors"
    convert_base(str(folder), again, "single-file", Wishes(), Silence())
    assert again.read_bytes() == file.read_bytes()
    original, found = load_file(models[family]), load_file(file)
    assert original.keys() == found.keys()
    assert all(torch.equal(original[name], found[name]) for name in original)


def test_what_cannot_be_carried_over_is_said(models: dict[str, Path], tmp_path: Path, rewritten: Rewritten) -> None:
    done = convert_base(
        str(models["sd1"]), tmp_path / "folder", "folder", Wishes(precision=Precision.bfloat16), Silence()
    )
    assert any("no place for metadata: modelspec.title" in note for note in done.notes)
    assert any("What was float16" in note and "is bfloat16 now" in note for note in done.notes)
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "folder").values()} == {torch.bfloat16}
    done = convert_base(str(tmp_path / "folder"), tmp_path / "a.safetensors", "single-file", Wishes(), Silence())
    assert any("tokenizer" in note for note in done.notes)
    assert not any("metadata" in note for note in done.notes)


def test_nothing_is_overwritten_unasked(models: dict[str, Path], tmp_path: Path) -> None:
    there, folder = tmp_path / "there.safetensors", tmp_path / "mine"
    there.write_bytes(b"mine")
    folder.mkdir()
    (folder / "letter.txt").write_text("mine")
    single = str(models["sd1"])
    with pytest.raises(RecipeError, match="already"):
        convert_base(single, there, "single-file", Wishes(), Silence())
    with pytest.raises(RecipeError, match="already"):
        convert_base(single, folder, "folder", Wishes(), Silence())
    with pytest.raises(RecipeError, match="no folder of a model"):
        convert_base(single, folder, "folder", Wishes(force=True), Silence())
    with pytest.raises(RecipeError, match="must end in"):
        convert_base(single, tmp_path / "x", "single-file", Wishes(), Silence())
    with pytest.raises(RecipeError, match="name of a file"):
        convert_base(single, tmp_path / "x.safetensors", "folder", Wishes(), Silence())
    with pytest.raises(RecipeError, match="over itself"):
        convert_base(single, models["sd1"], "single-file", Wishes(force=True), Silence())
    assert files_of(tmp_path) == {"there.safetensors": b"mine", "mine/letter.txt": b"mine"}
    convert_base(single, there, "single-file", Wishes(force=True), Silence())
    convert_base(single, tmp_path / "model", "folder", Wishes(), Silence())
    convert_base(single, tmp_path / "model", "folder", Wishes(force=True), Silence())
    assert len(tensors_of(there)) == len(tensors_of(tmp_path / "model"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "model", "there.safetensors"]


@pytest.mark.parametrize(
    ("family", "layout", "to"),
    [
        ("sd1", "single-file", None),
        ("sd1", "folder", "single-file"),
        ("sd2", "single-file", None),
        ("sd2", "folder", None),
        ("sdxl", "single-file", None),
        ("sdxl", "folder", None),
        ("sdxl", "single-file", "folder"),
    ],
)
def test_adapters_in_a_base_change_their_layers_and_nothing_else(
    models: dict[str, Path], an_adapter: AnAdapter, tmp_path: Path, family: str, layout: str, to: Any
) -> None:
    source = models[family] if layout == "single-file" else models[family].with_name("folder")
    adapters = [an_adapter(family, "lora", 0), an_adapter(family, "loha", 20), an_adapter(family, "dora", 1)]
    wanted = [(path, strength) for (path, _), strength in zip(adapters, (0.8, -0.5, 0.6), strict=True)]
    out = tmp_path / ("merged.safetensors" if (to or layout) == "single-file" else "merged")
    done = merge_into_base(str(source), wanted, out, to, Wishes(), Silence())
    before, after = tensors_of(source), tensors_of(out)
    assert before.keys() == after.keys()
    layers = [set(state.layers()) for _, state in adapters]
    changed = 0
    for name, weight in before.items():
        layer, expected = name.removesuffix(".weight"), weight.float()
        for own, (_, state), (_, strength) in zip(layers, adapters, wanted, strict=True):
            if layer in own and name.endswith(".weight"):
                expected = expected + strength * state.change(layer, weight.float())
        changed += not torch.equal(expected, weight.float())
        assert after[name].dtype == torch.float16
        assert torch.equal(after[name], expected.half()), name
    assert changed == done.facts["layers_changed"] == len(set.union(*layers))
    if (to or layout) == "single-file":
        found = load_file(models[family]).keys()
        assert load_file(out).keys() == found
        assert metadata_of(out)["modelspec.merged_from"].endswith("lora-0, loha-20, dora-1")
        assert str(tmp_path) not in json.dumps(metadata_of(out))
    if layout == "folder" and to != "single-file":
        same = files_of(source).keys()
        assert files_of(out).keys() == same


def test_a_base_is_written_in_another_format_of_numbers(
    models: dict[str, Path], an_adapter: AnAdapter, tmp_path: Path
) -> None:
    path, state = an_adapter("sdxl")
    out = tmp_path / "merged.safetensors"
    merge_into_base(str(models["sdxl"]), [(path, 1.0)], out, None, Wishes(precision=Precision.float32), Silence())
    before, after = tensors_of(models["sdxl"]), tensors_of(out)
    for layer in state.layers():
        weight = before[f"{layer}.weight"].float()
        assert torch.equal(after[f"{layer}.weight"], weight + state.change(layer, weight))


def test_what_lies_beside_the_networks_stays(
    models: dict[str, Path], an_adapter: AnAdapter, tmp_path: Path, rewritten: Rewritten
) -> None:
    """In the file: the text layer that SD2's U-Net was never shown. In a folder: files of people; no pickles."""
    path, _ = an_adapter("sd2")
    out = tmp_path / "merged.safetensors"
    merge_into_base(str(models["sd2"]), [(path, 1.0)], out, None, Wishes(), Silence())
    name = "cond_stage_model.model.transformer.resblocks.2.ln_1.weight"
    assert torch.equal(load_file(out)[name], load_file(models["sd2"])[name])
    folder = Path(shutil.copytree(models["sd2"].with_name("folder"), tmp_path / "base"))
    (folder / "README.md").write_text("my model")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    done = merge_into_base(str(folder), [(path, 1.0)], tmp_path / "merged", None, Wishes(), Silence())
    assert (tmp_path / "merged" / "README.md").read_text() == "my model"
    assert not (tmp_path / "merged" / "unet" / "diffusion_pytorch_model.bin").exists()
    assert any("unet/diffusion_pytorch_model.bin" in note for note in done.notes)


def test_adapters_that_do_not_fit_are_refused_and_nothing_is_begun(
    models: dict[str, Path], an_adapter: AnAdapter, tmp_path: Path
) -> None:
    other, _ = an_adapter("sdxl", name="other")
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "merged.safetensors"
    with pytest.raises(WeightsError, match="different families"):
        merge_into_base(str(models["sd1"]), [(other, 1.0)], out, None, Wishes(), Silence())
    mine, _ = an_adapter("sd2")
    silent = [(mine, 0.0)]
    with pytest.raises(WeightsError, match="change nothing"):
        merge_into_base(str(models["sd2"]), silent, out, None, Wishes(), Silence())
    loud, _ = an_adapter("sd2", name="loud")
    with pytest.raises(NonFiniteError):
        merge_into_base(str(models["sd2"]), [(loud, 1e9)], out, None, Wishes(), Silence())
    with pytest.raises(NonFiniteError):
        merge_into_base(
            str(models["sd2"].with_name("folder")), [(loud, 1e9)], tmp_path / "f", None, Wishes(), Silence()
        )
    assert sorted(tmp_path.iterdir()) == sorted([*before, mine, loud])


def test_an_adapter_of_another_size_is_named(models: dict[str, Path], an_adapter: AnAdapter, tmp_path: Path) -> None:
    layer = "unet.down_blocks.0.attentions.0.proj_in"
    wide = LoraState(
        {f"{layer}.lora_A.weight": torch.ones(2, 64, 1, 1), f"{layer}.lora_B.weight": torch.ones(64, 2, 1, 1)},
        {layer: 2.0},
    )
    path = tmp_path / "wide.safetensors"
    export_adapter(path, wide, SD_NAMES, {}, ExportSettings())
    with pytest.raises(WeightsError, match=r"wide changes a layer.*64, 64.*32, 32"):
        merge_into_base(str(models["sd1"]), [(path, 1.0)], tmp_path / "o.safetensors", None, Wishes(), Silence())


@pytest.mark.parametrize("family", FAMILIES)
def test_extraction_gives_back_what_was_merged(
    models: dict[str, Path], an_adapter: AnAdapter, tmp_path: Path, family: str
) -> None:
    path, state = an_adapter(family)
    tuned, out = tmp_path / "tuned", tmp_path / "learned.safetensors"
    merge_into_base(str(models[family]), [(path, 1.0)], tuned, "folder", Wishes(precision=Precision.float32), Silence())
    wishes = Wishes(precision=Precision.float32)
    done = extract_lora(str(models[family]), str(tuned), out, FixedRank(2), wishes, Silence())
    found = open_adapters([out]).adapters[0].state
    assert found.layers() == state.layers()
    for layer in state.layers():
        expected = state.change(layer)
        assert found.change(layer).shape == expected.shape
        assert found.rank(layer) == 2
        assert float((found.change(layer) - expected).norm() / expected.norm()) < 1e-5
    assert done.fit is not None
    assert done.fit.relative_error < 1e-5
    assert done.lists["beyond"] == ()
    said = metadata_of(out)
    assert said["ss_network_dim"] == "2"
    assert said["ss_sd_model_name"] == "model"
    assert said["modelspec.architecture"].endswith("/lora")
    assert not any("step" in key or "rate" in key for key in said)


def test_extraction_names_what_no_lora_can_hold(models: dict[str, Path], rewritten: Rewritten, tmp_path: Path) -> None:
    attention = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    norm = "model.diffusion_model.out.0.weight"
    tuned = rewritten(models["sd1"], lambda key, tensor: tensor + 1 if key in {attention, norm} else tensor)
    out = tmp_path / "out.safetensors"
    done = extract_lora(str(models["sd1"]), str(tuned), out, RetainedEnergy(0.99), Wishes(), Silence())
    assert done.lists["beyond"] == ("unet.conv_norm_out.weight",)
    assert done.fit is not None
    assert [fit.layer for fit in done.fit.layers] == ["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
    assert done.fit.layers[0].rank == 1
    assert done.as_json()["beyond"] == ["unet.conv_norm_out.weight"]


def test_a_coarser_copy_does_not_differ(models: dict[str, Path], tmp_path: Path) -> None:
    """A model in float32 and its copy in bfloat16 differ in every number, and one has learned nothing."""
    coarse = tmp_path / "coarse.safetensors"
    convert_base(str(models["sd2"]), coarse, "single-file", Wishes(precision=Precision.bfloat16), Silence())
    for pair in ((models["sd2"], coarse), (coarse, models["sd2"])):
        with pytest.raises(WeightsError, match="do not differ"):
            extract_lora(str(pair[0]), str(pair[1]), tmp_path / "o.safetensors", FixedRank(2), Wishes(), Silence())


def test_models_that_are_no_pair_are_refused(models: dict[str, Path], rewritten: Rewritten, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    with pytest.raises(WeightsError, match="different families"):
        extract_lora(str(models["sd1"]), str(models["sdxl"]), out, FixedRank(2), Wishes(), Silence())
    broken = rewritten(models["sd1"], lambda key, tensor: tensor / 0 if key.endswith("attn1.to_q.weight") else tensor)
    with pytest.raises(NonFiniteError):
        extract_lora(str(models["sd1"]), str(broken), out, FixedRank(2), Wishes(), Silence())
    assert not out.exists()
