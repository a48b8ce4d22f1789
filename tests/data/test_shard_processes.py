"""Processes that are killed while they write, and processes that write into one folder at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.data.shards import ShardStore

PROCESSES = """
import hashlib, os, random, signal, sys, time
from pathlib import Path
from trainer.data.shards import ShardStore
import pyarrow, pyarrow.ipc, safetensors.numpy, numpy

key = lambda n: hashlib.sha256(str(n).encode()).hexdigest()
content = lambda n: hashlib.sha512(str(n).encode()).digest() * (1 + n % 5)
folder = Path(sys.argv[1])

def fill(numbers, told):
    store = ShardStore(folder)
    for n in numbers:
        if store.get(key(n)) is None:
            store.write({key(n): content(n)})
            os.write(told, b"%d " % n)
        store.save_index()

def child(numbers, told):
    pid = os.fork()
    if not pid:
        try:
            fill(numbers, told)
            os._exit(0)
        finally:
            os._exit(1)
    return pid
"""

KILLED = (
    PROCESSES
    + """
random.seed(1)
written = []
for round in range(20):
    here, there = os.pipe()
    pid = child(range(round * 1000, round * 1000 + 1000), there)
    os.close(there)
    time.sleep(random.uniform(0.005, 0.3))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    written += [int(n) for n in os.read(here, 1 << 20).decode().split(" ")[:-1]]
    os.close(here)
store = ShardStore(folder)
assert all(store.get(key(n)) == content(n) for n in written), "an entry that was written is lost"
assert len(written) <= len(store) <= len(written) + 20, "more than one entry a kill"
print(len(written))
"""
)

AT_ONCE = (
    PROCESSES
    + """
forth = list(range(60))
told = os.open(os.devnull, os.O_WRONLY)
for pid in [child(forth, told), child(forth[::-1], told), child(forth[30:] + forth[:30], told)]:
    assert os.waitpid(pid, 0)[1] == 0
store = ShardStore(folder)
assert len(store) == 60
assert all(store.get(key(n)) == content(n) for n in forth)
print(len(list(folder.glob("shard-*.arrow"))))
"""
)


def said(code: str, folder: Path) -> int:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    assert "cannot be used" not in ran.stderr
    return int(ran.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children without a start of their own")
def test_a_kill_at_any_of_20_moments_loses_nothing_that_was_written(tmp_path: Path) -> None:
    assert said(KILLED, tmp_path) > 0
    assert all(file.stat().st_size for file in tmp_path.glob("shard-*.arrow"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children without a start of their own")
def test_three_processes_fill_one_folder(tmp_path: Path) -> None:
    assert said(AT_ONCE, tmp_path) >= 60
    assert len(ShardStore(tmp_path)) == 60
