"""The set-up is done once, done again when it was cut off or its lists changed, and says what is missing."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script in an empty project, its pip replaced by a list of what it was asked for."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "scripts" / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pyproject.toml").write_text("[project]")
    (tmp_path / "constraints.txt").write_text("numpy==2.0\ntorch==2.13.0\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv" / "set-up")
    monkeypatch.setattr(module, "CONSTRAINTS", tmp_path / "constraints.txt")
    (tmp_path / "requirements.lock").write_text("numpy==2.0 --hash=sha256:00")
    monkeypatch.setattr(module, "LOCK", tmp_path / "requirements.lock")
    monkeypatch.setattr(module, "RUN", tmp_path / "runs" / "blob")
    return module


@pytest.fixture
def calls(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every command that would have run; making the .venv makes its folder, and each command succeeds."""
    found: list[list[str]] = []

    def pretend(*command: object) -> int:
        found.append([str(part) for part in command])
        return 0

    def make(creator: str) -> None:
        python = bootstrap.script("python")
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()

    monkeypatch.setattr(bootstrap, "run", pretend)
    monkeypatch.setattr(bootstrap, "make_venv", make)
    monkeypatch.setattr(bootstrap, "works", lambda python: True)  # pyright: ignore[reportUnknownLambdaType]
    return found


def test_what_is_locked_comes_first_by_its_checksums_and_only_once(
    bootstrap: ModuleType, calls: list[list[str]]
) -> None:
    assert bootstrap.main(["setup"]) == 0
    assert calls[0][-4:] == ["--require-hashes", "--no-deps", "-r", str(bootstrap.LOCK)]
    assert [call[-3] for call in calls[1:]] == ["torch==2.13.0", f"{bootstrap.ROOT}[dev,tensorboard,wandb]"]
    assert "--no-build-isolation" in calls[2]  # else pip fetches a setuptools of its own choice
    calls.clear()
    assert bootstrap.main(["setup"]) == 0
    assert calls == []


@pytest.mark.parametrize("file", ["pyproject.toml", "constraints.txt", "requirements.lock"])
def test_a_changed_list_is_installed(bootstrap: ModuleType, calls: list[list[str]], file: str) -> None:
    bootstrap.main(["setup"])
    calls.clear()
    path = bootstrap.ROOT / file
    path.write_text(path.read_text() + "\n# changed")
    bootstrap.main(["setup"])
    assert len(calls) == 3


def test_a_set_up_that_failed_is_done_again(
    bootstrap: ModuleType, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    working = bootstrap.run
    monkeypatch.setattr(bootstrap, "run", lambda *command: 1)  # pyright: ignore[reportUnknownLambdaType]
    assert bootstrap.main(["test"]) == 2
    assert "mend:" in capsys.readouterr().err
    monkeypatch.setattr(bootstrap, "run", working)
    assert bootstrap.main(["setup"]) == 0
    assert len(calls) == 3


def test_a_python_that_is_too_old_is_told(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 8, 1))
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: None)  # pyright: ignore[reportUnknownLambdaType]
    assert bootstrap.main(["demo"]) == 2
    assert "needs Python 3.10 or newer" in capsys.readouterr().err
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: f"/bin/{name}")  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(bootstrap, "works", lambda python: python.name == "python3.12")  # pyright: ignore[reportUnknownLambdaType]
    assert bootstrap.new_enough_python() == "/bin/python3.12"


def test_the_demo_goes_on_where_it_stopped_and_says_where_the_results_are(
    bootstrap: ModuleType, calls: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bootstrap.main(["demo"]) == 0
    assert calls[-1][1:] == ["-m", "trainer", "train", "recipes/character-lora.yaml"]
    for step in ("step-000000", "step-000300"):
        (bootstrap.RUN / "previews" / step).mkdir(parents=True)
        (bootstrap.RUN / "previews" / step / "grid.png").touch()
    assert bootstrap.main(["demo"]) == 0
    assert calls[-1][-1] == "--resume"
    last = capsys.readouterr().out.splitlines()[-1].replace("\\", "/")
    assert "runs/blob/blob.safetensors" in last
    assert "step-000000/grid.png" in last
    assert "step-000300/grid.png" in last


def test_what_is_no_verb_shows_how_it_is_used(bootstrap: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert bootstrap.main(["demoo"]) == 2
    assert bootstrap.main([]) == 0
    assert "demo|test" in capsys.readouterr().out
    assert sys.version_info >= bootstrap.OLDEST
