"""What to draw."""

from pydantic import Field, NonNegativeInt, PositiveInt

from trainer.core.settings import Settings


class Prompt(Settings):
    """One picture to draw."""

    text: str
    """What it shows; `(words:1.2)` count more, `[words]` less, `BREAK` begins a new chunk."""
    negative: str = ""
    """What it does not show."""
    seed: NonNegativeInt = 0
    """The picture's own chance: the same seed gives the same picture."""
    width: PositiveInt | None = None
    """Pixels; absent: the size asked for all."""
    height: PositiveInt | None = None
    """Pixels; absent: the size asked for all."""


class DrawSettings(Settings):
    """How pictures are drawn."""

    steps: PositiveInt = Field(default=20, le=1000)
    """How often the network is asked."""
    guidance: float = Field(default=4.0, ge=0, le=50)
    """How strongly the words pull (classifier-free guidance, arXiv:2207.12598); up to 1: not at all."""
    rescale: float | None = Field(default=None, ge=0, le=1)
    """How far guided pictures are brought back to the contrast of unguided ones (arXiv:2305.08891, section 3.4);
    absent: 0.7 where the model begins with pure noise (zero terminal SNR), and otherwise not at all."""
    batch: PositiveInt = 8
    """Pictures drawn at once."""
