"""One bundle of trusted code, built by its own configuration, and run."""

from __future__ import annotations

import pickle  # only for the name of the error that torch.load raises
from typing import TYPE_CHECKING, Any

import torch
from monai.inferers import SimpleInferer

from pacs_ai.errors import PipelineFault
from pacs_ai.models.bundle_chain import Chain, Parts, Result, explained
from pacs_ai.models.bundle_config import Configuration, own_modules, trusted_parser

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from pacs_ai.models.bundle_spec import BundleSpec
    from pacs_ai.pipeline import Volume


def assemble(configuration: Configuration, network: Any) -> Parts:
    """Build what the bundle's evaluator would use around its network."""
    inferer, after, amp = configuration.part("inferer"), configuration.postprocessing, configuration.part("amp")
    chosen = configuration.spec.mixed_precision
    if chosen is None:
        chosen = True if amp is None else bool(configuration.value(amp))
    return Parts(
        network=network,
        inferer=configuration.value(inferer) if inferer else SimpleInferer(),
        preprocessing=configuration.value(configuration.preprocessing),
        postprocessing=configuration.value(after) if after else None,
        keys=configuration.keys,
        channel_first=configuration.channel_first,
        mixed_precision=chosen,
        channels=configuration.channels,
    )


def network_of(configuration: Configuration, name: str, device: torch.device) -> torch.nn.Module:
    """Build the network on the device, with the weights of its constructor; `PipelineFault` if there is none."""
    item = configuration.part("network") or configuration.part("network_def")
    network = configuration.value(item) if item else None
    if not isinstance(network, torch.nn.Module):
        raise PipelineFault(f"the configuration of {name} has no network")
    return network.to(device).eval()


def seeded_network(configuration: Configuration, name: str, device: torch.device, seed: int) -> torch.nn.Module:
    """As `network_of`, with random weights that are the same for one seed; the generator of others is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network_of(configuration, name, device)


class Program:
    """A bundle's parts on one device.

    Parameters
    ----------
    spec
        The bundle; the caller has verified its digests.
    metadata
        Content of ``configs/metadata.json``.
    device
        "cpu", "cuda:0".

    Raises
    ------
    PipelineFault
        The bundle cannot be built, or its weights hold more than tensors or do not fit.
    OutOfResources
        No memory for it.
    """

    def __init__(self, spec: BundleSpec, metadata: Mapping[str, Any], device: str) -> None:
        self.spec = spec
        self.name = spec.folder.name
        self.folder = spec.folder.resolve()
        self.device = torch.device(device)
        self._modules: dict[str, ModuleType] = {}
        with explained(self.name, "being built"), own_modules(self.folder, self._modules):
            self._configuration = Configuration(spec, trusted_parser(spec, metadata), device)
            parts = assemble(self._configuration, self._load_network())
        self._chain = Chain(spec, parts, self.device)

    def _load_network(self) -> Any:
        if self.spec.seed_weights is not None:
            return seeded_network(self._configuration, self.name, self.device, self.spec.seed_weights)
        path, key, strict = self._configuration.weights()
        if path.endswith(".ts"):
            return torch.jit.load(self.folder / path, map_location=self.device).eval()  # type: ignore[no-untyped-call]
        network = network_of(self._configuration, self.name, self.device)
        state = self._state(path)
        network.load_state_dict(state.get(key, state), strict=strict)
        return network

    def _state(self, path: str) -> Mapping[str, Any]:
        try:
            state = torch.load(self.folder / path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, EOFError) as error:
            raise PipelineFault(
                f"{path} of {self.name} holds more than tensors, or is damaged; nothing in it was executed. Ask its "
                "author for a plain state dict (torch.save(network.state_dict(), ...))"
            ) from error
        if not isinstance(state, dict):
            raise PipelineFault(f"{path} of {self.name} is no state dict but {type(state).__name__}")
        return state

    def run(self, volumes: Mapping[str, Volume]) -> Result:
        """Run the bundle on volumes, in the order of its channels; the first one's grid is the result's.

        Raises
        ------
        Refused
            The volumes share no voxel.
        PipelineFault, OutOfResources
            See `pacs_ai.models.bundle.MonaiBundle.run`.
        """
        with own_modules(self.folder, self._modules):
            return self._chain.run(volumes)
