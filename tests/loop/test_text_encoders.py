"""Text encoders are trained like everything else: live words, exact resume, a rate of their own."""

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.assemble import assemble
from trainer.beginning import is_finished, run_folder_of
from trainer.core.errors import CheckpointError, RecipeError, WeightsError
from trainer.core.events import read_events
from trainer.core.files import digest_of
from trainer.core.progress import Silence
from trainer.core.tensors import read_header, read_tensors
from trainer.loop.run import Run
from trainer.loop.train import step, train
from trainer.optim.flat import Stretch
from trainer.preparing import plan_data
from trainer.recipe.recipe import Recipe

QUIET = Silence()
BOTH: dict[str, Any] = {
    "adapter": {"kind": "lora", "rank": 4, "dropout": 0.1, "layers": ["attention", "te1"], "rates": {"te1": 2.0e-3}}
}


def begin(recipe: Recipe, *, resume: bool = False) -> Run:
    return assemble(recipe, resume=resume, progress=QUIET)


def finish(recipe: Recipe, *, resume: bool = False) -> Path:
    run = begin(recipe, resume=resume)
    with run.trackers:
        return train(run)


def elsewhere(recipe: Recipe, name: str) -> Recipe:
    return recipe.model_copy(update={"runs": Path(recipe.runs) / name})


def check_resumes(recipe: Recipe, tmp_path: Path) -> Path:
    """Stop after every step and go on: the bytes are those of the unbroken run, which is given."""
    result = finish(recipe)
    whole = result.read_bytes()
    folder = run_folder_of(recipe).root
    for stop in range(recipe.steps):
        copy = tmp_path / f"stopped-{stop}" / recipe.name
        shutil.copytree(folder, copy)
        for checkpoint in (copy / "checkpoints").iterdir():
            if int(checkpoint.name.removeprefix("step-")) > stop:
                shutil.rmtree(checkpoint)
        (copy / result.name).unlink()
        resumed = recipe.model_copy(update={"runs": copy.parent})
        assert finish(resumed, resume=True).read_bytes() == whole, f"stopped after step {stop}"
    return result


def test_both_text_encoders_of_sdxl_resume_to_the_same_bytes(
    recipe_of: Callable[..., Recipe], small_sdxl: Path, tmp_path: Path
) -> None:
    rates = {"unet": 5e-3, "te1": 2e-3, "te2": 1e-3}
    adapter = {"kind": "lora", "rank": 4, "dropout": 0.1, "layers": ["transformer", "te1", "te2"], "rates": rates}
    model = {"kind": "sdxl", "weights": str(small_sdxl)}
    recipe = recipe_of(model=model, adapter=adapter, steps=3)
    result = check_resumes(recipe, tmp_path)
    tensors = read_tensors(result)
    for part in ("lora_te1_", "lora_te2_", "lora_unet_input_blocks_"):
        moved = [n for n, t in tensors.items() if n.startswith(part) and n.endswith("up.weight") and t.any()]
        assert moved, part
    # what is read of the first text encoder is its last layer but one, so the last one never learns
    last = max(name.split("_layers_")[1].split("_")[0] for name in tensors if name.startswith("lora_te1_"))
    assert not any(
        t.any() for n, t in tensors.items() if f"lora_te1_text_model_encoder_layers_{last}" in n and "up" in n
    )
    assert read_header(result).metadata["ss_text_encoder_lr"] == "[0.002, 0.001]"


