"""Frozen weights that lie in memory in 8 or 4 bits, and are unpacked where they are used."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

Quantized = Literal["int8", "nf4", "float8"]
"""How frozen weights may be kept, where not as they are."""

Packed = Mapping[str, Tensor]
"""A weight in few bits: the tensors that it is made of, by name."""

_NF4_BLOCK: Final = 64  # weights that share a scale
_SCALES_BLOCK: Final = 256  # scales that share a scale of their own


@dataclass(frozen=True, slots=True)
class Quantiser:
    """Keeps the linear layers of transformer blocks in few bits.

    They hold four fifths of SDXL's U-Net, and half of Stable Diffusion 1's. All else stays as it is: convolutions,
    norms, the first and last layers, and what tells the network of time.
    """

    form: Quantized
    dtype: torch.dtype  # in which is reckoned
    device: torch.device  # where weights are quantised, and lie afterwards

    def begin(self, network: nn.Module) -> dict[str, "QuantisedLinear"]:
        """Put quantised layers, still without weights, into the network; gives them by the names of their weights."""
        begun: dict[str, QuantisedLinear] = {}
        for path, layer in chosen_layers(network).items():
            begun[f"{path}.weight"] = quantised = QuantisedLinear(layer, self)
            network.set_submodule(path, quantised)
        return begun

    def quantise(self, network: nn.Module) -> None:
        """Quantise a network whose weights are there already, layer by layer, in place."""
        for path, layer in chosen_layers(network).items():
            quantised = QuantisedLinear(layer, self)
            quantised.take(layer.weight.detach())
            network.set_submodule(path, quantised)


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose weight lies in memory in few bits.

    The weight is unpacked for the product and forgotten, and unpacked once more for the gradient of the input, so that
    the backward pass keeps no unpacked weight either. To others it is a linear layer: adapters sit on it, and `weight`
    gives them the numbers.
    """

    def __init__(self, layer: nn.Linear, quantiser: Quantiser) -> None:
        """A layer like `layer`, with its bias, and without a weight until it takes one."""
        nn.Module.__init__(self)  # a linear layer's own would make a weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self._quantiser = quantiser
        self._names: tuple[str, ...] = ()
        self.train(layer.training)

    def take(self, weight: Tensor) -> None:
        """Keep `weight` [out in], finite and of any float format, in few bits."""
        to = self._quantiser
        packed = FORMS[to.form].pack(weight.to(to.device), to.dtype)
        for name, tensor in packed.items():
            # buffers of no file: whoever saves the network saves no bits that only this class can read
            self.register_buffer(f"weight_{name}", tensor, persistent=False)
        self._names = tuple(packed)

    @property
    @override
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride] - here it is derived
        """The weight [out in] as it is reckoned with, unpacked anew each time."""
        packed = dict(zip(self._names, self._tensors(), strict=True))
        return FORMS[self._quantiser.form].unpack(packed, self._shape, self._quantiser.dtype)

    @override
    def forward(self, input: Tensor) -> Tensor:
        plan = _Plan(self._quantiser.form, self._shape, self._quantiser.dtype, self._names)
        apply: Any = _Product.apply  # torch leaves it untyped
        return apply(input.to(self._quantiser.dtype), self.bias, plan, *self._tensors())

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self._quantiser.form}"

    @property
    def _shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def _tensors(self) -> list[Tensor]:
        return [self.get_buffer(f"weight_{name}") for name in self._names]


def chosen_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """The layers that are quantised, by their paths: the linear ones inside transformer blocks."""
    return {
        path: layer
        for path, layer in network.named_modules()
        if isinstance(layer, nn.Linear)
        and not isinstance(layer, QuantisedLinear)
        and "transformer_blocks" in path.split(".")
    }


class _Plan(NamedTuple):
    """What is to be known to unpack a weight."""

    form: Quantized
    shape: tuple[int, int]
    dtype: torch.dtype
    names: tuple[str, ...]

    def unpacked(self, tensors: tuple[Tensor, ...]) -> Tensor:
        return FORMS[self.form].unpack(dict(zip(self.names, tensors, strict=True)), self.shape, self.dtype)


