"""Weights in prompts: how they are written, and what they do to what a prompt means."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from trainer.core.device import Precision
from trainer.families.auto import Auto
from trainer.families.clip import TokenLimit
from trainer.families.emphasised import Passage, laid_out, weighed
from trainer.families.model import DiffusionModel
from trainer.sampling.emphasis import as_letters, emphasised, without_weights
from trainer.sampling.prompts import Prompt
from trainer.sampling.understanding import understand

CPU = torch.device("cpu")
COMMA = 7


def parts(prompt: str) -> list[list[tuple[str, float]]]:
    return [[(one.text, round(one.weight, 6)) for one in part] for part in emphasised(prompt)]


@pytest.fixture(params=["small_model", "small_sd2", "small_sdxl"])
def base(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def opened(base: Path, limit: TokenLimit = 75) -> DiffusionModel:
    return Auto(weights=str(base), token_limit=limit).load(Precision.float32, CPU)


@pytest.mark.parametrize(
    ("prompt", "means"),
    [
        ("a cat", [[("a cat", 1.0)]]),
        ("a (cat:1.2) sat", [[("a ", 1.0), ("cat", 1.2), (" sat", 1.0)]]),
        ("((cat))", [[("cat", 1.21)]]),
        ("[cat] (dog)", [[("cat", 0.909091), (" ", 1.0), ("dog", 1.1)]]),
        ("(a (b:1.5) c:0.5)", [[("a ", 0.5), ("b", 0.75), (" c", 0.5)]]),
        (r"saber \(fate\)", [[("saber (fate)", 1.0)]]),
        (r"a\\b \[c\]", [[(r"a\b [c]", 1.0)]]),
        ("(never closed", [[("never closed", 1.1)]]),
        ("a) b] :1.2) c: d", [[("a) b] :1.2) c: d", 1.0)]]),
        ("(cat:-1)", [[("cat", -1.0)]]),
        ("(cat:1.0) dog", [[("cat dog", 1.0)]]),
        ("red BREAK blue", [[("red", 1.0)], [("blue", 1.0)]]),
        ("(red BREAK blue:1.2)", [[("red", 1.2)], [("blue", 1.2)]]),
        ("BREAKFAST", [[("BREAKFAST", 1.0)]]),
        ("", [[("", 1.0)]]),
    ],
)
def test_weights_are_read_as_people_write_them(prompt: str, means: list[list[tuple[str, float]]]) -> None:
    assert parts(prompt) == means


@given(st.text(alphabet=st.sampled_from("ab ()[]\\:1.2,"), max_size=30))
def test_letters_of_a_caption_stay_letters(caption: str) -> None:
    assert without_weights(emphasised(as_letters(caption))) == caption


def test_a_caption_never_breaks() -> None:
    assert without_weights(emphasised(as_letters("red BREAK (blue)"))) == "red break (blue)"


def test_a_weight_of_one_is_the_plain_encoding_bit_for_bit(base: Path) -> None:
    limits: tuple[TokenLimit, ...] = (75, 150)
    for limit in limits:
        model = opened(base, limit)
        plain = model.encode_words(["red ball, blue"])
        weightless = model.encode_emphasised(emphasised("(red:1.0) ball, ((blue:1.0):1)"))
        assert torch.equal(weightless.tokens, plain.tokens)
        assert (weightless.pooled is None) == (plain.pooled is None)
        if weightless.pooled is not None and plain.pooled is not None:
            assert torch.equal(weightless.pooled, plain.pooled)


def test_words_count_so_much_more_and_the_mean_stays(base: Path) -> None:
    model = opened(base)
    plain = model.encode_emphasised(((Passage("red "), Passage("ball")),)).tokens[0].double()
    louder = model.encode_emphasised(((Passage("red "), Passage("ball", 1.5)),)).tokens[0].double()
    widths = [part.shape[1] for part in (model.vocabulary.table(name) for name in model.text_parts.values())]
    count = model.count_tokens("red ")
    for before, after in zip(plain.split(widths, dim=1), louder.split(widths, dim=1), strict=True):
        assert_close(after.mean(), before.mean(), rtol=1e-4, atol=1e-7)
        scale = (after / before).mean(dim=1)
        assert_close(scale[count + 1] / scale[0], torch.tensor(1.5).double(), rtol=1e-4, atol=0)
        assert_close(scale[1] / scale[0], torch.tensor(1.0).double(), rtol=1e-4, atol=0)


@given(st.integers(0, 2**32), st.floats(-2, 3))
def test_the_mean_of_each_chunk_stays(seed: int, weight: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(1, 2, 77, 4, generator=generator, dtype=torch.float64) + 3
    weights = torch.ones(1, 2, 77, dtype=torch.float64)
    weights[0, 1, 5] = weight
    after = weighed(states, weights)
    assert torch.equal(after[0, 0], states[0, 0])  # nothing in this chunk was weighed
    assert_close(after.mean(dim=(2, 3)), states.mean(dim=(2, 3)))


def test_a_long_prompt_has_more_chunks_and_none_of_it_is_lost(base: Path) -> None:
    model = opened(base)
    words = " ".join(["ball"] * 80)
    count = model.count_tokens(words)
    chunks = -(-count // 75)
    states = model.encode_emphasised(emphasised(words)).tokens
    assert states.shape[1] == 77 * chunks
    read = understand(model, [Prompt(text=words), Prompt(text="ball")])
    assert torch.equal(read.wanted[words].tokens, states)
    assert read.wanted["ball"].tokens.shape[1] == 77
    # each chunk is read by itself, so the first is that of a caption which ends there
    alone = model.encode_words([words])
    assert_close(states[:, :77], alone.tokens)


def test_a_prompt_within_the_limit_is_laid_out_as_it_was_trained(base: Path) -> None:
    model = opened(base, 150)
    assert model.encode_emphasised(emphasised("(ball:1.2)")).tokens.shape[1] == 152
    assert model.encode_emphasised(emphasised("red BREAK ball")).tokens.shape[1] == 154


def test_each_part_begins_a_chunk(base: Path) -> None:
    model = opened(base)
    both = model.encode_emphasised(emphasised("red BREAK ball")).tokens
    apart = [model.encode_words([word]).tokens for word in ("red", "ball")]
    assert_close(both, torch.cat(apart, dim=1))


def test_a_chunk_ends_behind_a_comma_that_is_near() -> None:
    def sizes(tokens: list[int]) -> list[int]:
        return [len(chunk) for chunk in laid_out([[(token, 1.0) for token in tokens]], COMMA)]

    assert sizes([1] * 60 + [COMMA] + [1] * 30) == [61, 30]
    assert sizes([1] * 50 + [COMMA] + [1] * 40) == [75, 16]  # too far away
    assert sizes([1] * 75 + [COMMA, 1]) == [75, 2]
    assert sizes([1] * 10) == [10]
    assert sizes([]) == [0]
    tokens = [1] * 60 + [COMMA] + [2] * 100
    assert [token for chunk in laid_out([[(one, 1.0) for one in tokens]], COMMA) for token, _ in chunk] == tokens
