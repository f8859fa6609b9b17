"""A MONAI bundle as a model package: its own preprocessing, network, inferer and postprocessing, read as declarations.

Runtime ``monai-bundle``. What the bundle says is understood by `declared_tree`, `declared_phrases` and
`declared_targets`, or refused with the phrase that was not; what then runs is the same chain as of a bundle of trusted
code (`pacs_ai.models.bundle_chain`). With [labels] it segments volumes, or images of one size; with [questions] it
classifies images, or one volume.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pacs_ai.errors import PipelineFault
from pacs_ai.models.bundle_findings import checked, segments
from pacs_ai.models.package import label_of
from pacs_ai.models.readings.answers import answers
from pacs_ai.models.readings.seeded import said_of
from pacs_ai.models.runtimes.bundle_settings import BundleSettings
from pacs_ai.pipeline import Card, Findings, Frames, Segment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.models.bundle_chain import Chain
    from pacs_ai.models.package import Package


class MonaiBundlePackage:
    """A package that holds a MONAI bundle.

    Parameters
    ----------
    package
        Its settings are `BundleSettings`.

    Raises
    ------
    PipelineFault
        The settings say what they may not, or the package has neither labels nor questions.
    """

    def __init__(self, package: Package) -> None:
        self._package = package
        self._settings = BundleSettings.of(package.model.settings, package.model.name)
        self._labels = {value: label_of(value, table) for value, table in sorted(package.model.labels.items())}
        self.card: Card = said_of(package.card, self._settings.seed_weights)
        if bool(self._labels) == bool(self.card.questions):
            raise PipelineFault(
                f"model.toml of {self.card.name} must have either labels, for a segmentation, or questions, for a "
                "classifier: write the table that its output means"
            )
        self._chain: Chain | None = None

    def prepare(self, device: str) -> None:
        """Check every file's digest, then build the parts; errors as `declared.chain`."""
        self._package.verify()
        from pacs_ai.models.runtimes import bundle_images, declared

        changes = bundle_images.for_probabilities(self._package, self._settings) if self.card.questions else {}
        self._chain = declared.chain(self._package, self._settings, device, changes)

    def run(self, inputs: Mapping[str, Any]) -> Findings:
        """Segment or classify.

        Parameters
        ----------
        inputs
            The card's names -> volumes, which are brought onto the grid of the first; or one `Frames`.

        Raises
        ------
        Refused
            An input is missing, or holds values that are no numbers.
        PipelineFault
            The bundle broke, or its result is not what labels and questions name.
        OutOfResources
            The input needs more memory than there is.
        """
        if self._chain is None:
            raise PipelineFault(f"{self.card.name} was run before it was prepared")
        first = next(iter(self.card.inputs))
        if self.card.questions:
            return self._classify(inputs, first)
        if self.card.inputs[first].given == "frames":
            return self._segment_images(inputs[first], first)
        result = self._chain.run({name: checked(name, inputs) for name in self.card.inputs})
        return Findings(segments=segments(result, self._labels, self.card.name), grid=first)

    def _classify(self, inputs: Mapping[str, Any], first: str) -> Findings:
        from pacs_ai.models.runtimes import bundle_images

        given = inputs[first] if isinstance(inputs[first], Frames) else checked(first, inputs)
        chances = bundle_images.probabilities(
            self._prepared, given, self._settings.activation, len(self.card.questions)
        )
        return Findings(classifications=answers(self.card.questions, chances), grid=first)

    def _segment_images(self, images: Frames, first: str) -> Findings:
        from pacs_ai.models.runtimes import bundle_images

        found = bundle_images.label_maps(self._prepared, images)
        cut = segments(found, self._labels, self.card.name)
        return Findings(segments=tuple(Segment(one.label, one.voxels, one.number) for one in cut), grid=first)

    @property
    def _prepared(self) -> Chain:
        if self._chain is None:
            raise PipelineFault(f"{self.card.name} was run before it was prepared")
        return self._chain
