"""Teaches the text encoder its words before the U-Net listens: captions alone cost a tenth of a denoising step."""

import math
import time

import torch

from bundled_base.batches import BatchMaker
from bundled_base.training import EMBEDDING_RATE, Training

WORDS_RATE = 1e-3
WARM_UP_STEPS = 30
SHORT_LENGTH = 24  # tokens; the encoder looks only backwards, so the states of a cut sentence are the same
LONG_EVERY = 4  # steps: then all 77 positions take part, for the U-Net reads them all
PLACES = 4  # tokens asked per sentence
_LOG_EVERY = 100


def teach_words(training: Training, maker: BatchMaker, minutes: float, max_steps: int) -> None:
    """Train the text encoder on the hint alone; the running average takes over its weights at the end."""
    student, team = training.student, training.team
    table = [v for n, v in student.text_encoder.named_parameters() if "token_embedding" in n]
    others = [v for n, v in student.text_encoder.named_parameters() if "token_embedding" not in n]
    others += list(student.hint.parameters())
    groups = [{"params": others, "scale": 1.0}, {"params": table, "scale": EMBEDDING_RATE}]
    optimizer = torch.optim.AdamW(groups, lr=WORDS_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    started, steps = time.monotonic(), 0
    while True:
        done = max(team.agree((time.monotonic() - started) / 60) / minutes, steps / max_steps)
        if done >= 1:
            break
        factor = min(1.0, (steps + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = WORDS_RATE * group["scale"] * factor
        loss = _words_loss(training, maker, 77 if steps % LONG_EVERY == 0 else SHORT_LENGTH)
        optimizer.zero_grad()
        loss.backward()
        team.average_gradients(others + table)
        torch.nn.utils.clip_grad_norm_(others + table, 1.0)
        optimizer.step()
        steps += 1
        if team.leads and steps % _LOG_EVERY == 0:
            print(f"words step {steps}  hint {loss.item():.4f}", flush=True)
    for name, value in student.named_parameters():
        if not name.startswith("unet"):
            training.average[name].copy_(value.detach())


def _words_loss(training: Training, maker: BatchMaker, length: int) -> torch.Tensor:
    device = training.parameters[0].device
    batch = maker.draw(4 * training.plan.batch_size).to(device)
    ends = batch.sentence_ends.clamp(max=length - 1)
    states = training.student.text_encoder(batch.tokens[:, :length])[0]  # [B length 96]
    spread = torch.rand(len(ends), PLACES - 1, device=device)
    later = ends[:, None] + (spread * (length - ends)[:, None]).long()
    places = torch.cat([ends[:, None], later], 1)
    return training.student.hint_loss(states, places, batch)
