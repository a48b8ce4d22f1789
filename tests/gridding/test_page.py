"""The page: whole in one file, asks for nothing, and no label becomes anything but text."""

import re
from pathlib import Path

from PIL import Image

from trainer.core.pages import script_source
from trainer.gridding.page import ShownGrid, ShownPicture, ShownRow, ShownSheet, write_grid_page

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7 * 7 }}\u202e\x1b[31m"


def page(tmp_path: Path, label: str, count: int = 2, side: int = 64) -> str:
    def pictures(row: int) -> list[ShownPicture]:
        return [
            ShownPicture(label=f"{label} {n}", facts=f"{label}\nSteps: {n}", picture=Image.new("RGB", (side, side)))
            for n in range(count)
        ]

    rows = [ShownRow(label=label, pictures=pictures(row), reference=row == 1) for row in range(2)]
    sheet = ShownSheet(label=label, columns=[label] * count, rows=rows)
    path = tmp_path / "grid.html"
    write_grid_page(path, ShownGrid(title=label, axes=label, count=2 * count, width=side, sheets=[sheet]))
    return path.read_text(encoding="utf-8")


def test_no_label_becomes_anything_but_text(tmp_path: Path) -> None:
    text = page(tmp_path, EVIL)
    assert text.count("<script>") == 1
    assert "onerror=alert(2)>" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "{{ 7 * 7 }}" in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "\nSteps: 1" in text  # lines of what is told stay lines


def test_it_asks_for_nothing_and_runs_but_its_own_script(tmp_path: Path) -> None:
    text = page(tmp_path, "plain")
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)""", text)
    assert "http" not in text.replace("http-equiv", "")
    script = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)[0]
    assert f"script-src '{script_source(script)}'" in text
    assert "default-src 'none'" in text


def test_many_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    few = page(tmp_path, "few", count=2, side=1024)
    assert 'width="1024"' in few
    many = page(tmp_path, "many", count=200, side=1024)
    assert 'width="1024"' not in many
    assert len(many) < 20_000_000
