"""docs/papers.md points at files and tests that exist, and names every paper that the code cites."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_exists() -> None:
    tests = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"def (test_\w+)", tests))
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert named
    assert sorted(named - defined) == []
    assert [path for path in re.findall(r"`(\w+/test_\w+\.py)`", TEXT) if not (ROOT / "tests" / path).is_file()] == []


def test_every_file_that_is_named_exists() -> None:
    named = [path for path in re.findall(r"`(\w+/\w+\.py)`", TEXT) if not Path(path).name.startswith("test_")]
    assert named
    assert [path for path in named if not (ROOT / "trainer" / path).is_file()] == []


def test_every_paper_that_the_code_cites_is_listed() -> None:
    code = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "trainer").rglob("*.py"))
    cited = set(re.findall(r"arXiv:(\d{4}\.\d{5})", code))
    assert cited
    assert sorted(number for number in cited if number not in TEXT) == []
