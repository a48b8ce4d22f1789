"""What we write: who may read it, and what a link that somebody planted can do."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainer.core import files
from trainer.core.errors import TrainerError
from trainer.core.files import inside, replacing, write_atomically

pytestmark = pytest.mark.skipif(os.name == "nt", reason="rights and links are otherwise there")


@contextmanager
def masked(mask: int) -> Generator[None, None, None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_are_for_whom_the_mask_says(tmp_path: Path, mask: int, mode: int) -> None:
    path = tmp_path / "result.safetensors"
    with masked(mask):
        write_atomically(path, b"weights")
        assert path.stat().st_mode & 0o777 == mode
        with replacing(path) as temporary:
            temporary.touch(0o600)  # as writers do that make their files for themselves alone
        assert path.stat().st_mode & 0o777 == mode


def test_a_planted_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("untouched", encoding="utf-8")
    path = tmp_path / "result.safetensors"
    path.symlink_to(canary)
    write_atomically(path, b"weights")
    assert canary.read_text(encoding="utf-8") == "untouched"
    assert not path.is_symlink()
    assert path.read_bytes() == b"weights"


def test_names_of_unfinished_files_cannot_be_foreseen(tmp_path: Path) -> None:
    names: set[str] = set()
    for _ in range(50):
        with replacing(tmp_path / "one") as temporary:
            temporary.write_bytes(b"")
            assert temporary.parent == tmp_path  # never in a folder that all users share
            names.add(temporary.name)
    assert len(names) == 50
    assert len(files.secrets.token_hex(6)) == 12  # 48 bits of the system's own chance


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "C:\\x", "\\\\host\\x", "a\0b", "", "..\\x"])
def test_no_name_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(TrainerError):
        inside(tmp_path, name)


def test_no_link_leads_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    with pytest.raises(TrainerError, match="link"):
        inside(tmp_path / "in", "link/x")
