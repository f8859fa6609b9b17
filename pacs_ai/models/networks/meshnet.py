"""MeshNet: a few dilated 3-D convolutions at full resolution that label every voxel of a brain.

After Fedorov et al., "End-to-end learning of brain tissue segmentation from imperfect labeling", IJCNN 2017
(doi:10.1109/IJCNN.2017.7966333), whose convolutions have dilations up to 16, so that a voxel sees its surroundings
without any pooling.

PyTorch computes dilated 3-D convolutions by a slow path. Where OpenVINO is installed, `MeshNet.label` has it compute
the whole network. Elsewhere it goes by sub-grids: a convolution with dilation d never mixes two voxels whose indices
differ by anything but a multiple of d, so that it is d x d x d ordinary convolutions, each on every d-th voxel of each
axis. Each sub-grid is copied out, convolved, and written back to where it came from, since no other sub-grid reads it.
One array of activations is all the memory that this needs, and the channels lie last and are filled up to a multiple
of eight, for which the libraries have their fast path.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional

from pacs_ai.errors import PipelineFault
from pacs_ai.models.engine import memory, processor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pacs_ai.models.engine.processor import Program

#: Channels are filled up to a multiple of this (one AVX register of float32).
LANES = 8
#: Voxels that are convolved at once: enough for the threads, little beside the whole.
BLOCK_VOXELS = 500_000
#: Arrays of all activations that the compiled network holds at most at a time.
_ARRAYS = 3
_CPU = torch.device("cpu")
#: Of instance normalisation (PyTorch's default).
EPSILON = 1e-5

_ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu_,
    "elu": functional.elu_,
    "gelu": functional.gelu,
}


@dataclass(frozen=True)
class Layout:
    """The numbers that make one MeshNet out of the family.

    Parameters
    ----------
    channels
        Of each hidden layer.
    classes
        Labels, the background (0) included; at most 256.
    dilations
        Of each hidden layer.
    activation
        "relu", "elu" or "gelu".
    normalised
        Instance normalisation without parameters before each activation; the hidden layers then have no bias.
    """

    channels: int
    classes: int
    dilations: tuple[int, ...]
    activation: str
    normalised: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Layout:
        """Read the settings of a package; `PipelineFault` where they describe no MeshNet."""
        missing = [name for name in ("channels", "classes", "dilations", "activation") if name not in settings]
        if missing:
            raise PipelineFault(f"the settings describe no MeshNet: {', '.join(missing)} must be given")
        try:
            layout = cls(
                int(settings["channels"]),
                int(settings["classes"]),
                tuple(int(one) for one in settings["dilations"]),
                str(settings["activation"]),
                bool(settings.get("normalised", False)),
            )
        except (TypeError, ValueError) as error:
            raise PipelineFault(f"the settings describe no MeshNet: {error}") from error
        if layout.activation not in _ACTIVATIONS:
            raise PipelineFault(f"MeshNet knows {', '.join(_ACTIVATIONS)}, not the activation {layout.activation!r}")
        if not (1 <= layout.channels <= 512 and 2 <= layout.classes <= 256 and layout.dilations):
            raise PipelineFault("a MeshNet has 1 to 512 channels, 2 to 256 classes and one dilation for each layer")
        if any(not 1 <= one <= 64 for one in layout.dilations):
            raise PipelineFault("the dilations of a MeshNet lie between 1 and 64")
        return layout

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield name and shape of each tensor, in the order of the layers."""
        fed = 1
        for index in range(len(self.dilations)):
            yield f"hidden.{index}.weight", (self.channels, fed, 3, 3, 3)
            if not self.normalised:
                yield f"hidden.{index}.bias", (self.channels,)
            fed = self.channels
        yield "last.weight", (self.classes, self.channels, 1, 1, 1)
        yield "last.bias", (self.classes,)


