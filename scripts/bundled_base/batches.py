"""Draws pictures, captions, timesteps and noise."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTokenizer

from bundled_base.captions import Entry, draw_caption, sampling_weight
from bundled_base.networks import build_scheduler
from bundled_base.picture_codes import picture_codes

CAPTION_DROP = 0.1  # for classifier-free guidance
PLAIN_SHARE = 0.7  # of the unshrunk variant
NOISES_PER_CAPTION = 2  # the text encoder is a sixth of the work; its states serve two timesteps
STRUCTURE_TIMESTEPS = (350, 1000)  # where words decide the shape; below, the network only cleans up
STRUCTURE_SHARE = 0.7


@dataclass(frozen=True)
class Batch:
    """What one step reads: B captions, and n noisy latents for each."""

    noisy: Tensor  # [B*n 4 h w]
    target: Tensor  # [B*n 4 h w] v of Salimans & Ho 2022
    timesteps: Tensor  # [B*n] 0..999
    tokens: Tensor  # [B 77]
    sentence_ends: Tensor  # [B] index of the end token
    padding_positions: Tensor  # [B] index of one later token
    codes: Tensor  # [B code]
    told: Tensor  # [B] 0 where the caption was dropped, else 1

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on a device."""
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True)
class Corpus:
    """Captions, latents and codes of the same pictures."""

    entries: Sequence[Entry]
    latents: Tensor  # [N V 4 h w] float16
    codes: Tensor  # [N code]
    shares: NDArray[np.float64]  # [N] sums to one


def build_corpus(entries: Sequence[Entry], latents: NDArray[np.float16]) -> Corpus:
    """Return the corpus with sampling shares and picture codes."""
    weights = np.array([sampling_weight(entry) for entry in entries])
    codes = picture_codes(latents[:, 0], weights)
    return Corpus(entries, torch.from_numpy(latents), torch.from_numpy(codes), weights / weights.sum())


def draw_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Return timesteps, some over the whole range and most where shape is decided, evenly spread in each part.

    The even spread (one draw per equal slice) makes the loss of a batch less noisy than free draws do.
    """
    shaped = round(count * STRUCTURE_SHARE)
    low, high = STRUCTURE_TIMESTEPS
    parts = [(count - shaped, 0, 1000), (shaped, low, high)]
    drawn = [
        start + (torch.arange(size) + torch.rand(size, generator=generator)) / max(1, size) * (end - start)
        for size, start, end in parts
    ]
    mixed = torch.cat(drawn)[torch.randperm(count, generator=generator)]
    return mixed.long().clamp_(0, 999)


class BatchMaker:
    """Makes batches from the corpus; its chance depends on the seed alone."""

    def __init__(self, corpus: Corpus, tokenizer: CLIPTokenizer, seed: int) -> None:
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._words = random.Random(seed)
        self._choices = np.random.default_rng(seed)
        self._noise = torch.Generator().manual_seed(seed)
        self._kept = build_scheduler().alphas_cumprod  # [1000] share of the signal's power that is left

    def draw(self, latent_count: int) -> Batch:
        """Return a fresh batch on the CPU."""
        size = latent_count // NOISES_PER_CAPTION
        picked = self._choices.choice(len(self._corpus.entries), size, p=self._corpus.shares)
        variants = (self._choices.random(size) >= PLAIN_SHARE).astype(np.int64)
        clean = self._corpus.latents[torch.from_numpy(picked), torch.from_numpy(variants)].float()
        clean = clean.repeat_interleave(NOISES_PER_CAPTION, 0)
        told = [self._words.random() >= CAPTION_DROP for _ in picked]
        captions = [
            draw_caption(self._corpus.entries[index], self._words) if kept else ""
            for index, kept in zip(picked.tolist(), told, strict=True)
        ]
        tokens = self._tokenizer(
            captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        ends = (tokens == self._tokenizer.eos_token_id).int().argmax(1)
        later = ends + (torch.rand(size, generator=self._noise) * (77 - ends)).long()
        timesteps = draw_timesteps(len(clean), self._noise)
        kept_power = self._kept[timesteps].view(-1, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=self._noise)
        return Batch(
            noisy=kept_power.sqrt() * clean + (1 - kept_power).sqrt() * noise,
            target=kept_power.sqrt() * noise - (1 - kept_power).sqrt() * clean,
            timesteps=timesteps,
            tokens=tokens,
            sentence_ends=ends,
            padding_positions=later,
            codes=self._corpus.codes[torch.from_numpy(picked)],
            told=torch.tensor(told, dtype=torch.float32),
        )
