"""A MONAI bundle as a pipeline: a model folder that anyone published, run as it says, with its channels coded.

A bundle executes code by its configuration (``$`` expressions, ``_target_``, ``imports``, ``scripts/``). So this is the
loader for *trusted code*: a folder runs only if the node's configuration names it with the SHA-256 of every file, the
check comes before anything is parsed, weights are read with ``weights_only=True``, and all happens in the worker's
child process. Reading a card parses ``metadata.json`` as JSON, executes nothing, and imports neither torch nor MONAI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pacs_ai.errors import PipelineFault
from pacs_ai.models.anatomy import guess_labels
from pacs_ai.models.bundle_findings import checked, segments
from pacs_ai.models.bundle_metadata import METADATA, PROCEDURES, described, parsed
from pacs_ai.models.bundle_spec import BundleSpec
from pacs_ai.models.digest import digest_of, verified_bytes, verify
from pacs_ai.pipeline import Card, Clearance, Code, Findings, Input, Label, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.models.bundle_program import Program

__all__ = ["BundleSpec", "MonaiBundle", "card_of", "read_metadata"]

IMAGING = Code("363679005", "SCT", "Imaging procedure")


def read_metadata(spec: BundleSpec) -> dict[str, Any]:
    """Read ``configs/metadata.json`` after checking its digest.

    Raises
    ------
    PipelineFault
        It is missing, not the configured one, or no JSON object.
    """
    return parsed(verified_bytes(spec.folder, METADATA, spec.files), spec.folder)


def _labels(spec: BundleSpec, metadata: Mapping[str, Any]) -> dict[int, Label]:
    described(metadata).check_segments(spec.folder.name)
    if spec.labels:
        return dict(sorted(spec.labels.items()))
    labels, missing = guess_labels(metadata)
    if missing:
        raise PipelineFault(
            f"no code is known for {', '.join(repr(name) for name in missing)} of {spec.folder.name}: "
            "write the table value -> coded label into labels of [[pipeline]]"
        )
    if not labels:
        raise PipelineFault(
            f"{METADATA} of {spec.folder.name} names no channels of its output: "
            "write the table value -> coded label into labels of [[pipeline]]"
        )
    return labels


def _inputs(spec: BundleSpec, metadata: Mapping[str, Any]) -> dict[str, Input]:
    if spec.inputs:
        return dict(spec.inputs)
    said = described(metadata)
    if said.modality is None:
        raise PipelineFault(
            f"{METADATA} of {spec.folder.name} states modality {said.stated!r}, which is none of DICOM's for volumes: "
            "name the inputs with their modality in [[pipeline]]"
        )
    return {name: Input((said.modality,)) for name in said.inputs}


def card_of(spec: BundleSpec, metadata: Mapping[str, Any]) -> Card:
    """Make the card from the bundle's metadata and the configuration.

    Raises
    ------
    PipelineFault
        The metadata leave open what the configuration does not say; the message names it.
    """
    inputs = _inputs(spec, metadata)
    name = str(metadata.get("name") or spec.folder.name)
    modality = next(iter(inputs.values())).modality[0]
    purpose = [str(metadata.get(key)) for key in ("intended_use", "copyright") if metadata.get(key)]
    seeded = spec.seed_weights is not None
    digest = digest_of({**spec.files, "seed": str(spec.seed_weights)} if seeded else spec.files)
    return Card(
        name=name,
        version=str(metadata.get("version") or "0") + ("+random-weights" if seeded else ""),
        manufacturer=spec.manufacturer or str(metadata.get("authors") or "not stated"),
        title=spec.title or name,
        inputs=inputs,
        labels=tuple(_labels(spec, metadata).values()),
        procedure=spec.procedure or PROCEDURES.get(modality, IMAGING),
        intended_use=". ".join(purpose) or "Not stated by the bundle",
        clearance=Clearance.RESEARCH if seeded else spec.clearance,
        model_digest=digest,
    )


class MonaiBundle:
    """A segmentation bundle of MONAI's standard layout.

    What runs is the bundle's own preprocessing, network, inferer and postprocessing. What does not: its evaluator,
    handlers, data loaders, ``initialize`` and ``run``, and every LoadImage and SaveImage: the volume comes from the
    node, the result goes back to it, and nothing is written.

    Parameters
    ----------
    spec
        What the configuration says of it.

    Raises
    ------
    PipelineFault
        No card can be made (`card_of`).
    """

    def __init__(self, spec: BundleSpec) -> None:
        self._spec = spec
        self._metadata = read_metadata(spec)
        self.card: Card = card_of(spec, self._metadata)
        self._labels = _labels(spec, self._metadata)
        self._program: Program | None = None

    def prepare(self, device: str) -> None:
        """Check every file's digest, then build the bundle's parts on the device ("cpu", "cuda:0").

        Raises
        ------
        PipelineFault
            A file differs, or the bundle cannot be built; nothing was executed in the first case.
        OutOfResources
            The device has no memory for the network.
        """
        verify(self._spec.folder, self._spec.files)
        from pacs_ai.models.bundle_program import Program

        self._program = Program(self._spec, self._metadata, device)

    def run(self, inputs: Mapping[str, Volume]) -> Findings:
        """Segment one set of series.

        Parameters
        ----------
        inputs
            The card's names -> volumes of one Frame of Reference; those on other grids are resampled to the first's.

        Returns
        -------
        Findings
            One segment per label of the card that occurs, on the grid of the first input.

        Raises
        ------
        Refused
            An input is missing, has values that are no numbers, or lies elsewhere than the first.
        PipelineFault
            The bundle broke, or its result is not what the labels name.
        OutOfResources
            The volume needs more memory than there is.
        """
        if self._program is None:
            raise PipelineFault(f"{self.card.name} was run before it was prepared")
        volumes = {name: checked(name, inputs) for name in self.card.inputs}
        result = self._program.run(volumes)
        first = next(iter(volumes))
        return Findings(segments=segments(result, self._labels, self.card.name), grid=first)
