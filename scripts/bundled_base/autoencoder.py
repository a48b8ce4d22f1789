"""Trains the autoencoder: 64 x 64 pictures to 16 x 16 x 4 latents and back."""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from bundled_base.latents import Pictures
from bundled_base.networks import build_autoencoder, move

HELD_OUT = 128
WARM_UP_STEPS = 100
FINAL_RATE = 0.02  # of the peak
AVERAGE_DECAY = 0.999
KL_WEIGHT = 1e-3
_CROPPED_SHARE = 0.7  # of the time; crops make cheaper steps, whole pictures at the end mend the borders


@dataclass(frozen=True)
class AutoencoderPlan:
    """How long and how fast to train the autoencoder."""

    minutes: float
    batch_size: int = 32
    rate: float = 1.5e-3
    crop: int = 48  # pixels
    max_steps: int = 10**9


def _differences(pictures: Tensor) -> tuple[Tensor, Tensor]:
    return pictures[..., :, 1:] - pictures[..., :, :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def reconstruction_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Return a loss that punishes wrong colours, soft edges and wrong broad areas alike, [B 3 h w]."""
    pairs = zip(_differences(made), _differences(wanted), strict=True)
    edges = torch.stack([(mine - theirs).abs().mean() for mine, theirs in pairs]).sum()
    areas = (functional.avg_pool2d(made, 4) - functional.avg_pool2d(wanted, 4)).abs().mean()
    apart = made - wanted
    return apart.abs().mean() + apart.square().mean() + 0.5 * edges + 0.5 * areas


def as_tensor(pictures: Pictures) -> Tensor:
    """Return pictures in -1..1, [N 3 S S]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


class PictureDrawer:
    """Draws mirrored, shifted and cropped pictures."""

    def __init__(self, pictures: Pictures, seed: int) -> None:
        self._pictures = pictures
        self._rng = np.random.default_rng(seed)

    def draw(self, count: int, crop: int | None) -> Tensor:
        """Return `count` pictures, cropped where a crop is given, [count 3 s s]."""
        size = self._pictures.shape[1]
        picked = self._rng.choice(len(self._pictures), min(count, len(self._pictures)), replace=False)
        drawn = as_tensor(self._pictures[picked])
        mirrored = torch.from_numpy(self._rng.random(len(drawn)) < 0.5)
        drawn[mirrored] = drawn[mirrored].flip(-1)
        reach = size // 12
        down, right = (int(shift) for shift in self._rng.integers(-reach, reach + 1, 2))
        drawn = torch.roll(drawn, (down, right), (2, 3))
        if crop is None or crop >= size:
            return drawn
        top, left = (int(place) for place in self._rng.integers(0, size - crop + 1, 2))
        return drawn[:, :, top : top + crop, left : left + crop]


def decode(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    """Return pictures of unscaled latents, [B 3 S S]."""
    # diffusers asks for a FloatTensor, which no tensor is by its type
    return autoencoder.decode(latents, return_dict=False)[0]  # pyright: ignore[reportArgumentType]


def _step(autoencoder: AutoencoderKL, pictures: Tensor) -> Tensor:
    posterior = autoencoder.encode(pictures, return_dict=False)[0]
    made = decode(autoencoder, posterior.sample())
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return reconstruction_loss(made, pictures) + KL_WEIGHT * kl


@torch.no_grad()
def _follow(average: dict[str, Tensor], autoencoder: AutoencoderKL, steps: int) -> None:
    decay = min(AVERAGE_DECAY, steps / (steps + 50))
    for name, value in autoencoder.state_dict().items():
        average[name].lerp_(value, 1 - decay)


def train_autoencoder(pictures: Pictures, plan: AutoencoderPlan, device: torch.device) -> AutoencoderKL:
    """Return a trained autoencoder whose scaling factor brings the latents to unit spread."""
    torch.manual_seed(0)
    shuffled = np.random.default_rng(0).permutation(len(pictures))
    held_out = pictures[shuffled[: min(HELD_OUT, len(pictures) // 4)]]
    learnt = pictures[shuffled[len(held_out) :]]
    autoencoder = build_autoencoder(pictures.shape[1])
    move(autoencoder, device, torch.channels_last)  # several times quicker than the default on a CPU
    average = {name: value.detach().clone() for name, value in autoencoder.state_dict().items()}
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=plan.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    drawer = PictureDrawer(learnt, seed=1)
    started, steps = time.monotonic(), 0
    while True:
        done = max((time.monotonic() - started) / 60 / plan.minutes, steps / plan.max_steps)
        if done >= 1:
            break
        cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.param_groups[0]["lr"] = plan.rate * min(1.0, (steps + 1) / WARM_UP_STEPS) * cosine
        drawn = drawer.draw(plan.batch_size, plan.crop if done < _CROPPED_SHARE else None).to(device)
        loss = _step(autoencoder, drawn.contiguous(memory_format=torch.channels_last))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        steps += 1
        _follow(average, autoencoder, steps)
        if steps % 100 == 0:
            print(f"autoencoder step {steps}  loss {loss.item():.4f}", flush=True)
    autoencoder.load_state_dict(average)
    _finish(autoencoder.eval(), learnt, held_out, device)
    move(autoencoder, "cpu", torch.contiguous_format)  # safetensors takes no other order
    return autoencoder


@torch.no_grad()
def _finish(autoencoder: AutoencoderKL, learnt: Pictures, held_out: Pictures, device: torch.device) -> None:
    """Set the scaling factor from the learnt pictures, and print how well held-out ones come back."""
    spread = autoencoder.encode(as_tensor(learnt[:2048]).to(device), return_dict=False)[0].mode().std()
    autoencoder.register_to_config(scaling_factor=round(1 / spread.item(), 5))
    shown = as_tensor(held_out).to(device)
    latents = autoencoder.encode(shown, return_dict=False)[0].mode()
    made = decode(autoencoder, latents).clamp(-1, 1)
    ratio = 10 * torch.log10(4 / (made - shown).square().mean((1, 2, 3))).mean()
    print(f"autoencoder: {ratio.item():.1f} dB on {len(held_out)} held-out pictures", flush=True)
