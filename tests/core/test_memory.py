"""Sizes, caps, running out, and memory that only seems to be the card's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.cli.main import run
from trainer.core.device import bytes_of_size, cap_memory
from trainer.core.errors import MemoryPlanError
from trainer.core.memory import DeviceMemory, SpillWatch, as_message, ran_out, read_device_memory, room_below_peak

GIB = 1 << 30
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * GIB), ("8g", 8 * GIB), ("8 G", 8 * GIB), ("1.5GiB", 3 * GIB // 2), ("8GB", 8 * 10**9),
        ("900MB", 900 * 10**6), ("512 MiB", 512 << 20), ("1TiB", 1 << 40), ("4096", 4096), ("4096B", 4096),
    ],
)  # fmt: skip
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert bytes_of_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0GiB", "8 GiBs", "eight", "8XB", "1e9", "8GiB\x1b[31m"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size of memory"):
        bytes_of_size(text)


def test_memory_that_ran_out_is_told_from_other_errors() -> None:
    assert ran_out(MemoryError())
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ran_out(caught.value)
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not ran_out(ValueError("out of memory"))


def test_the_message_says_what_helps_and_has_its_own_code() -> None:
    message = as_message(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore\nmore"))
    assert message.exit_code == 4
    assert "2.00 GiB" in str(message)
    assert "gradient_checkpointing=true" in str(message)
    assert len(str(message).splitlines()) == 3


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError("... can't allocate memory ...")],
)
def test_the_command_line_ends_with_code_4(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("trainer.cli.main.application", fail)
    assert run(["explain"]) == 4
    assert "There is not enough memory for this." in capsys.readouterr().err


def test_other_errors_remain_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr("trainer.cli.main.application", fail)
    with pytest.raises(RuntimeError, match="something else"):
        run(["explain"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to an amount of memory")
def test_a_process_is_held_to_its_cap() -> None:
    script = """
import torch
from trainer.cli import main
from trainer.core.device import bytes_of_size, cap_memory
size = bytes_of_size("1GiB")
cap_memory(size, torch.device("cpu"))
kept = torch.ones(200 << 20, dtype=torch.uint8)  # still fits
print("fits", flush=True)
main.application = lambda _: torch.ones(1 << 30, dtype=torch.uint8)
raise SystemExit(main.run(["train"]))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 4, done.stderr
    assert done.stdout.strip() == "fits"
    assert done.stderr.count("There is not enough memory for this.") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to an amount of memory")
def test_a_cap_below_what_is_there_already_is_refused() -> None:
    with pytest.raises(MemoryPlanError, match="before it begins"):
        cap_memory(1 << 20, torch.device("cpu"))


def test_a_full_card_with_slow_steps_is_named_once() -> None:
    watch = SpillWatch()
    roomy = DeviceMemory(reserved=6 * GIB, free=1 * GIB, total=8 * GIB)
    full = DeviceMemory(reserved=7 * GIB, free=GIB // 10, total=8 * GIB)
    assert [watch.look(1.0, roomy) for _ in range(6)] == [None] * 6
    assert watch.look(9.0, roomy) is None  # slow, but there is room: a checkpoint, or another program
    assert watch.look(1.1, full) is None  # full, but not slow: as it should be
    said = watch.look(5.0, full)
    assert said is not None
    assert "5.0 s now, and took 1.0 s" in said
    assert watch.look(5.0, full) is None


def test_a_first_slow_step_means_nothing() -> None:
    watch = SpillWatch()
    full = DeviceMemory(reserved=7 * GIB, free=0, total=8 * GIB)
    assert watch.look(60.0, full) is None


def test_more_than_the_card_has_is_named_at_once() -> None:
    said = SpillWatch().look(2.0, DeviceMemory(reserved=9 * GIB, free=0, total=8 * GIB))
    assert said is not None
    assert "8.0 GiB" in said


def test_the_cpu_counts_no_device_memory() -> None:
    assert read_device_memory(torch.device("cpu")) is None
    assert room_below_peak(torch.device("cpu")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_held_to_its_cap() -> None:
    script = """
import torch
from trainer.core.device import cap_memory
device = torch.device("cuda", 0)
cap_memory(2 << 30, device)
kept = torch.ones(1 << 30, dtype=torch.uint8, device=device)
try:
    torch.ones(1 << 30, dtype=torch.uint8, device=device)
except torch.OutOfMemoryError:
    raise SystemExit(7)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False, timeout=300)
    assert done.returncode == 7
