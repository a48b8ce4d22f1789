"""Words of other pictures: each gets some, none its own; and what is wrong is told from what is right."""

from collections import Counter

import numpy as np

from trainer.judging.captions import CaptionFit, foreign_captions, others_captions
from trainer.judging.remarks import Remarks


def test_each_picture_gets_other_words_and_each_words_are_tried() -> None:
    own = [f"thing, {number}" for number in range(20)]
    turns = [others_captions(own, turn) for turn in (1, 2, 3)]
    for words in turns:
        assert words is not None
        assert all(other != mine for other, mine in zip(words, own, strict=True))
        assert set(Counter(words).values()) == {1}
    assert len({tuple(words or ()) for words in turns}) == 3


def test_where_words_repeat_no_picture_gets_its_own() -> None:
    own = ["ball", "ball", "cube", "ball", "cube", "cone"]
    words = others_captions(own, 1)
    assert words is not None
    assert all(other != mine for other, mine in zip(words, own, strict=True))
    assert others_captions(["same"] * 4, 1) is None


def test_words_that_help_less_than_they_hurt_are_named_the_worst_first() -> None:
    usual = np.random.default_rng(0).uniform(0, 0.03, 20)  # pictures differ in what words do for them
    gain, harm = np.full(20, 0.03), np.zeros(20)
    gain[4], harm[4] = -0.05, 0.02
    gain[9], harm[9] = 0.0, 0.07  # learned by heart, and foreign to all others
    gain[12] = -0.035  # a word of the set that the model does not know
    foreign = np.isin(np.arange(20), [4, 9, 15])  # 15: other words that fit
    remarks = Remarks(
        keys=[str(place) for place in range(20)],
        names=[str(place) for place in range(20)],
        captions=["words"] * 20,
        learned=np.full(20, 0.1),
        learned_z=np.where(np.arange(20) == 7, -5.0, 0.0),
        fit=CaptionFit(gain=gain + usual, harm=harm, foreign=foreign),
        copies=[1] * 20,
    )
    assert remarks.bad_captions == [4, 9]
    assert remarks.never_learned == [7]
    assert remarks.learned_at_once == []
    assert remarks.quicker({"3", "4"}) == 1


def test_words_are_foreign_that_share_none_with_most() -> None:
    captions = ["zwx, a crying face", "zwx, an angry face", "zwx, face", "zwx, delivery truck"]
    assert foreign_captions(captions, "zwx").tolist() == [False, False, False, True]
    assert not foreign_captions(["zwx, ball", "zwx, cube", "zwx, cone"], "zwx").any()
