"""Compares the recommendation of `trainer evaluate` with an exhaustive search, on several runs.

usage: python scripts/agreement.py RUN [RUN ...] [--seeds 2] [--many 8] [--out agreement.json]

The exhaustive search draws every kept step at every strength of `STRENGTHS`, with other seeds, and `--many` of them.
The recommendation agrees where it is the best there; its regret is how much lower it scores there than the best does.
Each recommendation is made three times, with seeds that do not overlap.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from trainer.core.errors import TrainerError
from trainer.core.files import write_atomically
from trainer.core.progress import Phases, phases
from trainer.evaluation.choosing import Choice, choose
from trainer.evaluation.features import BuiltIn
from trainer.judging.evaluating import STRENGTHS as TRIED
from trainer.judging.evaluating import Candidate, Evaluation, Judge, evaluate
from trainer.judging.pictures import RunPictures
from trainer.judging.questions import FIRST_SEED, Questions, questions_for
from trainer.recipe.reading import read_recipe

STRENGTHS = (0.4, 0.6, 0.8, 1.0)
TIMES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One recommendation, and what the exhaustive search says of it."""

    step: int
    strength: float
    sure: str
    agrees: bool
    regret: float


def main() -> None:
    """Search, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=2, help="a prompt, of each recommendation")
    parser.add_argument("--many", type=int, default=8, help="a prompt, of the exhaustive search")
    parser.add_argument("--out", type=Path, default=Path("agreement.json"))
    arguments = parser.parse_args()
    try:
        with phases() as progress:
            told = {run.name: compare(run, arguments.seeds, arguments.many, progress) for run in arguments.runs}
    except TrainerError as error:
        raise SystemExit(str(error)) from error
    for name, ones in told.items():
        for one in ones:
            print(f"{name}: step {one.step} at {one.strength:g}, {one.sure}: regret {one.regret:.3f}")
    every = [one for ones in told.values() for one in ones]
    regret = np.mean([one.regret for one in every])
    print(f"{sum(one.agrees for one in every)} of {len(every)} agree; mean regret {regret:.3f}")
    content = {name: [asdict(one) for one in ones] for name, ones in told.items()}
    write_atomically(arguments.out, json.dumps(content, indent=1) + "\n")


def compare(run: Path, seeds: int, many: int, progress: Phases) -> list[Told]:
    """The recommendations for one run, each against the exhaustive search."""
    pictures = RunPictures.of(read_recipe(run / "recipe.yaml"), progress)
    asked = questions_for(pictures.recipe, pictures.training, (), many)
    first, best = exhaustive(run, pictures, replace(asked, first_seed=FIRST_SEED + 100_000), progress)
    scores = {(one.step, one.strength): float(score) for one, score in zip(first, best.scores, strict=True)}
    told: list[Told] = []
    for time in range(TIMES):
        questions = replace(asked, seeds=seeds, first_seed=FIRST_SEED + time * seeds)
        found: Evaluation = evaluate(run, pictures, questions, BuiltIn(), progress, TRIED)
        chosen = (found.best.step, found.best.strength)
        regret = max(scores.values()) - scores[chosen]
        told.append(Told(step=chosen[0], strength=chosen[1], sure=found.choice.sure, agrees=regret == 0, regret=regret))
    return told


def exhaustive(
    run: Path, pictures: RunPictures, questions: Questions, progress: Phases
) -> tuple[Sequence[Candidate], Choice]:
    """Every step at every strength, and which is the best."""
    judge = Judge.opened(run, pictures, questions, BuiltIn(), progress, folder=run / "exhaustive")
    base = judge.base()
    found = [judge.candidate(step, strength) for step in judge.models.steps for strength in STRENGTHS]
    return found, choose([one.measured for one in found], base.measured)


if __name__ == "__main__":
    main()
