"""Choices in prompts: by seed, out of one folder and no other."""

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.core.errors import DataError
from trainer.sampling.wildcards import Wildcards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "wildcards"
    (root / "animals").mkdir(parents=True)
    (root / "colour.txt").write_text("# colours\nred\n\n{dark|light} blue\ngreen # a remark\n", encoding="utf-8")
    (root / "animals" / "cat.txt").write_text("tabby\n", encoding="utf-8")
    (root / "loop.txt").write_text("__loop__\n", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("hidden\n", encoding="utf-8")
    return root


def test_a_seed_takes_the_same_and_all_are_taken_in_time(folder: Path) -> None:
    wildcards = Wildcards(folder)
    prompt = r"(__colour__:1.2) {ball|cube}, \(x\), __animals/cat__"
    taken = {seed: wildcards.fill(prompt, seed) for seed in range(40)}
    assert taken == {seed: Wildcards(folder).fill(prompt, seed) for seed in range(40)}
    colours = {text.split(":")[0].strip("(") for text in taken.values()}
    assert colours == {"red", "dark blue", "light blue", "green"}
    assert all(text.endswith(r", \(x\), tabby") for text in taken.values())


def test_prompts_without_choices_stay_as_they_are(folder: Path) -> None:
    for text in ("a # b", "50 % of {this}", "$5", "snake_case", "__", "", "a\nb"):
        assert Wildcards(folder).fill(text, 0) == text


@pytest.mark.parametrize("name", ["../secret", "..", "/etc/passwd", "secret", "animals/../../secret", "~/secret"])
def test_nothing_outside_of_the_folder_is_read(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match="There is no wildcard called"):
        Wildcards(folder).fill(f"a __{name}__", 0)


def test_links_that_lead_out_are_not_followed(folder: Path) -> None:
    (folder / "leads-out.txt").symlink_to(folder.parent / "secret.txt")
    with pytest.raises(DataError, match="There is no wildcard"):
        Wildcards(folder).fill("__leads-out__", 0)


@pytest.mark.parametrize(
    ("prompt", "what"),
    [("{a|b", "cannot be read"), ("__loop__", "leads back to itself"), ("__nothing__ {a|b}", "called nothing")],
)
def test_what_cannot_be_filled_is_said(folder: Path, prompt: str, what: str) -> None:
    with pytest.raises(DataError, match=what):
        Wildcards(folder).fill(prompt, 0)
    with pytest.raises(DataError):
        Wildcards(None).fill(prompt, 0)


def test_the_library_is_asked_only_for_choices_and_brings_nothing_heavy() -> None:
    code = (
        "import sys; from trainer.sampling.wildcards import Wildcards; w = Wildcards(None); w.fill('a', 0);"
        "assert 'dynamicprompts' not in sys.modules; w.fill('{a|b}', 0);"
        "assert 'dynamicprompts' in sys.modules and not {'requests', 'transformers', 'nltk'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
