"""A network compiled for the processor by OpenVINO, where that is installed and computes the same as PyTorch.

PyTorch computes layer by layer and brings the activations into the layout of the processor's vectors and back in each;
a compiler keeps them there and merges what follows a convolution into it. The package ``openvino`` is
an extra, ``cpu``; without it, and for every network that it does not understand, PyTorch computes.

Whether the compiled network is used is decided on noise of a fixed seed, never on a stopwatch: the same series gives
the same result in every process of a machine.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_log = logging.getLogger(__name__)

#: The compiled network may differ from PyTorch's by this part of the largest output, or of 1 where that is smaller.
TOLERANCE = 1e-4
#: Where it gives labels, this part of them must be the same: on noise, many are near to another one.
SAME_LABELS = 0.999
_SEED = 20240229


def is_installed() -> bool:
    """Whether networks can be compiled for the processor here."""
    return importlib.util.find_spec("openvino") is not None


def compiled(network: torch.nn.Module) -> torch.nn.Module:
    """Return the network on the CPU, compiled at the first call with each shape; as it is where that cannot be done."""
    return Compiled(network.eval()) if is_installed() else network


class NotCompiled(Exception):  # noqa: N818 - nothing went wrong: PyTorch computes
    """The network stays with PyTorch; the message says why."""


class Graph:
    """A network as OpenVINO's graph, for windows of any shape that it was traced to allow.

    Parameters
    ----------
    network
        On the CPU, in evaluation mode, float32; one tensor in, one out.
    example
        What it is traced with.

    Raises
    ------
    NotCompiled
        The network branches on values, returns no single tensor, or has an operation that OpenVINO does not know.
    """

    def __init__(self, network: torch.nn.Module, example: torch.Tensor) -> None:
        try:
            self._example, self._expected = example, _computed(network, example)
            self._decoder = _decoder(network, example)  # held: the graph's constants are its tensors
            self._model = _converted(self._decoder)
        except _faults() as error:
            raise NotCompiled(_last_words(error)) from error

    def checked(self) -> Program:
        """Return what computes inputs of the example's shape; raise `NotCompiled` where it computes something else."""
        program = self.compiled(self._example.shape)
        try:
            found = program(self._example)
        except _faults() as error:
            raise NotCompiled(_last_words(error)) from error
        _compare(found, self._expected)
        return program

    def compiled(self, shape: Sequence[int]) -> Program:
        """Return what computes inputs of one shape, with as many threads as PyTorch has now; or raise `NotCompiled`."""
        try:
            self._model.reshape(list(shape))
            return Program(_core().compile_model(self._model, "CPU", _options()))
        except _faults() as error:
            raise NotCompiled(_last_words(error)) from error


class Program:
    """A compiled network for inputs of one shape: float32 tensor in, tensor out."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._request = model.create_infer_request()

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Return the network's output; a copy, since the request's own array is written again by the next call."""
        (output,) = self._request.infer([values.contiguous().numpy()], share_inputs=True, share_outputs=True).values()
        return torch.from_numpy(output).clone()

    def release(self) -> None:
        """Give the memory of the activations back; the next call takes it again."""
        self._model.release_memory()