class MeshNet(nn.Module):
    """The network, which can be computed in two ways.

    Parameters
    ----------
    layout
        Its numbers.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        fed = (1, *[layout.channels] * (len(layout.dilations) - 1))
        self.hidden = nn.ModuleList(
            nn.Conv3d(n, layout.channels, 3, padding=d, dilation=d, bias=not layout.normalised)
            for n, d in zip(fed, layout.dilations, strict=True)
        )
        self.last = nn.Conv3d(layout.channels, layout.classes, 1)

    @classmethod
    def loaded(cls, layout: Layout, tensors: Mapping[str, torch.Tensor]) -> MeshNet:
        """Return the network with its weights; `PipelineFault` where names or shapes are others."""
        wanted = dict(layout.shapes())
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if wanted != found:
            wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
            raise PipelineFault(f"the weights are not those of this MeshNet: {', '.join(wrong[:4])} differ")
        network = cls(layout)
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return network.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Compute the logits layer by layer as they are written down.

        Parameters
        ----------
        image
            (batch, 1, depth, height, width) float32.

        Returns
        -------
        torch.Tensor
            (batch, classes, depth, height, width) float32.
        """
        activate = _ACTIVATIONS[self.layout.activation]
        values = image
        for convolution in self.hidden:
            values = convolution(values)
            if self.layout.normalised:
                values = functional.instance_norm(values, eps=EPSILON)
            values = activate(values)
        logits: torch.Tensor = self.last(values)
        return logits

    def label(self, image: torch.Tensor) -> torch.Tensor:
        """Return the label of each voxel, compiled for the processor or by sub-grids.

        Parameters
        ----------
        image
            (depth, height, width) float32; each a multiple of the largest dilation.

        Returns
        -------
        torch.Tensor
            (depth, height, width) uint8.
        """
        program = self._program(tuple(image.shape)) if image.device.type == "cpu" else None
        return self.label_by_subgrids(image) if program is None else program(image[None, None])[0]

    def _program(self, shape: tuple[int, ...]) -> Program | None:
        """Return what labels a volume on the processor; None where PyTorch is to do it.

        It is made for each volume and dropped after it: that takes half a second, and its activations are large.
        """
        free = memory.free_bytes(_CPU)
        width = -(-self.layout.channels // LANES) * LANES
        if not processor.is_installed() or (free and memory.SHARE * free < _ARRAYS * 4.0 * width * math.prod(shape)):
            return None
        edge = 2 * max(self.layout.dilations)
        try:
            graph = processor.Graph(_Labels(self), processor.noise((1, 1, edge, edge, edge)))
            graph.checked()
            return graph.compiled((1, 1, *shape))
        except processor.NotCompiled as reason:
            processor.tell(reason)
            return None

    @torch.inference_mode()
    def label_by_subgrids(self, image: torch.Tensor) -> torch.Tensor:
        """Return what `label` does, by PyTorch, in the least memory."""
        return torch.cat([part.argmax(-1).to(torch.uint8) for part in self._logits(image)])

    @torch.inference_mode()
    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """Return what `forward` does, (classes, depth, height, width), by sub-grids; for tests and small volumes."""
        return torch.cat(list(self._logits(image))).movedim(-1, 0)

    def _logits(self, image: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield (planes, height, width, classes) slab by slab."""
        largest = max(self.layout.dilations)
        if any(size % largest for size in image.shape):
            raise ValueError(f"a volume of {tuple(image.shape)} voxels is no multiple of {largest}")
        width = -(-self.layout.channels // LANES) * LANES
        values = _Activations(torch.empty((*image.shape, width), device=image.device), self.layout)
        for index, dilation in enumerate(self.layout.dilations):
            values.convolve(values.array if index else image[..., None], dilation, *self._filled(index, width))
        weight = functional.pad(self.last.weight.flatten(1), (0, width - self.layout.channels))
        for start, stop in values.slabs():
            yield functional.linear(values.read(values.array[start:stop]), weight, self.last.bias)

    def _filled(self, index: int, width: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return weight and bias of a hidden layer, filled up with zeros to `width` channels, channels last."""
        convolution = cast("nn.Conv3d", self.hidden[index])
        more = width - self.layout.channels
        fed = more if index else 0
        weight = functional.pad(convolution.weight, (0, 0, 0, 0, 0, 0, 0, fed, 0, more))
        bias = None if self.layout.normalised else functional.pad(cast("torch.Tensor", convolution.bias), (0, more))
        return weight.contiguous(memory_format=torch.channels_last_3d), bias


class _Labels(nn.Module):
    """The network with its last step, from logits to labels: (1, 1, *shape) to (1, *shape) uint8."""

    def __init__(self, network: MeshNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image).argmax(1).to(torch.uint8)  # type: ignore[no-any-return]


class _Activations:
    """The one array of a running network, (depth, height, width, channels), convolved in place.

    Where the layout normalises, the array holds what the convolution gave, and `read` normalises and activates what is
    copied out: mean and variance are known only when all of it is there.
    """

    def __init__(self, array: torch.Tensor, layout: Layout) -> None:
        self.array = array
        self._activate = _ACTIVATIONS[layout.activation]
        self._normalised = layout.normalised
        self._factors: tuple[torch.Tensor, torch.Tensor] | None = None
        self._sums = torch.zeros((2, array.shape[-1]), dtype=torch.float64, device=array.device)

    def read(self, block: torch.Tensor) -> torch.Tensor:
        """Return a block of the array as the next layer sees it."""
        if self._factors is None:
            return block
        scale, shift = self._factors
        return self._activate(block.mul(scale).add_(shift))

    def slabs(self) -> Iterator[tuple[int, int]]:
        """Yield the first plane of each slab and the one behind its last."""
        depth, height, width, _ = self.array.shape
        step = max(1, BLOCK_VOXELS // (height * width))
        for start in range(0, depth, step):
            yield start, min(depth, start + step)

    def convolve(self, source: torch.Tensor, dilation: int, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Fill the array with the next layer of `source`, (depth, height, width, fed), which may be the array."""
        if dilation == 1:
            self._by_slabs(source, weight, bias)
        else:
            self._by_subgrids(source, dilation, weight, bias)
        if self._normalised:
            mean, square = self._sums / self.array[..., 0].numel()
            scale = torch.rsqrt(square - mean**2 + EPSILON)
            self._factors = scale.float(), (-mean * scale).float()
            self._sums.zero_()

    def _by_subgrids(
        self, source: torch.Tensor, dilation: int, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        """Convolve every sub-grid for itself; several that differ only in the last axis go as one batch."""
        d = dilation
        depth, height, width, _ = self.array.shape
        apart = (depth // d, d, height // d, d, width // d, d, -1)
        read, write = source.view(apart), self.array.view(apart)
        batch = min(d, max(1, BLOCK_VOXELS * d**3 // (depth * height * width)))
        for i, j, k in itertools.product(range(d), range(d), range(0, d, batch)):
            block = read[:, i, :, j, :, k : k + batch].permute(3, 0, 1, 2, 4).contiguous()
            write[:, i, :, j, :, k : k + batch] = self._layer(block, weight, bias, 1).permute(1, 2, 3, 0, 4)

    def _by_slabs(self, source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Convolve slab by slab; the plane before each is kept, since it is overwritten by then."""
        before = source[:0]
        for start, stop in self.slabs():
            block = torch.cat([before, source[start : stop + 1]])
            above, below = int(start == 0), int(stop == len(source))
            before = source[stop - 1 : stop].clone()
            self.array[start:stop] = self._layer(block[None], weight, bias, 0, (above, below))[0]

    def _layer(
        self,
        block: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        padding: int,
        planes: tuple[int, int] = (0, 0),
    ) -> torch.Tensor:
        """Convolve (batch, depth, height, width, fed), with `planes` of zeros before and behind."""
        block = self.read(block)
        if any(planes):
            block = functional.pad(block, (0, 0, 0, 0, 0, 0, *planes))
        result = functional.conv3d(block.movedim(-1, 1), weight, bias, padding=(padding, 1, 1)).movedim(1, -1)
        if not self._normalised:
            return self._activate(result)
        flat = result.flatten(0, 3)
        # sums of one block are exact enough in float32, and ten times as fast; those of all blocks are not
        self._sums += torch.stack([flat.sum(0), flat.square().sum(0)]).double()
        return result
