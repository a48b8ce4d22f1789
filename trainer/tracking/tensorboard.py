"""TensorBoard: files in the run's folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from trainer.core.run_folder import RunFolder
from trainer.tracking.tracker import Tracker, TrackerSettings, need


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

    def close(self) -> None:
        self._writer.close()
