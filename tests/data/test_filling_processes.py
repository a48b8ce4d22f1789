"""Fillings in processes of their own: killed, interrupted, side by side, and sharing the work."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.data.shards import ShardStore

pytestmark = pytest.mark.slow  # each process imports torch

ROOT = Path(__file__).parents[2]
COUNT = 160  # pictures: ten batches

# Fills the cache with a small random network; `argv[1]`: JSON.
FILL = """
import json, os, signal, sys, time
from pathlib import Path
import torch
from trainer.batch import Conditioning, Encoders, Posterior
from trainer.core.seeds import Seeds
from trainer.data import filling, gathering
from trainer.data.batches import DataSettings
from trainer.data.planning import Share
from trainer.data.scanning import scan

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background begins without
asked = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.SiLU(), torch.nn.Conv2d(8, 4, 3, 2, 1))
gathering._SHARD_SECONDS = 0.0  # a shard a batch
filling._FEWEST_FOR_PROCESSES = asked.get("fewest", 500)
share = Share()
if asked.get("shared"):
    torch.distributed.init_process_group("gloo")
    share = Share(torch.distributed.get_rank(), torch.distributed.get_world_size())
if "begin" in asked:
    filling.secrets.randbelow = lambda count: int(asked["begin"] * count)
batches = 0

def encode_pictures(pixels):
    global batches
    batches += 1
    if batches > asked.get("lives", 10**9):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(asked.get("seconds", 0.0))
    mean = network(pixels)
    return Posterior(mean=mean, deviation=mean.abs())

def encode_words(captions):
    return Conditioning(tokens=torch.tensor([[[float(len(c))]] for c in captions]))

encoders = Encoders(encode_pictures=encode_pictures, encode_words=encode_words, pictures_identity="p",
                    words_identity="w", scale=4)
settings = DataSettings.model_validate({"sources": [{"kind": "folder", "path": asked["pictures"]}],
                                        "cache": {"folder": asked["cache"]}, "resolution": 64, "flip": False})
examples = scan(settings.parts, settings.limits).accepted
if "meet" in asked:
    meeting = Path(asked["meet"])
    (meeting / str(os.getpid())).touch()
    while len(list(meeting.iterdir())) < 2:
        time.sleep(0.01)
try:
    report = filling.fill_cache(examples, settings, encoders, Seeds(0), share=share)
except KeyboardInterrupt:
    sys.exit(130)
if asked.get("shared"):
    torch.distributed.barrier()
# In one piece: two processes write into the same pipe.
os.write(1, f"\\nencoded {report.encoded_pictures} reused {report.reused_pictures}\\n".encode())
"""


def start(launcher: tuple[str, ...] = (), **asked: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, *launcher] if launcher else [sys.executable, "-c", FILL]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    content = json.dumps({name: str(one) if isinstance(one, Path) else one for name, one in asked.items()})
    return subprocess.Popen(
        [*command, content],
        text=True,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def answer(process: "subprocess.Popen[str]") -> list[tuple[int, int]]:
    """Pictures encoded and reused, of each process that has answered."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    words = [line.split() for line in out.splitlines() if line.startswith("encoded")]
    return [(int(encoded), int(reused)) for _, encoded, _, reused in words]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        size = (96, 64) if number % 4 == 0 else (64, 64)
        gradient = np.asarray(Image.linear_gradient("L").resize(size))
        Image.fromarray(gradient + np.uint8(number)).convert("RGB").save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text("x" * (number % 40 + 1), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def unbroken(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a filling by one process gives."""
    cache = tmp_path_factory.mktemp("unbroken")
    assert answer(start(pictures=pictures, cache=cache)) == [(COUNT, 0)]
    return contents(cache)


def contents(cache: Path) -> dict[str, bytes]:
    """Every entry, byte for byte."""
    found: dict[str, bytes] = {}
    for folder in sorted(file.parent for file in cache.rglob("identity.txt")):
        store = ShardStore(folder)
        for key in store.keys():  # noqa: SIM118  it is no mapping
            content = store.get(key)
            assert content is not None
            found[key] = content
    return found


@pytest.mark.parametrize("fewest", [500, 1], ids=["threads", "processes"])
def test_a_killed_filling_loses_little_and_goes_on(
    pictures: Path, unbroken: dict[str, bytes], tmp_path: Path, fewest: int
) -> None:
    killed = start(pictures=pictures, cache=tmp_path, lives=8, fewest=fewest)
    killed.communicate(timeout=240)  # also waits for the processes that decode: they hold the same pipes
    assert killed.returncode == -signal.SIGKILL
    ((encoded, reused),) = answer(start(pictures=pictures, cache=tmp_path))
    assert encoded + reused == COUNT
    assert reused >= 16  # of 8 batches; those behind the encoder, which waited to be written, are lost
    assert contents(tmp_path) == unbroken


@pytest.mark.parametrize("fewest", [500, 1], ids=["threads", "processes"])
def test_an_interrupted_filling_leaves_nothing_partial_and_goes_on(
    pictures: Path, unbroken: dict[str, bytes], tmp_path: Path, fewest: int
) -> None:
    interrupted = start(pictures=pictures, cache=tmp_path, seconds=0.3, fewest=fewest)
    deadline = time.monotonic() + 200
    while not list(tmp_path.rglob("shard-*.arrow")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does: to all processes of the program
    interrupted.communicate(timeout=30)
    assert interrupted.returncode == 130
    assert not list(tmp_path.rglob("*.tmp"))
    ((encoded, reused),) = answer(start(pictures=pictures, cache=tmp_path))
    assert encoded > 0
    assert reused > 0
    assert contents(tmp_path) == unbroken


def test_two_processes_share_the_work(pictures: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    script = tmp_path / "fill.py"
    script.write_text(FILL, encoding="utf-8")
    cache = tmp_path / "cache"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script))
    answers = answer(start(launcher, pictures=pictures, cache=cache, shared=True))
    assert len(answers) == 2
    assert sum(encoded for encoded, _ in answers) == COUNT
    assert all(encoded >= COUNT // 3 and reused == 0 for encoded, reused in answers)
    assert contents(cache) == unbroken


def test_two_processes_that_do_not_know_of_each_other_repeat_little(
    pictures: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    cache, meeting = tmp_path / "cache", tmp_path / "meeting"
    meeting.mkdir()
    both = [start(pictures=pictures, cache=cache, meet=meeting, seconds=0.4, begin=begin) for begin in (0.0, 0.5)]
    answers = [answer(process)[0] for process in both]
    assert all(encoded + reused == COUNT for encoded, reused in answers)
    assert sum(encoded for encoded, _ in answers) < 1.6 * COUNT
    assert contents(cache) == unbroken
