"""What samples say: copies are found, and only they; the better candidate wins, and chance is told from difference."""

import numpy as np
import pytest

from trainer.evaluation.choosing import choose
from trainer.evaluation.features import Rows
from trainer.evaluation.judgement import Measured, References, deviations, drift_of, gap_closed


def rows(count: int, seed: int, *, around: Rows | None = None, spread: float = 1.0) -> Rows:
    chance = np.random.default_rng(seed)
    noise = chance.normal(size=(count, 32)).astype(np.float32)
    return noise if around is None else (around + spread * noise).astype(np.float32)


MIDDLE: Rows = (2 * rows(1, 99)).astype(np.float32)
TRAINING = References(rows=rows(20, 0, around=MIDDLE))


def measured(samples: Rows, **others: object) -> Measured:
    content = {"rows": samples, "seeds": 3, "references": TRAINING, "drift": np.full(4, 0.1)}
    return Measured(**(content | others))  # pyright: ignore[reportArgumentType] - of the right types


BASE = measured(rows(12, 1), drift=np.zeros(4))


def test_a_sample_that_is_a_training_picture_is_a_copy_and_a_new_one_is_not() -> None:
    samples = rows(12, 2, around=MIDDLE)
    samples[4] = TRAINING.rows[7] + 0.05 * rows(1, 3)[0]
    found = measured(samples)
    assert found.copied.tolist() == [place == 4 for place in range(12)]
    assert found.nearest[4] == 7
    assert found.scores(BASE)["copied"] == pytest.approx(1 / 12)


def test_pictures_that_are_one_picture_are_grouped_and_do_not_count_as_neighbours() -> None:
    chosen = TRAINING.rows.copy()
    chosen[3:6] = chosen[10] + 0.02 * rows(3, 4)
    references = References(rows=chosen)
    assert [sorted(group) for group in references.groups()] == [[3, 4, 5, 10]]
    assert references.copies[[3, 4, 5, 10]].tolist() == [4] * 4
    assert references.copies.sum() == 16 + 4 * 4
    assert references.spacing[3] > 0.1
    assert TRAINING.groups() == []


def test_a_set_of_one_picture_has_no_copies_to_speak_of() -> None:
    same = References(rows=np.repeat(rows(1, 5), 3, 0))
    found = Measured(rows=rows(4, 6), seeds=2, references=same, drift=np.zeros(0))
    assert not found.copied.any()
    assert found.scores(found)["gap_closed"] == 0


def test_gap_closed_is_the_share_of_the_way() -> None:
    assert gap_closed(0.5, 0.2, 0.8) == pytest.approx(0.5)
    assert gap_closed(0.1, 0.2, 0.8) < 0
    assert gap_closed(0.5, 0.8, 0.8) == 0


def test_drift_is_none_where_nothing_moves_and_about_one_where_all_is_new() -> None:
    base = rows(40, 7)
    assert drift_of(base, base).max() == pytest.approx(0, abs=1e-6)
    assert drift_of(rows(40, 8), base).mean() == pytest.approx(1, abs=0.15)
    assert len(drift_of(base[:0], base[:0])) == 0


def test_diversity_is_that_of_the_seeds_of_a_prompt() -> None:
    alike = np.repeat(rows(4, 9), 3, 0)  # each prompt three times the same
    assert measured(alike).diversities == pytest.approx([0] * 4, abs=1e-6)
    assert measured(rows(12, 9)).diversities.min() > 0.5


def test_the_better_candidate_wins_and_surely() -> None:
    good = measured(rows(12, 2, around=MIDDLE))
    half = measured(rows(12, 2, around=(MIDDLE / 3).astype(np.float32)))
    choice = choose([half, good], BASE)
    assert choice.best == 1
    assert choice.sure == "sure"
    assert choice.wins.sum() == pytest.approx(1)
    assert (choice.low <= choice.scores + 0.05).all()
    assert (choice.high >= choice.scores - 0.05).all()


def test_copying_loses_against_new_pictures() -> None:
    new = measured(rows(12, 2, around=MIDDLE))
    copied = measured((TRAINING.rows[:12] + 0.02 * rows(12, 10)).astype(np.float32))
    assert choose([copied, new], BASE).best == 1


def test_a_higher_loss_on_pictures_kept_back_loses() -> None:
    samples = rows(12, 2, around=MIDDLE)
    losses = np.random.default_rng(0).uniform(0.1, 0.3, (14, 4))
    base = measured(BASE.rows, drift=BASE.drift, held_out=losses)
    candidates = [measured(samples, held_out=losses * factor) for factor in (0.9, 0.8, 1.1)]
    choice = choose(candidates, base)
    assert choice.best == 1
    assert choice.scores[2] < choice.scores[0]


def test_equal_candidates_are_no_sure_choice() -> None:
    one, other = (measured(rows(12, seed, around=MIDDLE)) for seed in (20, 21))
    choice = choose([one, other, measured(rows(12, 22, around=MIDDLE))], BASE)
    assert choice.wins.max() < 0.97
    assert choose([one, one], BASE).wins[0] == 1  # of equals the first
    assert choose([one, other], BASE).wins == pytest.approx(choose([one, other], BASE).wins)


def test_adherence_counts_where_it_is_measured() -> None:
    samples = rows(12, 2, around=MIDDLE)
    base = measured(BASE.rows, adherence=np.full(12, 0.3))
    deaf, obedient = (measured(samples, adherence=np.full(12, value)) for value in (0.1, 0.3))
    assert choose([deaf, obedient], base).best == 1


def test_deviations_see_what_is_far_and_nothing_where_all_is_the_same() -> None:
    values = np.random.default_rng(0).normal(size=200)
    values[17] = 9
    far = deviations(values)
    assert far.argmax() == 17
    assert far[17] > 6
    assert np.abs(far).mean() == pytest.approx(0.8, abs=0.2)
    assert not deviations(np.ones(5)).any()
