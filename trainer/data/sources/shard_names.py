"""Which shards a pattern means: one archive, a folder of them, brace ranges, or wildcards."""

import glob
import os
import re
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Final

from trainer.core.errors import DataError
from trainer.core.files import printable

_MOST_SHARDS: Final = 100_000
_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_RANGE: Final = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
_REMOTE: Final = re.compile(r"(pipe|https?|s3|gs|hf|ftp):", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Shard:
    """One archive, or why it is not read."""

    name: str  # inside the folder that all shards have in common
    path: Path  # the archive itself, no link
    problem: str = ""


def find_shards(pattern: str) -> tuple[Shard, ...]:
    """The shards that `pattern` means, in the order of ranges or names.

    Raises:
        DataError: there is none of them, or the pattern means something that is no file here.
    """
    if _REMOTE.match(pattern):
        raise DataError(
            "Shards are read from this machine's disks.",
            where=printable(pattern),
            mend="Download them first; give a path.",
        )
    path = Path(pattern)
    if path.is_dir():
        found = sorted(path.glob("*.tar"), key=lambda one: os.fsencode(one.name))
        return _shards(found, _inside(path), pattern)
    if path.exists():
        return (Shard(path.name, path.resolve()),)
    named = [Path(one) for one in expand(pattern)]
    if not any(glob.has_magic(str(one)) for one in named):
        return _shards(named, None, pattern)
    matches = (Path(match) for one in named for match in glob.glob(str(one)))  # noqa: PTH207 Path.glob takes no absolute pattern
    found = sorted(dict.fromkeys(matches), key=lambda one: os.fsencode(str(one)))
    return _shards(found, _inside(_fixed_part(pattern)), pattern)


def expand(pattern: str) -> tuple[str, ...]:
    """`a-{00..02}.tar` as a-00.tar, a-01.tar, a-02.tar; `{a,b}` as a and b; several braces as all their pairs.

    Raises:
        DataError: these are too many.
    """
    pieces = _BRACES.split(pattern)  # text, braces, text, ...
    counts = [_count(piece) for piece in pieces[1::2]]
    if prod(counts) > _MOST_SHARDS:
        raise DataError(f"These are more than {_MOST_SHARDS:,} shards.", where=printable(pattern))
    choices = [_choices(piece) if number % 2 else (piece,) for number, piece in enumerate(pieces)]
    return tuple("".join(parts) for parts in product(*choices))


def _count(braces: str) -> int:
    if match := _RANGE.fullmatch(braces):
        return abs(int(match[2]) - int(match[1])) + 1
    return braces.count(",") + 1


def _choices(braces: str) -> tuple[str, ...]:
    if match := _RANGE.fullmatch(braces):
        first, last = int(match[1]), int(match[2])
        step = 1 if first <= last else -1
        width = max(len(text) for text in match.groups()) if any(text[0] == "0" for text in match.groups()) else 0
        return tuple(str(number).zfill(width) for number in range(first, last + step, step))
    return tuple(braces.split(",")) if "," in braces else (f"{{{braces}}}",)


def _fixed_part(pattern: str) -> Path:
    """The folders of a pattern before its first brace or wildcard."""
    first = re.search(r"[{*?\[]", pattern)
    return Path(pattern if first is None else pattern[: first.start()] + "x").parent


def _inside(root: Path) -> Path:
    return root.resolve()


def _shards(paths: list[Path], root: Path | None, pattern: str) -> tuple[Shard, ...]:
    """The shards at `paths`; with a `root`, links that lead out of it are not followed."""
    if not any(path.exists() for path in paths):
        raise DataError(
            "There are no such shards.",
            where=printable(pattern),
            mend="Give a .tar file, a folder of them, or a pattern such as shards/train-{0000..0099}.tar.",
        )
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return tuple(_shard(path, str(path.relative_to(common)), root) for path in dict.fromkeys(paths))


def _shard(path: Path, name: str, root: Path | None) -> Shard:
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a circle of links, before Python 3.13
        return Shard(name, path, "There is no such file.")
    if root is not None and not real.is_relative_to(root):
        return Shard(name, path, "This link leads out of the folder; copy what it points to.")
    return Shard(name, real)
