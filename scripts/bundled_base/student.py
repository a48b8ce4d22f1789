"""The networks that learn, with the loss they learn from."""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel

from bundled_base.batches import Batch


class Student(nn.Module):
    """The two networks that learn, and the hint head that is thrown away afterwards."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, code_size: int) -> None:
        super().__init__()
        width = text_encoder.config.hidden_size
        self.unet = unet
        self.text_encoder = text_encoder
        self.hint = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, code_size))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of the denoiser and the loss of the hint."""
        states = self.text_encoder(batch.tokens)[0]  # [B 77 96]
        repeated = states.repeat_interleave(len(batch.noisy) // len(states), 0)
        predicted = self.unet(batch.noisy, batch.timesteps, repeated).sample  # [B*n 4 h w]
        places = torch.stack([batch.sentence_ends, batch.padding_positions], 1)
        return functional.mse_loss(predicted, batch.target), self.hint_loss(states, places, batch)

    def hint_loss(self, states: Tensor, places: Tensor, batch: Batch) -> Tensor:
        """Return how badly the text's states tell the pictures' codes.

        The sentence's end and padding tokens after it, which the U-Net also reads, must tell the picture's leading
        principal components. A noise-free gradient that names things long before the denoiser's own gradient
        does; a small stand-in for CLIP's training on pairs.

        Args:
            states: of the text encoder.  [B T 96]
            places: which of the T are asked.  [B k]
            batch: gives the codes, and which captions were dropped.
        """
        asked = states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))  # [B k 96]
        apart = (self.hint(asked) - batch.codes[:, None]).square().mean((1, 2))
        return (apart * batch.told).mean()


def parameter_groups(student: Student) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the matrices and kernels, the embedding table, and everything else."""
    matrices: list[Tensor] = []
    tables: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in student.named_parameters():
        if "token_embedding" in name:
            tables.append(parameter)
        elif parameter.ndim >= 2 and "position_embedding" not in name and "hint" not in name:
            matrices.append(parameter)
        else:
            others.append(parameter)
    return matrices, tables, others
