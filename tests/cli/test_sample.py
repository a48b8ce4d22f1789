"""trainer sample: what people ask for comes out, and what cannot be is said before anything is loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from trainer.cli.main import run


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("trainer.drawing.opening.pick_device", lambda: torch.device("cpu"))


def info(path: Path) -> str:
    with Image.open(path) as file:
        return str(file.info.get("parameters", ""))


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as file:
        return file.size


def test_prompts_of_all_kinds_are_drawn(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "colour.txt").write_text("red\nblue\n", encoding="utf-8")
    lines = tmp_path / "p.txt"
    lines.write_text("(ball:1.3) BREAK cube --n bad --w 32 --h 16 --d 9 --l 1 --s 2 --ss euler_a\n", encoding="utf-8")
    out = tmp_path / "out"
    arguments = [
        "sample",
        str(recipe_file()),
        "-p",
        "{big|small} __colour__ ball",
        "--prompts",
        str(lines),
        "--out",
        str(out),
    ]
    more = ["--wildcards", str(tmp_path / "words"), "--steps", "2", "--count", "2", "--sampler", "DPM++ 2M Karras"]
    assert run([*arguments, *more]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["00.png", "01.png", "02.png", "03.png", "grid.png"]
    assert [size(out / f"{place:02d}.png") for place in range(4)] == [(16, 16), (32, 16), (16, 16), (32, 16)]
    first, second = info(out / "00.png"), info(out / "01.png")
    assert first.split(" ")[0] in {"big", "small"}
    assert first.split(" ")[1] in {"red", "blue"}
    assert "Sampler: DPM++ 2M Karras, CFG scale: 4, Seed: 0" in first
    assert second.startswith(
        "(ball:1.3) BREAK cube\nNegative prompt: bad\nSteps: 2, Sampler: Euler a, CFG scale: 1, Seed: 9"
    )
    assert "Seed: 10" in info(out / "03.png")
    assert str(tmp_path) not in first + second


def test_a_picture_can_be_the_beginning_and_files_can_say_nothing(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    photo = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((60, 30)).save(photo)
    yaml = tmp_path / "p.yaml"
    yaml.write_text("- red\n- {prompt: blue, seed: 3}\n", encoding="utf-8")
    arguments = ["sample", str(recipe_file()), "--prompts", str(yaml), "--steps", "4", "--image", str(photo)]
    assert run([*arguments, "--denoising", "0.5", "--out", str(tmp_path / "told")]) == 0
    assert size(tmp_path / "told" / "00.png") == (24, 8)
    assert "Denoising strength: 0.5" in info(tmp_path / "told" / "00.png")
    assert run([*arguments, "--no-parameters", "--out", str(tmp_path / "silent")]) == 0
    with Image.open(tmp_path / "silent" / "00.png") as file:
        assert file.info == {}


@pytest.mark.parametrize(
    ("content", "suffix", "what"),
    [
        ("- {prompt: a, prompt: b}\n", "yaml", "given twice"),
        ("- !!python/object/apply:os.system [ls]\n", "yaml", ""),
        ("prompt: a\n", "yaml", "is a list"),
        ("a --q 3\n", "txt", "no flag --q"),
        ("# nothing\n", "txt", "Nothing to draw"),
        (b"\xff\xfe", "txt", "no UTF-8"),
    ],
)
def test_mistakes_in_a_file_are_named(
    recipe_file: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str | bytes,
    suffix: str,
    what: str,
) -> None:
    path = tmp_path / f"p.{suffix}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert run(["sample", str(recipe_file()), "--prompts", str(path), "--out", str(tmp_path / "out")]) == 2
    assert what in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_sampler_and_nothing_to_draw_are_said(
    recipe_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sample", str(recipe_file()), "-p", "a", "--sampler", "Eular"]) == 2
    assert "no sampler called 'Eular'" in capsys.readouterr().err
    assert run(["sample", str(recipe_file())]) == 2
    assert "Nothing to draw" in capsys.readouterr().err
