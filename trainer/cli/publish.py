"""trainer publish RUN --to OWNER/NAME: the result onto the model hub, with a model card."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option


def command(  # noqa: PLR0913 - each is a word of the command line
    source: Annotated[Path, Argument(metavar="RUN", help="The folder of a finished run, such as runs/blob.")],
    to: Annotated[str, Option("--to", metavar="OWNER/NAME", help="The repository; it is made where it is missing.")],
    private: Annotated[bool, Option("--private", help="Only you can see it.")] = False,
    license_id: Annotated[
        str, Option("--license", metavar="ID", help="As the hub knows licences, such as openrail++.")
    ] = "",
    pictures: Annotated[int, Option(min=0, max=64, help="The most previews that are published.")] = 8,
    dry_run: Annotated[bool, Option("--dry-run", help="Only show the card and the list of files.")] = False,
    yes: Annotated[bool, Option("--yes", help="Upload without asking.")] = False,
) -> None:
    """Upload the result of a run to the model hub, with a model card; what would be uploaded is shown first.

    The token comes from HF_TOKEN or from `hf auth login`.

    Example: trainer publish runs/blob --to me/blob --license openrail++ --dry-run
    """
    import sys

    import typer

    from trainer.core.errors import RecipeError
    from trainer.core.files import printable
    from trainer.reporting.record import RunRecord
    from trainer.reporting.uploading import listed, publication_of, publish

    wanted = publication_of(RunRecord.read(source), to, private=private, license_id=license_id, pictures=pictures)
    print("\n".join(printable(line) for line in wanted.card.split("\n")))
    whose = "private" if private else "public"
    print(f"To {wanted.repository} ({whose}), in place of files of the same names there:")
    print("\n".join(listed(wanted.uploads)))
    if not license_id:
        print("No licence is stated; say one with --license.")
    if dry_run:
        return
    if not yes and not sys.stdin.isatty():
        raise RecipeError("Nothing was uploaded.", where="--yes", mend="Add --yes when what is shown above is right.")
    if not yes and not typer.confirm("Upload this?"):
        raise Exit(0)
    print(f"It is at {printable(publish(wanted))}")
