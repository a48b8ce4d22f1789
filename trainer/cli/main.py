"""The command line (typer): one file a verb, loaded when it is named."""

import importlib
import platform
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated

import typer

from trainer import __version__
from trainer.cli.messages import set_up_logging, tell
from trainer.core.errors import TrainerError

VERBS = {
    "init": "Look at your pictures and write a recipe that is ready to run.",
    "doctor": "Examine the pictures and captions of a recipe.",
    "caption": "Write the missing captions next to the pictures of a recipe or a folder.",
    "enlarge": "Make the small pictures of a folder larger, into another folder, with their captions.",
    "plan": "Show sources, buckets, epochs and cache of a run before it begins, and the memory and time that it needs.",
    "cache": "Encode pictures and words once.",
    "train": "Run a recipe from its start, or from where it stopped.",
    "sample": "Draw prompts with or without an adapter.",
    "grid": "Draw labelled sheets of pictures that differ along two or three axes, as PNG and as one HTML page.",
    "evaluate": "Score every checkpoint of a run, recommend one, and say why.",
    "report": "Write one self-contained HTML page of a run: curves, previews, scores, data, recipe, and how to use it.",
    "publish": "Upload the result of a run to the model hub, with a model card; what would be uploaded is shown first.",
    "weights": "Look into model files, and convert, merge, extract and resize them.",
    "explain": "Tell what the keys of a recipe mean, and what they may be.",
}
"""What `trainer --help` says of each verb: how the verb's own help begins, known without loading it."""

_GROUPS = ("weights",)
_INTERRUPTED = 130


def run(arguments: Sequence[str]) -> int:
    """Do what the command line asks for; gives the exit code.

    A TrainerError becomes its message on standard error and its exit code, and so does memory that has run out;
    anything else that goes wrong is a bug of ours, and is raised.
    """
    debug = _debug_in(arguments)
    try:
        command = typer.main.get_command(application(arguments))
        command.main([word for word in arguments if word != "--debug" or not debug], prog_name="trainer")
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else 0
    except TrainerError as error:
        if debug:
            tell(traceback.format_exc().rstrip())
        else:
            tell(str(error))
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        return _ran_out(error, debug=debug)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def _ran_out(error: MemoryError | RuntimeError, *, debug: bool) -> int:
    """Tell of memory that has run out; any other error is raised again."""
    from trainer.core.memory import as_message, ran_out

    if not ran_out(error):
        raise error
    if debug:
        tell("".join(traceback.format_exception(error)).rstrip())
    message = as_message(error)
    tell(str(message))
    return message.exit_code


def application(arguments: Sequence[str]) -> typer.Typer:
    """The command line, with the verb that `arguments` name in full, and the others by name only.

    Raises:
        TrainerError: there is no verb of that name.
    """
    app = typer.Typer(
        help="Fine-tunes Stable Diffusion: pictures and captions in, a LoRA that every inference program loads out.",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich would double the time of every --help
    )
    set_up_logging(debug=_debug_in(arguments))
    app.callback()(_options)
    named = next((word for word in arguments if not word.startswith("-")), None)
    if named is not None and named not in VERBS:
        raise _no_verb(named)
    for verb, line in VERBS.items():
        if verb != named:
            app.command(verb, help=line)(_not_loaded)
        elif verb in _GROUPS:
            app.add_typer(importlib.import_module(f"trainer.cli.{verb}").app, name=verb)
        else:
            app.command(verb)(importlib.import_module(f"trainer.cli.{verb}").command)
    return app


def report_bug(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    """Print the traceback, and ask to send it to us; to be used as `sys.excepthook`."""
    tell("".join(traceback.format_exception(kind, error, at)).rstrip())  # as everything else: without secrets
    system = f"trainer {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    tell(f"\nThis is a bug of ours, not a mistake of yours. Please report it with the lines above; {system}.")


def _show_version(asked: bool) -> None:
    if asked:
        print(f"trainer {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version, no more.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and what the libraries say.")] = False,
) -> None:
    pass


def _not_loaded() -> None:
    raise AssertionError("a verb was run that was not named")


def _debug_in(arguments: Sequence[str]) -> bool:
    """Whether `--debug` is given, before or after the verb; behind `--` it is a word like others."""
    ours = arguments[: list(arguments).index("--")] if "--" in arguments else arguments
    return "--debug" in ours


def _no_verb(word: str) -> TrainerError:
    from difflib import get_close_matches

    close = get_close_matches(word, VERBS, n=1)
    guess = f"Did you mean `{close[0]}`? " if close else ""
    return TrainerError(
        f"There is no verb `{word}`.", where="the command line", mend=f"{guess}Known verbs: {', '.join(VERBS)}."
    )
