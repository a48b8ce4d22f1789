"""One, two and four processes train alike, with shares of a model too, and go on from each other's checkpoints."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.assemble import assemble
from trainer.beginning import check_beginning, run_folder_of
from trainer.core.errors import CheckpointError
from trainer.core.events import read_events
from trainer.core.progress import Silence
from trainer.core.tensors import read_tensors
from trainer.families.published import clip_tokenizer
from trainer.loop.train import train
from trainer.recipe.reading import read_recipe
from trainer.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
WHOLE = 4  # pictures at once, of all processes together; the five pictures lie in two buckets, so batches are filled up
STEPS = 4  # of three passes each: an epoch has two, so that every odd step ends in the middle of one

# Dropout inside layers belongs to a process, so it is left out. Adam would make steps of full length out of gradients
# that are nothing but rounding, were it not for its epsilon.
COMMON: dict[str, Any] = {
    "steps": STEPS,
    "batch": WHOLE,
    "accumulate": 3,
    "optimizer": {"kind": "adamw", "rate": 0.01, "epsilon": 1e-5},
    "adapter": {"rank": 4, "layers": ["attention"]},
}
WORDS = {"kind": "textual_inversion", "words": [{"word": "<blob>", "vectors": 2, "start": "red"}]}
WAYS: dict[str, dict[str, Any]] = {
    "lora": {"ema": {"decay": 0.9}, "objective": {"weighting": {"kind": "min_snr"}}},
    "text-encoder": {"adapter": {"rank": 4, "layers": ["attention", "te1"]}},
    "inversion": {"adapter": WORDS},
    "sdxl": {"adapter": {"rank": 4, "layers": ["attention", "te1", "te2"]}},
}
TRIGGER = 'data.captions.trigger="<blob>"'


def launched(jobs: Mapping[str, Mapping[str, Any]], file: Path, processes: int, **environment: str) -> dict[str, Any]:
    """Do the jobs in so many processes, under torch's own launcher; what the first process tells of them."""
    file.write_text(json.dumps(jobs), encoding="utf-8")
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, "-m", *launcher, str(Path(__file__).with_name("together.py")), str(file)]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.with_suffix(".told.json").read_text(encoding="utf-8"))


def job(recipe: Path, runs: Path, batch: int, *, resume: bool = False, watched: bool = False) -> dict[str, Any]:
    overrides = [f"runs={runs}", f"batch={batch}", TRIGGER]
    return {"recipe": str(recipe), "overrides": overrides, "resume": resume, "watched": watched}


def alone(recipe: Path, runs: Path, *, resume: bool = False) -> None:
    """Do the same in this process."""
    wanted = read_recipe(recipe, [f"runs={runs}", TRIGGER])
    run = assemble(wanted, resume=resume, progress=Silence())
    with run.trackers:
        train(run)


def stopped(folder: Path, step: int, runs: Path) -> Path:
    """A copy in `runs` of what a run's folder was when it was killed after `step` steps; gives `runs`."""
    copy = runs / folder.name
    shutil.copytree(folder, copy)
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    result = copy / f"{folder.name}.safetensors"
    result.unlink() if result.is_file() else shutil.rmtree(copy / folder.name)
    return runs


def losses(folder: Path) -> list[float]:
    return [event["loss"] for event in read_events(folder / "events.jsonl") if event["kind"] == "step"]


def kept(folder: Path, step: int = STEPS) -> dict[str, Tensor]:
    """All tensors of a run's checkpoint, by file and name."""
    files = sorted((folder / "checkpoints" / f"step-{step:06d}").glob("*.safetensors"))
    return {f"{file.stem} {name}": tensor for file in files for name, tensor in read_tensors(file).items()}


def weights(folder: Path, step: int) -> dict[str, Tensor]:
    """Those of a checkpoint, and their averages; the optimiser's numbers lie as its parameters do in memory."""
    return {name: tensor for name, tensor in kept(folder, step).items() if not name.startswith("optimizer")}


def greatest(ours: Sequence[float], theirs: Sequence[float]) -> float:
    assert len(ours) == len(theirs)
    return max(abs(one - other) for one, other in zip(ours, theirs, strict=True))


def check_equal(folder: Path, reference: Path, loss: float = 1e-6) -> None:
    """Make sure that two runs told the same losses, and ended with the same weights and state, but for rounding."""
    assert greatest(losses(folder), losses(reference)) <= loss
    ours, theirs = kept(folder), kept(reference)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], atol=1e-5, rtol=1e-4, msg=lambda text, at=name: f"{at}: {text}"
        )


@pytest.mark.slow
def test_one_two_and_four_processes_are_one_run(
    recipe_of: Callable[..., Recipe], small_sdxl: Path, tmp_path: Path
) -> None:
    for way, changes in WAYS.items():
        model = {"model": {"kind": "sdxl", "weights": str(small_sdxl)}} if way == "sdxl" else {}
        recipe_of(way, **(COMMON | changes | model))
        alone(tmp_path / f"{way}.yaml", tmp_path / "by-1")
    for before, processes in ((1, 2), (2, 4)):
        jobs: dict[str, dict[str, Any]] = {}
        for way in WAYS:
            recipe, batch = tmp_path / f"{way}.yaml", WHOLE // processes
            jobs[way] = job(recipe, tmp_path / f"by-{processes}", batch, watched=way == "lora" and processes == 2)
            # in the middle of an epoch, with what fewer processes have left
            runs = stopped(tmp_path / f"by-{before}" / way, 2 * before - 1, tmp_path / f"{before}-then-{processes}")
            jobs[f"{way}, resumed"] = job(recipe, runs, batch, resume=True)
        told = launched(jobs, tmp_path / f"{processes}.json", processes)
        travelled = told.pop("lora") if processes == 2 else None
        assert all(str(answer).endswith(".safetensors") for answer in told.values()), told
        if travelled is not None:
            check_travelled(travelled)
    for way in WAYS:
        alone(tmp_path / f"{way}.yaml", stopped(tmp_path / "by-4" / way, 3, tmp_path / "4-then-1"), resume=True)
        for other in ("by-2", "by-4", "1-then-2", "2-then-4", "4-then-1"):
            check_equal(tmp_path / other / way, tmp_path / "by-1" / way)


