"""The process that speaks to Weights & Biases: reads records from standard input until it ends.

The first line holds the arguments of `wandb.init`; each other one a step with scalars, with paths of
pictures, or with tables.
"""

import json
import os
import sys
import threading
from typing import Any

_SECONDS_TO_CONNECT = 60.0
_SECONDS_TO_UPLOAD = 60.0  # after the run's end; then what is not uploaded stays on disk, for `wandb sync`


def main() -> None:
    """Send everything; end within a minute after the run."""
    import wandb

    run = wandb.init(**json.loads(sys.stdin.readline()), settings=wandb.Settings(**_wishes(wandb.Settings)))
    for line in sys.stdin:
        record = json.loads(line)
        pictures = {name: wandb.Image(path) for name, path in record.get("pictures", {}).items()}
        tables = {
            name: wandb.Table(**table, allow_mixed_types=True) for name, table in record.get("tables", {}).items()
        }
        # what was told before a run was resumed comes again, equal to the bit; wandb passes over steps that it has
        run.log({**record.get("scalars", {}), **pictures, **tables}, step=record["step"])
    _end_after(_SECONDS_TO_UPLOAD)
    run.finish()


def _wishes(settings: Any) -> dict[str, Any]:  # wandb's settings differ by version
    """What wandb shall not do by itself: look at the machine, the code, the repository, or the terminal."""
    wishes = {
        "silent": True,
        "console": "off",
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
        "init_timeout": _SECONDS_TO_CONNECT,
        "finish_timeout": _SECONDS_TO_UPLOAD,
    }
    return {name: value for name, value in wishes.items() if name in settings.model_fields}


def _end_after(seconds: float) -> None:
    """End this process and what it started, whatever still hangs in it."""

    def end() -> None:
        import psutil

        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main()
