"""Asks a peer whose a study is, before a result goes there: a merged patient or a moved study must not get it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pacs_ai.deliver import inquiry
from pacs_ai.dicom import status
from pacs_ai.errors import NotOffered

if TYPE_CHECKING:
    from collections.abc import Callable

    from pacs_ai.deliver.connection import Remote


@dataclass(frozen=True)
class Doubt:
    """Why a result is not sent now.

    Parameters
    ----------
    words
        The reason, without any value of a patient.
    is_another
        The peer has the study under another Patient ID: a person has to decide. Otherwise it is asked again later.
    status
        What stands for it in the delivery's row.
    comment
        What the peer said of it in its own words, which may name a patient: for no log.
    """

    words: str
    is_another: bool
    status: int = status.PROCESSING_FAILURE
    comment: str = ""


def ask(
    remote: Remote,
    study_instance_uid: str,
    patient_id: str,
    asking: Callable[[inquiry.Query], None] = inquiry.told_nobody,
) -> Doubt | None:
    """Return why a result of a study must not be sent to a peer, None where it has the study under that Patient ID.

    `asking` is told of the query before it is sent.

    Raises
    ------
    Unavailable
        The peer could not be reached.
    """
    try:
        keys = {"StudyInstanceUID": study_instance_uid, "PatientID": ""}
        matches = inquiry.find(remote, "STUDY", keys, asking)
    except NotOffered as error:
        return Doubt(f"whose the study is cannot be asked: {error}", is_another=False, comment=error.comment)
    whose = {match["PatientID"].strip() for match in matches if match["StudyInstanceUID"] == study_instance_uid}
    if not whose:
        return Doubt(f"{remote} does not have the study", is_another=False, status=status.NO_SUCH_OBJECT_INSTANCE)
    if whose != {patient_id.strip()}:
        return Doubt(f"{remote} has the study under another Patient ID: merged or moved?", is_another=True)
    return None
