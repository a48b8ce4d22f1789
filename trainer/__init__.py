"""Fine-tunes Stable Diffusion: pictures and captions in, an adapter that every inference program loads out."""

__version__ = "0.1.0"