class Compiled(torch.nn.Module):
    """A network that computes one window after another in compiled form, and by PyTorch where it cannot.

    Parameters
    ----------
    network
        On the CPU, in evaluation mode.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self._programs: dict[tuple[int, ...], Program | None] = {}

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return (windows, classes, ...) float32 of (windows, channels, ...) float32."""
        program = self.program(tuple(windows.shape[1:]))
        if program is None or windows.device.type != "cpu" or windows.dtype != torch.float32:
            output: torch.Tensor = self.network(windows)
            return output
        outputs = [program(one) for one in torch.split(windows, 1)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def program(self, shape: tuple[int, ...]) -> Program | None:
        """Return what computes one window of a shape, compiled now or before; None where PyTorch is to compute."""
        if shape not in self._programs:
            self._programs[shape] = self._new_program(shape)
        return self._programs[shape]

    def _new_program(self, shape: tuple[int, ...]) -> Program | None:
        """Compile for windows of a shape and compare; None, told in the log, where PyTorch is to compute."""
        try:
            return Graph(self.network, noise((1, *shape))).checked()
        except NotCompiled as reason:
            tell(reason)
            return None

    def release(self) -> None:
        """Give the memory of the activations back."""
        for program in self._programs.values():
            if program is not None:
                program.release()


def noise(shape: Sequence[int]) -> torch.Tensor:
    """Return what networks are compared on: normal, float32, always the same."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(_SEED))


def tell(reason: NotCompiled) -> None:
    """Say in the log why PyTorch computes a network."""
    _log.info("the network stays with PyTorch, uncompiled: %s", reason)


def prepare(networks: Iterable[object], window: Sequence[int]) -> None:
    """Have those of the networks that can be compiled ready for windows of (channels, ...), before the first job."""
    for network in networks:
        if isinstance(network, Compiled):
            network.program(tuple(window))


def release(networks: Iterable[object]) -> None:
    """Give the memory of those of the networks back that are compiled."""
    for network in networks:
        if isinstance(network, Compiled):
            network.release()


def _compare(found: torch.Tensor, expected: torch.Tensor) -> None:
    if found.shape != expected.shape:
        raise NotCompiled(f"compiled, its output has the shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    if not expected.is_floating_point():
        if float((found == expected).float().mean()) < SAME_LABELS:
            raise NotCompiled("compiled, it gives other labels")
        return
    apart = float((found - expected).abs().max())
    if not apart <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise NotCompiled(f"compiled, it differs by {apart:.1e}")


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices that a forward pass looks at a value; at shapes it may look, each of which is compiled for itself."""

    #: A value becomes a number or a truth value, or decides on a shape.
    LOOKS: ClassVar = {
        torch.ops.aten._local_scalar_dense.default,  # noqa: SLF001 - its only name
        torch.ops.aten.is_nonzero.default,
        torch.ops.aten.equal.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
    }

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.looked = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.looked = self.looked or func in self.LOOKS
        return func(*args, **(kwargs or {}))


def _computed(network: torch.nn.Module, example: torch.Tensor) -> torch.Tensor:
    """Return what PyTorch makes of the example; or raise `NotCompiled` where the trace of that would be none of all."""
    with torch.inference_mode(), _Watch() as watch:
        output = network(example)
    if watch.looked:
        raise NotCompiled("what it does depends on the values that it is given")
    if not isinstance(output, torch.Tensor):
        raise NotCompiled("it returns no single tensor")
    return output


class _ExactNorms(TorchFunctionMode):
    """Has normalisation over a window traced as products of matrices.

    OpenVINO's own operation is coarse, the more so behind a convolution (1e-4 where PyTorch has 1e-6): of the 140 608
    voxels of a phantom 100 got another label than by PyTorch; by products none, for a third more time at most.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.instance_norm or func is functional.group_norm:
            call = inspect.signature(func).bind(*args, **(kwargs or {}))
            call.apply_defaults()
            if call.arguments.get("use_input_stats", True):
                return _normed(call.arguments)
        return func(*args, **(kwargs or {}))


def _normed(given: Mapping[str, Any]) -> torch.Tensor:
    """Do what PyTorch's ``instance_norm`` or ``group_norm`` does, given their arguments by name."""
    values: torch.Tensor = given["input"]
    rows = values.reshape(values.shape[0], given.get("num_groups", values.shape[1]), -1, values.shape[-1])
    across, down = (torch.full((size, 1), 1.0 / size) for size in (rows.shape[3], rows.shape[2]))
    apart = rows - down.T @ (rows @ across)  # means of means of rows: a sum of all at once would lose digits
    made = (apart * torch.rsqrt(down.T @ ((apart * apart) @ across) + given["eps"])).reshape(values.shape)
    each = (1, -1, *[1] * (values.ndim - 2))
    if given["weight"] is not None:
        made = made * given["weight"].reshape(each)
    return made if given["bias"] is None else made + given["bias"].reshape(each)


def _decoder(network: torch.nn.Module, example: torch.Tensor) -> Any:
    """Return the traced network as OpenVINO reads it."""
    _import_quietly()
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.inference_mode(mode=False), torch.no_grad(), _ExactNorms():
        warnings.simplefilter("ignore")  # that shapes are taken as they are; that tracing is an old way
        traced = torch.jit.trace(network, example.clone(), check_trace=False)  # type: ignore[no-untyped-call]
        return TorchScriptPythonDecoder(traced, example_input=example.clone())


def _converted(decoder: Any) -> Any:
    """Return the graph; by the front end itself, since ``convert_model`` would report to the makers."""
    from openvino.frontend import FrontEndManager

    front = FrontEndManager().load_by_framework("pytorch")
    return front.convert(front.load(decoder))


def _faults() -> tuple[type[Exception], ...]:
    """Return what tracing, converting and compiling raise; OpenVINO's errors have no base in common."""
    _import_quietly()
    from openvino import frontend

    named = ("GeneralFailure", "InitializationFailure", "NotImplementedFailure", "OpConversionFailure")
    found = [getattr(frontend, name) for name in (*named, "OpValidationFailure")]
    return (RuntimeError, ValueError, TypeError, NotImplementedError, LookupError, AttributeError, *found)


def _last_words(error: Exception) -> str:
    """Return the end of a long message, where OpenVINO says which operation it does not know."""
    return f"{type(error).__name__}: ... {' '.join(str(error).split())[-160:]}"


def _core() -> Any:
    _import_quietly()
    import openvino

    return openvino.Core()


def _import_quietly() -> None:
    """Keep OpenVINO from loading its telemetry, which would report the import; a stub of its own takes the place."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def _options() -> dict[str, Any]:
    """Return how networks are compiled: float32, the threads that PyTorch has, and none of them tied to a core.

    Threads tied to cores would be tied to the same ones in every worker.
    """
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,
    }
