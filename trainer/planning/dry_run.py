"""One step of a recipe, and what comes before and beside it, on fake tensors: the same code, no numbers."""

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn

from trainer.adapters.trainable import Trainable
from trainer.batch import Batch, Conditioning, Geometry
from trainer.core.device import Precision
from trainer.core.seeds import Seeds
from trainer.data.buckets import Bucket
from trainer.data.encoding import at_once, words_at_once
from trainer.families.model import DiffusionModel
from trainer.families.weightless import without_weights
from trainer.optim.flat import FlatGroups
from trainer.planning.counting import LiveBytes
from trainer.planning.optimizer_state import Standing, state_bytes
from trainer.planning.pretending import NOWHERE, Kind, pretending
from trainer.recipe.recipe import Recipe
from trainer.sampling.generate import Drawing, Understood, draw

if TYPE_CHECKING:
    from collections.abc import Generator

Moment = Literal["encoding pictures", "encoding captions", "training step", "drawing previews"]
"""When in a run memory is needed."""

ENCODER: Final = "encoders"
PARTS: Final = ("weights", "trained", "gradients", "optimizer", "average", ENCODER, "activations")
"""What memory is needed for, in the order in which a person reads it."""

_SAMPLER_STEPS: Final = 2  # all alike; some solvers remember the step before


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What a recipe needs, as far as torch's tensors go."""

    moments: Mapping[Moment, Mapping[str, int]]  # bytes by part, when most are live
    flops: float  # of one pass over one batch, forward and backward
    trained: int  # numbers that are trained


def count(recipe: Recipe, bucket: Bucket, kind: Kind, *, step_alone: bool = False) -> Counted:
    """Run through a recipe on fake tensors, with batches of `bucket`.

    Args:
        recipe: its files of weights are looked at, and not read.
        bucket: the largest one that the data hold.
        kind: of the device that is planned for.
        step_alone: leave out what comes before the training step and beside it.

    Raises:
        TrainerError: the recipe asks for something that does not fit together.
    """
    settings = without_weights(recipe.model)
    with pretending(kind) as live:
        run = _DryRun(recipe, bucket, settings.load(recipe.precision, NOWHERE), live, kind)
        moments = {} if step_alone else run.encode()
        moments["training step"] = run.step()
        flops = run.flops
        if recipe.previews.prompts and not step_alone:
            moments["drawing previews"] = run.preview()
        trained = sum(parameter.numel() for parameter in run.trainable.parameters())
    return Counted(moments=moments, flops=flops, trained=trained)


