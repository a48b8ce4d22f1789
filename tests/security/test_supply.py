"""Every package that is installed for us has one version and a checksum, and none has a hole that is known."""

import re
import sys
from importlib.metadata import requires
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports] it is there where it is needed

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALLED = ("dev", "tensorboard", "wandb")  # what `make setup` installs

SAFE = {  # the first version without a hole that concerns what this program does with the package
    "torch": "2.6",  # CVE-2025-32434
    "pillow": "12.0",  # the bomb in FITS of 12.1 (GHSA-whj4-6x5x-4v2j) is not in our list of formats
    "transformers": "4.53",  # CVE-2025-3777, CVE-2025-5197 and others before it
    "safetensors": "0.4",
    "jinja2": "3.1",  # later holes are of templates from strangers; ours are our own
    "httpx": "0.23",  # CVE-2021-41945
    "requests": "2.32.4",  # CVE-2024-47081
    "urllib3": "2.5",  # CVE-2025-50181
    "aiohttp": "3.12.14",  # CVE-2025-53643
}


def pins() -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line)
            found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


def wanted() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    return [
        Requirement(line) for line in (*PROJECT["dependencies"], *(one for name in INSTALLED for one in extras[name]))
    ]


def everything() -> set[str]:
    """Names of what is installed for us, whatever asks for it, as far as it is installed here."""
    waiting, found = [(one, "") for one in wanted()], set[str]()
    seen = set[tuple[str, str]]()
    while waiting:
        one, extra = waiting.pop()
        if one.marker is not None and not one.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(one.name)
        found.add(name)
        for part in ("", *sorted(one.extras)):
            if (name, part) not in seen:
                seen.add((name, part))
                waiting += [(Requirement(line), part) for line in requirements_of(name)]
    return found


def requirements_of(name: str) -> list[str]:
    from importlib.metadata import PackageNotFoundError

    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def test_every_pin_is_one_exact_version() -> None:
    for name, lines in pins().items():
        for line in lines:
            assert re.fullmatch(r"==[^*,]+", str(line.specifier)), f"{name}: {line}"


def test_everything_that_is_asked_for_is_pinned() -> None:
    missing = {canonicalize_name(one.name) for one in wanted()} - pins().keys()
    assert missing == set()


def test_everything_that_comes_along_is_pinned() -> None:
    """Beside what torch brings of CUDA, which differs by its build and has the versions that torch names."""
    along = {name for name in everything() if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert sorted(along - pins().keys() - {"sd-trainer"}) == []


def test_pins_keep_to_what_the_project_asks_for() -> None:
    for one in wanted():
        for pin in pins()[canonicalize_name(one.name)]:
            (version,) = (specifier.version for specifier in pin.specifier)
            assert one.specifier.contains(version, prereleases=True), f"{one} against {pin}"


def test_the_lock_is_of_these_pins_and_has_checksums_for_each() -> None:
    locked: dict[str, int] = {}
    for entry in re.sub(r"^#.*\n", "", (ROOT / "requirements.lock").read_text(encoding="utf-8"), flags=re.M).split(
        "\n"
    ):
        if entry.startswith("    "):
            assert re.fullmatch(r" {4}--hash=sha256:[0-9a-f]{64}( \\)?", entry), entry
            locked[next(reversed(locked))] += 1
        elif entry:
            locked[str(Requirement(entry.removesuffix("\\")))] = 0
    wanted = {str(pin) for name, lines in pins().items() if name != "torch" for pin in lines}
    assert set(locked) == wanted, "run scripts/lock.py"
    assert all(count > 0 for count in locked.values())


def test_no_version_with_a_known_hole() -> None:
    lowest = {canonicalize_name(one.name): one for one in wanted()}
    for name, safe in ((canonicalize_name(name), safe) for name, safe in SAFE.items()):
        for pin in pins().get(name, []):
            (version,) = (specifier.version for specifier in pin.specifier)
            assert Version(version) >= Version(safe), pin
        if name in lowest:
            floor = [Version(one.version) for one in lowest[name].specifier if one.operator == ">="]
            assert floor
            assert max(floor) >= Version(safe), f"{lowest[name]} allows versions below {safe}"
