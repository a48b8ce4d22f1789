"""Fillings that are killed at any moment: what was encoded is kept, and no more than one batch is encoded again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,  # some hundred fillings
    pytest.mark.skipif(not hasattr(os, "fork"), reason="children without a start of their own"),
]

# Children are forked from one process that has imported everything; each fills the cache until it is killed. What is
# given to an encoder is written down before it is encoded, so that what is encoded again can be counted.
FILL = """
import hashlib, json, os, random, shutil, signal, sys, time
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from trainer.batch import Conditioning, Encoders, Posterior
from trainer.core.seeds import Seeds
from trainer.data import encoding, filling, gathering
from trainer.data.batches import DataSettings
from trainer.data.planning import Share
from trainer.data.scanning import scan
from trainer.data.shards import ShardStore
import filelock, pyarrow, pyarrow.ipc, safetensors.torch, safetensors.numpy

asked = json.loads(sys.argv[1])
root, count, batch = Path(asked["root"]), asked["count"], asked["batch"]
chance = random.Random(asked["seed"])
torch.set_num_threads(1)
encoding._MOST_AT_ONCE = batch
gathering._SHARD_SECONDS = asked["shard_seconds"]

for number in range(count):
    path = root / "pictures" / f"{number:03}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (96 if number % 4 == 0 else 64, 64), (number, 99, 7)).save(path)
    path.with_suffix(".txt").write_text(f"picture {number}", encoding="utf-8")

def settings_of(place):
    return DataSettings.model_validate({"sources": [{"kind": "folder", "path": root / "pictures"}],
                                        "cache": {"folder": place / "cache"}, "resolution": 64, "flip": False})

