"""Pictures with something to see on them, and the whole way from a folder to a report."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from trainer.data.account import Account
from trainer.data.batches import DataSettings
from trainer.data.example import Example, Size
from trainer.data.examples import ExampleTable
from trainer.data.health.examining import Report, examine, look_closer
from trainer.data.health.findings import Finding, ModelFacts
from trainer.data.opened import OpenSources
from trainer.data.scanning import scan

WORDS = ModelFacts(scale=4, count_tokens=lambda text: len(text.split()), lost_words=lambda text: text.split()[-1])


def _scene(seed: int, size: tuple[int, int] = (192, 128)) -> Image.Image:
    """Coloured shapes with crisp rims, other ones for each seed."""
    chance = random.Random(seed)
    width, height = size
    image = Image.new("RGB", size, tuple(chance.randrange(256) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for number in range(24):
        left, top = chance.randrange(-20, width), chance.randrange(-20, height)
        box = (left, top, left + chance.randrange(8, width // 2), top + chance.randrange(8, height // 2))
        (pen.ellipse if number % 2 else pen.rectangle)(box, fill=tuple(chance.randrange(256) for _ in range(3)))
    return image


@pytest.fixture
def show(tmp_path: Path) -> Callable[..., Path]:
    """Writes a picture into a folder of its own, with a caption unless it is None."""

    def write(name: str, image: Image.Image, caption: str | None = "zwx, a scene", **options: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    return write


def _report_of(*sources: dict[str, Any], batch: int = 1, closer: bool = True, **settings: object) -> Report:
    """The report on some folders."""
    whole = DataSettings.model_validate(
        {
            "sources": [{"kind": "folder", **source} for source in sources],
            "resolution": 64,
            "captions": {"trigger": "zwx"},
            **settings,
        }
    )
    opened = OpenSources(whole.parts)
    account = scan(whole.parts, whole.limits)
    portraits = look_closer(account, whole, opened, WORDS.scale) if closer else None
    report = examine(account, whole, model=WORDS, batch=batch, portraits=portraits)
    json.dumps(report.as_json())
    return report


def _of_kind(report: Report, kind: str) -> Finding | None:
    """The only finding of a kind; None if there is none."""
    found = [finding for finding in report.findings if finding.kind == kind]
    assert len(found) < 2
    return found[0] if found else None


def _an_example(*captions: str, **changes: Any) -> Example:
    """An example that no file stands behind."""
    facts: dict[str, Any] = {"source": 0, "locator": "a.png", "name": "a.png", "key": "0" * 64, "size": Size(64, 64)}
    return Example(**(facts | changes), captions=captions)


def _an_account(*examples: Example, sources: tuple[str, ...] = ("folder",)) -> Account:
    """An account of nothing but accepted pictures."""
    return Account(accepted=ExampleTable.of(examples), sources=sources)


@pytest.fixture
def scene() -> Callable[..., Image.Image]:
    """See `_scene`."""
    return _scene


@pytest.fixture
def report_of() -> Callable[..., Report]:
    """See `_report_of`."""
    return _report_of


@pytest.fixture
def of_kind() -> Callable[[Report, str], Finding | None]:
    """See `_of_kind`."""
    return _of_kind


@pytest.fixture
def an_example() -> Callable[..., Example]:
    """See `_an_example`."""
    return _an_example


@pytest.fixture
def an_account() -> Callable[..., Account]:
    """See `_an_account`."""
    return _an_account
