"""trainer report RUN: all that a run tells, on one page."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def command(
    source: Annotated[Path, Argument(metavar="RUN", help="A run folder, such as runs/blob.")],
    out: Annotated[Path | None, Option("--out", metavar="FILE", help="The page; else RUN/report.html.")] = None,
) -> None:
    """Write one self-contained HTML page of a run: curves, previews, scores, data, recipe, and how to use it.

    The run may be finished, stopped, failed, or still going on.

    Example: trainer report runs/blob
    """
    from trainer.core.errors import CheckpointError
    from trainer.core.files import megabytes, printable, told_of_refusals
    from trainer.core.progress import phases
    from trainer.reporting.page import write_report
    from trainer.reporting.record import RunRecord

    record = RunRecord.read(source)
    page = record.folder.root / "report.html" if out is None else out
    if page.is_dir():
        raise CheckpointError(
            "The page would take the place of a folder.", where=str(page), mend="Name a file with --out."
        )
    with phases() as progress, told_of_refusals(page.parent):
        write_report(record, page, progress)
    print(f"The report is in {printable(str(page))} ({megabytes(page.stat().st_size)}).")
