"""How far gradients go back: no further than to the first layer that has an adapter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.adapters.lora import Lora
from trainer.core.device import Precision
from trainer.core.seeds import Seeds
from trainer.families.sd1 import Sd1


@pytest.mark.parametrize("every", [0, 1, 2])
def test_nothing_before_the_first_adapter_keeps_a_graph(small_model: Path, every: int) -> None:
    """What autograd keeps for the backward pass begins at the first attention layer (with checkpointing, its block)."""
    model = Sd1(weights=str(small_model)).load(Precision.float32, torch.device("cpu"))
    Lora(rank=2).attach(model, Seeds(0))
    if every:
        model.use_gradient_checkpointing(every)
    needs: dict[str, bool] = {}

    def note(name: str) -> Any:
        def noted(_module: nn.Module, _given: Any, given_back: Any) -> None:
            if isinstance(given_back, Tensor) and name not in needs:
                needs[name] = given_back.requires_grad

        return noted

    network = model.network("unet")
    network.train()
    before = ("conv_in", "time_embedding", "down_blocks.0.resnets.0")
    first = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    for name in (*before, first):
        network.get_submodule(name).register_forward_hook(note(name))
    words = model.encode_words(["a"])
    noisy = torch.zeros(1, 4, 4, 4)
    answer = model.predict(noisy, torch.tensor([3]), words)
    assert answer.requires_grad
    assert needs == dict.fromkeys(before, False) | {first: True}
