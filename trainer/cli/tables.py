"""Tables that several verbs show."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from trainer.data.health.shapes import BucketCount
    from trainer.data.health.shares import Share


def share_table(shares: "Sequence[Share]") -> "Table":
    """How much of an epoch each source makes up."""
    from rich.markup import escape
    from rich.table import Table

    from trainer.core.files import printable

    table = Table("source", "pictures", "seen in an epoch", "share", title="Sources", title_justify="left")
    for one in shares:
        role = " (held out)" if one.held_out else " (regularisation)" if one.regularisation else ""
        table.add_row(escape(printable(one.source)) + role, str(one.pictures), str(one.showings), f"{one.share:.0%}")
    return table


def bucket_table(buckets: "Sequence[BucketCount]", title: str) -> "Table":
    """How the buckets fill, from tall to wide."""
    from rich.table import Table

    table = Table("size", "pictures", "seen in an epoch", "batches", "", title=title, title_justify="left")
    for one in buckets:
        notes = [f"{one.moved} moved here"] * (one.moved > 0) + ["smaller than the batch"] * one.small
        size = f"{one.bucket.width} x {one.bucket.height}"
        table.add_row(size, str(one.pictures), str(one.showings), str(one.batches), ", ".join(notes))
    return table
