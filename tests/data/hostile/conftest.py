"""The hostile set: every odd file that we could think of or found in the wild, each with what has to become of it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hostile_case import Case

sys.path.insert(0, str(Path(__file__).parent))  # the modules that build the set stand beside this file


@pytest.fixture(scope="session")
def cases() -> "list[Case]":
    """All files of the set."""
    from building import all_cases

    return all_cases()


@pytest.fixture(scope="session")
def hostile(cases: "list[Case]", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all files of the set; what must never be opened stands in a folder beside it."""
    from building import build

    root = tmp_path_factory.mktemp("hostile")
    build(cases, root)
    return root / "set"
