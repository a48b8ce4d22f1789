"""TensorBoard: files in the run's folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from trainer.core.files import printable
from trainer.core.run_folder import RunFolder
from trainer.tracking.tracker import Table, Tracker, TrackerSettings, need


class TensorBoard(TrackerSettings):
    """Files for TensorBoard, in the run's folder `tensorboard`."""

    kind: Literal["tensorboard"] = "tensorboard"

    def open(self, folder: RunFolder, config: Mapping[str, object], step: int) -> Tracker:
        """See `TrackerSettings.open`."""
        need("tensorboard")
        from torch.utils.tensorboard.writer import SummaryWriter

        writer = SummaryWriter(
            str(folder.root / "tensorboard"), purge_step=step + 1 if step else None, max_queue=100, flush_secs=10
        )
        if not step:
            writer.add_text("recipe", f"```json\n{json.dumps(config, indent=1, ensure_ascii=False)}\n```")
        return _TensorBoardTracker(writer)


class _TensorBoardTracker(Tracker):
    def __init__(self, writer: Any) -> None:  # torch's SummaryWriter is untyped
        self._writer = writer

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        import numpy
        from PIL import Image

        for name, path in pictures.items():
            with Image.open(path) as file:
                self._writer.add_image(name, numpy.asarray(file.convert("RGB")), step, dataformats="HWC")

    def table(self, step: int, name: str, table: Table) -> None:
        rows = [table.columns, ("---",) * len(table.columns), *table.rows]
        self._writer.add_text(name, "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows), step)

    def close(self) -> None:
        self._writer.close()


def _cell(value: str | float | None) -> str:
    """A cell of a table in Markdown, in which words are words."""
    text = printable("" if value is None else str(value))
    return text if text == "---" else text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
