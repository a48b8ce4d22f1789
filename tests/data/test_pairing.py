"""Pictures find their captions and masks, and nothing is lost on the way."""

from pathlib import Path

import pytest

from trainer.data.pairing import Pairs, pair
from trainer.data.walking import FoundFile, Walk

SUFFIXES = (".txt", ".caption")


def paired(*names: str, masks: bool = False, every: bool = False) -> Pairs:
    walk = Walk(files=[FoundFile(name, Path("/root")) for name in sorted(names)])
    pairs = pair(walk, SUFFIXES, masks=masks, every_caption=every)
    listed = [file.name for file in (*pairs.pictures, *pairs.captions, *pairs.masks)]
    listed += [name for name, _ in (*pairs.refused, *pairs.passed)]
    assert sorted(listed) == sorted(names), "every file stands in exactly one list"
    return pairs


def captions(pairs: Pairs) -> dict[str, list[str]]:
    return {picture: [file.relative for file in files] for picture, files in pairs.all_captions_of.items()}


def masks(pairs: Pairs) -> dict[str, str]:
    return {picture: file.relative for picture, file in pairs.mask_of.items()}


def test_stems_must_be_the_same_to_the_byte_and_in_the_same_folder() -> None:
    pairs = paired("a.png", "a.txt", "b.c.jpg", "b.c.txt", "sub/d.png", "d.txt", "E.png", "e.txt")
    assert captions(pairs) == {"a.png": ["a.txt"], "b.c.jpg": ["b.c.txt"]}
    assert dict(pairs.warnings)["d.txt"] == "a caption without a picture"
    assert "E.png differs only in" in dict(pairs.warnings)["e.txt"]


def test_names_that_only_look_the_same_are_not_paired_but_named() -> None:
    composed, taken_apart = "caf\u00e9.png", "cafe\u0301.txt"
    pairs = paired(composed, taken_apart)
    assert captions(pairs) == {}
    assert composed in dict(pairs.warnings)[taken_apart]


def test_of_several_caption_files_the_first_suffix_is_used_or_all_are() -> None:
    names = ("a.png", "a.caption", "a.txt", "b.png", "b.caption")
    first = paired(*names)
    assert captions(first) == {"a.png": ["a.txt"], "b.png": ["b.caption"]}
    assert {picture: file.relative for picture, file in first.caption_of.items()} == {
        "a.png": "a.txt",
        "b.png": "b.caption",
    }
    assert dict(first.passed) == {"a.caption": "a.txt is the caption"}
    assert dict(first.warnings) == {"a.caption": "a second caption file; a.txt is used"}
    every = paired(*names, every=True)
    assert captions(every) == {"a.png": ["a.txt", "a.caption"], "b.png": ["b.caption"]}
    assert every.warnings == every.passed == []


def test_two_pictures_of_one_stem_share_their_caption_with_a_warning() -> None:
    pairs = paired("a.jpg", "a.png", "a.txt")
    assert captions(pairs) == {"a.jpg": ["a.txt"], "a.png": ["a.txt"]}
    assert pairs.warnings == [("a.png", "has the same stem, and so the same caption, as a.jpg")]


def test_papers_and_other_files_are_passed_over_and_unread_formats_refused() -> None:
    pairs = paired("README.txt", "LICENSE", "a.psd", "b.svg", "c.heic", "d.apng")
    assert {reason for _, reason in pairs.passed} == {"not a picture"}
    assert [name for name, _ in pairs.refused] == ["c.heic"]
    assert [file.name for file in pairs.pictures] == ["d.apng"]
    assert pairs.warnings == []


@pytest.mark.parametrize(
    ("picture", "mask"),
    [
        ("a.jpg", "a-masklabel.png"),
        ("a.jpg", "a_mask.png"),
        ("a.jpg", "a.mask.webp"),
        ("a.png", "a_mask.PNG"),
        ("a.jpg", "mask/a.png"),
        ("a.jpg", "masks/a.jpg"),
        ("sub/a.jpg", "sub/masks/a.png"),
        ("sub/a.jpg", "Masks/sub/a.png"),
        ("sub/a.jpg", "sub/a_mask.jpg"),
    ],
)
def test_a_mask_belongs_to_its_picture_and_is_none_itself(picture: str, mask: str) -> None:
    pairs = paired(picture, mask, masks=True)
    assert masks(pairs) == {picture: mask}
    assert [file.name for file in pairs.pictures] == [picture]
    assert [file.name for file in pairs.masks] == [mask]
    assert pairs.warnings == []


def test_without_the_setting_masks_are_pictures_with_a_warning() -> None:
    pairs = paired("a.jpg", "a_mask.png", "masks/a.png", "gas_mask.jpg", "masks/other.png")
    assert [file.name for file in pairs.pictures] == [
        "a.jpg",
        "a_mask.png",
        "gas_mask.jpg",
        "masks/a.png",
        "masks/other.png",
    ]
    assert [name for name, _ in pairs.warnings] == ["a_mask.png", "masks/a.png"]
    assert all("looks like the mask of a.jpg" in reason for _, reason in pairs.warnings)
    assert pairs.mask_of == {}


def test_lonely_and_second_masks_are_passed_over_with_a_warning() -> None:
    pairs = paired("a.jpg", "a-masklabel.png", "a_mask.png", "b_mask.png", "b.txt", masks=True)
    assert masks(pairs) == {"a.jpg": "a-masklabel.png"}
    assert dict(pairs.warnings) == {
        "a_mask.png": "a second mask of a.jpg; not used",
        "b_mask.png": "a mask without a picture",
        "b.txt": "a caption without a picture",
    }
    assert [file.name for file in pairs.pictures] == ["a.jpg"]


def test_two_pictures_of_one_stem_share_their_mask() -> None:
    pairs = paired("a.jpg", "a.png", "a_mask.png", masks=True)
    assert masks(pairs) == {"a.jpg": "a_mask.png", "a.png": "a_mask.png"}
    assert [file.name for file in pairs.masks] == ["a_mask.png"]


def test_a_file_is_a_picture_by_its_content_too(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"\xff\xd8\xff\xe0" + bytes(20))
    (tmp_path / "letter").write_bytes(b"BM is short for nothing")
    pairs = pair(Walk(files=[FoundFile(name, tmp_path) for name in ("photo", "letter")]), SUFFIXES)
    assert [file.name for file in pairs.pictures] == ["photo"]
    assert pairs.warnings == [("photo", "is a picture by its content, not by its name")]
    assert pairs.passed == [("letter", "not a picture")]
