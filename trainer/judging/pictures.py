"""The pictures that a run was trained on, as an evaluation needs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image

from trainer.batch import Batch
from trainer.core.errors import DataError
from trainer.core.files import replacing
from trainer.core.progress import Phases
from trainer.core.seeds import Seeds
from trainer.data.examples import ExampleTable
from trainer.data.opened import OpenSources
from trainer.evaluation.features import Encode, Rows
from trainer.evaluation.still import StillPictures
from trainer.families.model import DiffusionModel
from trainer.preparing import encode_still, scan_data
from trainer.recipe.recipe import Recipe
from trainer.sampling.generate import as_pictures

REFERENCES: Final = 200  # training pictures that samples are compared with
ASKED: Final = 120  # training pictures whose losses are measured
_THUMBNAIL: Final = 192  # pixels, the longer side
_AT_ONCE: Final = 8  # pictures that the network is asked for together, and that are open together


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPictures:
    """Pictures of a run's data: those that were trained on, without regularisation pictures, and those kept back."""

    recipe: Recipe
    training: ExampleTable
    held_out: ExampleTable

    @classmethod
    def of(cls, recipe: Recipe, progress: Phases) -> "RunPictures":
        """The pictures as they are on the disk now.

        Raises:
            DataError: they are gone, or fewer than two are left.
        """
        account = scan_data(recipe, progress)
        training = account.training.select(~account.training.numbers("regularisation"))
        if len(training) < 2:
            raise DataError(
                f"Of the pictures that this run was trained on {len(training)} are there; an evaluation needs two.",
                where="data.sources",
                mend="Bring them back to where the recipe looks for them.",
            )
        return cls(recipe=recipe, training=_spread(training, REFERENCES), held_out=account.held_out)

    @property
    def asked(self) -> ExampleTable:
        """Those trained on whose losses are measured."""
        return _spread(self.training, ASKED)

    def features(self, model: DiffusionModel, encode: Encode, progress: Phases) -> Rows:
        """What the training pictures look like as the model's autoencoder shows them, [N F].

        So a sample that is a perfect copy is as far from its picture as nothing is, and the pictures are cut and sized
        as they were when they were trained on.
        """
        rows: dict[int, Rows] = {}
        for batch in self.batches(self.training, model):
            images = as_pictures(
                torch.cat([model.decode_latents(one).cpu() for one in _on_device(batch, model).split(1)])
            )
            rows |= dict(zip(batch.slots, encode(images), strict=True))
            progress("looking at training pictures", len(rows), len(self.training))
        return np.stack([rows[place] for place in range(len(self.training))])

    def write_thumbnails(self, folder: Path) -> None:
        """Small copies of the training pictures are in `folder`, named after their contents."""
        opened = OpenSources(self.recipe.data.parts)
        for example in self.training:
            path = folder / thumbnail_name(example.key)
            if not path.is_file():
                _write_thumbnail(path, opened.picture(example, self.recipe.data.limits).image)

    def encode(self, model: DiffusionModel, progress: Phases) -> None:
        """Make sure that the cache has all that losses are measured on."""
        for examples in (self.training, self.held_out):
            encode_still(self.recipe, examples, model, progress)
        model.release_encoders()

    def batches(
        self, examples: ExampleTable, model: DiffusionModel, captions: Sequence[str] | None = None
    ) -> list[Batch]:
        """What the network is asked about these pictures; nothing where there are none."""
        return self.still(examples, model).batches(_AT_ONCE, captions) if examples else []

    def still(self, examples: ExampleTable, model: DiffusionModel) -> StillPictures:
        """These pictures without chance."""
        return StillPictures(
            examples=examples,
            settings=self.recipe.data,
            encoders=model.encoders(),
            seeds=Seeds(self.recipe.seed),
            live_words=self.recipe.adapter.trains_words,
        )


def thumbnail_name(key: str) -> str:
    """The file name of a small copy: of the content, since names may hold anything."""
    return f"{key[:16]}.jpg"


def _on_device(batch: Batch, model: DiffusionModel) -> torch.Tensor:
    return batch.latents.to(next(model.denoiser.parameters()).device)


def _spread(table: ExampleTable, most: int) -> ExampleTable:
    """At most so many of the pictures, evenly spread."""
    if len(table) <= most:
        return table
    return table.take(np.unique(np.linspace(0, len(table) - 1, most).astype(np.int64)))


def _write_thumbnail(path: Path, image: Image.Image) -> None:
    small = Image.new("RGB", image.size, "white")
    rgba = image.convert("RGBA")
    small.paste(rgba, mask=rgba.getchannel("A"))
    small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    with replacing(path) as temporary:
        small.save(temporary, "JPEG", quality=85)
