"""Processes that are killed, that run side by side, or that hash otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from trainer.data.cache import TensorCache

pytestmark = pytest.mark.slow  # each process imports torch

# A filling in a process of its own, with small encoders; `argv`: the pictures, the cache, how many encodings to live.
FILL = """
import os, signal, sys
from pathlib import Path
import torch
from trainer.batch import Conditioning, Encoders, Posterior
from trainer.core.seeds import Seeds
from trainer.data import filling
from trainer.data.batches import DataSettings
from trainer.data.scanning import scan

pictures, cache, lives = sys.argv[1], sys.argv[2], int(sys.argv[3])
filling._SHARD_SECONDS = 0.0  # a shard each entry

def encode_pictures(pixels):
    global lives
    lives -= 1
    if lives < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    mean = pixels[:, :, ::8, ::8]
    return Posterior(mean=mean, deviation=mean.abs())

def encode_words(captions):
    return Conditioning(tokens=torch.tensor([[[float(len(c))]] for c in captions]))

encoders = Encoders(encode_pictures=encode_pictures, encode_words=encode_words, pictures_identity="p",
                    words_identity="w", scale=8)
settings = DataSettings.model_validate({"sources": [{"kind": "folder", "path": pictures}], "cache": {"folder": cache}})
report = filling.fill_cache(scan(settings.parts, settings.limits).accepted, settings, encoders, Seeds(0))
print(report.encoded_pictures, report.reused_pictures)
"""

ORDER = """
from pathlib import Path
from trainer.core.seeds import Seeds
from trainer.data.captions import CaptionRules, caption_of, captions_needed
from trainer.data.example import Example, Size
from trainer.data.sampler import BucketSampler

sampler = BucketSampler([0, 2, 1] * 9, 4, Seeds(1))
print([sampler.batch(number).examples for number in range(20)])
one = Example(source=0, locator="a", name="a", key="k", size=Size(1, 1), captions=("a, b, c, d, e",))
rules = CaptionRules(shuffle_tags=True, trigger="t")
print([caption_of(one, rules, Seeds(1), epoch) for epoch in range(9)], sorted(captions_needed([one], rules, Seeds(1))))
"""


def start(code: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", **environment},
    )


def answer(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (512, 512), (number * 20, 0, 0)).save(folder / f"{number}.png")
    return folder


def test_a_killed_filling_loses_the_entry_it_was_at_and_no_other(pictures: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    killed = start(FILL, str(pictures), cache, "4")
    killed.communicate(timeout=240)
    assert killed.returncode == -9
    assert answer(start(FILL, str(pictures), cache, "99")).split() == ["2", "4"]
    unbroken = str(tmp_path / "unbroken")
    answer(start(FILL, str(pictures), unbroken, "99"))
    assert contents(Path(cache)) == contents(Path(unbroken))


def test_two_processes_may_fill_the_same_cache(pictures: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    both = [start(FILL, str(pictures), str(cache), "99") for _ in range(2)]
    for process in both:
        assert sum(map(int, answer(process).split())) == 6
    assert len(contents(cache)) == 6


def contents(root: Path) -> dict[str, list[float]]:
    cache = TensorCache(root, "p")
    found: dict[str, list[float]] = {}
    for key in cache.keys():  # noqa: SIM118  it is no mapping
        entry = cache.read(key)
        assert entry is not None
        found[key] = [*entry["mean"].flatten().tolist(), *entry["deviation"].flatten().tolist()]
    return found


def test_order_and_words_do_not_depend_on_python_s_hashes() -> None:
    answers = {answer(start(ORDER, PYTHONHASHSEED=seed)) for seed in ("1", "2")}
    assert len(answers) == 1
