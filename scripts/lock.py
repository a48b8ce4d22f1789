"""Writes requirements.lock: the packages of constraints.txt with the checksums of their files on PyPI.

    python scripts/lock.py [--index https://pypi.org/simple]

To be run after each change of constraints.txt. torch is left out: each system and each kind of GPU has a build of its
own, many of them on other servers. Checksums are those of every wheel for the Pythons that are supported, and of the
source.
"""

import argparse
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
from packaging.requirements import Requirement
from packaging.utils import InvalidSdistFilename, InvalidWheelFilename, parse_sdist_filename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

ROOT: Final = Path(__file__).resolve().parents[1]
LEFT_OUT: Final = frozenset({"torch"})
OLDEST: Final = 10  # of CPython 3
NEWEST: Final = 14
KIND: Final = "application/vnd.pypi.simple.v1+json"

HEADER: Final = """\
# Made of constraints.txt by scripts/lock.py. `make setup` installs of these packages only files with such a checksum.
"""


def main() -> None:
    """Ask the index for each pin, and write the lock."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", default="https://pypi.org/simple")
    asked = parser.parse_args()
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    wanted = [pin for pin in pins if pin.name not in LEFT_OUT]
    with (
        httpx.Client(headers={"Accept": KIND}, timeout=60, follow_redirects=True) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        written = list(pool.map(partial(locked, client, asked.index), wanted))
    (ROOT / "requirements.lock").write_text(HEADER + "".join(written), encoding="utf-8")
    print(f"{len(written)} packages, {sum(one.count('--hash') for one in written)} checksums")


def locked(client: httpx.Client, index: str, pin: Requirement) -> str:
    """One pin with its checksums, as pip reads it."""
    answer = client.get(f"{index}/{pin.name}/")
    answer.raise_for_status()
    (version,) = (Version(one.version) for one in pin.specifier)
    digests = sorted({file["hashes"]["sha256"] for file in files_of(answer.json()["files"], version)})
    if not digests:
        raise SystemExit(f"{index} has no file of {pin}")
    return f"{pin} \\\n" + " \\\n".join(f"    --hash=sha256:{digest}" for digest in digests) + "\n"


def files_of(files: list[dict[str, Any]], version: Version) -> Iterator[dict[str, Any]]:
    """The files of one version that a supported Python can use."""
    for file in files:
        name = file["filename"]
        try:
            if name.endswith(".whl"):
                _, of, _, tags = parse_wheel_filename(name)
                if of == version and any(is_supported(tag.interpreter, tag.abi) for tag in tags):
                    yield file
            elif parse_sdist_filename(name)[1] == version:
                yield file
        except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
            continue  # of the time before there were rules


def is_supported(interpreter: str, abi: str) -> bool:
    """Whether CPython of a supported version takes such a wheel."""
    if interpreter.startswith("py"):
        return interpreter != "py2"
    found = re.fullmatch(r"cp3(\d+)", interpreter)
    return found is not None and not abi.endswith("t") and (abi == "abi3" or OLDEST <= int(found[1]) <= NEWEST)


if __name__ == "__main__":
    main()
