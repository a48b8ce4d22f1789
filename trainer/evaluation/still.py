"""Losses at fixed moments with fixed noise: what a model makes of pictures, whenever and wherever it is asked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.batch import Batch, Conditioning, Encoders
from trainer.core.errors import DataError
from trainer.core.seeds import Seeds
from trainer.data.batches import DataSettings, geometry_of, masks_of, picture_key, words_key
from trainer.data.buckets import Bucket
from trainer.data.cache import TensorCache
from trainer.data.captions import caption_of
from trainer.data.cropping import Cut
from trainer.data.example import Example
from trainer.data.examples import ExampleTable
from trainer.families.model import DiffusionModel
from trainer.objective.moments import Moments
from trainer.objective.objective import Drawn, Objective, Predict

BANDS: Final = 4
"""Into so many equal parts the way from picture to noise is cut; each is asked by itself."""
_CHANCE: Final = Seeds(0)  # not the run's: runs of other seeds are asked the same

Losses = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StillPictures:
    """Pictures as the cache holds them, without any chance: not mirrored, at their first place, none drawn from."""

    examples: ExampleTable
    settings: DataSettings
    encoders: Encoders  # asked for their identities alone
    seeds: Seeds  # of the run, which decide the words of its captions
    live_words: bool = False  # whether batches hold the words themselves

    def captions(self) -> list[str]:
        """What each picture is called, in one fixed form; no words are dropped."""
        return [
            caption_of(example, rules, self.seeds, rules.warmup_epochs)
            for example, rules in ((example, self.settings.rules_of(example)) for example in self.examples)
        ]

    def batches(self, most: int, captions: Sequence[str] | None = None) -> list[Batch]:
        """All pictures, each once, at most `most` of one bucket together; their slots are their places.

        Args:
            most: pictures at once.
            captions: their words, which must be in the cache too; None: their own.

        Raises:
            DataError: a picture or its words are not in the cache.
        """
        words = self.captions() if captions is None else captions
        buckets = self.settings.buckets_of(self.examples, self.encoders.scale)
        cache = self.settings.cache
        stores = tuple(
            TensorCache(cache.folder, identity, shared=cache.elsewhere)
            for identity in (self.encoders.pictures_identity, self.encoders.words_identity)
        )
        order: dict[Bucket, list[int]] = {}
        for place in range(len(self.examples)):
            order.setdefault(buckets[place], []).append(place)
        made: list[Batch] = []
        for bucket, places in order.items():
            for start in range(0, len(places), most):
                made.append(self._batch(bucket, places[start : start + most], words, (stores[0], stores[1])))
        return made

    def _batch(
        self, bucket: Bucket, places: Sequence[int], words: Sequence[str], stores: tuple[TensorCache, TensorCache]
    ) -> Batch:
        examples = [self.examples[place] for place in places]
        cuts = [self._cut(example, bucket) for example in examples]
        identity, dtype = self.encoders.pictures_identity, self.settings.cache.dtype
        keys = [picture_key(example, bucket, cut, identity, dtype) for example, cut in zip(examples, cuts, strict=True)]
        stores[0].fetch(keys)
        rows = [_read(stores[0], key, example) for key, example in zip(keys, examples, strict=True)]
        texts = tuple(words[place] for place in places)
        return Batch(
            number=0,
            slots=tuple(places),
            latents=torch.stack([row["mean"] for row in rows]),
            words=texts if self.live_words else self._meaning(texts, examples, stores[1]),
            geometry=geometry_of(examples, bucket, cuts),
            weight=torch.ones(len(examples)),
            total=len(examples),
            keys=tuple(example.key for example in examples),
            mask=masks_of(rows),
        )

    def _cut(self, example: Example, bucket: Bucket) -> Cut:
        return next(cut for cut in self.settings.cuts_of(example, bucket) if not cut.mirrored)

    def _meaning(self, texts: Sequence[str], examples: Sequence[Example], store: TensorCache) -> Conditioning:
        keys = [words_key(text, self.encoders.words_identity, self.settings.cache.dtype) for text in texts]
        store.fetch(keys)
        rows = [_read(store, key, example) for key, example in zip(keys, examples, strict=True)]
        pooled = torch.stack([row["pooled"] for row in rows]) if "pooled" in rows[0] else None
        return Conditioning(tokens=torch.stack([row["tokens"] for row in rows]), pooled=pooled)


def fixed_losses(
    model: DiffusionModel,
    batches: Sequence[Batch],
    objective: Objective,
    *,
    turn: int = 0,
    bands: Sequence[int] = range(BANDS),
) -> Losses:
    """The loss of each picture in each of the bands of the noise, [N len(bands)], at its place.

    Moment and noise are a pure function of the picture's content and the band, so that two models, two steps and two
    machines are asked the same. The loss is the mean squared error of the prediction, unweighted, so that runs with
    other weightings can be compared. The networks are asked in evaluation mode and put back as they were, and no
    generator is touched.

    Args:
        model: as it shall be judged.
        batches: of `StillPictures`.
        objective: of the run; what it predicts and how it treats masks counts, nothing else of it.
        turn: each asks at other moments with other noise, and is as fixed as the first.
        bands: which are asked; 0 is the one with the least noise.
    """
    plain = Objective(prediction=objective.prediction, unmasked=objective.unmasked)
    losses = np.zeros((sum(map(len, batches)), len(bands)))
    denoiser = model.denoiser
    was_training = denoiser.training
    device = next(denoiser.parameters()).device
    denoiser.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                here = replace(batch.to(device), words=_understood(model, batch, device))
                for column, band in enumerate(bands):
                    drawn = _drawn(batch, band, turn, model).to(device)
                    found = plain.loss(_asked(model, here), here, drawn, model.prediction).per_example
                    losses[list(batch.slots), column] = found.double().cpu().numpy()
    finally:
        denoiser.train(was_training)
    return losses


def _asked(model: DiffusionModel, batch: Batch) -> Predict:
    words = batch.words
    if not isinstance(words, Conditioning):
        raise TypeError("the words of this batch are not understood yet")

    def predict(noisy: Tensor, t: Tensor, _: Batch) -> Tensor:
        return model.predict(noisy, model.schedule.index(t), words, batch.geometry)

    return predict


def _understood(model: DiffusionModel, batch: Batch, device: torch.device) -> Conditioning:
    words = batch.words
    return (words if isinstance(words, Conditioning) else model.encode_words(words)).to(device)


def _drawn(batch: Batch, band: int, turn: int, model: DiffusionModel) -> Drawn:
    """When and with which noise the pictures are asked, on the CPU."""
    slots = [int(key[:15], 16) for key in batch.keys]
    number = band + BANDS * turn
    within = _CHANCE.uniforms("still moment", number, slots)
    t = model.schedule.snap(((within + band) / BANDS).float())
    a, s = model.schedule.at(t)
    noise = _CHANCE.normal("still noise", number, slots, batch.latents.shape[1:])
    return Drawn(moments=Moments(t=t, a=a, s=s), weight=torch.ones(len(batch)), noise=noise, mixed_in=noise)


def _read(store: TensorCache, key: str, example: Example) -> dict[str, Tensor]:
    row = store.read(key)
    if row is None:
        raise DataError(
            "This picture or its words are not in the cache.",
            where=example.name,
            mend="Run `trainer cache RECIPE --verify` and then `trainer cache RECIPE`.",
        )
    return row
