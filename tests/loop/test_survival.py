"""Damage, full disks, leftovers and second owners: named, survived, and never used in silence."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from trainer.assemble import assemble
from trainer.beginning import is_finished, run_folder_of
from trainer.core import files
from trainer.core.errors import CheckpointError, NotWrittenError, RecipeError
from trainer.core.events import read_events
from trainer.core.progress import Silence
from trainer.core.run_folder import RunFolder
from trainer.loop import checkpoints as module
from trainer.loop import keeping
from trainer.loop.checkpoints import Checkpoints, CheckpointSettings, State
from trainer.loop.train import train
from trainer.recipe.recipe import Recipe

DAMAGES: Final[dict[str, Callable[[bytes], bytes | None]]] = {
    "removed": lambda _: None,
    "emptied": lambda _: b"",
    "cut in half": lambda old: old[: len(old) // 2],
    "one byte short": lambda old: old[:-1],
    "one byte long": lambda old: old + b" ",
    "first bit": lambda old: bytes([old[0] ^ 1]) + old[1:],
    "a bit in its middle": lambda old: (
        old[: len(old) // 2] + bytes([old[len(old) // 2] ^ 1]) + old[len(old) // 2 + 1 :]
    ),
    "end zeroed": lambda old: old[: len(old) * 3 // 4] + bytes(len(old) - len(old) * 3 // 4),
}
FILES: Final = ("trained.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", "manifest.json")


def a_state(step: int) -> State:
    tensors = {"a": torch.full((40,), float(step)), "b": torch.arange(20.0)}
    return State(
        step=step,
        pictures=step * 2,
        trained=tensors,
        optimizer={"m": torch.ones(10)},
        optimizer_facts={"kind": "x"},
        ema={"a": torch.full((40,), 0.5)},
        scaler=None,
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


def kept(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.checkpoints.iterdir())


def saved(folder: RunFolder, *steps: int, **settings: Any) -> Checkpoints:
    checkpoints = Checkpoints(folder, CheckpointSettings(every=1, **settings))
    for step in steps:
        checkpoints.save(a_state(step))
    return checkpoints


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_named_and_the_checkpoint_before_is_used(
    folder: RunFolder, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    checkpoints = saved(folder, 1, 2)
    file = folder.checkpoint(2) / name
    content = DAMAGES[damage](file.read_bytes())
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    state = checkpoints.newest()
    assert state is not None
    assert state.step == 1
    assert "step-000002" in caplog.text


def test_a_manifest_that_says_something_else_is_damage(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = saved(folder, 1, 2)
    path = folder.checkpoint(2) / "manifest.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(facts | {"trainer": "9.9"}, indent=1), encoding="utf-8")
    state = checkpoints.newest()
    assert state is not None
    assert state.step == 1
    assert "manifest.json is not as it was written" in caplog.text


def test_a_checkpoint_under_the_name_of_another_step_is_damage(folder: RunFolder) -> None:
    checkpoints = saved(folder, 1, 2)
    folder.checkpoint(1).rename(folder.checkpoint(9))
    state = checkpoints.newest()
    assert state is not None
    assert state.step == 2


def test_where_all_are_damaged_nothing_is_begun_anew(folder: RunFolder) -> None:
    checkpoints = saved(folder, 1, 2)
    for step in (1, 2):
        (folder.checkpoint(step) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="Every checkpoint"):
        checkpoints.newest()


def test_the_newest_stay_whatever_the_clock_says_and_the_one_gone_on_from_too(folder: RunFolder) -> None:
    saved(folder, 1, 2, keep=2)
    checkpoints = saved(folder, keep=2)
    checkpoints.resumed = 2
    for path in folder.checkpoints.iterdir():
        os.utime(path, (4e9, 4e9))  # they seem to be newer than all that follow
    for step in (3, 4, 5):
        checkpoints.save(a_state(step))
    assert kept(folder) == ["step-000002", "step-000004", "step-000005"]
    saved(folder, 6, keep=2)
    assert kept(folder) == ["step-000005", "step-000006"]


def test_two_are_there_while_one_is_asked_for_and_saved(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(folder, 1, keep=1)
    take_name, seen = module.take_name, list[list[str]]()

    def watched(temporary: Path, path: Path) -> None:
        take_name(temporary, path)
        seen.append([name for name in kept(folder) if not name.startswith(".")])

    monkeypatch.setattr(module, "take_name", watched)
    checkpoints.save(a_state(2))
    assert seen[0] == ["step-000001", "step-000002"]
    assert kept(folder) == ["step-000002"]


def test_damaged_later_ones_neither_count_nor_go_before_the_run_has_passed_them(folder: RunFolder) -> None:
    saved(folder, 2, 3, 8, keep=9)
    (folder.checkpoint(8) / "manifest.json").write_text("{}", encoding="utf-8")
    checkpoints = saved(folder, keep=2)
    checkpoints.save(a_state(5))
    assert kept(folder) == ["step-000003", "step-000005", "step-000008"]
    state = checkpoints.newest()
    assert state is not None
    assert state.step == 5
    checkpoints.save(a_state(8))
    assert kept(folder) == ["step-000005", "step-000008"]
    state = checkpoints.newest()
    assert state is not None
    assert state.step == 8


def test_what_cannot_be_removed_is_a_warning(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(folder, 1, keep=1)

    def refuse(_: Checkpoints, path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Checkpoints, "_remove", refuse)
    checkpoints.save(a_state(2))
    assert "step-000001 could not be removed: Permission denied" in caplog.text


def having(count: int) -> Callable[[Path], int]:
    """A disk with so many bytes free."""

    def free_bytes(_: Path) -> int:
        return count

    return free_bytes


def pass_by(_: float) -> None:
    """Time passes, for all that the program knows."""


def full(path: Path, *_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_a_full_disk_leaves_the_old_checkpoint_and_says_what_is_missing(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(folder, 1)
    monkeypatch.setattr(module, "write_tensors", full)
    monkeypatch.setattr(files, "free_bytes", having(100))
    with pytest.raises(NotWrittenError, match=r"No space left on device\. It takes .* are missing") as caught:
        checkpoints.save(a_state(2))
    assert str(folder.checkpoint(2)) in str(caught.value)
    assert kept(folder) == ["step-000001"]
    assert checkpoints.newest() is not None


def test_the_library_that_writes_tensors_says_why_it_could_not(tmp_path: Path) -> None:
    import resource

    from trainer.core.tensors import read_tensors, write_tensors

    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(4)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_tensors(path, {"a": torch.zeros(40_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_tensors(path)["a"].shape == (4,)
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ".safetensors"] == []


def test_a_name_that_windows_holds_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_ON_WINDOWS", True)
    monkeypatch.setattr(files.time, "sleep", pass_by)
    replace, refusals = Path.replace, [2]

    def refusing(self: Path, target: Path) -> Path:
        if refusals[0]:
            refusals[0] -= 1
            raise PermissionError(errno.EACCES, "in use")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refusing)
    files.write_atomically(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text(encoding="utf-8") == "new"
    refusals[0] = 100
    with pytest.raises(PermissionError):
        files.write_atomically(tmp_path / "x", "newer")
    assert (tmp_path / "x").read_text(encoding="utf-8") == "new"


def test_the_order_of_writing_is_file_name_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deeds: list[str] = []
    flush, replace = files.flush_to_disk, Path.replace

    def flushed(path: Path) -> None:
        deeds.append("folder" if path.is_dir() else "file")
        flush(path)

    def renamed(self: Path, target: Path) -> Path:
        deeds.append("name")
        return replace(self, target)

    monkeypatch.setattr(files, "flush_to_disk", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    files.write_atomically(tmp_path / "x", "y")
    assert deeds == ["file", "name", "folder"]


def test_what_a_killed_owner_left_goes_and_nothing_else(folder: RunFolder) -> None:
    saved(folder, 1)
    (folder.checkpoints / ".step-000002.0123456789ab.tmp").mkdir()
    (folder.checkpoints / ".step-000002.0123456789ab.tmp" / "x").write_text("x", encoding="utf-8")
    (folder.root / ".run.safetensors.0123456789ab.tmp").write_text("x", encoding="utf-8")
    for mine in (".notes.tmp", "notes.0123456789ab.tmp", ".x.123.tmp"):
        (folder.root / mine).write_text("mine", encoding="utf-8")
    with folder.owned():
        assert kept(folder) == ["step-000001"]
        names = {path.name for path in folder.root.iterdir()}
    assert names == {".lock", "checkpoints", ".notes.tmp", "notes.0123456789ab.tmp", ".x.123.tmp"}


OWNER = """
import sys, time
from pathlib import Path
from trainer.core.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).owned():
    print("mine", flush=True)
    time.sleep(60)
