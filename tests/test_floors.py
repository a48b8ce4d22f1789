"""The walls of the house: imports run downward only, files stay small."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "trainer"

FLOORS = (
    {"core", "batch"},
    {"objective", "optim", "data", "weights", "tracking"},
    {"families"},
    {"adapters", "sampling"},
    {"evaluation", "small_pictures"},
    {"loop"},
    {"recipe"},
    {"beginning", "preparing", "publishing", "spreading"},
    {"assemble", "converting", "drawing", "memory", "ray_cache", "ui"},
    {"gridding", "judging", "planning", "reporting"},
    {"cli"},
    {"__main__"},
)
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(file: Path) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [(node.lineno, name.split(".")[1]) for name in names if name.startswith("trainer.")]
    return found


def test_imports_only_run_downward() -> None:
    wrong: list[str] = []
    for file in sorted(PACKAGE.rglob("*.py")):
        room = room_of(file)
        if room == "__init__":
            continue
        for line, other in imported_rooms(file):
            if other != room and HEIGHT[other] >= HEIGHT[room]:
                wrong.append(f"{file}:{line} {room} must not import {other}")
    assert not wrong, "\n".join(wrong)


def test_files_stay_small() -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in PACKAGE.rglob("*.py")}
    too_long = [f"{file}: {length}" for file, length in lengths.items() if length > 300]
    assert not too_long, "\n".join(too_long)
    loop = PACKAGE / "loop" / "train.py"
    assert lengths.get(loop, 0) <= 150


def test_the_data_folder_is_no_package() -> None:
    """`datasets/__init__.py` would hide the library of that name."""
    assert not (PACKAGE.parent / "datasets" / "__init__.py").exists()
