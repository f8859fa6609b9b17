"""Whether the demo's results are right: there, of the true volume, and voxel for voxel what the pipeline found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pacs_ai.infer.summary import mask_digest
from pacs_ai.pipeline import VOLUME

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pacs_ai.pipeline import Measurement, Segment
    from pacs_ai.store.views import ResultView

#: Largest deviation of a volume from the truth.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it holds, and what was seen, in words."""

    holds: bool
    words: str


def check_arrival(
    results: Sequence[ResultView], kept: Collection[str], wanted: Collection[str] = ("SEG", "SR")
) -> Check:
    """Compare what the node encoded with the SOP Instance UIDs that the PACS keeps; `wanted` has to be among it."""
    missing = [result.kind for result in results if result.sop_instance_uid not in kept]
    if missing:
        return Check(False, f"the demo PACS did not get the {' and the '.join(missing)}")
    *others, last = _counted([result.kind for result in results]) or ["nothing"]
    kinds = f"{', '.join(others)} and {last}" if others else last
    if not set(wanted) <= {result.kind for result in results}:
        expected = " and an ".join(sorted(wanted))
        return Check(False, f"the node made {kinds}, where a {expected} were expected")
    return Check(True, f"{kinds} arrived in the demo PACS")


def _counted(kinds: Sequence[str]) -> list[str]:
    """Return each kind once, with its number where there are several."""
    return [kind if kinds.count(kind) == 1 else f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]


def check_answers(found: Sequence[Mapping[str, Any]], text: Sequence[str]) -> list[Check]:
    """Compare the answers that the pipeline gave with the text report, which has to state each one in its own line.

    Parameters
    ----------
    found
        ``classifications`` of the job's findings.
    text
        Lines of the text report.
    """
    given = [f"{answer['concept']}: {answer['value']}" for answer in found]
    lost = [answer for answer in given if not any(answer in line for line in text)]
    if lost:
        return [Check(False, f"{answer} was found, but the text report does not say it") for answer in lost]
    if len(given) > 1:
        return [Check(True, f"{len(given)} answers stand in the text report as found")]
    return [Check(True, f"{answer}, in the text report as found") for answer in given]


def check_volumes(
    truth_ml: Mapping[str, float], values: Sequence[Measurement], segments: Sequence[Segment], voxel_ml: float
) -> list[Check]:
    """Compare the volume in the SR and the voxels of the SEG with the truth, label by label.

    Parameters
    ----------
    truth_ml
        Label -> true volume in mL.
    values, segments
        As read from the SR and the SEG.
    voxel_ml
        Volume of one voxel in mL.
    """
    stated = {one.label: one.value for one in values if one.concept.value == VOLUME.value and one.unit.value == "ml"}
    drawn = {one.label: int(np.count_nonzero(one.mask)) * voxel_ml for one in segments}
    checks = []
    for label, true in truth_ml.items():
        for where, found in (("SR", stated.get(label)), ("SEG", drawn.get(label))):
            if found is None:
                checks.append(Check(False, f"{label}: no volume in the {where}, truth {true:.1f} mL"))
                continue
            off = abs(found - true) / true
            words = f"{label}: {found:.1f} mL in the {where}, truth {true:.1f} mL, {100 * off:.2f} % off"
            checks.append(Check(off <= TOLERANCE, words))
    return checks


def check_voxels(found: Sequence[Mapping[str, Any]], segments: Sequence[Segment]) -> list[Check]:
    """Compare the SEG's masks with what the pipeline returned.

    Parameters
    ----------
    found
        ``segments`` of the job's findings: label, voxels, and the SHA-256 of each mask (empty where there are many).
    segments
        As read from the SEG, on the grid of the source.
    """
    masks = {segment.label: segment for segment in segments}
    expected = {row["label"]: row for row in found if row["voxels"]}
    checks = [Check(False, f"{label}: in the SEG, but not found by the pipeline") for label in masks.keys() - expected]
    for label, row in expected.items():
        if label not in masks:
            checks.append(Check(False, f"{label}: found by the pipeline, but not in the SEG"))
            continue
        voxels = int(np.count_nonzero(masks[label].mask))
        same = voxels == row["voxels"] and row["sha256"] in {"", mask_digest(masks[label])}
        words = "the pipeline's, every one" if same else f"not the pipeline's ({row['voxels']} voxels)"
        checks.append(Check(same, f"{label}: the SEG's {voxels} voxels are {words}"))
    return checks