"""


def test_a_second_owner_is_refused_and_a_killed_one_leaves_nothing_stale(folder: RunFolder) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", OWNER, str(folder.root)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "mine\n"
        before = {path: path.stat().st_mtime_ns for path in (folder.root, *folder.root.rglob("*"))}
        began = time.monotonic()
        with pytest.raises(CheckpointError, match="Another process"), folder.owned():
            pytest.fail("it has two owners")
        assert time.monotonic() - began < 5
        assert {path: path.stat().st_mtime_ns for path in (folder.root, *folder.root.rglob("*"))} == before
        owner.kill()
        owner.wait()
    with folder.owned():
        pass


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(RecipeError, match="cannot be written"), RunFolder(tmp_path / "file" / "run").owned():
        pass


def finish(recipe: Recipe, *, resume: bool = False) -> Path:
    run = assemble(recipe, resume=resume, progress=Silence())
    with run.trackers:
        return train(run)


def test_a_checkpoint_that_fails_is_tried_again_soon_and_changes_nothing(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"steps": 6, "accumulate": 1, "checkpoints": {"every": 2, "keep": 2}}
    whole = finish(recipe_of(**changes)).read_bytes()
    shutil.rmtree(run_folder_of(recipe_of(**changes)).root)
    write, tried = module._write, list[int]()  # pyright: ignore[reportPrivateUsage] - the disk is below it

    def full_at_first(path: Path, state: State, *rest: Any) -> None:
        tried.append(state.step)
        if len(tried) < 3:
            full(path)
        write(path, state, *rest)

    monkeypatch.setattr(module, "_write", full_at_first)
    recipe = recipe_of(**changes)
    assert finish(recipe).read_bytes() == whole
    assert tried == [2, 3, 4, 6]  # a tenth of two steps is one
    events = read_events(run_folder_of(recipe).events)
    assert [event["step"] for event in events if event["kind"] == "warning"] == [2, 3]
    assert [event["step"] for event in events if event["kind"] == "checkpoint"] == [4, 6]


def test_the_last_checkpoint_is_tried_for_longer_and_the_result_comes_without_it(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(keeping.time, "sleep", pauses.append)
    monkeypatch.setattr(module, "_write", full)
    recipe = recipe_of(steps=2, checkpoints={"every": 0})
    result = finish(recipe)
    assert result.is_file()
    assert len(pauses) == 3
    assert 5 < sum(pauses) < 30
    assert "No space left on device" in caplog.text
    assert is_finished(recipe)


def test_a_result_that_cannot_be_written_is_said_and_comes_when_there_is_room(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping.time, "sleep", pass_by)
    recipe = recipe_of(steps=2)
    run = assemble(recipe, resume=False, progress=Silence())
    object.__setattr__(run, "export", lambda: full(run.folder.result))
    with pytest.raises(NotWrittenError, match="The result could not be written: No space") as caught, run.trackers:
        train(run)
    assert caught.value.exit_code == 2
    assert not is_finished(recipe)
    assert finish(recipe, resume=True).is_file()
    assert is_finished(recipe)


def test_a_disk_without_room_is_said_before_the_first_step(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "free_bytes", having(30_000))
    recipe = recipe_of(steps=2)
    with pytest.raises(NotWrittenError, match="no room on the disk"):
        finish(recipe)
    assert not any(event["kind"] == "step" for event in read_events(run_folder_of(recipe).events))
    monkeypatch.setattr(keeping, "free_bytes", having(200_000))
    finish(recipe, resume=True)
    (warning,) = [event for event in read_events(run_folder_of(recipe).events) if event["kind"] == "warning"]
    assert "may become full" in warning["message"]


def test_a_run_that_was_asked_for_more_is_not_finished_by_its_old_file(recipe_of: Callable[..., Recipe]) -> None:
    changes: dict[str, Any] = {"rate": {"kind": "constant"}, "accumulate": 1}
    finish(recipe_of(steps=2, **changes))
    longer = recipe_of(steps=3, **changes)
    assemble(longer, resume=True, progress=Silence())  # and killed then: the file of two steps is still there
    assert run_folder_of(longer).result.exists()
    assert not is_finished(longer)
    finish(longer, resume=True)
    assert is_finished(longer)
