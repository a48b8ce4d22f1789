"""Each fault alone is told within seconds, before any weights are read or what makes networks is loaded."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

FAULTS = (  # what is asked for, what the message names
    ("stepps=3", "steps"),
    ("steps=0", "steps"),
    ("precision=float8", "float16"),
    ("optimizer.kind=adan", "adamw"),
    ("optimizer.rate=-1", "optimizer.rate"),
    ("adapter.rank=0", "adapter.rank"),
    ("data.sources.0.path=absent", "absent"),
    ("model.weights=absent.safetensors", "absent.safetensors"),
    ("model.weights=absent.ckpt", "absent.ckpt"),
    ("name=../outside", "name"),
    ("data.cache.shared=bucket/prefix", "s3://bucket/prefix"),
    ("data.cache.shared=s3://me:swordfish@bucket/prefix", "environment"),
)
HEAVY = ("diffusers", "transformers", "peft", "datasets", "fsspec")

SCRIPT = """
import contextlib, io, json, sys, time
from trainer.cli.main import run
run(["train", "no-such-recipe.yaml"])  # so that torch's own start is not measured
recipe, heavy, faults = json.loads(sys.argv[1])
for asked in faults:
    said, since = io.StringIO(), time.process_time()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = run(["train", recipe, asked])
    loaded = [name for name in heavy if name in sys.modules]
    print(json.dumps([asked, code, said.getvalue(), time.process_time() - since, loaded]), flush=True)
"""


def test_each_fault_alone_is_told_in_time(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe = recipe_file()
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    assert content["steps"] == 2
    question = json.dumps([str(recipe), HEAVY, [asked for asked, _ in FAULTS]])
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT, question],
        capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    told = [json.loads(line) for line in answer.stdout.splitlines()]
    assert len(told) == len(FAULTS)
    for (asked, names), (_, code, said, seconds, loaded) in zip(FAULTS, told, strict=True):
        assert code in (2, 3), asked
        assert names in said, (asked, said)
        assert "mend:" in said, asked
        assert "Traceback" not in said, asked
        assert "swordfish" not in said, asked
        assert seconds < 5, (asked, seconds)
        assert loaded == [], (asked, loaded)
    assert not (tmp_path / "runs" / "tried" / "recipe.yaml").exists()
