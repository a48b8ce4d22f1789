"""What the scores must say of pictures whose likeness is known."""

from collections.abc import Callable

import numpy as np
import pytest

from trainer.core.errors import DataError
from trainer.evaluation.features import Rows
from trainer.evaluation.scores import bleed, diversity, gap_closed, kid, leave_one_out, likeness, nearer, share_nearer


def rows(count: int, seed: int, shift: float = 0.0, width: int = 40) -> Rows:
    return (np.random.default_rng(seed).normal(size=(count, width)) + shift).astype(np.float32)


def test_copies_are_wholly_like_their_originals() -> None:
    references = rows(20, 0)
    assert likeness(references[:7], references) == pytest.approx(1)
    assert share_nearer(references[:7], references, rows(50, 1)) == 1
    assert bleed(references[:7], references, rows(50, 1)) == 7


def test_opposites_are_as_unlike_as_can_be() -> None:
    reference = rows(1, 0)
    assert likeness(-reference, reference) == pytest.approx(-1)


def test_the_nearest_reference_counts_and_not_the_mean() -> None:
    references = np.eye(4, dtype=np.float32)
    assert likeness(references[:1], references) == pytest.approx(1)
    between = np.array([[1, 1, 0, 0]], np.float32)
    assert likeness(between, references) == pytest.approx(0.5**0.5)


def test_leave_one_out_is_the_likeness_to_the_others() -> None:
    references = rows(9, 3)
    by_hand = [likeness(references[k : k + 1], np.delete(references, k, 0)) for k in range(9)]
    assert leave_one_out(references) == pytest.approx(np.mean(by_hand))
    assert leave_one_out(references) < 1


def test_leave_one_out_is_what_new_pictures_of_the_same_kind_score() -> None:
    """So it is the upper bound of an adapter that learned the kind without learning the pictures by heart."""
    references, fresh, foreign = rows(300, 1, 0.7), rows(300, 2, 0.7), rows(300, 3)
    real = leave_one_out(references)
    assert likeness(fresh, references) == pytest.approx(real, abs=0.02)
    assert likeness(foreign, references) < real - 0.1


SCORES: list[Callable[[Rows, Rows], float]] = [likeness, kid, lambda one, other: share_nearer(one, other, rows(30, 9))]


@pytest.mark.parametrize("score", SCORES, ids=["likeness", "kid", "share"])
def test_scores_do_not_depend_on_order_or_length(score: Callable[[Rows, Rows], float]) -> None:
    generated, references = rows(12, 1, 0.3), rows(15, 2, 0.3)
    said = score(generated, references)
    order = np.random.default_rng(0).permutation(12)
    lengths = np.random.default_rng(0).uniform(0.1, 9, (15, 1)).astype(np.float32)
    assert score(generated[order], references[::-1]) == pytest.approx(said, abs=1e-5)
    assert score(generated * 7, references * lengths) == pytest.approx(said, abs=1e-5)


def test_kid_is_about_nothing_for_one_distribution_and_grows_with_the_distance() -> None:
    """It is unbiased: over many draws its mean is 0, and single draws lie on both sides."""
    same = [kid(rows(40, seed, 0.5), rows(60, 1000 + seed, 0.5)) for seed in range(60)]
    assert min(same) < 0 < max(same)
    assert abs(np.mean(same)) < 3 * np.std(same) / 60**0.5
    near, far = kid(rows(60, 1, 0.5), rows(60, 2, 0.2)), kid(rows(60, 1, 0.5), rows(60, 2, -0.5))
    assert max(same) < near < far


def test_pictures_of_neither_kind_are_nearer_to_a_reference_by_chance_only() -> None:
    share = share_nearer(rows(600, 5), rows(50, 6), rows(150, 7))
    assert share == pytest.approx(50 / 200, abs=0.06)


def test_bleed_counts_the_spoiled_pictures_only() -> None:
    references, ordinary = rows(30, 1, 3.0), rows(30, 2, -3.0)
    mixed = np.concatenate([rows(5, 3, -3.0), rows(2, 4, 3.0)])
    assert bleed(mixed, references, ordinary) == 2
    assert nearer(mixed, references, ordinary).tolist() == [False] * 5 + [True] * 2


def test_diversity_is_nothing_for_one_picture_again_and_again_and_one_for_strangers() -> None:
    assert diversity(np.repeat(rows(1, 0), 6, 0)) == pytest.approx(0, abs=1e-6)
    assert diversity(np.eye(6, dtype=np.float32)) == pytest.approx(1)
    assert diversity(rows(30, 0, 2.0)) < diversity(rows(30, 0, 0.5))


def test_the_gap_is_closed_between_nothing_and_all() -> None:
    assert gap_closed(0.2, 0.2, 0.6) == 0
    assert gap_closed(0.2, 0.6, 0.6) == 1
    assert gap_closed(0.2, 0.4, 0.6) == pytest.approx(0.5)
    assert gap_closed(0.2, 0.1, 0.6) < 0


@pytest.mark.parametrize("real", [0.2, 0.1, float("nan")])
def test_where_there_is_no_gap_none_is_closed(real: float) -> None:
    with pytest.raises(DataError, match="base model"):
        gap_closed(0.2, 0.5, real)


@pytest.mark.parametrize(
    "score",
    [
        lambda: likeness(rows(0, 0), rows(3, 0)),
        lambda: leave_one_out(rows(1, 0)),
        lambda: diversity(rows(1, 0)),
        lambda: kid(rows(1, 0), rows(5, 0)),
        lambda: share_nearer(rows(2, 0), rows(2, 0), rows(0, 0)),
    ],
    ids=["likeness", "leave_one_out", "diversity", "kid", "share_nearer"],
)
def test_too_few_pictures_are_refused(score: Callable[[], float]) -> None:
    with pytest.raises(DataError, match="at least"):
        score()
