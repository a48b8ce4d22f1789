"""The frame of the command line: verbs on demand, messages, exit codes."""

import importlib
import inspect
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from trainer import __version__
from trainer.cli import main as frame
from trainer.cli.main import VERBS, application, run
from trainer.cli.messages import set_up_logging
from trainer.core.errors import DataError, RecipeError
from trainer.core.log import logger

ROOT = Path(__file__).parents[2]


def python(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def use(monkeypatch: pytest.MonkeyPatch, verb: str, command: object) -> None:
    """Let `verb` run `command` instead of what it does."""
    monkeypatch.setattr(importlib.import_module(f"trainer.cli.{verb}"), "command", command)


def test_help_names_every_verb_and_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "PIL", "pydantic", "yaml", "rich", "diffusers", "transformers"}
    code = (
        "import sys; from trainer.cli.main import run; code = run(['--help']);"
        f"print('LOADED', sorted({heavy!r} & set(sys.modules)), code,"
        "sorted(name for name in sys.modules if 'trainer.cli.' in name))"
    )
    shown = python("-c", code).stdout
    assert all(f"  {verb} " in shown for verb in VERBS)
    assert shown.splitlines()[-1] == "LOADED [] 0 ['trainer.cli.main', 'trainer.cli.messages']"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_and_needs_no_torch(verb: str) -> None:
    code = f"import sys; from trainer.cli.main import run; run(['{verb}', '--help']); print('torch' in sys.modules)"
    shown = python("-c", code)
    assert shown.stdout.splitlines()[-1] == "False", shown.stderr
    module = importlib.import_module(f"trainer.cli.{verb}")
    words = inspect.getdoc(module.command) if hasattr(module, "command") else module.app.info.help
    assert words is not None
    assert words.startswith(VERBS[verb].rstrip("."))
    if hasattr(module, "command"):
        assert f"Example: trainer {verb}" in words


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"trainer {__version__}\n"


def test_an_error_of_the_user_is_one_message_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise DataError("No picture\x1b[2J.", where="a\u202eb", mend="Look.")

    use(monkeypatch, "train", command)
    assert run(["train"]) == DataError.exit_code == 3
    assert capsys.readouterr().err == "No picture\\x1b[2J.\n  where: a\\u202eb\n  mend:  Look.\n"


@pytest.mark.parametrize("arguments", [["--debug", "train"], ["train", "--debug"]])
def test_debug_shows_the_traceback(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise RecipeError("No.")

    use(monkeypatch, "train", command)
    assert run(arguments) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_interrupting_gives_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    use(monkeypatch, "train", command)
    assert run(["train"]) == 130


def test_a_verb_may_end_with_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise typer.Exit(143)

    use(monkeypatch, "train", command)
    assert run(["train"]) == 143


def test_a_bug_is_raised_and_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise ZeroDivisionError("a bug")

    use(monkeypatch, "train", command)
    with pytest.raises(ZeroDivisionError) as raised:
        run(["train"])
    frame.report_bug(raised.type, raised.value, raised.tb)
    told = capsys.readouterr().err
    assert "ZeroDivisionError: a bug" in told
    assert "This is a bug of ours" in told
    assert f"trainer {__version__}" in told


def test_the_process_ends_with_the_code_and_tells_bugs() -> None:
    assert python("-m", "trainer", "--version").stdout == f"trainer {__version__}\n"
    code = (
        "import trainer.cli.train as verb, sys, trainer.__main__ as main\n"
        "def command(): 1 / 0\n"
        "verb.command = command; sys.argv = ['trainer', 'train']; main.main()"
    )
    ended = python("-c", code)
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("This is a bug of ours")


@pytest.mark.skipif(os.name == "nt", reason="a shell's pipe")
def test_a_reader_that_goes_away_is_no_error() -> None:
    code = (
        "import trainer.cli.train as verb, sys, trainer.__main__ as main\n"
        "def command(): print('word ' * 1000)\n"
        "verb.command = command; sys.argv = ['trainer', 'train']; main.main()"
    )
    shell = f'"{sys.executable}" -c "$CODE" | true'
    ended = subprocess.run(
        ["sh", "-c", shell], cwd=ROOT, env={**os.environ, "CODE": code}, capture_output=True, text=True, check=False
    )
    assert ended.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian", "x"], "Did you mean `train`?"),
        (["--nonsense"], "No such option"),
        (["train"], "Missing argument"),
        (["train", "x", "--nonsense"], "No such option"),
        (["init", "x"], "Missing option"),
    ],
)
def test_wrong_use_is_one_message_and_2(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    message = capsys.readouterr().err
    assert told in message
    assert "Traceback" not in message


def test_only_the_named_verb_is_whole() -> None:
    runner = CliRunner()
    assert "--resume" in runner.invoke(application(["train"]), ["train", "--help"]).output
    assert "--resume" not in runner.invoke(application(["doctor"]), ["train", "--help"]).output


@pytest.fixture
def _logging_as_before() -> object:
    """Handlers and levels are the process's, not the test's."""
    root, warnings = logging.getLogger(), logging.getLogger("py.warnings")
    levels = [(log, log.level) for log in (root, warnings, logger)]
    handlers = list(root.handlers)
    yield
    root.handlers = handlers
    logging.captureWarnings(False)
    for log, level in levels:
        log.setLevel(level)


@pytest.mark.usefixtures("_logging_as_before")
def test_our_lines_are_shown_and_those_of_libraries_from_warning_on(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    set_up_logging()  # a second time doubles nothing
    logger.debug("hidden")
    logger.info("going on\x07 with hf_%s", "a" * 30)
    logger.warning("careful")
    logging.getLogger("some.library").info("hidden")
    logging.getLogger("some.library").warning("heard")
    assert capsys.readouterr().err == "going on\\x07 with [hidden]\nwarning: careful\nwarning: heard\n"


@pytest.mark.usefixtures("_logging_as_before")
@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK"])
def test_other_ranks_say_errors_only(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "1")
    set_up_logging()
    logger.warning("hidden")
    logger.error("heard")
    assert capsys.readouterr().err == "error: heard\n"
