"""An optimiser's whole state as plain tensors and JSON, and back, bit for bit."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.core.errors import CheckpointError, NonFiniteError
from trainer.core.shards import is_shared, shared_like, whole

_FORMAT = 1
# Optimisers keep what they like in their state; JSON of any depth has no narrower type.
Json = Any


def pack(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """All that `optimizer` knows: tensors by name, copied to the CPU, and the rest as JSON that points to them.

    Raises:
        NonFiniteError: it holds a number that is NaN or infinite, so that the run cannot go on from it.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    facts = {
        "format": _FORMAT,
        "optimizer": type(optimizer).__name__,
        "parameters": _shapes(optimizer),
        "groups": _encode(state["param_groups"], "group", tensors),
        # by place: who moves tensors in the backward pass met them in another order than who loads them
        "state": _encode(dict(sorted(state["state"].items())), "state", tensors),
    }
    spoiled = _spoiled(tensors)
    if spoiled is not None:
        raise NonFiniteError(
            f"The optimiser's state holds a number that is not finite, in {spoiled}.",
            where="the checkpoint that was to be written",
            mend="Lower optimizer.rate, or choose another optimizer; earlier checkpoints are whole.",
        )
    return tensors, facts


def unpack(optimizer: Optimizer, tensors: Mapping[str, Tensor], facts: Mapping[str, Json]) -> None:
    """Give a fresh `optimizer` the state that `pack` took; it then goes on as if it had never stopped.

    Raises:
        CheckpointError: a tensor is missing, left over, of another form or not finite, or the state belongs to another
            optimiser or to other parameters. `optimizer` is then as it was.
    """
    expected = {"format": _FORMAT, "optimizer": type(optimizer).__name__, "parameters": _shapes(optimizer)}
    for key, value in expected.items():
        if facts.get(key) != value:
            raise _wrong(f"its {key} is not what this recipe asks for")
    try:
        reader = _Reader(tensors)
        groups, state = reader.decode(facts["groups"]), reader.decode(facts["state"])
        _check_places(optimizer, groups, state)
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(f"its form is unknown ({error})") from error
    unused = sorted(set(tensors) - reader.used)
    if unused:
        raise _wrong(f"it holds {len(unused)} tensors that nothing asks for, such as {unused[0]}")
    spoiled = _spoiled(tensors)
    if spoiled is not None:
        raise _wrong(f"its tensor {spoiled} holds a number that is not finite")
    optimizer.load_state_dict({"state": _shared_out(optimizer, state), "param_groups": groups})
    _put_exactly(optimizer, state)


def _shared_out(optimizer: Optimizer, state: Mapping[int, Mapping[str, Json]]) -> dict[int, dict[str, Json]]:
    """The same state, where a parameter is shared among processes with this process's share of what is shaped so."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def share(value: Json, parameter: Tensor) -> Json:
        alike = isinstance(value, Tensor) and value.shape == parameter.shape
        return shared_like(value, parameter) if alike and is_shared(parameter) else value

    return {place: {key: share(one, parameters[place]) for key, one in own.items()} for place, own in state.items()}


def _put_exactly(optimizer: Optimizer, saved: Mapping[int, Mapping[str, Json]]) -> None:
    """Give each state its own number format and place again, where loading has given it those of its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, values in saved.items():
        state = optimizer.state[parameters[place]]
        for key, now in list(state.items()):
            before = _found(values, key)
            if not isinstance(now, Tensor) or before is None:
                continue
            if now.dtype != before.dtype:  # torch makes all of it as coarse as the parameter
                state[key] = now = before.to(now.device)
            if getattr(optimizer, "is_paged", False):  # only bitsandbytes' optimisers have the word
                state[key] = _paged(optimizer, parameters[place], now)


def _found(values: Mapping[str, Json], key: str) -> Tensor | None:
    """The tensor that was saved as `key`, which bitsandbytes may have put one floor deeper."""
    inner = [value for value in values.values() if isinstance(value, dict)]
    found = [part[key] for part in (values, *inner) if isinstance(part.get(key), Tensor)]
    return found[0] if found else None


