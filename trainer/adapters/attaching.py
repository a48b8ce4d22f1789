"""A finished LoRA -> layers inside a model, for drawing with it."""

from typing import Any

from trainer.adapters.injecting import PART, inject
from trainer.adapters.trainable import Trainable
from trainer.core.errors import WeightsError
from trainer.families.model import DiffusionModel
from trainer.weights.lora_state import LoraState


def attach_lora(model: DiffusionModel, state: LoraState) -> Trainable:
    """Put a LoRA as it stands in a file into the model; each layer keeps its own rank and alpha.

    Raises:
        WeightsError: it changes layers that this model does not have, or layers of the text encoder.
    """
    layers = [layer.removeprefix(f"{PART}.") for layer in state.layers()]
    present = dict(model.denoiser.named_modules())
    foreign = [layer for layer in layers if layer not in present]
    if foreign:
        raise WeightsError(
            f"This LoRA changes {len(foreign)} layers that the denoiser does not have, {foreign[0]} among them.",
            mend="Name the base model that it was trained on with --base; LoRAs of text encoders cannot be drawn yet.",
        )
    ranks = {layer: state.down(f"{PART}.{layer}").shape[0] for layer in layers}
    alphas = {layer: state.alphas[f"{PART}.{layer}"] for layer in layers}

    def config(targets: list[str]) -> Any:
        from peft import LoraConfig

        # peft annotates alphas as integers and only ever divides them
        return LoraConfig(target_modules=targets, rank_pattern=ranks, alpha_pattern=alphas)  # pyright: ignore[reportArgumentType]

    trainable = inject(model, layers, config, seed=0)
    misfits = {n: t for n, t in state.tensors.items() if trainable.state()[n].shape != t.shape}
    if misfits:
        name, tensor = next(iter(misfits.items()))
        raise WeightsError(
            f"This LoRA does not fit the model: {name} is {list(tensor.shape)} in the file and "
            f"{list(trainable.state()[name].shape)} in the model.",
            mend="Name the base model that it was trained on with --base.",
        )
    trainable.load_state(state.tensors)
    return trainable
