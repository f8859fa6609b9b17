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
    from pathlib import Path

_NODES = frozenset({1})
_RAW = frozenset({4, 5, 7, 9, 10, 11})


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
    path = inside(folder, name)
    try:
        model = protobuf.fields(memoryview(path.read_bytes()))
        graph = protobuf.fields(memoryview(protobuf.message(model, 7)), skip=_NODES)
        weights = [protobuf.fields(memoryview(one), skip=_RAW) for one in protobuf.messages(graph, 5)]
        named = {protobuf.text(one, 8, name) for one in weights}
        inputs = dict(_value(one, name) for one in protobuf.messages(graph, 11))
        outputs = dict(_value(one, name) for one in protobuf.messages(graph, 12))
        external = {one for weight in weights for one in _external(weight, name)}
    except protobuf.Cut as error:
        raise PipelineFault(f"{name} is no ONNX file: {error}") from error
    if not outputs:
        raise PipelineFault(f"{name} is no ONNX file: it has no outputs")
    made = f"{protobuf.text(model, 2, name)} {protobuf.text(model, 3, name)}".strip()
    version = str(protobuf.number(model, 5) or "")
    inputs = {key: shape for key, shape in inputs.items() if key not in named}
    return Graph(made, version, inputs, outputs, tuple(sorted(external)))


def _value(content: bytes, name: str) -> tuple[str, tuple[str, ...]]:
    value = protobuf.fields(content)
    tensor = protobuf.fields(protobuf.message(protobuf.fields(protobuf.message(value, 2)), 1))
    shape = protobuf.fields(protobuf.message(tensor, 2))
    return protobuf.text(value, 1, name), tuple(_dimension(one, name) for one in protobuf.messages(shape, 1))


def _dimension(content: bytes, name: str) -> str:
    found = protobuf.fields(content)
    return str(protobuf.number(found, 1)) if 1 in found else protobuf.text(found, 2, name) or "?"


def _external(weight: protobuf.Fields, name: str) -> list[str]:
    entries = [protobuf.fields(one) for one in protobuf.messages(weight, 13)]
    return [protobuf.text(one, 2, name) for one in entries if protobuf.message(one, 1) == b"location"]
