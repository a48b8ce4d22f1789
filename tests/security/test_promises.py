"""docs/reliability.md: every requirement has its line, and every test that it names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
LINES = [line for line in TEXT.splitlines() if re.match(r"\| [RS]\d", line)]


def test_every_promise_has_its_line_and_each_line_its_tests() -> None:
    told = [name for line in LINES for name in line.split("|")[1].split()]
    assert told == [f"R{number}" for number in range(1, 25)] + [f"S{number}" for number in range(1, 22)]
    for line in LINES:
        assert "`test_" in line or "does not apply" in line, line


def test_every_test_that_is_named_exists_and_its_tier_is_said() -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(named) > 100
    assert sorted(named - set(re.findall(r"def (test_\w+)", text))) == []
