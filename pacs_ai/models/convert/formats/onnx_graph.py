"""What an ONNX file says of itself: who made it, what goes in and what comes out, in which shapes.

ModelProto: producer 2 and 3, version 5, graph 7. GraphProto: initializer 5, input 11, output 12. ValueInfoProto:
name 1, type 2; its tensor_type 1 has shape 2 of dim 1, each a value 1 or a name 2. TensorProto: name 8, external_data
13 of StringStringEntryProto, key 1, value 2 (onnx/onnx.proto).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pacs_ai.errors import PipelineFault
from pacs_ai.models.convert.formats import protobuf
from pacs_ai.models.convert.formats.bounds import inside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_RAW = frozenset({4, 5, 7, 9, 10, 11})
#: Deepest nesting of graphs in nodes (If, Loop, Scan).
_DEEPEST = 16


@dataclass(frozen=True)
class Graph:
    """The face of a network.

    Parameters
    ----------
    producer, version
        As stated, "" where they are not.
    inputs, outputs
        Name -> shape, a free dimension by its name or ``?``.
    external
        Files outside of the ONNX file in which it says that weights lie.
    """

    producer: str
    version: str
    inputs: dict[str, tuple[str, ...]]
    outputs: dict[str, tuple[str, ...]]
    external: tuple[str, ...]


def read(folder: Path, name: str) -> Graph:
    """Read the face of an ONNX file.

    Raises
    ------
    PipelineFault
        It is none.
    """
    return parsed(inside(folder, name).read_bytes(), name)


def parsed(content: bytes, name: str) -> Graph:
    """As `read`, of the file's bytes."""
    try:
        model = protobuf.fields(memoryview(content))
        graph = protobuf.fields(memoryview(protobuf.message(model, 7)))
        named = {protobuf.text(protobuf.fields(memoryview(one), _RAW), 8, name) for one in protobuf.messages(graph, 5)}
        inputs = dict(_value(one, name) for one in protobuf.messages(graph, 11))
        outputs = dict(_value(one, name) for one in protobuf.messages(graph, 12))
        nodes = [
            node
            for function in protobuf.messages(model, 25)
            for node in protobuf.messages(protobuf.fields(function), 7)
        ]
        weights = [*_weights(graph, name), *(one for node in nodes for one in _of_node(node, name))]
        external = {place for weight in weights for place in _external(weight, name)}
    except protobuf.Cut as error:
        raise PipelineFault(f"{name} is no ONNX file: {error}") from error
    if not outputs:
        raise PipelineFault(f"{name} is no ONNX file: it has no outputs")
    made = f"{protobuf.text(model, 2, name)} {protobuf.text(model, 3, name)}".strip()
    version = str(protobuf.number(model, 5) or "")
    inputs = {key: shape for key, shape in inputs.items() if key not in named}
    return Graph(made, version, inputs, outputs, tuple(sorted(external)))


def _weights(graph: protobuf.Fields, name: str, depth: int = 0) -> Iterator[bytes]:
    """Yield every tensor of a graph: initializers 5, sparse ones 15, those in its nodes 1 and in their graphs."""
    if depth > _DEEPEST:
        raise PipelineFault(f"{name} nests graphs deeper than {_DEEPEST}: get the original")
    yield from protobuf.messages(graph, 5)
    for sparse in protobuf.messages(graph, 15):
        yield from (one for field in (1, 2) for one in protobuf.messages(protobuf.fields(memoryview(sparse)), field))
    for node in protobuf.messages(graph, 1):
        yield from _of_node(node, name, depth)


def _of_node(node: bytes, name: str, depth: int = 0) -> Iterator[bytes]:
    """Yield the tensors in a node's attributes 5: tensor 5, graph 6, tensors 10, graphs 11, sparse 22 and 23."""
    for attribute in protobuf.messages(protobuf.fields(memoryview(node)), 5):
        found = protobuf.fields(memoryview(attribute))
        yield from (one for field in (5, 10) for one in protobuf.messages(found, field))
        for sparse in (one for field in (22, 23) for one in protobuf.messages(found, field)):
            yield from (
                one for field in (1, 2) for one in protobuf.messages(protobuf.fields(memoryview(sparse)), field)
            )
        for graph in (one for field in (6, 11) for one in protobuf.messages(found, field)):
            yield from _weights(protobuf.fields(memoryview(graph)), name, depth + 1)


def _value(content: bytes, name: str) -> tuple[str, tuple[str, ...]]:
    value = protobuf.fields(content)
    tensor = protobuf.fields(protobuf.message(protobuf.fields(protobuf.message(value, 2)), 1))
    shape = protobuf.fields(protobuf.message(tensor, 2))
    return protobuf.text(value, 1, name), tuple(_dimension(one, name) for one in protobuf.messages(shape, 1))


def _dimension(content: bytes, name: str) -> str:
    found = protobuf.fields(content)
    return str(protobuf.number(found, 1)) if 1 in found else protobuf.text(found, 2, name) or "?"


def _external(weight: bytes, name: str) -> list[str]:
    found = protobuf.fields(memoryview(weight), skip=_RAW)
    entries = [protobuf.fields(one) for one in protobuf.messages(found, 13)]
    return [protobuf.text(one, 2, name) for one in entries if protobuf.message(one, 1) == b"location"]