def _paged(optimizer: Any, parameter: Tensor, value: Tensor) -> Tensor:  # Any: bitsandbytes comes without types
    """`value` in memory that may leave the GPU, if bitsandbytes would have kept it there from the beginning."""
    if not parameter.is_cuda or value.shape != parameter.shape:
        return value
    buffer: Tensor = optimizer.get_state_buffer(parameter, dtype=value.dtype)
    if not hasattr(buffer, "is_paged"):  # small ones stay
        return value
    torch.cuda.synchronize(parameter.device)  # the processor writes where the GPU has just written zeros
    return buffer.copy_(value)


def _spoiled(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that holds NaN or infinity, if there is one."""
    return next(
        (name for name, one in tensors.items() if one.is_floating_point() and not bool(torch.isfinite(one).all())), None
    )


def _shapes(optimizer: Optimizer) -> list[Json]:
    """For each group its name and the shapes of its parameters, in their order."""
    return [[group.get("name"), [list(p.shape) for p in group["params"]]] for group in optimizer.param_groups]


def _encode(value: object, name: str, tensors: dict[str, Tensor]) -> Json:
    """`value` as JSON from which `_Reader` makes the same again; its tensors go to `tensors`, under names from `name`.

    What JSON would blur is wrapped: tuples would become lists, and the number keys of dicts words.
    """
    if isinstance(value, Tensor):
        # The dimensions are stored in the order in which they lie in memory (channels-last differs from the plain one):
        # bitsandbytes counts its blocks of 256 through memory, so the layout is part of the state.
        order = sorted(range(value.dim()), key=lambda d: -value.stride(d)) if not value.is_contiguous() else []
        # A copy of its own: bitsandbytes shares one quantisation map among all parameters, safetensors forbids it.
        full = whole(value.detach())
        stored = full.permute(order) if order else full
        tensors[name] = stored.to("cpu", copy=True).contiguous()
        return {"tensor": name, "dtype": str(stored.dtype), "shape": list(stored.shape), "order": order}
    if isinstance(value, dict):
        pairs = [[key, _encode(part, f"{name}.{key}", tensors)] for key, part in value.items()]
        return {"dict": pairs}
    if isinstance(value, (list, tuple)):
        parts = [_encode(part, f"{name}.{place}", tensors) for place, part in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": parts}
    if isinstance(value, float) and math.isinf(value):
        return {"infinite": 1 if value > 0 else -1}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which no checkpoint can hold")


class _Reader:
    """Makes values again, and remembers which tensors were used."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.used: set[str] = set()

    def decode(self, value: Json) -> Json:
        """The value that `_encode` was given."""
        if not isinstance(value, dict):
            return value
        makers: dict[str, Callable[[Json], Json]] = {
            "dict": lambda pairs: {key: self.decode(part) for key, part in pairs},
            "list": lambda parts: [self.decode(part) for part in parts],
            "tuple": lambda parts: tuple(self.decode(part) for part in parts),
            "infinite": lambda sign: math.inf * sign,
        }
        if "tensor" in value:
            tensor = self._tensor(value["tensor"], value["dtype"], value["shape"])
            order: list[int] = value["order"]
            return tensor.permute([order.index(d) for d in range(len(order))]) if order else tensor
        ((form, content),) = value.items()
        return makers[form](content)

    def _tensor(self, name: str, dtype: str, shape: list[int]) -> Tensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise _wrong(f"its tensor {name} is missing")
        if str(tensor.dtype) != dtype or list(tensor.shape) != shape:
            raise _wrong(f"its tensor {name} is {tensor.dtype} {list(tensor.shape)} and not {dtype} {shape}")
        self.used.add(name)
        return torch.clone(tensor)  # the optimiser writes into its state; the caller's tensors stay as they are


def _check_places(optimizer: Optimizer, groups: list[dict[str, Json]], state: Mapping[object, Json]) -> None:
    """Refuse state for parameters that the optimiser does not have, and groups that are cut differently."""
    ours = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    theirs = [group["params"] for group in groups]
    if ours != theirs:
        raise _wrong("its groups hold other parameters")
    strangers = set(dict(state)) - {place for places in ours for place in places}
    if strangers:
        raise _wrong(f"it holds the state of {len(strangers)} parameters that do not exist")


def _wrong(reason: str) -> CheckpointError:
    return CheckpointError(
        f"The optimiser's state cannot be restored: {reason}.",
        where="the checkpoint's optimiser state",
        mend="Resume with the recipe that the run was started with, or from an earlier checkpoint.",
    )
