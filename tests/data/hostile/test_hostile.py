"""The hostile set: every file has the fate that is written beside it, and nothing is opened that stands outside."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from trainer.core.errors import DataError
from trainer.core.files import printable
from trainer.data.account import Account
from trainer.data.decoding import ImageLimits, decode, look, read_regular
from trainer.data.example import Example
from trainer.data.scanning import scan
from trainer.data.sources.folder import ImageFolder

if TYPE_CHECKING:
    from hostile_case import Case

pytestmark = [  # pytest undoes the filter of decoding.py
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

LIMITS = ImageLimits()
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
SECONDS = 60
GROWTH = 300  # MiB

# Scans the folder in a process of its own, with a guard on what it opens and starts.
_SCAN = """
import json, os, resource, sys, time
from pathlib import Path
from trainer.data.decoding import ImageLimits
from trainer.data.scanning import scan
from trainer.data.sources.folder import ImageFolder

root = Path(sys.argv[1])
beside, started, opened, inside = str(root.parent / "beside"), [], [], []

def guard(event, arguments):
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"):
        started.append(event)
    if event == "open" and isinstance(arguments[0], str | bytes):
        path = os.fsdecode(arguments[0])
        inside.append(path.startswith(str(root)))
        if path.startswith((beside, "/etc/host", "/dev/zero", "/dev/tty", "/proc")):
            opened.append(path)

before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
sys.addaudithook(guard)
account = scan([ImageFolder(path=root)], ImageLimits())
took = time.monotonic() - start
growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
print(json.dumps([account.counts, took, growth, started, opened, sum(inside)]))
"""


@pytest.fixture(scope="module")
def account(hostile: Path) -> Account:
    return scan([ImageFolder(path=hostile)], LIMITS)


@pytest.fixture(scope="module")
def fates(account: Account) -> dict[str, tuple[str, str]]:
    """Name: list in which it stands, reason."""
    found: dict[str, tuple[str, str]] = {example.name: ("accepted", "") for example in account.accepted}
    for fate, remarks in (("caption", account.captions), ("rejected", account.rejected), ("ignored", account.ignored)):
        for remark in remarks:
            assert remark.name not in found, "a file stands in two lists"
            found[remark.name] = (fate, remark.reason)
    return found


def test_the_set_is_large_and_every_file_of_it_stands_in_one_list(
    cases: "list[Case]", account: Account, fates: dict[str, tuple[str, str]]
) -> None:
    assert len(cases) >= 500
    assert len({case.name for case in cases}) == len(cases)
    assert set(fates) == {printable(case.name) for case in cases}
    assert account.found == len(cases)


def test_every_file_has_the_fate_that_it_should_have(cases: "list[Case]", fates: dict[str, tuple[str, str]]) -> None:
    wrong = [
        f"{printable(case.name)}: {fate}, {reason!r} instead of {case.fate}, {case.says!r}"
        for case in cases
        for fate, reason in [fates[printable(case.name)]]
        if fate != case.fate or case.says not in reason or (fate in ("rejected", "ignored") and not reason)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_warning_is_expected_and_every_expected_one_is_given(cases: "list[Case]", account: Account) -> None:
    given: dict[str, list[str]] = {}
    for remark in account.warnings:
        given.setdefault(remark.name, []).append(remark.reason)
    wrong: list[str] = []
    for case in cases:
        reasons = [reason for reason in given.pop(printable(case.name), []) if reason != "has no caption"]
        matched = all(any(part in reason for reason in reasons) for part in case.warns)
        if not matched or len(reasons) != len(case.warns):
            wrong.append(f"{printable(case.name)}: {reasons} instead of {case.warns}")
    assert not wrong, "\n".join(wrong)
    assert not given, "a warning about no file of the set"


def test_every_accepted_picture_has_the_right_pixels(hostile: Path, cases: "list[Case]") -> None:
    wrong: list[str] = []
    for case in cases:
        if case.fate != "accepted" or case.size == (8_000, 8_000):  # a quarter of a gigabyte: see `look`
            continue
        picture = decode(read_regular((hostile / case.name).resolve(), LIMITS.bytes), case.name, LIMITS)
        assert (picture.image.mode, picture.image.size) == ("RGB", case.size), case.name
        pixels = np.asarray(picture.image).astype(int)
        for (x, y), colour in case.probes:
            if np.abs(pixels[y, x] - colour).max() > case.near:
                wrong.append(f"{printable(case.name)}: {pixels[y, x]} instead of {colour} at {x}, {y}")
    assert not wrong, "\n".join(wrong)


def test_sizes_and_captions_are_the_right_ones(cases: "list[Case]", account: Account) -> None:
    examples: dict[str, Example] = {example.name: example for example in account.accepted}
    for case in cases:
        if case.fate == "accepted":
            example = examples[printable(case.name)]
            assert tuple(example.size) == case.size, case.name
            assert example.captions == (case.captions or ()), case.name
            assert os.fsencode(example.locator) == os.fsencode(case.name)


def test_looking_and_decoding_agree(hostile: Path, cases: "list[Case]") -> None:
    for case in cases:
        if (
            not isinstance(case.content, bytes)
            or case.name.endswith((".txt", ".caption"))
            or case.size == (8_000, 8_000)
        ):
            continue
        answers: list[object] = []
        for verb in (look, decode):
            try:
                answers.append(verb(case.content, "here", LIMITS).remarks)
            except DataError as error:
                answers.append(str(error))
        assert answers[0] == answers[1], case.name


def test_a_scan_is_quick_takes_little_memory_and_opens_nothing_outside(hostile: Path, cases: "list[Case]") -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCAN, str(hostile)],
        capture_output=True, text=True, timeout=2 * SECONDS, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    counts, took, growth, started, opened, inside = json.loads(done.stdout.splitlines()[-1])
    assert sum(counts[name] for name in ("accepted", "captions", "masks", "rejected", "ignored")) == len(cases)
    assert took < SECONDS
    assert growth <= GROWTH
    assert (started, opened) == ([], [])
    assert inside > 500, "the guard has seen nothing"


def test_doctor_reports_the_set_without_a_traceback_and_printably(hostile: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    environment = {**ENVIRONMENT, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "doctor", str(hostile), "--json", str(report)],
        capture_output=True, timeout=2 * SECONDS, check=False, env=environment, cwd=tmp_path,
    )  # fmt: skip
    output = done.stdout.decode("utf-8")
    assert done.returncode == DataError.exit_code, done.stderr.decode("utf-8", "replace")
    assert b"Traceback" not in done.stdout + done.stderr
    assert b"Warning:" not in done.stderr
    assert all(character.isprintable() or character == "\n" for character in output)
    assert not list(tmp_path.rglob("PWNED"))
    account: dict[str, Any] = json.loads(report.read_text("utf-8"))["account"]
    assert account["counts"]["rejected"] > 100


def test_nobody_told_pillow_to_be_lenient() -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3
