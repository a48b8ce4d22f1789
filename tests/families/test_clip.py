"""Long captions are read chunk by chunk, and what is not read can be found in the caption."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.core.device import Precision
from trainer.core.errors import WeightsError
from trainer.families.clip import ClipWords, TokenLimit, join_chunks
from trainer.families.loading import open_weights
from trainer.families.sd1 import Sd1

CPU = torch.device("cpu")
TOKENIZER = open_weights("bundled").tokenizer()
CAPTIONS = ["", "red heart, flat style", "a " * 75, "red " * 76, "one two " * 60, "blue " * 151, "cat, dog, " * 80]


@pytest.fixture
def parts(small_model: Path) -> tuple[Any, Any]:
    """The tokenizer and the text encoder, as transformers gives them."""
    from transformers import CLIPTextModel, CLIPTokenizer

    network: Any = CLIPTextModel.from_pretrained(small_model / "text_encoder", dtype=torch.float32)
    return CLIPTokenizer.from_pretrained(small_model / "tokenizer"), network.eval()


@pytest.mark.parametrize("limit", [75, 150, 225])
def test_states_are_those_of_the_chunks_encoded_by_hand(
    small_model: Path, parts: tuple[Any, Any], limit: TokenLimit
) -> None:
    tokenizer, network = parts
    model = Sd1(weights=str(small_model), token_limit=limit).load(Precision.float32, CPU)
    states = model.encode_words(CAPTIONS).tokens
    assert states.shape == (len(CAPTIONS), limit + 2, 16)
    assert model.token_limit == limit
    for caption, state in zip(CAPTIONS, states, strict=True):
        ids = tokenizer(caption, padding="max_length", max_length=limit + 2, truncation=True).input_ids
        start, end, chunks = ids[0], ids[-1], range(1, limit + 1, 75)
        with torch.no_grad():
            read: list[Tensor] = [network(torch.tensor([[start, *ids[at : at + 75], end]]))[0][0] for at in chunks]
        expected = torch.cat([read[0][:1], *(chunk[1:76] for chunk in read), read[-1][76:]])
        torch.testing.assert_close(state, expected)


def test_the_limit_of_75_is_the_plain_encoder_bit_for_bit(small_model: Path, parts: tuple[Any, Any]) -> None:
    tokenizer, network = parts
    ids = tokenizer(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    model = Sd1(weights=str(small_model)).load(Precision.float32, CPU)
    with torch.no_grad():
        assert torch.equal(model.encode_words(CAPTIONS).tokens, network(ids)[0])


def test_a_longer_limit_reads_more(small_model: Path) -> None:
    short, long = ("red " * 100 + word for word in ("cat", "dog"))
    cases: tuple[tuple[TokenLimit, bool], ...] = ((75, True), (150, False))
    for limit, equal in cases:
        states = Sd1(weights=str(small_model), token_limit=limit).load(Precision.float32, CPU)
        one, other = states.encode_words([short, long]).tokens
        assert torch.equal(one, other) == equal


def test_padding_follows_the_end_mark_of_each_chunk(tmp_path: Path) -> None:
    """The second text encoders pad with another token than the end mark, and look for the first end mark."""
    folder = Path(shutil.copytree(TOKENIZER, tmp_path / "tokenizer"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": "!"}), encoding="utf-8")
    words = ClipWords(folder, 150)
    pad = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))["!"]
    short, whole, long = words.chunks(["cat", "cat " * 75, "cat " * 76]).tolist()
    start, cat, end = short[0][:3]
    assert len({start, cat, end, pad}) == 4
    assert short == [[start, cat, end, *[pad] * 74], [start, end, *[pad] * 75]]
    assert whole == [[start, *[cat] * 75, end], short[1]]
    assert long == [[start, *[cat] * 75, end], short[0]]


def test_joined_chunks_keep_the_outer_marks() -> None:
    states = torch.arange(2 * 3 * 77).reshape(2, 3, 77, 1)
    joined = join_chunks(states)
    assert joined.shape == (2, 227, 1)
    expected = [0, *range(1, 76), *range(78, 153), *range(155, 230), 230]
    assert joined[0, :, 0].tolist() == expected


WORDS = ClipWords(TOKENIZER, 75)


@given(
    st.lists(st.sampled_from(["red", "heart,", "Ünïcode", "😀", "supercalifragilistic", "(x:1.2)", "ﬁne"]), max_size=60)
)
def test_lost_words_are_the_end_of_the_caption(parts: list[str]) -> None:
    caption = "  ".join(parts)
    lost = WORDS.lost(caption)
    assert caption.endswith(lost)
    assert bool(lost) == (WORDS.count(caption) > 75)
    read = caption.removesuffix(lost)
    if not read or read[-1] == " ":  # not in the middle of a word, which would be other tokens by itself
        assert WORDS.count(read) + WORDS.count(lost) == WORDS.count(caption)
        # a letter of several bytes is several tokens; where the limit goes through it, all of it is lost
        assert not lost or 75 - WORDS.count(read) in ((0, 1, 2, 3) if not lost[0].isascii() else (0,))


@pytest.mark.parametrize(
    ("limit", "caption", "lost"),
    [
        (75, "", ""),
        (75, "red " * 75, ""),
        (75, "red " * 75 + "Big HEART, end", "Big HEART, end"),
        (75, "red " * 74 + "heart, a dog", ", a dog"),
        (150, "red " * 151, "red"),
        (225, "red " * 225, ""),
        (75, "a" * 75, ""),
        (75, "red " * 74 + "😀 end", "😀 end"),
    ],
)
def test_lost_words_stand_as_they_were_written(limit: TokenLimit, caption: str, lost: str) -> None:
    assert ClipWords(TOKENIZER, limit).lost(caption) == lost


def test_the_limit_is_part_of_the_identity_of_words(small_model: Path) -> None:
    short = Sd1(weights=str(small_model)).load(Precision.float32, CPU).encoders()
    long = Sd1(weights=str(small_model), token_limit=150).load(Precision.float32, CPU).encoders()
    assert short.words_identity != long.words_identity
    assert short.pictures_identity == long.pictures_identity


def test_a_tokenizer_without_its_files_is_named(tmp_path: Path) -> None:
    """Transformers would make an empty one in silence, and every caption would mean the same."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    shutil.copy(TOKENIZER / "tokenizer_config.json", folder)
    with pytest.raises(WeightsError, match="tokenizer of this model cannot be loaded"):
        ClipWords(folder, 75).count("cat")
    for name in ("merges.txt", "vocab.json"):
        shutil.copy(TOKENIZER / name, folder)
    assert ClipWords(folder, 75).count("cat dog") == WORDS.count("cat dog") == 2
    (folder / "vocab.json").write_text("{", encoding="utf-8")
    with pytest.raises(WeightsError, match="no readable JSON"):
        ClipWords(folder, 75).count("cat")


@pytest.mark.parametrize(("said", "then"), [(None, "false"), ("true", "true")])
def test_tokens_need_no_threads_of_their_own_unless_somebody_says_so(
    monkeypatch: pytest.MonkeyPatch, said: str | None, then: str
) -> None:
    """The tokenizer's pool hangs where memory is so short that its threads cannot start."""
    name = "TOKENIZERS_PARALLELISM"
    monkeypatch.delenv(name, raising=False)
    if said is not None:
        monkeypatch.setenv(name, said)
    assert ClipWords(TOKENIZER, 75).tokens(["cat", "dog"])
    assert os.environ[name] == then
