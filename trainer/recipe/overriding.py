"""KEY=VALUE orders of the command line, laid over what the file says."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from trainer.recipe.documents import Document, KeyPath, Plain, dotted, read_document, shortened
from trainer.recipe.mistakes import Mistake
from trainer.recipe.schema import Shape

_KEY = re.compile(r"\w+(\.\w+)*")


def lay_over(document: Document, orders: Sequence[str], shape: Shape) -> None:
    """`document` says what `orders` ask for; a wrong order is noted among its mistakes.

    A block that the file leaves out is taken as its default says it, so that `optimizer.rate=1e-4` changes the rate of
    the default optimizer; the same holds for a block of the file that does not say its kind.
    """
    layer = _Layer(document, shape)
    for order in orders:
        try:
            layer.lay(order)
        except _RefusedError as refused:
            where = f"{shortened(order)} on the command line"
            document.mistakes.append(Mistake(refused.what, where, refused.mend))
    document.value = layer.completed(document.value, shape, ())


class _RefusedError(Exception):
    """An order that cannot be laid over anything."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.what, self.mend = what, mend


@dataclass(slots=True)
class _Layer:
    document: Document
    shape: Shape
    made: set[KeyPath] = field(default_factory=set[KeyPath])  # blocks that no file wrote

    def lay(self, order: str) -> None:
        """The document says what `order` says."""
        key, equals, text = order.partition("=")
        if not (equals and _KEY.fullmatch(key)):
            raise _RefusedError(
                "This is no KEY=VALUE.", "Write it such as adapter.rank=8, without blanks around the '='."
            )
        read, value = read_document(text, order)
        if read.mistakes:
            raise _RefusedError(read.mistakes[0].what, f"If this is meant as text, quote it twice: {key}='\"…\"'.")
        self.document.value = self._laid(self.document.value, self.shape, (), tuple(key.split(".")), value)
        path = self._path(key.split("."))
        for told in (self.document.lines, self.document.orders):
            for inside in [inside for inside in told if inside[: len(path)] == path]:
                del told[inside]
        self.document.orders[path] = order

    def _laid(self, block: Plain, shape: Shape | None, at: KeyPath, rest: tuple[str, ...], value: Plain) -> Plain:
        """`block` with `value` at `rest` inside it."""
        if not rest:
            return value
        if block is None:
            self.made.add(at)
            block = list(shape.default or ()) if shape is not None and shape.is_list else {}
        if isinstance(block, dict):
            part, old = rest[0], block.get(rest[0])
        elif isinstance(block, list):
            part = _index(block, at, rest)
            old = block[part] if part < len(block) else None
        else:
            raise _RefusedError(f"`{dotted(at)}` is no block of keys.", f"Set the whole of it: {dotted(at)}=VALUE.")
        inner = None if shape is None else shape.inside(self._with_kind(block, shape), part)
        new = self._laid(old, inner, (*at, part), rest[1:], value)
        if isinstance(block, dict):
            return {**block, str(part): new}
        return [*block[: int(part)], new, *block[int(part) + 1 :]]

    def _with_kind(self, block: Plain, shape: Shape) -> Plain:
        """`block`, of the default's kind if it does not say one."""
        if isinstance(block, dict) and shape.kinds and isinstance(shape.default, dict):
            tag = shape.discriminator
            return {tag: shape.default[tag], **block}
        return block

    def _path(self, parts: Sequence[str]) -> KeyPath:
        """The keys that lead to what was just laid, with numbers where they count a list."""
        path: KeyPath = ()
        block: Plain = self.document.value
        for part in parts:
            if isinstance(block, list):
                path = (*path, int(part))
                block = block[int(part)]
            else:
                path = (*path, part)
                block = block.get(part) if isinstance(block, dict) else None
        return path

    def completed(self, value: Plain, shape: Shape | None, at: KeyPath) -> Plain:
        """`value` with what its default says, where a block was made by an order or does not say its kind."""
        if isinstance(value, list):
            return [self.completed(v, shape and shape.inside(value, i), (*at, i)) for i, v in enumerate(value)]
        if not isinstance(value, dict) or shape is None:
            return value
        if shape.kinds and len(shape.kinds) == 1:
            value = {shape.discriminator: next(iter(shape.kinds)), **value}
        default = shape.default
        if isinstance(default, dict):
            tag = shape.discriminator if shape.kinds else None
            silent = tag is not None and tag not in value
            same = tag is None or silent or value[tag] == default.get(tag)
            if silent or (at in self.made and same):
                value = {**default, **value}
        return {key: self.completed(v, shape.inside(value, key), (*at, key)) for key, v in value.items()}


def _index(block: list[Plain], at: KeyPath, rest: tuple[str, ...]) -> int:
    if not rest[0].isdecimal():
        raise _RefusedError(f"`{dotted(at)}` is a list.", f"Count its entries from 0: {dotted((*at, 0, *rest))}=VALUE.")
    number = int(rest[0])
    if number > len(block) or (number == len(block) and len(rest) > 1):
        raise _RefusedError(
            f"`{dotted(at)}` has no entry number {number}.",
            f"Count from 0: it holds {len(block)}; {dotted((*at, len(block)))}=VALUE adds one.",
        )
    return number
