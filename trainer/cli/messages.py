"""What a person reads on standard error: log lines and errors, without a sign that could paint the terminal."""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Final

from trainer.core.errors import DataError
from trainer.core.files import printable
from trainer.core.log import logger
from trainer.core.redacting import redacted_text

SHOWN: Final = 10
"""Files that a message names."""

_QUIET_LIBRARIES = {
    "DIFFUSERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def set_up_logging(*, debug: bool = False) -> None:
    """Our lines go to standard error from INFO on, those of libraries from WARNING on; other ranks only say errors.

    With `debug` everything is shown, Python's warnings included.
    """
    handler = _StandardError()
    handler.setFormatter(_Plain())
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _StandardError)]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.captureWarnings(True)
    if debug:
        root.setLevel(logging.INFO)
        logger.setLevel(logging.DEBUG)
        logging.getLogger("py.warnings").setLevel(logging.WARNING)
        return
    first = all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK"))
    root.setLevel(logging.WARNING if first else logging.ERROR)
    logger.setLevel(logging.INFO if first else logging.ERROR)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    for name, value in _QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)


def tell(text: str) -> None:
    """Print `text` on standard error, line by line, without secrets."""
    for line in text.split("\n"):
        print(printable(redacted_text(line)), file=sys.stderr)


class _StandardError(logging.Handler):
    """Writes to what `sys.stderr` is at the moment, so that a progress bar can make room for the line."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(self.format(record))


class _Plain(logging.Formatter):
    """The message, after a word that says how bad it is, where it is bad."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


def check_no_files(named: Sequence[tuple[str, str]], what: str, mend: str) -> None:
    """Make sure that there are no such files.

    Args:
        named: each file with what is the matter with it.
        what: what that means for all of them, behind "3 files".
        mend: what to do.

    Raises:
        DataError: there are; the first are named.
    """
    if not named:
        return
    lines = [f"    {name}: {reason}" for name, reason in named[:SHOWN]]
    if len(named) > SHOWN:
        lines.append(f"    and {len(named) - SHOWN} more")
    raise DataError(f"{len(named)} files {what}:\n" + "\n".join(lines), mend=mend)
