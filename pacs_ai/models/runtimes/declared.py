"""The declared loader: the parts of a bundle's configuration, built without executing anything that its author wrote.

Weights are safetensors: ``weights.safetensors`` beside ``model.toml``, or what the bundle's CheckpointLoader names
with that suffix in place of its own (``models/model.safetensors``). A ``.pt`` or ``.ts`` is refused by its type; a
person turns it into safetensors with ``pacs-ai models convert``.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import torch

from pacs_ai.errors import PipelineFault
from pacs_ai.models import bundle_metadata
from pacs_ai.models.bundle_chain import Chain, explained
from pacs_ai.models.bundle_config import Configuration, inference_file
from pacs_ai.models.bundle_metadata import FORMATS, METADATA
from pacs_ai.models.bundle_program import assemble, network_of, seeded_network
from pacs_ai.models.bundle_spec import BundleSpec
from pacs_ai.models.package import label_of
from pacs_ai.models.runtimes.declared_tree import Tree, parsed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.models.package import Package
    from pacs_ai.models.runtimes.bundle_settings import BundleSettings

WEIGHTS = "weights.safetensors"
SAFE = ".safetensors"


def trust(folder: str) -> str:
    """Return what to do where the declared loader does not take a bundle."""
    return (
        f"The declared loader executes no code of a bundle. If you trust it, run it as code: pacs-ai config bundle "
        f"{folder} makes the [[pipeline]] table with the digest of every file"
    )


def spec_of(package: Package, settings: BundleSettings) -> BundleSpec:
    """Return what package and settings say, as both loaders of bundles take it."""
    model = package.model
    return BundleSpec(
        folder=package.folder,
        files=model.files,
        labels={value: label_of(value, table) for value, table in sorted(model.labels.items())},
        config=settings.config,
        overrides=settings.overrides,
        orientation=settings.orientation,
        mixed_precision=settings.mixed_precision,
        memory_limit_gb=settings.memory_limit_gb,
        seed_weights=settings.seed_weights,
        name=model.name,
    )


def configuration_of(package: Package, spec: BundleSpec, device: str) -> Configuration:
    """Read the configuration of a package; `PipelineFault` names the phrase that is not understood."""
    name = inference_file(spec)

    def arrays(path: str) -> Mapping[str, Any]:
        """Return what ``torch.load`` would have read: the arrays of the file's safetensors twin."""
        wanted = safe_name(path, spec)
        if wanted is None:
            raise PipelineFault(
                f"{PurePosixPath(path).name} of {spec.name} is no safetensors file: a person turns it into one, "
                "off-line, with pacs-ai models convert, and names it in files of model.toml"
            )
        return package.arrays(wanted)

    content = parsed(package.read(name), name)
    if METADATA in spec.files:
        metadata = bundle_metadata.parsed(package.read(METADATA), spec.folder)
        content["_meta_"] = {FORMATS: bundle_metadata.table(metadata, FORMATS)}
    tree = Tree(content, arrays, trust(str(spec.folder)))
    return Configuration(spec, tree, device)


def safe_name(path: str, spec: BundleSpec) -> str | None:
    """Return the file of the package that holds, as safetensors, what the bundle calls `path`; None for none."""
    pure = PurePosixPath(path)
    root = PurePosixPath(str(spec.folder.resolve()))
    inner = pure.relative_to(root) if pure.is_relative_to(root) else pure
    wanted = inner.with_suffix(SAFE).as_posix() if inner.name else ""
    return wanted if wanted in spec.files else None


def network(configuration: Configuration, package: Package, device: torch.device) -> torch.nn.Module:
    """Build the network with the package's weights, or with those of a seed."""
    spec = configuration.spec
    if spec.seed_weights is not None:
        return seeded_network(configuration, spec.name, device, spec.seed_weights)
    path, _, strict = configuration.checkpoint()
    name = WEIGHTS if WEIGHTS in spec.files else safe_name(path, spec)
    if name is None:
        raise PipelineFault(
            f"{spec.name} has no {WEIGHTS}: a .pt or .ts is never opened while serving, for it may hold code. "
            "Turn it into safetensors with pacs-ai models convert, and name it in files of model.toml"
        )
    state = package.tensors(name)
    built = network_of(configuration, spec.name, device)
    wanted = built.state_dict()
    unfit = [one for one, tensor in wanted.items() if one not in state or state[one].shape != tensor.shape]
    unfit += [one for one in state if one not in wanted]
    if unfit and strict:
        raise PipelineFault(
            f"{name} of {spec.name} is of another network: {len(unfit)} tensors are missing, unknown or of another "
            f"shape ({', '.join(unfit[:3])})"
        )
    built.load_state_dict(state, strict=strict)
    return built


def chain(package: Package, settings: BundleSettings, device: str, changes: Mapping[str, Any] | None = None) -> Chain:
    """Build all parts of the package's bundle.

    Parameters
    ----------
    package
        The caller has verified its digests.
    settings
        Of the package.
    device
        "cpu", "cuda:0".
    changes
        Items put in place of the bundle's own before it is built (id -> item).

    Raises
    ------
    PipelineFault
        A phrase or a name is not understood, or the parts do not fit.
    OutOfResources
        No memory for it.
    """
    spec, where = spec_of(package, settings), torch.device(device)
    with explained(spec.name, "being built"):
        configuration = configuration_of(package, spec, device)
        for item, value in (changes or {}).items():
            configuration.parser[item] = value
        return Chain(spec, assemble(configuration, network(configuration, package, where)), where)