class _Product(torch.autograd.Function):
    """x W^T + b with a packed W; the gradient is that of x alone, since W and b are frozen."""

    @staticmethod
    @override
    def forward(ctx: Any, inputs: Tensor, bias: Tensor | None, plan: _Plan, *packed: Tensor) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(*packed)
        return functional.linear(inputs, plan.unpacked(packed), bias if bias is None else bias.to(plan.dtype))

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        packed = ctx.saved_tensors  # checkpointing gives them once
        weight = ctx.plan.unpacked(packed)
        return (gradients[0].to(weight.dtype) @ weight, *[None] * (2 + len(packed)))


def _pack_rows(levels: float, kind: torch.dtype, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Each row by a scale of its own, a number of `dtype`, so that unpacking rounds nothing but the product."""
    largest = weight.float().abs().amax(dim=1, keepdim=True)
    # half's subnormal numbers, where a row is all but zero, would make its scale coarse
    scale = (largest / levels).clamp(min=torch.finfo(dtype).smallest_normal).to(dtype)
    parts = (weight.float() / scale.float()).clamp(-levels, levels)
    return {"parts": (parts.round() if kind == torch.int8 else parts).to(kind), "scale": scale}


def _pack_int8(weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Whole numbers up to 127, by rows (arXiv:2208.07339, section 2.1, on weights)."""
    return _pack_rows(127.0, torch.int8, weight, dtype)


def _unpack_int8(packed: Packed, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return packed["parts"] * packed["scale"]  # one kernel: whole numbers become those of the scale on the way


def _pack_float8(weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Numbers of four bits of exponent and three of fraction, by rows (arXiv:2209.05433, section 3)."""
    return _pack_rows(torch.finfo(torch.float8_e4m3fn).max, torch.float8_e4m3fn, weight, dtype)


def _unpack_float8(packed: Packed, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return packed["parts"].to(dtype).mul_(packed["scale"])


def _pack_nf4(weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """NormalFloat by blocks of 64, with their scales in 8 bits too (arXiv:2305.14314, section 3)."""
    from bitsandbytes.functional import create_dynamic_map, quantize_4bit, quantize_blockwise

    # block by block: bitsandbytes' kernel for processors takes the blocks of rows that are no multiple of one wrongly
    flat = weight.flatten()
    blocks = functional.pad(flat, (0, -len(flat) % _NF4_BLOCK)).view(-1, _NF4_BLOCK)
    parts, state = quantize_4bit(blocks, blocksize=_NF4_BLOCK, compress_statistics=False, quant_type="nf4")
    levels = create_dynamic_map().to(weight.device)
    middle = state.absmax.mean()
    scales, of_scales = quantize_blockwise(state.absmax - middle, code=levels, blocksize=_SCALES_BLOCK)
    return {"parts": parts, "scales": scales, "scale": of_scales.absmax, "levels": levels, "middle": middle}


def _unpack_nf4(packed: Packed, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit, dequantize_blockwise

    scales = dequantize_blockwise(
        packed["scales"], absmax=packed["scale"], code=packed["levels"], blocksize=_SCALES_BLOCK
    )
    scales = scales.float() + packed["middle"]
    blocks = torch.Size((len(scales), _NF4_BLOCK))
    state = QuantState(absmax=scales, shape=blocks, dtype=dtype, blocksize=_NF4_BLOCK, quant_type="nf4")
    return dequantize_4bit(packed["parts"], state).flatten()[: shape[0] * shape[1]].view(shape)


class Form(NamedTuple):
    """One way to keep a weight in few bits."""

    pack: Callable[[Tensor, torch.dtype], dict[str, Tensor]]  # [out in], and what is reckoned in
    unpack: Callable[[Packed, tuple[int, int], torch.dtype], Tensor]  # the tensors, [out in], what is reckoned in


FORMS: Final[Mapping[Quantized, Form]] = {
    "int8": Form(_pack_int8, _unpack_int8),
    "nf4": Form(_pack_nf4, _unpack_nf4),
    "float8": Form(_pack_float8, _unpack_float8),
}
"""Each form that weights may be kept in."""
