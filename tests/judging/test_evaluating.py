"""A whole evaluation of a short run: what it measures, what it writes, and that it changes nothing of the run."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.core.errors import TrainerError
from trainer.core.events import read_events
from trainer.core.files import digest_of
from trainer.core.progress import Silence
from trainer.drawing.models import RunModels, step_of
from trainer.evaluation.features import BuiltIn
from trainer.judging.best import put_best
from trainer.judging.comparing import differences, evaluate_all
from trainer.judging.writing import Verdict, write_verdicts


@pytest.fixture(scope="module")
def verdict(run_folder: Path) -> Verdict:
    return Verdict.of(evaluate_all([run_folder], [], 2, BuiltIn(), [0.5], Silence())[0])


@pytest.fixture(scope="module")
def written(verdict: Verdict) -> Mapping[str, Any]:
    (file,) = write_verdicts([verdict], [], 1.5, None)
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_run_told_of_its_kept_back_pictures_and_kept_adapters_on_the_way(run_folder: Path) -> None:
    events = [event for event in read_events(run_folder / "events.jsonl") if event["kind"] == "held_out"]
    assert [event["step"] for event in events] == [0, 3, 6]
    for event in events:
        assert len(event["bands"]) == 4
        assert event["loss"] == pytest.approx(np.mean(event["bands"]))
    assert events[0]["loss"] != events[-1]["loss"]
    names = sorted(path.name for path in (run_folder / "adapters").iterdir())
    assert names == ["judged-000002.safetensors", "judged-000004.safetensors"]
    assert [step_of(run_folder / "adapters" / name) for name in names] == [2, 4]


def test_asking_changes_nothing_of_the_run(run_of: Callable[..., Path], run_folder: Path) -> None:
    often = run_of("often", held_out={"every": 1}, checkpoints={"every": 0})
    told = [read_events(folder / "events.jsonl") for folder in (run_folder, often)]
    losses = [[event["loss"] for event in events if event["kind"] == "step"] for events in told]
    assert losses[0] == losses[1]
    asked = [{event["step"]: event["loss"] for event in events if event["kind"] == "held_out"} for events in told]
    assert list(asked[1]) == list(range(7))
    assert all(asked[1][step] == pytest.approx(loss, rel=1e-6) for step, loss in asked[0].items())


def test_every_step_that_was_kept_is_a_candidate_and_one_is_tried_weaker(verdict: Verdict) -> None:
    candidates = [(one.step, one.strength) for one in verdict.evaluation.candidates]
    assert [one for one in candidates if one[1] == 1] == [(2, 1.0), (4, 1.0), (6, 1.0)]
    assert len([one for one in candidates if one[1] == 0.5]) == 1
    files = [one.file and one.file.name for one in verdict.evaluation.full]
    assert files == ["judged-000002.safetensors", "judged-000004.safetensors", "judged.safetensors"]


def test_losses_are_those_that_the_run_told_of(verdict: Verdict, run_folder: Path) -> None:
    """The same moments and noise during training and afterwards, out of a checkpoint or of the base."""
    told = {event["step"]: event for event in read_events(run_folder / "events.jsonl") if event["kind"] == "held_out"}
    evaluation = verdict.evaluation
    for one in (evaluation.base, evaluation.full[-1]):
        assert one.measured.held_out is not None
        np.testing.assert_allclose(one.measured.held_out.mean(0), told[one.step]["bands"], rtol=1e-4)


def test_the_file_holds_what_the_docs_say(written: Mapping[str, Any], run_folder: Path) -> None:
    (run,) = written["runs"]
    assert written["format"] == 1
    assert written["features"]["kind"] == "builtin"
    assert not written["adherence"]["measured"]
    assert [one["role"] for one in written["prompts"]] == ["subject"] * 2 + ["ordinary"] * 4
    assert len(run["base"]["pictures"]) == 2 * 2 + 4 * 2
    paths = [path for one in run["candidates"] for path in one["pictures"]]
    paths += [row["thumbnail"] for row in run["training"]]
    assert all((run_folder / path).is_file() for path in paths)
    assert len(run["training"]) == run["training_pictures"] == 14
    assert run["held_out_pictures"] == 3
    for row in run["training"]:
        assert [loss["step"] for loss in row["loss"]] == [0, 2, 4, 6]
    for one in run["candidates"]:
        assert {*one["scores"]} == {"likeness", "gap_closed", "kid", "diversity", "adherence", "copied", "drift"}
        assert one["score_range"][0] <= one["score_range"][1]
    assert sum(one["wins"] for one in run["candidates"]) == pytest.approx(1, abs=1e-4)
    best = run["recommendation"]
    assert (best["step"], best["strength"]) in [(one["step"], one["strength"]) for one in run["candidates"]]
    assert best["why"]
    assert best["sure"] in {"sure", "fairly sure", "not sure"}
    assert {one["kind"] for one in run["findings"]} >= {"not-measured"}


def test_it_says_the_same_again(verdict: Verdict, run_folder: Path) -> None:
    again = evaluate_all([run_folder], [], 2, BuiltIn(), [0.5], Silence())[0]
    assert again.choice.scores == pytest.approx(verdict.evaluation.choice.scores)
    assert again.choice.wins == pytest.approx(verdict.evaluation.choice.wins)


def test_the_best_takes_the_place_of_the_result_and_the_last_is_kept(run_of: Callable[..., Path]) -> None:
    folder = run_of("best")
    models = RunModels(folder)
    result = folder / "best.safetensors"
    last, wanted = digest_of(result), models.file(2)
    assert wanted is not None
    assert put_best(models, wanted, 2) == result.resolve()
    assert digest_of(result) == digest_of(wanted) != last
    assert digest_of(folder / "best-last.safetensors") == last
    # the last step is found again where it lies now, and a second choice does not bury it
    assert RunModels(folder).file(6) == (folder / "best-last.safetensors").resolve()
    assert put_best(RunModels(folder), RunModels(folder).file(4), 4) == result.resolve()
    assert step_of(result) == 4
    assert digest_of(folder / "best-last.safetensors") == last
    with pytest.raises(TrainerError, match="no single file"):
        put_best(models, None, 3)


def test_runs_are_asked_the_same_and_their_recipes_are_compared(run_folder: Path, run_of: Callable[..., Path]) -> None:
    other = run_of("other", optimizer={"kind": "adamw", "rate": 5.0e-3})
    found = evaluate_all([run_folder, other], ["thing, green ball"], 2, BuiltIn(), [], Silence())
    assert found[0].questions == found[1].questions
    told = differences([one.models.recipe for one in found])
    assert told == [{"key": "optimizer.rate", "values": ["0.01", "0.005"]}]
    files = write_verdicts([Verdict.of(one) for one in found], told, 1.0, None)
    second = json.loads(files[1].read_text(encoding="utf-8"))
    assert [run["name"] for run in second["runs"]] == ["other", "judged"]
    assert second["differences"] == [{"key": "optimizer.rate", "values": ["0.005", "0.01"]}]
    np.testing.assert_allclose(
        second["runs"][0]["base"]["held_out"]["loss"], second["runs"][1]["base"]["held_out"]["loss"]
    )
    with pytest.raises(TrainerError, match="twice"):
        evaluate_all([run_folder, run_folder], [], 2, BuiltIn(), [], Silence())
