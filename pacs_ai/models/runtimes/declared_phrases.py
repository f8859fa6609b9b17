"""The handful of expressions that a declared bundle may use, read from their syntax tree and computed one by one.

``eval`` is never called. Understood are: numbers, texts, lists, tuples and tables; references; arithmetic, comparison,
``and``, ``or``, ``not``, ``a if b else c``; items and slices; the constants of `CONSTANTS`; calls of `FUNCTIONS`, and
of the networks of `declared_targets`; ``x.to(device)`` of a network or tensor; and for Lambdad ``lambda x: ...`` of
all that. Anything else is `NotDeclared`.
"""

from __future__ import annotations

import ast
import operator
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pacs_ai.models.runtimes.declared_targets import NotDeclared, make

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["REFERENCE", "NotDeclared", "Phrases"]

#: A reference within a text; its id is the group.
REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)")
#: Longest phrase, in characters.
LONGEST = 2000
#: Most items that a sequence may have, those of the sequences in it counted too, and characters of a text.
MOST_ITEMS = 10_000
#: Longest whole number, bits.
MOST_BITS = 4096
#: Largest base and exponent of a power.
LARGEST_BASE = 1e9
LARGEST_EXPONENT = 64
#: Name of the n-th reference while a phrase is read.
PLACE = "_reference_{}"

BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, among: item in among,
    ast.NotIn: lambda item, among: item not in among,
}
_TYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8")
CONSTANTS: Mapping[str, Any] = {
    **{f"torch.{name}": getattr(torch, name) for name in (*_TYPES, "float", "half", "double", "long", "int", "bool")},
    **{f"{root}.{name}": getattr(np, name) for root in ("np", "numpy") for name in (*_TYPES, "pi")},
    **{f"monai.utils.CommonKeys.{name.upper()}": name for name in ("image", "label", "pred")},
}


def bounded(value: Any) -> Any:
    """Return what was computed; `NotDeclared` where it is so large that a few more phrases would fill the memory."""
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise NotDeclared(f"a whole number has at most {MOST_BITS} bits")
    if isinstance(value, str) and len(value) > MOST_ITEMS:
        raise NotDeclared(f"a text has at most {MOST_ITEMS} characters")
    if isinstance(value, list | tuple | dict):
        left, waiting = MOST_ITEMS, [value]
        while waiting:
            one = waiting.pop()
            left -= len(one)
            if left < 0:
                raise NotDeclared(f"a sequence has at most {MOST_ITEMS} items")
            items = one.values() if isinstance(one, dict) else one
            waiting += [item for item in items if isinstance(item, list | tuple | dict)]
    return value


def _counted(items: Any) -> list[Any]:
    """Return the items as a list."""
    if not isinstance(items, list | tuple | range | dict):
        raise NotDeclared("only sequences are listed")
    return list(items)


def _range(*ends: Any) -> range:
    found = range(*ends)
    if found[MOST_ITEMS:]:
        raise NotDeclared(f"a range has at most {MOST_ITEMS} numbers")
    return found


def _round(number: Any, digits: Any = None) -> Any:
    if digits is not None and abs(digits) > LARGEST_EXPONENT:
        raise NotDeclared(f"numbers are rounded to at most {LARGEST_EXPONENT} digits")
    return round(number, digits)


def _str(value: Any) -> str:
    if not isinstance(value, int | float | str | torch.device | None):
        raise NotDeclared("only numbers and texts are written as texts")
    return str(value)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": _str,
    "len": len,
    "abs": abs,
    "min": min,
    "max": max,
    "round": _round,
    "range": _range,
    "list": lambda items=(): _counted(items),
    "tuple": lambda items=(): tuple(_counted(items)),
    "os.path.join": lambda *parts: str(PurePosixPath(*parts)),
    "torch.device": torch.device,
    "torch.cuda.is_available": torch.cuda.is_available,
    "torch.from_numpy": torch.from_numpy,
    "torch.where": torch.where,
    "torch.nan_to_num": torch.nan_to_num,
    "torch.softmax": torch.softmax,
    "torch.sigmoid": torch.sigmoid,
    "torch.argmax": torch.argmax,
    "torch.clamp": torch.clamp,
    "torch.cat": torch.cat,
    "torch.stack": torch.stack,
}