def test_every_stop_resumes_to_the_same_bytes(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    result = check_resumes(recipe_of(**BOTH, steps=5), tmp_path)
    layers = {name.partition(".")[0] for name in read_tensors(result)}
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1" in layers
    assert any(layer.startswith("lora_unet_") for layer in layers)
    said = read_header(result).metadata
    assert (said["ss_unet_lr"], said["ss_text_encoder_lr"]) == ("0.01", "0.002")


def test_drawing_in_between_shows_the_trained_encoder_and_does_not_change_the_run(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**BOTH, "steps": 3, "checkpoints": {"every": 0}, "optimizer": {"kind": "adamw", "rate": 0.01}}
    plain = finish(recipe_of(**changes)).read_bytes()
    previews = {"every": 1, "prompts": ["thing, red ball"], "draw": {"steps": 2}, "size": 16}
    run = begin(elsewhere(recipe_of(**changes, previews=previews), "busy"))
    encode = type(run.model).encode_words
    said: list[torch.Tensor] = []

    def encode_and_remember(model: Any, captions: Sequence[str]) -> Any:
        words = encode(model, captions)
        said.extend(words.tokens if "thing, red ball" in captions else ())
        return words

    monkeypatch.setattr(type(run.model), "encode_words", encode_and_remember)
    with run.trackers:
        assert train(run).read_bytes() == plain
    assert len(said) == 4  # the base's, and after each step
    assert all(not torch.equal(one, other) for one, other in pairwise(said))
    assert not any(tokens.requires_grad for tokens in said)


def test_texts_are_encoded_live_and_never_cached(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of(**BOTH)
    run = begin(recipe)
    batch = run.batches.numbered(0)
    assert isinstance(batch.words, tuple)
    assert len(batch.words) == len(batch)
    identity = run.model.encoders().words_identity
    cached = {(f.parent / "identity.txt").read_text() for f in recipe.data.cache.folder.rglob("shard-*")}
    assert cached  # the pictures
    assert f"{identity}\n" not in cached
    assert plan_data(recipe, QUIET).texts == 0


def test_words_are_those_that_the_cache_would_have_given(recipe_of: Callable[..., Recipe]) -> None:
    live = begin(recipe_of("live", **BOTH))
    cached = begin(recipe_of("cached"))
    for number in range(6):
        one, other = live.batches.numbered(number), cached.batches.numbered(number)
        assert isinstance(one.words, tuple)
        assert not isinstance(other.words, tuple)
        assert one.keys == other.keys
        torch.testing.assert_close(
            cached.model.encode_words(one.words).tokens, other.words.tokens, atol=2e-3, rtol=2e-3
        )


def test_one_step_moves_each_part_at_its_rate(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step of AdamW by hand (arXiv:1711.05101, Algorithm 2): both means are the gradient's own."""
    adapter = {"kind": "lora", "rank": 4, "layers": ["attention", "te1"], "rates": {"unet": 3e-3, "te1": 2e-4}}
    optimizer = {"kind": "adamw", "rate": 0.5, "weight_decay": 0.1}
    run = begin(recipe_of(adapter=adapter, optimizer=optimizer, rate={"kind": "constant"}))
    for network in run.networks:
        network.train()
    before = {name: tensor.clone() for name, tensor in run.trainable.state().items()}
    monkeypatch.setattr(Stretch, "drop", Stretch.share)  # gradients stay where they can be read
    with run.trackers:
        step(run)
    gradients: dict[str, torch.Tensor] = {}
    for group in run.trainable.groups():
        for parameter in group.parameters:
            name = next(n for n, t in run.trainable.state().items() if t.data_ptr() == parameter.data_ptr())
            assert parameter.grad is not None
            gradients[name] = parameter.grad
    after = run.trainable.state()
    for name, old in before.items():
        rate = 3e-3 if name.startswith("unet.") else 2e-4
        gradient = gradients[name]
        wanted = old - rate * 0.1 * old - rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(after[name], wanted, atol=1e-7, rtol=1e-5)
        assert torch.equal(old, after[name]) == (not gradient.any() and not old.any())
    moved = [n for n, g in gradients.items() if n.startswith("text_encoder.") and g.any()]
    assert moved


def test_rates_of_parts_are_told_and_follow_the_schedule(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of(**BOTH, steps=4, checkpoints={"every": 0})
    finish(recipe)
    events = [event for event in read_events(run_folder_of(recipe).events) if event["kind"] == "step"]
    assert [event["rate_te1"] / event["rate_unet"] for event in events] == pytest.approx([0.2] * 4)
    assert [event["rate"] for event in events] == [event["rate_unet"] for event in events]
    assert events[0]["rate_te1"] == pytest.approx(2.0e-3 / 4)  # the first of four steps of warm-up


def test_checkpointed_gradients_are_the_same_gradients(recipe_of: Callable[..., Recipe]) -> None:
    changes = {**BOTH, "steps": 3, "optimizer": {"kind": "adamw", "rate": 0.01}}
    kept = read_tensors(finish(recipe_of("kept", gradient_checkpointing=False, **changes)))
    run = begin(recipe_of("again", gradient_checkpointing=True, **changes))
    assert all(getattr(run.model.network(part), "is_gradient_checkpointing", False) for part in run.trainable.parts)
    with run.trackers:
        again = read_tensors(train(run))
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, again[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_text_encoder_can_be_trained_alone(recipe_of: Callable[..., Recipe], precision: str) -> None:
    adapter = {"kind": "lora", "rank": 4, "layers": ["te1"]}
    run = begin(recipe_of(precision, adapter=adapter, precision=precision, steps=2))
    before = {name: tensor.clone() for name, tensor in run.trainable.state().items()}
    with run.trackers:
        result = read_tensors(train(run))
    assert all(name.startswith("lora_te_") for name in result)
    after = run.trainable.state()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())


def test_a_result_in_peft_s_layout_is_a_finished_run(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of(**BOTH, steps=1, export={"layout": "peft"})
    assert not is_finished(recipe)
    assert {folder.name for folder in finish(recipe).iterdir()} == {"unet", "text_encoder"}
    assert is_finished(recipe)


def test_an_unknown_part_is_said_before_anything_is_encoded(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of(adapter={"kind": "lora", "rank": 4, "layers": ["attention", "te2"]})
    with pytest.raises(RecipeError, match="no layers called te2"):
        begin(recipe)
    assert not list(recipe.data.cache.folder.rglob("shard-*"))


def test_a_run_starts_from_a_file_and_remembers_which(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    first = recipe_of("first", **BOTH, steps=2)
    path = shutil.copy(finish(first), tmp_path / "before.safetensors")
    adapter = {**BOTH["adapter"], "alpha": 16, "start": str(path)}
    second = recipe_of("second", adapter=adapter, steps=2)
    run = begin(second)
    state = run.trainable.state()
    written = read_tensors(Path(path))
    for name, tensor in state.items():
        layer, half = name.rsplit(".lora_", 1)
        kohya = f"{run.model.naming.to_kohya(layer)}.lora_{'down' if half.startswith('A') else 'up'}.weight"
        assert torch.equal(written[kohya], tensor)
    with run.trackers:
        whole = train(run).read_bytes()
    folder = run_folder_of(second)
    record = json.loads(folder.environment.read_text())
    assert record["files"] == {"adapter.start": digest_of(Path(path))}

    # stopped after its first step, it goes on without the file
    folder.result.unlink()
    shutil.rmtree(folder.checkpoint(2))
    Path(path).rename(tmp_path / "away.safetensors")
    assert finish(second, resume=True).read_bytes() == whole
    assert json.loads(folder.environment.read_text())["files"] == record["files"]

    # but not with another one in its place
    folder.result.unlink()
    shutil.copy(run_folder_of(first).checkpoint(1) / "trained.safetensors", path)
    with pytest.raises(CheckpointError, match=r"file of adapter\.start is another one"):
        begin(second, resume=True)

    Path(path).unlink()
    with pytest.raises(WeightsError, match="no such file"):
        begin(recipe_of("third", adapter=adapter, steps=2))