def encoders_of(place):
    log = os.open(place / "encoded", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(what):
        once = dict.fromkeys(what)  # batches are filled up with their last
        os.write(log, "".join(f"{one}\\n" for one in once).encode())
        time.sleep(asked["seconds"])

    def encode_pictures(pixels):
        shades = ((pixels[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
        note(f"shade {shade}" for shade in shades)
        mean = torch.nn.functional.avg_pool2d(pixels, 4)
        return Posterior(mean=mean, deviation=mean.abs())

    def encode_words(captions):
        note(captions)
        return Conditioning(tokens=torch.tensor([[[float(len(c)), float(c.split()[1])]] for c in captions]))

    return Encoders(encode_pictures=encode_pictures, encode_words=encode_words, pictures_identity="p",
                    words_identity="w", scale=4)

class Life:
    def __init__(self, place, share=Share(), before=lambda: None):
        ready, tell = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                settings = settings_of(place)
                examples = scan(settings.parts, settings.limits).accepted
                encoders = encoders_of(place)
                os.write(tell, b"1")
                before()
                filling.fill_cache(examples, settings, encoders, Seeds(0), share=share)
                code = 0
            except BaseException as error:
                os.write(2, repr(error).encode())
            finally:
                os._exit(code)
        os.close(tell)
        os.read(ready, 1)
        os.close(ready)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        return self

    def end(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

def contents(place):
    found = {}
    for folder in sorted(file.parent for file in (place / "cache").rglob("identity.txt")):
        store = ShardStore(folder)
        for key in store.keys():
            found[key] = store.get(key)
            assert found[key] is not None
    return found

def anew(name):
    place = root / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place

def again(place):
    "How many entries were encoded more than once; all were encoded."
    lines = (place / "encoded").read_text().splitlines()
    assert len(set(lines)) == 2 * count, len(set(lines))
    return len(lines) - 2 * count

def check_names(place):
    "No journal is left, and what else was half made is gone after a day."
    assert not list((place / "cache").rglob(".journal-*.rows"))
    for path in (place / "cache").rglob(".*"):
        os.utime(path, (1, 1))
    for folder in (place / "cache").iterdir():
        ShardStore(folder)
    left = [path.name for path in (place / "cache").rglob(".*")]
    assert not left, left

def check(place, kills):
    "Whether a filling that is done has what it should have, and nothing else; gives what was encoded again."
    assert contents(place) == expected, "other contents"
    check_names(place)
    repeated = again(place)
    assert repeated <= kills * batch, f"{repeated} entries encoded again after {kills} kills"
    return repeated

whole = anew("whole")
unbroken = Life(whole)
began = time.monotonic()
assert unbroken.end() == 0
seconds = time.monotonic() - began
assert again(whole) == 0
expected = contents(whole)
assert len(expected) == 2 * count
"""

AT_RANDOM = """
done = repeated = 0
places = 1
place, kills = anew("place"), 0
while done < 20:
    life = Life(place)
    time.sleep(chance.uniform(0, seconds))
    if life.kill().end() == 0:
        repeated += check(place, kills)
        place, kills, places = anew("place"), 0, places + 1
    else:
        done, kills = done + 1, kills + 1
assert Life(place).end() == 0
repeated += check(place, kills)
print(json.dumps({"kills": done, "repeated": repeated, "fillings": places}))
"""

BEFORE_EACH_CHANGE = """
def counting(place, last):
    def begin():
        number = 0
        def hear(event, arguments):
            nonlocal number
            opened = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if opened or event in ("os.rename", "os.remove", "os.mkdir"):
                number += str(arguments[0]).startswith(str(place / "cache"))
                if number == last:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hear)
    return begin

repeated, done, number = 0, 0, chance.randrange(asked["every"]) + 1
while True:
    place = anew("place")
    if Life(place, before=counting(place, number)).end() == 0:
        break
    assert Life(place).end() == 0
    repeated += check(place, 1)
    done, number = done + 1, number + asked["every"]
print(json.dumps({"kills": done, "repeated": repeated}))
"""

TWO_AT_ONCE = """
shares = [Share(0, 2), Share(1, 2)]
done = repeated = 0
while done < 20:
    place, kills = anew("place"), 0
    lives = [Life(place, share) for share in shares]
    for turn in range(4):
        time.sleep(chance.uniform(0, seconds / 4))
        which = chance.randrange(2)
        if lives[which].kill().end() != 0:
            done, kills = done + 1, kills + 1
            lives[which] = Life(place, shares[which])
        else:
            lives[which] = Life(place, shares[which])
    assert [life.end() for life in lives] == [0, 0]
    repeated += check(place, kills)
print(json.dumps({"kills": done, "repeated": repeated}))
"""

STRANGERS = """
done = 0
while done < 20:
    place = anew("place")
    lives = [Life(place), Life(place)]
    for turn in range(4):
        time.sleep(chance.uniform(0, seconds / 4))
        which = chance.randrange(2)
        done += lives[which].kill().end() != 0
        lives[which] = Life(place)
    assert [life.end() for life in lives] == [0, 0]
    assert contents(place) == expected
    check_names(place)
print(json.dumps({"kills": done}))
"""


def told(code: str, root: Path, **asked: Any) -> dict[str, int]:
    """What a script says after `FILL`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    given = {"root": str(root), "count": 48, "batch": 16, "seed": 0, "seconds": 0.01, "shard_seconds": 30.0, **asked}
    command = [sys.executable, "-c", FILL + code, json.dumps(given)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({"batch": 16, "seconds": 0.03}, id="batches"),
        pytest.param({"batch": 1, "seconds": 0.004, "shard_seconds": 0.1}, id="one by one, many shards"),
        pytest.param({"batch": 4, "seconds": 0.0, "count": 120}, id="as quick as can be"),
    ],
)
def test_at_most_one_batch_is_encoded_again_for_each_of_20_kills(tmp_path: Path, asked: dict[str, Any]) -> None:
    assert told(AT_RANDOM, tmp_path, **asked)["kills"] == 20


@pytest.mark.parametrize("asked", [{"shard_seconds": 30.0, "every": 1}, {"shard_seconds": 0.0, "every": 4}], ids=str)
def test_a_kill_before_any_change_on_the_disk_costs_at_most_one_batch(tmp_path: Path, asked: dict[str, Any]) -> None:
    assert told(BEFORE_EACH_CHANGE, tmp_path, count=6, batch=2, seconds=0.0, **asked)["kills"] > 10


def test_two_that_share_the_work_encode_at_most_one_batch_again_for_each_kill(tmp_path: Path) -> None:
    assert told(TWO_AT_ONCE, tmp_path, batch=1, seconds=0.004)["kills"] >= 20


def test_two_that_do_not_know_of_each_other_end_with_the_same_contents_however_often_they_are_killed(
    tmp_path: Path,
) -> None:
    assert told(STRANGERS, tmp_path, batch=4, seconds=0.01, shard_seconds=0.2)["kills"] >= 20
