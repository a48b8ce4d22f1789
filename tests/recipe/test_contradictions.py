"""Words of a recipe that contradict each other are told before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.core.errors import RecipeError
from trainer.optim.ema import EmaSettings
from trainer.recipe.reading import read_recipe
from trainer.recipe.recipe import Recipe

PRESERVED = [
    {"kind": "folder", "path": "pictures"},
    {"kind": "folder", "path": "pictures", "regularisation": True, "target": "base"},
]


def read(tmp_path: Path, **changes: Any) -> Recipe:
    plain: dict[str, Any] = {"name": "one", "data": {"sources": PRESERVED[:1]}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain | changes), encoding="utf-8")
    return read_recipe(path)


def test_an_average_is_asked_for_by_its_name_alone(tmp_path: Path) -> None:
    assert read(tmp_path).ema is None
    assert read(tmp_path, ema={}).ema == EmaSettings()
    assert read(tmp_path, ema={"decay": 0.99, "warmup": "power", "every": 10}).ema is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ema": {}, "optimizer": {"kind": "adamw_schedule_free"}}, "averages the weights by itself"),
        (
            {"data": {"sources": PRESERVED}, "objective": {"prediction": {"kind": "velocity"}}},
            r"Leave objective\.prediction out",
        ),
        ({"data": {"sources": [PRESERVED[0] | {"target": "base"}]}}, "regularisation: true"),
        ({"optimizer": {"kind": "prodigy", "rate": 1e-4}}, r"Leave optimizer\.rate out"),
        (
            {"optimizer": {"kind": "prodigy"}, "adapter": {"kind": "lora", "rates": {"unet": 1e-4}}},
            r"leave adapter\.rates\.unet out",
        ),
        ({"optimizer": {"kind": "adafactor", "relative_step": True, "rate": 1e-4}}, r"Leave out optimizer\.rate"),
    ],
    ids=["two averages", "another prediction", "trigger", "prodigy's rate", "prodigy's parts", "adafactor's rate"],
)
def test_contradictions_are_told(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read(tmp_path, **changes)


def test_each_alone_is_allowed(tmp_path: Path) -> None:
    read(tmp_path, ema={})
    read(tmp_path, optimizer={"kind": "adamw_schedule_free"})
    read(tmp_path, data={"sources": PRESERVED})
    read(tmp_path, optimizer={"kind": "prodigy"}, objective={"prediction": {"kind": "velocity"}})
