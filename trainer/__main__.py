"""`trainer`, and `python -m trainer`."""

import contextlib
import os
import sys
from typing import NoReturn

from trainer.cli.main import report_bug, run


def main() -> NoReturn:
    """Do what the command line asks for, and end the process."""
    sys.excepthook = report_bug
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader has gone, as in `trainer explain | head`; nor can Python's own flush at the end reach it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
