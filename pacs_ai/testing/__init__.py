"""Phantom series with known truth, and the check that the author of a pipeline runs."""

from __future__ import annotations

from pacs_ai.testing.anatomy import LABELS
from pacs_ai.testing.check import check_card, check_findings, check_pipeline
from pacs_ai.testing.phantom import AXIAL, CORONAL, SAGITTAL, Fault, Phantom, Truth, phantom_truth
from pacs_ai.testing.series import iterate_phantom, phantom_datasets, write_phantom

__all__ = [
    "AXIAL",
    "CORONAL",
    "LABELS",
    "SAGITTAL",
    "Fault",
    "Phantom",
    "Truth",
    "check_card",
    "check_findings",
    "check_pipeline",
    "iterate_phantom",
    "phantom_datasets",
    "phantom_truth",
    "write_phantom",
]
