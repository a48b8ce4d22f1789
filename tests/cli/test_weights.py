"""`trainer weights convert|merge|extract|resize`: what they say, their exit codes, and what they leave behind."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.cli.main import run
from trainer.cli.weights.asking import strengths
from trainer.core.errors import RecipeError
from trainer.weights.names import SD_NAMES
from trainer.weights.reading import read_adapter

Captured = pytest.CaptureFixture[str]
LAYERS = {  # of the small model
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (8, 16),
    "lora_unet_down_blocks_0_attentions_0_proj_in": (8, 8, 1, 1),
    "lora_unet_mid_block_resnets_0_conv1": (16, 16, 3, 3),
    "lora_te_text_model_encoder_layers_0_mlp_fc1": (32, 16),
}
MakeLora = Callable[..., Path]


@pytest.fixture
def a_lora(tmp_path: Path) -> MakeLora:
    def make(name: str, seed: int = 0, version: str = "sd_v1", **tensors: Tensor) -> Path:
        generator = torch.Generator().manual_seed(seed)
        content: dict[str, Tensor] = {}
        for layer, (out, *inner) in LAYERS.items():
            ones = (1,) * (len(inner) - 1)
            content[f"{layer}.lora_down.weight"] = torch.randn((4, *inner), generator=generator) * 0.1
            content[f"{layer}.lora_up.weight"] = torch.randn((out, 4, *ones), generator=generator) * 0.1
            content[f"{layer}.alpha"] = torch.tensor(2.0)
        path = tmp_path / f"{name}.safetensors"
        save_file({**content, **tensors}, path, metadata={"ss_base_model_version": version})
        return path

    return make


def weights(*words: object) -> int:
    return run(["weights", *map(str, words)])


def refused(captured: Captured, code: int, *words: object) -> str:
    captured.readouterr()
    assert weights(*words) == code
    said = captured.readouterr().err
    assert "Traceback" not in said
    return said


def test_every_tool_says_what_it_made_and_writes_the_report(
    a_lora: MakeLora, small_model: Path, tmp_path: Path, capsys: Captured
) -> None:
    one, two, report = a_lora("one"), a_lora("two", 1), tmp_path / "report.json"

    def reported(*words: object) -> dict[str, object]:
        capsys.readouterr()
        assert weights(*words, "--json", report) == 0
        assert report.name in capsys.readouterr().out.replace("\n", "")
        return json.loads(report.read_text(encoding="utf-8"))

    found = reported("convert", one, tmp_path / "d.safetensors", "--to", "diffusers")
    assert (found["kind"], found["family"], found["from"], found["to"]) == ("lora", "sd1", "kohya", "diffusers")
    assert found["bytes"] == (tmp_path / "d.safetensors").stat().st_size
    found = reported("merge", f"{one}:0.7", f"{two}:0.5", "-o", tmp_path / "m.safetensors")
    assert (found["rank"], found["layers"], found["inputs"]) == ("8", found["layers"], ["one", "two"])
    found = reported("merge", f"{one}:0.7", two, "-o", tmp_path / "m4.safetensors", "--rank", 4)
    assert 0.1 < float(str(found["relative_error"])) < 0.9
    found = reported("resize", one, "-o", tmp_path / "r.safetensors", "--energy", 0.8, "--max-rank", 3)
    assert found["relative_error"]
    found = reported("merge", f"{one}:0.8", "--into", small_model, "-o", tmp_path / "tuned", "--dtype", "float32")
    assert found["layers_changed"] == len(LAYERS)
    found = reported("extract", small_model, tmp_path / "tuned", "-o", tmp_path / "x.safetensors", "--rank", 4)
    assert float(str(found["relative_error"])) < 1e-4
    assert found["beyond"] == []
    given, back = read_adapter(one, SD_NAMES).state, read_adapter(tmp_path / "x.safetensors", SD_NAMES).state
    for layer in given.layers():
        expected = 0.8 * given.change(layer)
        assert float((back.change(layer) - expected).norm() / expected.norm()) < 1e-4


def test_the_errors_are_shown(
    a_lora: MakeLora, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert weights("resize", a_lora("one"), "-o", tmp_path / "r.safetensors", "--rank", 2) == 0
    shown = capsys.readouterr().out
    for part in ("relative error", "text_encoder", "unet", "layers that lose most", "%", "rank before"):
        assert part in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["convert", "ONE", "x.safetensors", "--to", "folder"], "This is an adapter"),
        (["convert", "MODEL", "x.safetensors", "--to", "kohya"], "This is no adapter"),
        (["convert", "absent.safetensors", "x.safetensors", "--to", "kohya"], "no such file"),
        (["convert", "absent.ckpt", "x.safetensors", "--to", "single-file"], "never open"),
        (["convert", "MODEL", "x.safetensors", "--to", "single-file"], "no tokenizer"),
        (["convert", "ONE", "ONE", "--to", "diffusers"], "already"),
        (["convert", "ONE", "x", "--to", "kohya"], "must end in"),
        (["convert", "CHECKPOINT", "x.safetensors", "--to", "kohya"], "no adapter"),
        (["resize", "ONE", "-o", "x.safetensors"], "not said"),
        (["resize", "ONE", "-o", "x.safetensors", "--rank", "0"], "at least 1"),
        (["resize", "ONE", "-o", "x.safetensors", "--energy", "1.5"], "up to 1"),
        (["resize", "ONE", "-o", "x.safetensors", "--rank", "4", "--energy", "0.5"], "two ways"),
        (["resize", "ONE", "-o", "x.safetensors", "--rank", "4", "--max-rank", "5"], "--max-rank goes with"),
        (["resize", "MODEL", "-o", "x.safetensors", "--rank", "4"], "adapter_model.safetensors"),
        (["resize", "CHECKPOINT", "-o", "x.safetensors", "--rank", "4"], "no adapter"),
        (["merge", "ONE:strong", "-o", "x.safetensors"], "no number"),
        (["merge", "ONE:nan", "-o", "x.safetensors"], "no number"),
        (["merge", "ONE", "SDXL", "-o", "x.safetensors"], "different families"),
        (["merge", "ONE", "WIDE", "-o", "x.safetensors"], "of the shape"),
        (["merge", "ONE:0", "-o", "x.safetensors"], "Nothing is left"),
        (["merge", "ONE", "-o", "x.safetensors", "--to", "folder"], "--into"),
        (["merge", "ONE", "-o", "x", "--into", "MODEL", "--rank", "4"], "no rank"),
        (["merge", "WIDE", "-o", "x", "--into", "MODEL"], "does not fit"),
        (["merge", "DEEP", "-o", "x", "--into", "MODEL"], "does not have it"),
        (["merge", "SDXL", "-o", "x", "--into", "MODEL"], "different families"),
        (["merge", "ONE", "-o", "MODEL", "--into", "MODEL", "--force"], "over itself"),
        (["extract", "MODEL", "MODEL", "-o", "x.safetensors", "--rank", "4"], "do not differ"),
        (["extract", "MODEL", "SD2", "-o", "x.safetensors", "--rank", "4"], "different families"),
        (["extract", "MODEL", "bundled", "-o", "x.safetensors", "--rank", "4"], "built differently"),
        (["extract", "MODEL", "bundled", "-o", "x.safetensors"], "not said"),
        (["extract", "MODEL", "absent/folder/x", "-o", "x.safetensors", "--rank", "4"], "no weights called"),
        (["merge", "NAN", "-o", "x.safetensors"], "not finite"),
    ],
)
def test_mistakes_are_one_message_and_leave_nothing(
    a_lora: MakeLora,
    small_model: Path,
    small_sd2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    says: str,
    capsys: Captured,
) -> None:
    monkeypatch.chdir(tmp_path)
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    deep = "lora_unet_down_blocks_2_attentions_0_transformer_blocks_0_attn2_to_k"
    named = {
        "ONE": a_lora("one"),
        "SDXL": a_lora("sdxl", version="sdxl_base_v1-0"),
        "WIDE": a_lora("wide", **{f"{key}.lora_down.weight": torch.ones(4, 24)}),
        "DEEP": a_lora(
            "deep", **{f"{deep}.lora_down.weight": torch.ones(4, 16), f"{deep}.lora_up.weight": torch.ones(8, 4)}
        ),
        "NAN": a_lora("nan", **{f"{key}.lora_down.weight": torch.full((4, 16), torch.nan)}),
        "CHECKPOINT": tmp_path / "checkpoint.safetensors",
        "MODEL": small_model,
        "SD2": small_sd2,
    }
    save_file({"model.diffusion_model.out.2.weight": torch.ones(2)}, named["CHECKPOINT"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    told: list[str] = []
    for word in words:
        name, colon, rest = word.partition(":")
        told.append(f"{named.get(name, name)}{colon}{rest}")
    assert says in refused(capsys, 2, *told)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_force_replaces_what_is_there(a_lora: MakeLora, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    assert weights("merge", a_lora("one"), "-o", out) == 2
    assert out.read_bytes() == b"old"
    assert weights("merge", a_lora("one"), "-o", out, "--force", "--dtype", "float16") == 0
    assert {t.dtype for name, t in load_file(out).items() if not name.endswith("alpha")} == {torch.float16}


def test_a_full_disk_leaves_the_old_file(
    a_lora: MakeLora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    out, one = tmp_path / "out.safetensors", a_lora("one")
    out.write_bytes(b"old")

    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left on device" in refused(capsys, 2, "resize", one, "-o", out, "--rank", 1, "--force")
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.safetensors", "out.safetensors"]


def test_strengths_are_read_behind_the_last_colon(tmp_path: Path) -> None:
    odd = tmp_path / "a:0.5"
    odd.write_bytes(b"")
    assert strengths(["a.safetensors:0.7", "b", "c:-1", r"C:\models\d", f"{odd}", f"{odd}:2"]) == [
        (Path("a.safetensors"), 0.7), (Path("b"), 1.0), (Path("c"), -1.0), (Path(r"C:\models\d"), 1.0), (odd, 1.0),
        (odd, 2.0),
    ]  # fmt: skip
    for wrong in ("a:much", "a:inf", "a:"):
        with pytest.raises(RecipeError):
            strengths([wrong])