def check_travelled(told: Mapping[str, Any]) -> None:
    """Make sure that what is trained travelled whole, once a step, and besides it nothing but a few small numbers."""
    reduced = dict(told["sizes"]["all_reduce"])
    assert reduced.pop(told["trained"]) == STEPS + 1  # one for the rehearsal; none in the first passes of a step
    assert set(reduced) == {1}  # the loss, and the signals
    assert reduced[1] == 2 * STEPS
    assert set(told["sizes"]) <= {"all_reduce", "broadcast", "barrier"}
    assert all(size < 100 for size, _ in told["sizes"].get("broadcast", []))


SHARDS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "BasicTransformerBlock,ResnetBlock2D",
}
FULL: dict[str, Any] = {"kind": "full", "fused": False}
MODEL: dict[str, Any] = {
    **COMMON,
    "adapter": FULL,
    "accumulate": 2,
    "ema": {"decay": 0.9},
    "previews": {"every": 2, "prompts": ["thing, red ball"], "draw": {"steps": 2}, "size": 16},
}
PARTS: dict[str, Any] = {**COMMON, "steps": 2, "adapter": {**FULL, "layers": ["attention", "te1"]}}


@pytest.fixture
def with_all_of_clip(small_model: Path, tmp_path: Path) -> Path:
    """The small model with CLIP's own vocabulary, which a single file needs."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = shutil.copytree(small_model, tmp_path / "model")
    for part in ("tokenizer", "text_encoder"):
        shutil.rmtree(folder / part)
    shutil.copytree(clip_tokenizer("<|endoftext|>"), folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        settings = CLIPTextConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, projection_dim=16,
            bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
        )  # fmt: skip
        CLIPTextModel(settings).save_pretrained(folder / "text_encoder")
    return folder


@pytest.mark.slow
def test_two_processes_with_shares_equal_one_that_has_all(
    recipe_of: Callable[..., Recipe], with_all_of_clip: Path, tmp_path: Path
) -> None:
    model = {"model": {"kind": "sd1", "weights": str(with_all_of_clip)}}
    jobs: dict[str, Any] = {}
    for way, changes in {"whole": MODEL, "words": PARTS}.items():
        recipe_of(way, **(changes | model))
        recipe = tmp_path / f"{way}.yaml"
        alone(recipe, tmp_path / "alone")
        jobs[way] = job(recipe, tmp_path / "shared", 2)
    resumed = stopped(tmp_path / "alone" / "whole", 1, tmp_path / "alone-then-shared")
    jobs["resumed"] = job(tmp_path / "whole.yaml", resumed, 2, resume=True)
    told = launched(jobs, tmp_path / "shared.json", 2, **SHARDS)
    assert told == {"whole": "whole.safetensors", "words": "words.safetensors", "resumed": "whole.safetensors"}
    alone(
        tmp_path / "whole.yaml", stopped(tmp_path / "shared" / "whole", 3, tmp_path / "shared-then-alone"), resume=True
    )

    for way, others in {"whole": ("shared", "alone-then-shared", "shared-then-alone"), "words": ("shared",)}.items():
        one = tmp_path / "alone" / way
        for other in (tmp_path / runs / way for runs in others):
            assert greatest(losses(other), losses(one)) <= 1e-5
            last = MODEL["steps"] if way == "whole" else PARTS["steps"]
            for mine, theirs in (
                (weights(other, last), weights(one, last)),
                (read_tensors(other / f"{way}.safetensors"), read_tensors(one / f"{way}.safetensors")),
            ):
                assert {name: tensor.shape for name, tensor in mine.items()} == {
                    name: tensor.shape for name, tensor in theirs.items()
                }
                for name, tensor in mine.items():
                    torch.testing.assert_close(tensor, theirs[name], atol=2e-5, rtol=1e-3)
    pictures = [path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("previews/*/*.png")]
    assert len(pictures) == 6  # one prompt and a sheet, of the base and of steps 2 and 4
    assert all((tmp_path / "shared" / path).is_file() for path in pictures)


def test_as_many_pictures_at_once_as_before(recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of processes may change where batch changes with it, and else the run is not gone on with."""
    recipe = recipe_of("shared", batch=2, steps=1)
    folder = run_folder_of(recipe)
    run = assemble(recipe, resume=False, progress=Silence())
    with run.trackers:
        train(run)
    check_beginning(recipe, folder, resume=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_beginning(recipe_of("shared", batch=1, steps=1), folder, resume=True)
    with pytest.raises(CheckpointError, match="began with 2 pictures at once") as refused:
        check_beginning(recipe, folder, resume=True)
    assert refused.value.mend is not None
    assert "batch=1" in refused.value.mend
