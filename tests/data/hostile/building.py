"""Puts the whole hostile set together and writes it into a folder."""

import sys
from pathlib import Path

from hostile_bombs import bombs
from hostile_captions import captions, lonely
from hostile_case import Case
from hostile_colours import colours
from hostile_damage import damage
from hostile_modes import modes
from hostile_names import names


def all_cases() -> list[Case]:
    """Every file of the set, in the order in which they have to be made."""
    cases = [*modes(), *colours(), *damage(), *bombs(), *names(), *captions(), *lonely()]
    if sys.platform != "linux":  # other file systems fold letters' case, forbid some names, or have no such entries
        return [case for case in cases if not case.name.startswith(("names/", "entries/", "links/"))]
    return cases


def build(cases: list[Case], root: Path) -> None:
    """Write the set into `root/set`, and what it must never reach into `root/beside`."""
    beside = root / "beside"
    beside.mkdir(parents=True)
    (beside / "secret.png").write_bytes(next(case.content for case in cases if isinstance(case.content, bytes)))
    (beside / "secret.txt").write_text("secret words", encoding="utf-8")
    for case in cases:
        path = root / "set" / case.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(case.content, bytes):
            path.write_bytes(case.content)
        else:
            case.content(path)


if __name__ == "__main__":
    build(all_cases(), Path(sys.argv[1]))
