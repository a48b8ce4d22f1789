"""Processes that hash otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each process imports torch

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
needed = sorted(captions_needed([one], lambda _: rules, Seeds(1)))
print([caption_of(one, rules, Seeds(1), epoch) for epoch in range(9)], needed)
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


def test_order_and_words_do_not_depend_on_python_s_hashes() -> None:
    answers = {answer(start(ORDER, PYTHONHASHSEED=seed)) for seed in ("1", "2")}
    assert len(answers) == 1
