"""An ONNX graph in onnxruntime, loaded from the very bytes whose digests were compared; one image in, one array out."""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.errors import PipelineFault
from pacs_ai.models.convert.formats import onnx_graph

if TYPE_CHECKING:
    from pacs_ai.models.package import Package
    from pacs_ai.pipeline import Array

_MISSING = (
    'ONNX models need onnxruntime: pip install "onnxruntime>=1.20,<2" (onnxruntime-gpu in its place for NVIDIA GPUs)'
)
#: onnxruntime's name of an input's type -> numpy's.
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class Session:
    """One graph on one device.

    Parameters
    ----------
    package
        Whose [files] name the ONNX file and every file in which its weights lie.
    name
        Of the ONNX file.
    device
        "cpu", "cuda:0".
    threads
        Of a CPU; 0: as many as onnxruntime likes.

    Raises
    ------
    PipelineFault
        onnxruntime is missing, a file differs or lies outside of the package, it is no graph that onnxruntime knows,
        or one that takes something else than one image of numbers.
    """

    def __init__(self, package: Package, name: str, device: str, threads: int) -> None:
        if name not in package.model.files:
            raise PipelineFault(f"[files] of {package.model.name} does not name {name}: set file in [settings]")
        content = package.read(name)
        weights = _weights(package, name, content)
        try:
            import onnxruntime as ort  # type: ignore[import-untyped]
        except ImportError as error:
            raise PipelineFault(_MISSING) from error
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"] if device.startswith("cuda") else []
        providers = [one for one in wanted if one in ort.get_available_providers()] or ["CPUExecutionProvider"]
        self._name = name
        try:
            with tempfile.TemporaryDirectory(prefix="pacs-ai-onnx-") as folder:
                graph = _laid(Path(folder), name, content, weights) if weights else content
                self._session = ort.InferenceSession(graph, options, providers=providers)
        except faults() as error:
            raise PipelineFault(f"onnxruntime does not load {name}: {str(error)[:300]}") from error
        self._input, *others = self._session.get_inputs()
        if others or self._input.type not in _TYPES:
            taken = ", ".join(f"{one.name} {one.type}" for one in (self._input, *others))
            raise PipelineFault(f"{name} takes {taken}; this runtime gives one image of float numbers")

    @property
    def shape(self) -> tuple[int | str | None, ...]:
        """Of the image that the graph takes; names and None stand for what it leaves open."""
        return tuple(self._input.shape)

    @property
    def size(self) -> tuple[int, ...]:
        """The image's axes of space, where the graph fixes all of them; else ()."""
        space = self.shape[2:]
        return tuple(one for one in space if isinstance(one, int)) if all(isinstance(one, int) for one in space) else ()

    def __call__(self, image: Array) -> Array:
        """Return the first output as float32.

        Raises
        ------
        PipelineFault
            The graph takes no image of this shape.
        MemoryError
            There is no memory for it.
        """
        try:
            output = self._session.run(None, {self._input.name: image.astype(_TYPES[self._input.type], copy=False)})[0]
        except faults() as error:
            if "alloc" in str(error).lower():
                raise MemoryError(str(error)) from error
            raise PipelineFault(
                f"{self._name} takes {list(self.shape)}, and refused {image.shape}: {str(error)[:200]}"
            ) from error
        return np.asarray(output, dtype=np.float32)


def _weights(package: Package, name: str, content: bytes) -> dict[str, bytes]:
    """Return the files beside the ONNX file that hold its weights: path from there -> bytes."""
    found: dict[str, bytes] = {}
    for external in onnx_graph.parsed(content, name).external:
        path = PurePosixPath(external)
        inside = not path.is_absolute() and ".." not in path.parts and "\\" not in external
        place = (PurePosixPath(name).parent / path).as_posix()
        if not inside or place not in package.model.files:
            raise PipelineFault(
                f"{name} takes weights from {external!r}, which is none of the package's files: nothing outside of "
                "the model's folder is read; put the file beside it and make model.toml anew"
            )
        found[path.as_posix()] = package.read(place)
    return found


def _laid(folder: Path, name: str, content: bytes, weights: dict[str, bytes]) -> str:
    """Write the files where nobody else changes them, and return the path of the graph."""
    graph = folder / PurePosixPath(name).name
    for path, held in ((graph, content), *((folder / place, held) for place, held in weights.items())):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(held)
    return str(graph)


def faults() -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises: errors of its own, which have no base in common, and Python's."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # type: ignore[import-untyped]

    found = [getattr(state, name) for name in dir(state)]
    own = [one for one in found if isinstance(one, type) and issubclass(one, Exception)]
    return (RuntimeError, ValueError, *own)
