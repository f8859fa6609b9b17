"""The fetal head in an ultrasound frame: outlined by a U-Net, measured on an ellipse, dated by its circumference.

Every frame is outlined twice, as it is and mirrored. A head is taken for one where both outlines agree with each other
and with their ellipses; of several images the one that agrees best is measured. Without calibration of the image
(Sequence of Ultrasound Regions, PS3.3 C.8.5.5) nothing is said in mm or weeks.

Head circumference, biparietal and occipitofrontal diameter are those of the ellipse: both diameters run from outer to
outer edge of the skull (as in van den Heuvel et al. 2018, doi 10.1371/journal.pone.0200412). Gestational age: Hadlock,
Deter, Harrist and Park, Radiology 152(2):497-501, 1984.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import contourpy
import numpy as np
import numpy.typing as npt

from pacs_ai.errors import Reason, Refused
from pacs_ai.models.readings.ellipse import Ellipse, fit_ellipse, overlap
from pacs_ai.models.readings.shrinking import resized
from pacs_ai.pipeline import MILLIMETRE, Classification, Code, Detection, Findings, Measurement, Region, Segment, Shape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from pacs_ai.models.networks.fetal_unet import FetalUNet
    from pacs_ai.models.package import Package
    from pacs_ai.pipeline import Card, Frame, Frames

Chances = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]

#: Rows and columns that the network was trained on.
ROWS, COLUMNS = 128, 192
LABEL = "Fetal head"
HEAD_CIRCUMFERENCE = Code("11984-2", "LN", "Head Circumference")
BIPARIETAL = Code("11820-8", "LN", "Biparietal Diameter")
OCCIPITOFRONTAL = Code("11851-3", "LN", "Occipital-Frontal Diameter")
GESTATIONAL_AGE = Code("18185-9", "LN", "Gestational Age")
HADLOCK = Code("11932-1", "LN", "HC, Hadlock 1984")
WEEK = Code("wk", "UCUM", "week")
CALIBRATION = Code("length-calibration", "99PACSAI", "Length calibration")
UNCALIBRATED = Code("uncalibrated", "99PACSAI", "Not calibrated: no length in mm, no age")
#: Head circumferences in mm for which Hadlock's formula was made (12 to 42 weeks).
DATED = (56.0, 360.0)
#: Of a longer clip so many frames are looked at, evenly spread.
MOST_IMAGES = 64
_FEWEST_PIXELS = 64
_SQUARE = 0.03
_HALF = 0.5


@dataclass(frozen=True)
class Gates:
    """When an outline is taken for a head; values are the package's settings.

    Parameters
    ----------
    area
        Least part of the frame.
    fill
        Least Dice coefficient of the outlined region with its ellipse.
    agreement
        Least Dice coefficient of the ellipses of the frame and of its mirror image.
    roundness
        Least biparietal over occipitofrontal diameter.
    """

    area: float = 0.03
    fill: float = 0.95
    agreement: float = 0.92
    roundness: float = 0.55


@dataclass(frozen=True)
class Canvas:
    """A frame brought to the size of the network, and the way back.

    Parameters
    ----------
    grey
        (128, 192) float32, 0 to 1, the frame in the middle.
    corner
        Row and column of the frame's corner on the canvas.
    scale
        Canvas pixels per pixel of the frame, rows and columns.
    size
        Rows and columns of the frame.
    """

    grey: Chances
    corner: tuple[int, int]
    scale: tuple[float, float]
    size: tuple[int, int]

    def back(self, points: Points) -> Points:
        """Return (n, 2) points (x, y) of the canvas on the frame."""
        return np.asarray((points - np.asarray(self.corner[::-1])) / np.asarray(self.scale[::-1]))


@dataclass(frozen=True)
class Head:
    """A head on one image.

    Parameters
    ----------
    index
        Image, from 0.
    outline
        (n, 2) points (column, row).
    ellipse
        In pixels.
    fill, agreement
        See `Gates`.
    """

    index: int
    outline: Points
    ellipse: Ellipse
    fill: float
    agreement: float


def grey_of(frame: Frame) -> Chances:
    """Return the brightness of a frame, colour or not, (rows, columns) float32 from 0 to 1."""
    pixels = np.asarray(frame.pixels, np.float32)
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
    top = 255.0 if frame.pixels.dtype == np.uint8 or grey.max() <= 255 else float(grey.max())
    return np.asarray(np.clip(grey / top, 0, 1), np.float32)


def canvas_of(grey: Chances, spacing: tuple[float, float] | None = None) -> Canvas:
    """Bring a frame to 128 x 192 pixels in the proportions of the patient; what is left over is black.

    Pixels count as squares where no spacing (rows, columns) is known, or where its two differ by a few percent.
    """
    rows, columns = grey.shape
    height = 1.0 if spacing is None or abs(spacing[0] / spacing[1] - 1) < _SQUARE else spacing[0] / spacing[1]
    factor = min(ROWS / (rows * height), COLUMNS / columns)
    size = min(max(round(rows * height * factor), 1), ROWS), min(max(round(columns * factor), 1), COLUMNS)
    small = resized(grey, *size, "box" if size[0] < rows and size[1] < columns else "triangle")
    corner = (ROWS - size[0]) // 2, (COLUMNS - size[1]) // 2
    canvas = np.zeros((ROWS, COLUMNS), np.float32)
    canvas[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = small
    return Canvas(canvas, corner, (size[0] / rows, size[1] / columns), (rows, columns))


def outline_of(chances: Chances) -> tuple[Points, npt.NDArray[np.bool_]] | None:
    """Return the outline (n, 2) (x, y) of the largest region at a chance of one half, and the region; None: nothing.

    Points within a pixel of the canvas's edge are no outline of the head and are left out.
    """
    from scipy import ndimage  # a third of a second, which the card alone does not need

    labels, count = ndimage.label(chances > _HALF)
    if not count:
        return None
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    region = ndimage.binary_fill_holes(labels == sizes.argmax())
    shown = np.where(ndimage.binary_dilation(region), np.where(region, np.maximum(chances, _HALF), chances), 0)
    lines = [np.asarray(line, np.float64) for line in contourpy.contour_generator(z=np.pad(shown, 1)).lines(_HALF)]
    if not lines:
        return None
    points = max(lines, key=len) - 1 + 0.5
    kept = (points > 1).all(axis=1) & (points < np.asarray([chances.shape[1] - 1, chances.shape[0] - 1])).all(axis=1)
    return points[kept], np.asarray(region)


def gestational_age(circumference_mm: float) -> float | None:
    """Return weeks by the head circumference (Hadlock 1984), None outside of what the formula was made for."""
    if not DATED[0] <= circumference_mm <= DATED[1]:
        return None
    cm = circumference_mm / 10
    return 8.96 + 0.540 * cm + 0.0003 * cm**3


def measurements_of(head: Head, spacing: tuple[float, float]) -> tuple[Measurement, ...]:
    """Return circumference, diameters and age; the ellipse is fitted in mm, rows and columns being `spacing` apart."""
    ellipse = fit_ellipse(head.outline * np.asarray(spacing[::-1]))
    if ellipse is None:
        return ()
    values = [
        Measurement(HEAD_CIRCUMFERENCE, ellipse.circumference, MILLIMETRE, LABEL),
        Measurement(BIPARIETAL, 2 * ellipse.short, MILLIMETRE, LABEL),
        Measurement(OCCIPITOFRONTAL, 2 * ellipse.long, MILLIMETRE, LABEL),
    ]
    weeks = gestational_age(ellipse.circumference)
    if weeks is not None:
        values.append(Measurement(GESTATIONAL_AGE, weeks, WEEK, LABEL, method=HADLOCK))
    return tuple(values)


def judge(canvas: Canvas, pair: Chances, index: int, gates: Gates) -> Head | str:
    """Return the head, or why there is none, in words.

    Parameters
    ----------
    canvas
        The frame.
    pair
        (2, 128, 192): chances of the frame, and of its mirror image turned back.
    index
        Of the image.
    gates
        What is taken for a head.
    """
    found, *opinions = (outline_of(chances) for chances in (pair.mean(axis=0), *pair))
    inside = canvas.size[0] * canvas.size[1] * canvas.scale[0] * canvas.scale[1]
    if found is None or found[1].sum() < gates.area * inside:
        return "no fetal head was found"
    ellipse = fit_ellipse(found[0])
    others = [None if opinion is None else fit_ellipse(opinion[0]) for opinion in opinions]
    if ellipse is None or None in others:
        return "no fetal head was found: what looks like one is no ellipse"
    drawn = ellipse.mask(ROWS, COLUMNS)
    fill = 2 * float((drawn & found[1]).sum()) / float(drawn.sum() + found[1].sum())
    first, second = (other for other in others if other is not None)
    agreement = overlap(first, second, (ROWS, COLUMNS))
    if fill < gates.fill:
        return f"no fetal head was found: what looks like one is no ellipse (overlap {fill:.2f})"
    if agreement < gates.agreement:
        return f"two outlines of the head disagree (overlap {agreement:.2f}), so that nothing was measured"
    if ellipse.short < gates.roundness * ellipse.long:
        return "no fetal head was found: what looks like one is too long for a head"
    outline = canvas.back(found[0])
    whole = fit_ellipse(outline)
    return "no fetal head was found" if whole is None else Head(index, outline, whole, fill, agreement)


class FetalHead:
    """The pipeline of the fetal-head package.

    Parameters
    ----------
    package
        With ``weights.safetensors`` of `FetalUNet`; its settings are those of `Gates`.
    """

    def __init__(self, package: Package) -> None:
        self._package = package
        self._gates = Gates(**package.model.settings)
        self._network: FetalUNet | None = None
        self._device = "cpu"

    @property
    def card(self) -> Card:
        """The package's card."""
        return self._package.card

    def prepare(self, device: str) -> None:
        """Load the weights."""
        from pacs_ai.models.networks.fetal_unet import FetalUNet

        network = FetalUNet()
        network.load_state_dict(self._package.tensors(), strict=False)
        self._network, self._device = network.eval().to(device), device

    def run(self, inputs: Mapping[str, Frames]) -> Findings:
        """Outline and measure the head; `Refused` where there is none, or none that can be trusted."""
        frames = inputs["image"]
        chosen = np.unique(np.linspace(0, len(frames.images) - 1, MOST_IMAGES).round().astype(int))
        judged = [self.judged(frames.images[index], int(index)) for index in chosen]
        heads = [one for one in judged if isinstance(one, Head)]
        if not heads:
            raise Refused(_why([one for one in judged if isinstance(one, str)]), Reason.OUT_OF_DISTRIBUTION)
        return _findings(max(heads, key=lambda head: head.fill * head.agreement), frames)

    def judged(self, frame: Frame, index: int = 0) -> Head | str:
        """Return the head of one image, or why there is none."""
        if min(frame.pixels.shape[:2]) < _FEWEST_PIXELS:
            return f"the image is smaller than {_FEWEST_PIXELS} pixels"
        canvas = canvas_of(grey_of(frame), frame.spacing)
        return judge(canvas, self.chances(canvas), index, self._gates)

    def chances(self, canvas: Canvas) -> Chances:
        """Return (2, 128, 192): chances of the frame, and of its mirror image turned back."""
        import torch

        if self._network is None:
            self.prepare(self._device)
        assert self._network is not None
        image = torch.from_numpy(canvas.grey)[None]
        with torch.inference_mode():
            given: torch.Tensor = torch.stack((image, image.flip(-1))).to(self._device)
            found: Any = torch.sigmoid(self._network(given)).float().cpu()
            return np.stack([found[0, 0].numpy(), found[1, 0].flip(-1).numpy()])


def _why(reasons: Sequence[str]) -> str:
    """Return the reason of a single image, or of the first one where no image of several has a head."""
    return reasons[0] if len(reasons) == 1 else f"none of {len(reasons)} images shows a fetal head: {reasons[0]}"


def _findings(head: Head, frames: Frames) -> Findings:
    frame = frames.images[head.index]
    rows, columns = frame.pixels.shape[:2]
    segments: tuple[Segment, ...] = ()
    if frames.shape is not None:
        voxels = np.zeros(frames.shape, np.bool_)
        voxels[head.index] = head.ellipse.mask(rows, columns)
        segments = (Segment(LABEL, voxels),)
    ends = head.ellipse.ends
    detections: tuple[Detection, ...] = ()
    if ends.min() >= 0 and ends[:, 0].max() <= columns and ends[:, 1].max() <= rows:
        detections = (Detection(LABEL, Region(Shape.ELLIPSE, ends.astype(np.float32), head.index)),)
    if frame.spacing is None:
        answers = (Classification(CALIBRATION, UNCALIBRATED),)
        return Findings(segments, detections=detections, classifications=answers)
    return Findings(segments, measurements_of(head, frame.spacing), detections)