def _dotted(node: ast.AST) -> str:
    """Return "torch.float32" for such an expression, "" for any other."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed([*parts, node.id])) if isinstance(node, ast.Name) else ""


class Phrases:
    """Computes phrases.

    Parameters
    ----------
    resolve
        Id of an item -> what it describes.
    arrays
        Name of a file that ``torch.load`` would read -> its arrays; None: no phrase may read a file.
    """

    def __init__(self, resolve: Callable[[str], Any], arrays: Callable[[str], Mapping[str, Any]] | None = None) -> None:
        self._resolve = resolve
        self._arrays = arrays

    def value(self, text: str) -> Any:
        """Return what a phrase (without its ``$``) comes to; `NotDeclared` says what of it is not understood."""
        if len(text) > LONGEST:
            raise NotDeclared(f"it has more than {LONGEST} characters")
        names: dict[str, str] = {}

        def place(match: re.Match[str]) -> str:
            name = PLACE.format(len(names))
            names[name] = match[1]
            return name

        try:
            tree = ast.parse(REFERENCE.sub(place, text).strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise NotDeclared("it is no expression") from error
        return _Reading(self._resolve, self._arrays, names, {}).of(tree.body)


class _Reading:
    """One phrase while it is computed: the items to which it refers, and the arguments of a lambda."""

    def __init__(
        self,
        resolve: Callable[[str], Any],
        arrays: Callable[[str], Mapping[str, Any]] | None,
        names: Mapping[str, str],
        arguments: Mapping[str, Any],
    ) -> None:
        self._resolve = resolve
        self._arrays = arrays
        self._names = names
        self._arguments = arguments

    def of(self, node: ast.AST) -> Any:
        """Return what a node comes to."""
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise NotDeclared(f"{type(node).__name__} is no part of the declared language")
        return bounded(method(node))

    def _constant(self, node: ast.Constant) -> Any:
        if not isinstance(node.value, int | float | str | bool | None):
            raise NotDeclared(f"{node.value!r} is no number and no text")
        return node.value

    def _name(self, node: ast.Name) -> Any:
        if node.id in self._names:
            return self._resolve(self._names[node.id])
        if node.id in self._arguments:
            return self._arguments[node.id]
        raise NotDeclared(f"the name {node.id} is not known")

    def _attribute(self, node: ast.Attribute) -> Any:
        name = _dotted(node)
        if name in CONSTANTS:
            return CONSTANTS[name]
        raise NotDeclared(f".{node.attr} is not among the constants that are understood")

    def _list(self, node: ast.List) -> list[Any]:
        return [self.of(item) for item in node.elts]

    def _tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self.of(item) for item in node.elts)

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        if None in node.keys:
            raise NotDeclared("** is no part of the declared language")
        return {self.of(key): self.of(value) for key, value in zip(node.keys, node.values, strict=True) if key}

    def _binop(self, node: ast.BinOp) -> Any:
        compute = BINARY.get(type(node.op))
        if compute is None:
            raise NotDeclared(f"the operator {type(node.op).__name__} is not understood")
        left, right = self.of(node.left), self.of(node.right)
        if isinstance(node.op, ast.Pow):
            _check_power(left, right)
        if isinstance(node.op, ast.Mult):
            _check_repetition(left, right)
        if isinstance(node.op, ast.Mod) and isinstance(left, str):
            raise NotDeclared("texts are not formatted by %")
        return compute(left, right)

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        compute = UNARY.get(type(node.op))
        if compute is None:
            raise NotDeclared(f"the operator {type(node.op).__name__} is not understood")
        return compute(self.of(node.operand))

    def _boolop(self, node: ast.BoolOp) -> Any:
        value: Any = None
        for part in node.values:
            value = self.of(part)
            if bool(value) is isinstance(node.op, ast.Or):
                break
        return value

    def _compare(self, node: ast.Compare) -> Any:
        left, result = self.of(node.left), True
        for kind, part in zip(node.ops, node.comparators, strict=True):
            right = self.of(part)
            result = COMPARE[type(kind)](left, right)
            if len(node.ops) > 1 and not bool(result):
                break
            left = right
        return result

    def _ifexp(self, node: ast.IfExp) -> Any:
        return self.of(node.body if self.of(node.test) else node.orelse)

    def _subscript(self, node: ast.Subscript) -> Any:
        return self.of(node.value)[self.of(node.slice)]

    def _slice(self, node: ast.Slice) -> slice:
        return slice(*(None if part is None else self.of(part) for part in (node.lower, node.upper, node.step)))

    def _lambda(self, node: ast.Lambda) -> Callable[..., Any]:
        plain = node.args
        if plain.vararg or plain.kwarg or plain.kwonlyargs or plain.defaults or plain.posonlyargs:
            raise NotDeclared("a lambda takes plain arguments only")
        names = [argument.arg for argument in plain.args]

        def computed(*values: Any) -> Any:
            arguments = {**self._arguments, **dict(zip(names, values, strict=True))}
            return _Reading(self._resolve, self._arrays, self._names, arguments).of(node.body)

        return computed

    def _call(self, node: ast.Call) -> Any:
        if any(isinstance(argument, ast.Starred) for argument in node.args) or any(
            keyword.arg is None for keyword in node.keywords
        ):
            raise NotDeclared("* and ** are no part of the declared language")
        name = _dotted(node.func)
        arguments = [self.of(argument) for argument in node.args]
        named = {str(keyword.arg): self.of(keyword.value) for keyword in node.keywords}
        if name in FUNCTIONS:
            return FUNCTIONS[name](*arguments, **named)
        if name == "torch.load" and self._arrays is not None and arguments:
            return self._arrays(str(arguments[0]))
        if name.startswith("monai."):
            return make(name, named, arguments)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "to":
            return _moved(self.of(node.func.value), arguments, named)
        raise NotDeclared(f"{name or ast.unparse(node.func)}(...) is not among the calls that are understood")


def _check_power(base: Any, exponent: Any) -> None:
    """Keep powers, and powers of powers, within what is computed at once."""
    numbers = isinstance(base, int | float) and isinstance(exponent, int | float)
    if not numbers or abs(base) > LARGEST_BASE or abs(exponent) > LARGEST_EXPONENT:
        raise NotDeclared(f"a power is of a number up to {LARGEST_BASE:.0g}, with an exponent up to {LARGEST_EXPONENT}")


def _check_repetition(left: Any, right: Any) -> None:
    for sequence, count in ((left, right), (right, left)):
        repeated = isinstance(sequence, str | list | tuple)
        if repeated and (not isinstance(count, int) or len(sequence) * count > MOST_ITEMS):
            raise NotDeclared(f"a repeated sequence has at most {MOST_ITEMS} items")


def _moved(value: Any, arguments: list[Any], named: Mapping[str, Any]) -> Any:
    """Return the network or tensor on the device: ``x.to(@device)``."""
    if not isinstance(value, torch.nn.Module | torch.Tensor) or named or len(arguments) != 1:
        raise NotDeclared("only a network or a tensor is brought .to(a device)")
    (device,) = arguments
    return value.to(torch.device(device) if isinstance(device, str) else device)
