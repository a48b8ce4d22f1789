"""Words out of caption files, never guessed; the hostile set has every encoding."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.core.errors import DataError
from trainer.data.sidecars import MOST_CAPTION_BYTES, clean_line, decode_caption, read_caption


def test_every_line_is_a_caption() -> None:
    words = decode_caption("first, tag\r\n\n  second\t\u2028third\n".encode(), "here")
    assert words.lines == ("first, tag", "second", "third")
    assert words.remarks == ("has 3 lines; each is a caption of its own",)
    assert decode_caption(b"\n \n", "here").lines == ()
    assert decode_caption(b"one\n", "here").remarks == ()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_that_say_what_they_are_are_read(encoding: str) -> None:
    assert decode_caption("日本, café".encode(encoding), "here").lines == ("日本, café",)


@pytest.mark.parametrize(
    "content",
    [
        "café".encode("latin-1"),
        "plain".encode("utf-16-le"),
        "Привет".encode("utf-16-le"),
        b"\0" * 9,
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_others_are_refused_with_the_way_out(content: bytes) -> None:
    with pytest.raises(DataError, match="not in UTF-8") as caught:
        decode_caption(content, "here")
    assert caught.value.where == "here"
    assert "UTF-8" in str(caught.value.mend)


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * (MOST_CAPTION_BYTES + 1))
    with pytest.raises(DataError, match="larger than"):
        read_caption(path)
    with pytest.raises(DataError, match="larger than"):
        decode_caption(path.read_bytes(), "here")
    path.write_bytes(b"x" * MOST_CAPTION_BYTES)
    assert len(read_caption(path).lines[0]) == MOST_CAPTION_BYTES


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(DataError, match="regular"):
        read_caption(tmp_path / "a.txt")


def test_control_and_direction_characters_are_taken_out_and_counted() -> None:
    assert clean_line(" a\x00b\x1b[31m\u202ec\u2066\ufeff ") == ("ab[31mc", 5)
    assert clean_line("a\tb\x0bc") == ("a b c", 0)
    assert clean_line("👩\u200d👧 می\u200cخواهم Z̸a̷") == ("👩\u200d👧 می\u200cخواهم Z̸a̷", 0)  # joiners are part of words
    assert "2 control characters" in decode_caption(b"some words\x07, \x00more", "here").remarks[0]


def test_the_mark_of_an_earlier_loss_is_reported() -> None:
    words = decode_caption("caf\ufffd".encode(), "here")
    assert words.lines == ("caf\ufffd",)
    assert "lost" in words.remarks[0]


@given(st.text())
def test_a_cleaned_line_is_clean_and_stays_so(text: str) -> None:
    once, _ = clean_line(text)
    assert clean_line(once) == (once, 0)
    assert not any(character in once for character in "\0\n\r\t\x1b\u202e\ufeff")


@given(st.binary(max_size=200))
def test_any_bytes_are_words_or_a_refusal(content: bytes) -> None:
    try:
        words = decode_caption(content, "here")
    except DataError:
        return
    assert all(line == clean_line(line)[0] != "" for line in words.lines)
