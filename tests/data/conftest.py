"""Pictures, folders and small encoders for the tests of this room."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from trainer.batch import Conditioning, Encoders, Posterior
from trainer.data.example import Example, Size

Painter = Callable[..., Path]


@pytest.fixture
def paint(tmp_path: Path) -> Painter:
    """Writes a picture of one colour (distinct by `shade`), with a caption if one is given."""

    def write(name: str, *, size: tuple[int, int] = (64, 64), shade: int = 0, caption: str | None = None) -> Path:
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (shade % 256, 100, 200)).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    return write


@dataclass
class CountingEncoders:
    """Small deterministic stand-ins for the networks, which remember what they were asked for."""

    pictures_identity: str = "pictures-1"
    words_identity: str = "words-1"
    pictures: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])
    words: set[str] = field(default_factory=set[str])
    spoil: bool = False

    def encode_pictures(self, pixels: Tensor) -> Posterior:
        self.pictures.append(tuple(pixels.shape))
        small = functional.avg_pool2d(pixels, 4)
        mean = torch.cat([small, small[:, :1]], dim=1)
        return Posterior(mean=mean * (float("nan") if self.spoil else 1.0), deviation=0.1 + mean.abs() / 10)

    def encode_words(self, captions: Sequence[str]) -> Conditioning:
        self.words |= set(captions)
        seeds = [int.from_bytes(hashlib.sha256(caption.encode()).digest()[:4], "big") for caption in captions]
        rows = [torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return Conditioning(tokens=torch.stack(rows), pooled=torch.stack([row[0] for row in rows]))

    @property
    def both(self) -> Encoders:
        return Encoders(
            encode_pictures=self.encode_pictures,
            encode_words=self.encode_words,
            pictures_identity=self.pictures_identity,
            words_identity=self.words_identity,
            scale=4,
        )


@pytest.fixture
def encoders() -> CountingEncoders:
    return CountingEncoders()


@pytest.fixture
def example() -> Callable[..., Example]:
    """An example that no file stands behind."""

    def make(
        caption: str, *, regularisation: bool = False, key: str = "k", size: tuple[int, int] = (64, 64)
    ) -> Example:
        return Example(
            source=0,
            locator="a.png",
            name="a.png",
            key=key,
            size=Size(*size),
            captions=(caption,) if caption else (),
            regularisation=regularisation,
        )

    return make
