"""Sets up .venv with the tested versions, then runs the demo, the tests or the checks. Standard library only.

    python scripts/bootstrap.py demo|test|test-slow|torture|check|format|setup [more arguments for pytest]

`make demo` and the like call this. It may be run any number of times: what is already done is not done again. It is
written so that older Pythons, too, come as far as the message that says what is missing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "set-up"  # written last, so a set-up that was cut off is done again
OLDEST = (3, 10)
NEWEST_KNOWN = (3, 14)
EXTRAS = "dev,tensorboard,wandb"
CONSTRAINTS = ROOT / "constraints.txt"
LOCK = ROOT / "requirements.lock"  # the same with checksums, made by scripts/lock.py
RECIPE = "recipes/character-lora.yaml"
RUN = ROOT / "runs" / "blob"
REPORT = "build/tests.xml"
TORTURES = "build/torture.json"
SURVIVAL = ("tests/loop/test_survival.py", "tests/loop/test_survival_slow.py", "tests/loop/test_stopping.py")


class SetUpError(Exception):
    """Something that the user can mend, said in whole sentences."""


def main(arguments: list[str]) -> int:
    """Do what the first argument says; the exit code is 0, 2 for the user's mistake, or the child's own."""
    verb, rest = (arguments[0] if arguments else "help"), arguments[1:]
    verbs = {
        "demo": demo,
        "test": test,
        "test-slow": test_slow,
        "torture": torture,
        "check": check,
        "format": reformat,
        "setup": setup,
    }
    if verb not in verbs:
        print(__doc__)
        return 0 if verb in ("help", "-h", "--help") else 2
    try:
        python = ensure_venv()
        return verbs[verb](python, rest)
    except SetUpError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def demo(python: Path, rest: list[str]) -> int:
    """Train the character LoRA; go on where an interrupted run stopped; a finished run is only reported."""
    resume = ["--resume"] if RUN.exists() else []
    code = run(python, "-m", "trainer", "train", RECIPE, *resume, *rest)
    if code == 0:
        grids = sorted(RUN.glob("previews/step-*/grid.png"))
        drawn = f"; before and after: {', '.join(show(grid) for grid in (grids[0], grids[-1]))}" if grids else ""
        print(f"The LoRA is {show(RUN / (RUN.name + '.safetensors'))}{drawn}")
    return code


def test(python: Path, rest: list[str]) -> int:
    """The fast tests, on at most two processes: each imports torch, which is what takes long."""
    # one file stays on one process, so that what a file sets up for all its tests is set up once
    spread = ["-n", "2", "--dist", "loadfile"] if (os.cpu_count() or 1) > 1 else []
    code = run(python, "-m", "pytest", *spread, f"--junit-xml={REPORT}", *rest)
    print(f"{'All tests passed' if code == 0 else 'Not all tests passed'}; the report is {REPORT}")
    return code


def test_slow(python: Path, rest: list[str]) -> int:
    """All tests; those for a GPU skip themselves where there is none."""
    return test(python, ["-m", "slow or not slow", *rest])


def torture(python: Path, rest: list[str]) -> int:
    """The slow tests of survival, then runs that are killed, starved and damaged in every way; prints a table."""
    tests = run(python, "-m", "pytest", "-m", "slow or not slow", *SURVIVAL)
    Path(ROOT / REPORT).parent.mkdir(exist_ok=True)
    return tests | run(python, "scripts/torture/run_all.py", "--out", TORTURES, *rest)


def check(python: Path, rest: list[str]) -> int:
    """Format, lint, types and fast tests, all of them even when an early one fails."""
    steps = [
        ("ruff format --check", [script("ruff"), "format", "--check", "."]),
        ("ruff check", [script("ruff"), "check", "."]),
        ("pyright", [script("pyright"), "--pythonpath", python]),
    ]
    failed = [name for name, command in steps if run(*command) != 0]
    if test(python, rest) != 0:
        failed.append("pytest")
    print(f"Failed: {', '.join(failed)}" if failed else "All checks passed")
    return 1 if failed else 0


def reformat(python: Path, rest: list[str]) -> int:
    """Mend what ruff can mend, then format."""
    del python
    targets = rest or ["."]
    return run(script("ruff"), "check", "--fix", *targets) | run(script("ruff"), "format", *targets)


def setup(python: Path, rest: list[str]) -> int:
    """Only the environment."""
    del rest
    print(f"The environment is {show(VENV)}; its Python is {show(python)}")
    return 0


def ensure_venv() -> Path:
    """The Python of a .venv that holds exactly what pyproject.toml and constraints.txt ask for."""
    python = script("python")
    wanted = fingerprint()
    if python.exists() and STAMP.exists() and STAMP.read_text(encoding="utf-8") == wanted:
        return python
    creator = new_enough_python()
    if not (python.exists() and works(python)):
        print(f"Setting up {show(VENV)} ...", flush=True)
        make_venv(creator)
    STAMP.unlink(missing_ok=True)
    install(python)
    STAMP.write_text(wanted, encoding="utf-8")
    return python


def fingerprint() -> str:
    """Changes when the environment must be brought up to date, or when the folder was moved."""
    digest = hashlib.sha256(str(ROOT).encode())
    for file in (ROOT / "pyproject.toml", CONSTRAINTS, LOCK):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def new_enough_python() -> str:
    """This Python if it is new enough, else another one on the path."""
    if sys.version_info >= OLDEST:
        return sys.executable
    for minor in range(NEWEST_KNOWN[1], OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found is not None and works(
            Path(found)
        ):  # a version manager's shim may stand for a Python that is not there
            return found
    here = ".".join(map(str, sys.version_info[:2]))
    raise SetUpError(
        f"This needs Python {'.'.join(map(str, OLDEST))} or newer, and {sys.executable} is {here}.\n"
        "  mend:  Install a newer one, then for example: make PYTHON=python3.12 demo"
    )


def works(python: Path) -> bool:
    """Whether a Python runs and is new enough: the one that a .venv was made with may have been removed since."""
    code = f"import sys; sys.exit(sys.version_info < {OLDEST!r})"
    return subprocess.run([str(python), "-c", code], capture_output=True, check=False).returncode == 0


def make_venv(creator: str) -> None:
    """A new, empty .venv."""
    made = subprocess.run([creator, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise SetUpError(
            f"Python could not make {VENV}.\n{(made.stdout + made.stderr).strip()}\n"
            "  mend:  On Debian and Ubuntu: apt install python3-venv. Else check the folder's rights and the disk."
        )


def install(python: Path) -> None:
    """The tested versions; all but torch, whose build depends on the machine, by the checksums of their files."""
    torch = next(
        (line.strip() for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if line.startswith("torch==")),
        "torch",
    )
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    ours = ["--no-build-isolation", "-e", f"{ROOT}[{EXTRAS}]"]  # built by the setuptools of the lock
    for what, words in (
        ("what is locked", ["--require-hashes", "--no-deps", "-r", LOCK]),
        (torch, [torch, "-c", CONSTRAINTS]),
        ("trainer", [*ours, "-c", CONSTRAINTS]),  # and what the lock does not know: other systems need a little more
    ):
        print(f"Installing {what} (this may take some minutes) ...", flush=True)
        if run(*pip, *words) != 0:
            raise SetUpError(
                "pip could not install what is needed; its own message is above.\n"
                "  mend:  Check the network (or PIP_INDEX_URL) and the room on the disk, then run the same again. "
                "Where it speaks of hashes, a file is not the one that was tested: do not use that index."
            )


def run(*command: str | Path) -> int:
    """The exit code of a command that runs in the project's folder and prints where we print."""
    # not check=True: the child has said what went wrong
    return subprocess.run([str(part) for part in command], cwd=ROOT, check=False).returncode


def script(name: str) -> Path:
    """A program inside .venv."""
    return VENV / ("Scripts" if os.name == "nt" else "bin") / (name + (".exe" if os.name == "nt" else ""))


def show(path: Path) -> str:
    """A path as one would type it in the project's folder."""
    return str(path.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