class _DryRun:
    """A recipe's model, and what is done with it."""

    trainable: Trainable

    def __init__(self, recipe: Recipe, bucket: Bucket, model: DiffusionModel, live: LiveBytes, kind: Kind) -> None:
        self.recipe, self.bucket, self.model, self.live, self.kind = recipe, bucket, model, live, kind
        self.flops = 0.0
        self._asked: Understood | None = None
        self.seeds = Seeds(recipe.seed)
        model.prediction = recipe.objective.prediction or model.prediction
        recipe.adapter.check(model)

    def encode(self) -> dict[Moment, Mapping[str, int]]:
        """Pictures and captions, as when the cache is filled."""
        moments: dict[Moment, Mapping[str, int]] = {}
        width, height = self.bucket
        pixels = torch.zeros(at_once(self.bucket), 3, height, width, device=NOWHERE)
        with torch.no_grad(), self._loading(ENCODER):
            self.model.encode_pictures(pixels)
            moments["encoding pictures"] = self.live.peak
            self.live.forget_peak()
            if not self.recipe.adapter.trains_words:
                self.model.encode_words(["a"] * words_at_once())
                moments["encoding captions"] = self.live.peak
            if self.recipe.previews.prompts and not self.recipe.adapter.trains_words:
                self._understood()
        del pixels
        self.model.release_encoders()
        return moments

    def step(self) -> Mapping[str, int]:
        """The peak of one training step, optimiser and all."""
        recipe, model, live = self.recipe, self.model, self.live
        with live.part("weights"):
            _ = model.denoiser
        with live.part("trained"):
            self.trainable = recipe.adapter.attach(model, self.seeds)
            if recipe.checkpointed_every is not None:
                model.use_gradient_checkpointing(recipe.checkpointed_every)
            flat = FlatGroups(self.trainable.groups(), whole=recipe.joins_tensors)
        for parameter in self.trainable.parameters():
            parameter.register_post_accumulate_grad_hook(self._is_gradient)
        with live.part("optimizer"):
            self._state = torch.empty(state_bytes(recipe.optimizer, flat.groups), dtype=torch.uint8, device=NOWHERE)
        optimizer = self.trainable.driven(Standing(flat.groups), recipe.clip_norm)
        with live.part("average"):
            self._average = None if recipe.ema is None else recipe.ema.build(tuple(self.trainable.parameters()))
        for part in self.trainable.parts:
            network = model.network(part)
            network.train()
            self._mix(network)
        live.forget_peak()
        before = live.flops
        for _ in range(min(2, recipe.accumulate)):  # the second one finds the gradients of the first
            live.flops = before
            self._pass()
        self.flops = live.flops - before
        with live.part("gradients"):
            parameters = flat.gather()
        torch.nn.utils.clip_grad_norm_([own for own in parameters if own.grad is not None], recipe.clip_norm)
        optimizer.step()
        flat.drop()
        return live.peak

    def preview(self) -> Mapping[str, int]:
        """The peak while pictures are drawn, as `Previews` draws them; all that training keeps stays where it is."""
        previews, side = self.recipe.previews, self.recipe.previews.size or self.recipe.data.resolution
        settings = previews.draw.model_copy(update={"steps": min(_SAMPLER_STEPS, previews.draw.steps)})
        # on a GPU they stay below what a step took
        counted = self.kind == "cuda"
        room = sum(self.live.peak.values()) - sum(self.live.live.values()) if counted else None
        rows = self.recipe.batch if counted else None
        self.live.forget_peak()
        with self._loading(ENCODER):
            asked = self._understood()
            self.model.release_encoders()
            few = replace(asked, prompts=asked.prompts[: settings.batch])
            draw(
                self.model,
                few,
                Drawing(sampler=previews.sampler, settings=settings, size=(side, side), rows=rows, decoding=room),
            )
        self.model.release_encoders()
        return self.live.peak

    def _understood(self) -> Understood:
        """What the prompts mean; it is asked for once, before the denoiser is there, unless that changes."""
        if self._asked is not None:
            return self._asked
        asked = self.recipe.previews.understood(self.model)
        if not self.recipe.adapter.trains_words:
            self._asked = asked
        return asked

    def _pass(self) -> None:
        """One forward and one backward pass over a batch of the bucket, as `loop.train.one_pass` makes them."""
        model, batch = self.model, self._batch()
        objective = self.recipe.objective
        drawn = objective.draw(batch, model.schedule, model.prediction, self.seeds).to(NOWHERE)

        def meant(of: Batch) -> Conditioning:
            return of.words if isinstance(of.words, Conditioning) else model.encode_words_live(of.words)

        words = meant(batch)

        def predict(noisy: Tensor, t: Tensor, of: Batch) -> Tensor:
            asked = words if of is batch else meant(of)
            return model.predict(noisy, model.schedule.index(t), asked, of.geometry)

        def base(noisy: Tensor, t: Tensor, of: Batch) -> Tensor:
            with torch.no_grad(), self.trainable.silenced():
                return model.predict(noisy, model.schedule.index(t), meant(of), of.geometry)

        objective.loss(predict, batch, drawn, model.prediction, base=base).value.backward()

    def _batch(self) -> Batch:
        """A batch of the bucket, as large as the recipe says."""
        recipe, model, many = self.recipe, self.model, self.recipe.batch
        width, height = self.bucket
        captions = ("a",) * many
        asks_base = any(part.target == "base" for part in recipe.data.parts)
        words: Conditioning | tuple[str, ...] = captions
        if not recipe.adapter.trains_words:
            words = self._meaning(captions)
        shape = (many, model.latent.channels, height // model.latent.scale, width // model.latent.scale)
        return Batch(
            number=0,
            slots=tuple(range(many)),
            latents=torch.zeros(shape, device=NOWHERE),
            words=words,
            geometry=Geometry.whole(many, height, width, NOWHERE),
            weight=torch.ones(many, device=NOWHERE),
            total=many,
            keys=captions,
            from_base=tuple(range(many)) if asks_base else (),
        )

    def _meaning(self, captions: tuple[str, ...]) -> Conditioning:
        """States as the cache has them; what making them takes is counted where captions are encoded."""
        peak = self.live.peak
        words = self.model.encode_words(captions)
        self.model.release_encoders()
        self.live.put_peak_back(peak)
        return words

    def _is_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.live.give(parameter.grad, "gradients")

    def _mix(self, network: nn.Module) -> None:
        """Let a network compute as accelerate lets it: in mixed precision, and answering in float32."""
        precision = self.recipe.precision
        if precision.mixed == "no" or (self.kind == "cpu" and precision is Precision.float16):
            return
        forward = network.forward

        def mixed(*arguments: object, **named: object) -> object:
            with torch.autocast("cpu", precision.dtype):
                answer = forward(*arguments, **named)
            return _in_float32(answer)

        network.forward = mixed

    @contextmanager
    def _loading(self, part: str) -> "Generator[None, None, None]":
        """Inside, the networks that come belong to `part`."""
        source = self.model.source
        load = source.load

        def labelled(*arguments: Any, **named: Any) -> nn.Module:
            with self.live.part(part):
                return load(*arguments, **named)

        with patch.object(source, "load", labelled):
            yield


def _in_float32(answer: object) -> object:
    if isinstance(answer, Tensor):
        return answer.float() if answer.is_floating_point() else answer
    return tuple(map(_in_float32, answer)) if type(answer) is tuple else answer
