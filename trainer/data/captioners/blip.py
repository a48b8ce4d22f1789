"""BLIP: one short sentence a picture."""

from collections.abc import Sequence
from typing import Literal

import torch
from PIL import Image
from pydantic import PositiveInt

from trainer.core.device import Precision
from trainer.data.captioners.base import Describer, NetworkCaptioner
from trainer.data.captioners.loading import find_model, load_network, load_processor


class Blip(NetworkCaptioner):
    """BLIP: one short sentence that says what a photograph shows; small, and quick even without a GPU.

    Source: Li et al. 2022, arXiv:2201.12086.
    """

    kind: Literal["blip"] = "blip"
    weights: str = "Salesforce/blip-image-captioning-large"
    """A folder, or a name on the model hub."""
    prompt: str = ""
    """How every sentence begins, such as "a photograph of"; the sentence goes on from it."""
    tokens: PositiveInt = 50
    """The longest sentence, in tokens."""
    beams: PositiveInt = 3
    """How many beginnings are followed at once; 1 is quickest."""
    precision: Precision = Precision.float32
    """Number format of the network."""

    def open(self, device: torch.device) -> Describer:
        """As the contract says."""
        folder = find_model(self.weights, self.revision)
        from transformers import BlipForConditionalGeneration

        processor = load_processor(folder)
        network = load_network(BlipForConditionalGeneration, folder, self.precision, device)

        def describe(pictures: Sequence[Image.Image], names: Sequence[str]) -> list[str]:
            text = [self.prompt] * len(pictures) if self.prompt else None
            inputs = processor(images=list(pictures), text=text, return_tensors="pt").to(device, self.precision.dtype)
            with torch.inference_mode():
                made = network.generate(**inputs, num_beams=self.beams, max_new_tokens=self.tokens, do_sample=False)
            return processor.batch_decode(made, skip_special_tokens=True)

        return describe
