"""The bytes that are live while torch computes, by what they are for; and the arithmetic that it does."""

import weakref
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from typing_extensions import override

_GRAIN: Final = 512  # bytes: torch's CUDA allocator gives memory out in multiples of it

_aten: Any = torch.ops.aten
_MOVING: Final = frozenset({_aten.to, _aten._to_copy})
_ASKING: Final = frozenset({_aten._local_scalar_dense.default, _aten.item.default, _aten.is_nonzero.default})


class LiveBytes(TorchDispatchMode):
    """Counts the storages of tensors without numbers (torch's meta device), until the last tensor of each is gone.

    A storage belongs to the part whose name stood when it was made, or to the one that it was given to later. Tensors
    that are used without having been made inside are not counted.

    Where a number is asked for that is not there (`item`, or a tensor as a condition) it says 1, or true; and what is
    copied to a device with numbers is zeros.
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        super().__init__()
        self._part = "activations"
        self._live: Counter[str] = Counter()
        self._known: dict[int, _Known] = {}  # by the storage's own address
        self._most: Mapping[str, int] = {}
        self._most_sum = self._sum = 0
        self.flops = 0.0
        """Floating point operations of products and attention so far."""

    @property
    def peak(self) -> Mapping[str, int]:
        """Bytes by part at the moment when most were live."""
        return dict(self._most)

    @property
    def live(self) -> Mapping[str, int]:
        """Bytes by part now."""
        return {part: size for part, size in self._live.items() if size}

    def forget_peak(self) -> None:
        """Let the peak be what is live now."""
        self._most, self._most_sum = dict(self._live), self._sum

    def put_peak_back(self, peak: Mapping[str, int]) -> None:
        """Let the peak be `peak`, as it was before something that counts elsewhere; or what is live now, if more is."""
        self._most, self._most_sum = dict(peak), sum(peak.values())
        if self._sum > self._most_sum:
            self.forget_peak()

    @contextmanager
    def part(self, name: str) -> Generator[None, None, None]:
        """Inside, what is made belongs to `name`."""
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._part = before

    def give(self, tensor: Tensor, part: str) -> None:
        """Let the storage of `tensor` belong to `part` from now on."""
        known = self._known.get(_address(tensor))
        if known is not None:
            self._live[known.part] -= known.size
            self._live[part] += known.size
            known.part = part

    @override
    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:  # Any: as torch has it
        named = dict(kwargs or {})
        if func in _ASKING and args[0].is_meta:
            return True if func is _aten.is_nonzero.default or args[0].dtype == torch.bool else 1
        if func is _aten.copy_.default and args[1].is_meta and not args[0].is_meta:
            return args[0]
        if func.overloadpacket in _MOVING and args[0].is_meta:
            given = (*args[1:], *named.values())
            device = next((value for value in given if isinstance(value, torch.device)), args[0].device)
            if device.type != "meta":
                return _arrived(args[0], device, next((v for v in given if isinstance(v, torch.dtype)), args[0].dtype))
        out = func(*args, **named)
        for tensor in _tensors(out):
            if tensor.is_meta:
                self._note(tensor)
        count = _flop_formula(func)
        if count is not None:
            self.flops += count(*args, **named, out_val=out)
        return out

    def _note(self, tensor: Tensor) -> None:
        address = _address(tensor)
        if address in self._known:
            return
        storage = tensor.untyped_storage()
        size = -(-storage.nbytes() // _GRAIN) * _GRAIN
        # the tensor may go while the storage lives on in a view of it, so it is the storage that is watched
        self._known[address] = _Known(self._part, size, weakref.ref(storage, lambda _: self._gone(address)))
        self._live[self._part] += size
        self._sum += size
        if self._sum > self._most_sum:
            self._most, self._most_sum = dict(self._live), self._sum

    def _gone(self, address: int) -> None:
        known = self._known.pop(address)
        self._live[known.part] -= known.size
        self._sum -= known.size


class _Known:
    """A storage that is counted."""

    __slots__ = ("part", "size", "watched")

    def __init__(self, part: str, size: int, watched: Any) -> None:
        self.part, self.size, self.watched = part, size, watched


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage] - as torch's own MemTracker does


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, (tuple, list)):
        for part in out:
            yield from _tensors(part)


def _arrived(source: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What comes to a device with numbers where there were none: zeros that take no memory."""
    return torch.zeros((), dtype=dtype, device=device).expand(source.shape)


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _cpu_attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


_OURS: Final[Mapping[Any, Any]] = {  # torch's registry has the GPU's kernels of the same arithmetic
    _aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}


def _flop_formula(func: Any) -> Any:
    packet = func.overloadpacket
    return flop_registry.get(packet) or _OURS.get(packet)
