"""Runs that train new words, words with a LoRA, or whole models: short ones, stopped, gone on with, and drawn from."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.assemble import assemble
from trainer.beginning import is_finished, run_folder_of
from trainer.core.errors import RecipeError
from trainer.core.events import read_events
from trainer.core.progress import Silence
from trainer.core.tensors import read_header, read_tensors
from trainer.drawing import open_for_drawing
from trainer.loop.train import train
from trainer.recipe.recipe import Recipe

QUIET = Silence()
NEW = [{"word": "<blob>", "vectors": 2, "start": "red"}, {"word": "<tag>", "vectors": 1}]
WORDS: dict[str, Any] = {"kind": "textual_inversion", "words": NEW[:1]}
PIVOTAL: dict[str, Any] = {"kind": "pivotal", "words": NEW[:1], "lora": {"rank": 2, "dropout": 0.1}, "words_rate": 0.02}
FULL: dict[str, Any] = {"kind": "full"}
BOTH: dict[str, Any] = {"kind": "full", "layers": ["unet", "te1"], "weights": "bfloat16"}
LATE: dict[str, Any] = {"kind": "full", "layers": ["attention"], "weights": "bfloat16", "fused": False}
FOLDER: dict[str, Any] = {"layout": "folder"}
ONE: dict[str, Any] = {"accumulate": 1, "export": FOLDER}
FORMS: dict[str, dict[str, Any]] = {
    "words": {"adapter": WORDS},
    "pivotal": {"adapter": PIVOTAL},
    "full": {"adapter": FULL, **ONE},
    "full, bfloat16": {
        "adapter": BOTH,
        "precision": "bfloat16",
        **ONE,
        "optimizer": {"kind": "adafactor", "rate": 1e-3},
    },
    "full, late": {"adapter": LATE, "precision": "bfloat16", "accumulate": 2, "export": FOLDER},
    "full, master weights": {"adapter": FULL, "precision": "bfloat16", **ONE},
}
every_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture
def recipe_of(recipe_of: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """A short run whose captions begin with the new word."""

    def make(*name: str, **changes: Any) -> Recipe:
        recipe = recipe_of(*name, **changes)
        captions = recipe.data.captions.model_copy(update={"trigger": "<blob>"})
        return recipe.model_copy(update={"data": recipe.data.model_copy(update={"captions": captions})})

    return make


def finish(recipe: Recipe, *, resume: bool = False) -> Path:
    run = assemble(recipe, resume=resume, progress=QUIET)
    with run.trackers:
        return train(run)


def content(result: Path) -> dict[str, bytes]:
    files = [result] if result.is_file() else sorted(path for path in result.rglob("*") if path.is_file())
    return {str(path.relative_to(result.parent)): path.read_bytes() for path in files}


@every_form
def test_every_stop_resumes_to_the_same_bytes(recipe_of: Callable[..., Recipe], tmp_path: Path, form: str) -> None:
    recipe = recipe_of(**FORMS[form], steps=3)
    result = finish(recipe)
    assert is_finished(recipe)
    whole = content(result)
    folder = run_folder_of(recipe).root
    for stop in range(recipe.steps):
        copy = tmp_path / f"stopped-{stop}" / recipe.name
        shutil.copytree(folder, copy)
        for checkpoint in (copy / "checkpoints").iterdir():
            if int(checkpoint.name.removeprefix("step-")) > stop:
                shutil.rmtree(checkpoint)
        left = copy / result.name
        left.unlink() if left.is_file() else shutil.rmtree(left)
        resumed = recipe.model_copy(update={"runs": copy.parent})
        assert content(finish(resumed, resume=True)) == whole, f"stopped after step {stop}"


@every_form
def test_drawing_and_saving_do_not_change_the_run(recipe_of: Callable[..., Recipe], form: str) -> None:
    changes = {**FORMS[form], "steps": 2, "checkpoints": {"every": 0}}
    plain = content(finish(recipe_of(**changes)))
    previews = {"every": 1, "prompts": ["<blob>, red ball"], "draw": {"steps": 2}, "size": 16}
    recipe = recipe_of(**changes, previews=previews)
    busy = recipe.model_copy(update={"runs": Path(recipe.runs) / "busy"})
    assert content(finish(busy)) == plain
    pictures = [run_folder_of(busy).previews(step) / "00.png" for step in (0, 1, 2)]
    assert len({path.read_bytes() for path in pictures}) == 3


@pytest.mark.parametrize("form", ["words", "pivotal", "full"])
def test_a_finished_run_and_its_checkpoint_draw_alike(
    recipe_of: Callable[..., Recipe], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.drawing.opening.pick_device", lambda: torch.device("cpu"))
    recipe = recipe_of(**FORMS[form], steps=3)
    result = finish(recipe)

    def answer(source: Path, strength: float = 1.0) -> torch.Tensor:
        model, _ = open_for_drawing(source, str(recipe.model.weights), strength)
        with torch.no_grad():
            return model.predict(torch.ones(1, 4, 4, 4), torch.tensor([300]), model.encode_words(["a <blob>, red"]))

    finished, base = answer(result.parent), answer(result.parent, 0.0)
    assert not torch.allclose(finished, base, atol=1e-4)
    if result.suffix and form == "words":
        torch.testing.assert_close(answer(result), finished)
    result.unlink() if result.is_file() else shutil.rmtree(result)
    torch.testing.assert_close(answer(result.parent), finished, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(answer(result.parent, 0.0), base, atol=1e-5, rtol=1e-4)


def test_files_of_words_say_what_they_are(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of(adapter={**WORDS, "words": NEW}, steps=1)
    captions = recipe.data.captions.model_copy(update={"suffix": "<tag>"})
    first = finish(recipe.model_copy(update={"data": recipe.data.model_copy(update={"captions": captions})}))
    second = first.with_name(f"{first.stem}-tag.safetensors")
    assert {name: list(tensor.shape) for name, tensor in read_tensors(first).items()} == {"emb_params": [2, 16]}
    assert {name: list(tensor.shape) for name, tensor in read_tensors(second).items()} == {"emb_params": [1, 16]}
    said = [read_header(path).metadata for path in (first, second)]
    assert [one["modelspec.trigger_phrase"] for one in said] == ["<blob>", "<tag>"]
    assert said[0]["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"


def test_sdxl_learns_a_word_in_both_text_encoders(recipe_of: Callable[..., Recipe], small_sdxl: Path) -> None:
    model = {"kind": "sdxl", "weights": str(small_sdxl)}
    result = finish(recipe_of(adapter=WORDS, model=model, steps=2))
    trained = read_tensors(result)
    assert {name: list(tensor.shape) for name, tensor in trained.items()} == {"clip_l": [2, 16], "clip_g": [2, 12]}
    fresh = finish(recipe_of("other", adapter=WORDS, model=model, steps=1))
    assert all(not torch.equal(tensor, trained[name]) for name, tensor in read_tensors(fresh).items())


def test_the_parts_of_pivotal_tuning_learn_at_their_rates(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of(adapter=PIVOTAL, steps=2, optimizer={"kind": "adamw", "rate": 0.001})
    finish(recipe)
    events = [event for event in read_events(run_folder_of(recipe).events) if event["kind"] == "step"]
    assert [event["rate_words"] / event["rate_unet"] for event in events] == pytest.approx([20.0] * 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": FULL, "accumulate": 2, "export": FOLDER}, "summed over 2 batches"),
        ({"adapter": FULL, "accumulate": 1}, r"carries no tokenizer"),
        ({"adapter": FULL, **ONE, "optimizer": {"kind": "adamw_schedule_free"}}, "moves all tensors together"),
        ({"adapter": FULL, **ONE, "precision": "float16"}, "cannot be scaled"),
        ({"adapter": FULL, "accumulate": 1, "export": {"layout": "peft"}}, "cannot be written in the layout peft"),
        ({"adapter": {"kind": "lora"}, "export": FOLDER}, "something smaller is trained"),
        ({"adapter": {**WORDS, "words": NEW}}, "<tag> stands in no caption"),
        ({"adapter": {**WORDS, "words": [{"word": "red"}]}}, "knows already"),
        ({"adapter": {**WORDS, "words": [{"word": "<blob>", "vectors": 1, "start": "red ball"}]}}, "2 tokens long"),
        ({"adapter": {"kind": "full", "layers": ["te2"]}, **ONE}, "no layers called te2"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_encoded(
    recipe_of: Callable[..., Recipe], changes: dict[str, Any], message: str
) -> None:
    recipe = recipe_of(**changes)
    with pytest.raises(RecipeError, match=message):
        assemble(recipe, resume=False, progress=QUIET)
    assert not list(recipe.data.cache.folder.rglob("shard-*"))


def test_a_bundled_file_brings_its_words_along(
    recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file, moved away from the words' own, draws as the run does; the words are A1111's keys in it."""
    monkeypatch.setattr("trainer.drawing.opening.pick_device", lambda: torch.device("cpu"))
    recipe = recipe_of(adapter=PIVOTAL | {"bundle": True}, steps=2)
    result = finish(recipe)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(result.read_bytes())

    def answer(source: Path) -> torch.Tensor:
        model, _ = open_for_drawing(source, str(recipe.model.weights), strength=1.0)
        with torch.no_grad():
            return model.predict(torch.ones(1, 4, 4, 4), torch.tensor([300]), model.encode_words(["a <blob>, red"]))

    assert {name for name in read_header(alone).tensors if name.startswith("bundle_emb.")} == {
        "bundle_emb.<blob>.string_to_param.*"
    }
    torch.testing.assert_close(answer(alone), answer(result.parent))
    unbundled = finish(recipe_of("unbundled", adapter=PIVOTAL, steps=2))
    alone.write_bytes(unbundled.read_bytes())
    assert not torch.allclose(answer(alone), answer(result.parent), atol=1e-4)
