"""trainer enlarge FOLDER: make the small pictures of a folder larger, into another folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from trainer.cli.messages import SHOWN, check_no_files

if TYPE_CHECKING:
    from trainer.small_pictures.making import Outcome
    from trainer.small_pictures.searching import Search


def command(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="The pictures; nothing in it is changed.")],
    network: Annotated[
        Path,
        Option("--with", metavar="WEIGHTS", help="A network that enlarges: a .safetensors file of the ESRGAN kind."),
    ],
    out: Annotated[Path, Option(metavar="FOLDER", help="Where they go; empty, or of the same work that was stopped.")],
    least: Annotated[
        int, Option(min=64, max=8192, help="Pictures with fewer than its square of pixels are made so large.")
    ] = 1024,
    faces: Annotated[
        Path | None, Option(metavar="WEIGHTS", help="A network that restores faces in them: GFPGAN or RestoreFormer.")
    ] = None,
    everything: Annotated[bool, Option("--all", help="Also copy the pictures that are large enough.")] = False,
) -> None:
    """Make the small pictures of a folder larger, into another folder, with their captions.

    Example: trainer enlarge pictures/mina --with RealESRGAN_x4plus.safetensors --out pictures/mina-large
    """
    from trainer.core.device import pick_device
    from trainer.core.files import digest_of
    from trainer.core.progress import phases
    from trainer.data.decoding import ImageLimits, digest
    from trainer.sampling.enlarging import Enlarger
    from trainer.sampling.restoring import FaceRestorer
    from trainer.small_pictures.making import Making
    from trainer.small_pictures.record import Order, Record
    from trainer.small_pictures.searching import search

    _check_apart(folder, out)
    network, limits = network.expanduser(), ImageLimits()
    enlarger = Enlarger(network, pick_device(), "--with")
    _check_enlarges(enlarger.scale, network)
    restorer = None if faces is None else FaceRestorer(faces.expanduser(), pick_device())
    order = Order(
        folder=digest(str(folder.resolve()).encode("utf-8", "surrogateescape")),
        network=digest_of(network),
        faces="" if faces is None else digest_of(faces.expanduser()),
        least=least,
    )
    record = Record(out, order)
    work = Making(out=out, record=record, enlarger=enlarger, restorer=restorer, limits=limits)
    with phases() as progress:
        before = {name: entry.to for name, entry in record.entries.items()}
        found = search(folder, out, least, limits=limits, before=before, progress=progress)
        try:
            work.run(found.small, found.large if everything else (), progress)
        finally:  # also after ^C: what is made stays
            _tell(found, work.outcome, out, everything=everything)
            if restorer is not None and found.small:
                print(restorer.told())
    check_no_files(
        [*found.refused, *work.outcome.failed], "could not be used", "Mend or remove them; the others are done."
    )


def _check_apart(folder: Path, out: Path) -> None:
    from trainer.core.errors import RecipeError
    from trainer.core.files import printable

    real, other = folder.resolve(), out.resolve()
    if real.is_relative_to(other) or other.is_relative_to(real):
        raise RecipeError(
            "One folder lies in the other; the larger pictures go into a folder of their own.",
            where=f"--out {printable(str(out))}",
            mend=f"Give one beside it, such as --out {printable(real.name)}-large.",
        )


def _check_enlarges(scale: int, network: Path) -> None:
    from trainer.core.errors import WeightsError
    from trainer.core.files import printable

    if scale < 2:
        raise WeightsError(
            "This network gives pictures of the size that they have.",
            where=printable(str(network)),
            mend="Give one that enlarges, such as one whose name has x2 or x4 in it.",
        )


def _tell(found: "Search", outcome: "Outcome", out: Path, *, everything: bool) -> None:
    """Remarks on single files, then one line on all of them."""
    from trainer.core.files import printable
    from trainer.core.log import logger

    for name, remark in [*found.warnings, *outcome.remarks]:
        logger.warning("%s: %s.", name, remark)
    if found.passed:
        name, reason = found.passed[0]
        logger.info("Not copied: %d other files, such as %s (%s).", len(found.passed), name, reason)
    if found.large and not everything:
        names = _named([wish.picture.name for wish in found.large])
        print(f"Large enough, and not copied (--all copies them): {names}.")
    copied = f" Copied {outcome.copied} as they are." if outcome.copied else ""
    there = f" {outcome.there} were there already." if outcome.there else ""
    most = f", up to {outcome.most:.1f} times along each side" if outcome.enlarged else ""
    print(f"Enlarged {outcome.enlarged} pictures into {printable(str(out))}{most}.{copied}{there}")


def _named(names: Sequence[str]) -> str:
    """The first of many names, and how many there are."""
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
