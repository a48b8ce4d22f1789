"""Tables that several verbs show."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from trainer.data.health.shapes import BucketCount
    from trainer.data.health.shares import Share
    from trainer.planning.memory_plan import MemoryPlan

_ROWS = 40  # of a table; JSON holds all


def share_table(shares: "Sequence[Share]") -> "Table":
    """How much of an epoch each source makes up."""
    from rich.markup import escape
    from rich.table import Table

    from trainer.core.files import printable
    from trainer.data.health.findings import percent

    table = Table("source", "pictures", "seen in an epoch", "share", title="Sources", title_justify="left")
    for one in shares[:_ROWS]:
        role = " (held out)" if one.held_out else " (regularisation)" if one.regularisation else ""
        name = escape(printable(one.source)) + role
        table.add_row(name, f"{one.pictures:,}", f"{one.showings:,}", percent(one.share))
    return table


def bucket_table(buckets: "Sequence[BucketCount]", resolution: int, batch: int) -> "Table":
    """How the buckets fill, from tall to wide, and what is cut off."""
    from rich.table import Table

    from trainer.data.health.findings import percent

    title = f"Buckets of {resolution} pixels, batches of {batch}"
    names = ("size", "pictures", "seen in an epoch", "batches", "cut off", "")
    table = Table(*names, title=title, title_justify="left")
    for one in buckets[:_ROWS]:
        notes = [f"{one.moved:,} moved in"] * (one.moved > 0) + ["small batch"] * one.small
        size = f"{one.bucket.width} x {one.bucket.height}"
        numbers = (f"{one.pictures:,}", f"{one.showings:,}", f"{one.batches:,}", percent(one.lost))
        table.add_row(size, *numbers, ", ".join(notes))
    if len(buckets) > _ROWS:
        table.add_row(f"and {len(buckets) - _ROWS} more")
    return table


def memory_table(plan: "MemoryPlan") -> "Table":
    """What a run needs, by part, at each of its moments when it needs the most."""
    from rich.table import Table

    width, height = plan.bucket
    title = f"Memory in MiB on {plan.kind}, batches of {width} x {height} pixels"
    table = Table("", *plan.moments, title=title, title_justify="left", show_footer=False)
    rows = plan.rows()
    for part, sizes in rows:
        table.add_row(part, *(f"{size / 2**20:,.0f}" for size in sizes))
    sums = [sum(column) for column in zip(*(sizes for _, sizes in rows), strict=True)]
    table.add_section()
    table.add_row("together", *(f"{size / 2**20:,.0f}" for size in sums))
    return table
