"""Asks a peer whose a study is, right before a result goes there: a merged patient or a moved study must not get it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial

from pacs_ai.deliver import inquiry
from pacs_ai.deliver.scu import opened
from pacs_ai.dicom import status
from pacs_ai.dicom.reading import READING_FAULTS, read_text
from pacs_ai.errors import BrokenOff, NotOffered, NotUnderstood, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydicom.tag import BaseTag

    from pacs_ai.deliver.connection import Remote
    from pacs_ai.deliver.scu import Outgoing

_PATIENT_ID = 0x0010_0020


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


def named_in(instance: Outgoing) -> str:
    """Return the Patient ID that an object bears, "" where it has none.

    Series of one study may have come under several, so the object itself says whose it is.

    Raises
    ------
    NotUnderstood
        Its file is missing, damaged or cannot be read.
    """

    def behind(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        return int(tag) > _PATIENT_ID

    with opened(instance) as (file, _):
        file.seek(0)
        try:
            return read_text(read_partial(file, stop_when=behind), "PatientID")
        except (InvalidDicomError, Refused, *READING_FAULTS) as error:
            words = f"{instance.path.name} does not say whose it is (Patient ID cannot be read), so it cannot be sent"
            raise NotUnderstood(words) from error


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
    BrokenOff
        It broke off, or did not answer.
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


class Asker:
    """Asks one peer about the studies of one round.

    One at which it breaks off may be what it cannot bear, so that one waits by itself; where it breaks off at the next
    one too it is the peer that is ill.

    Parameters
    ----------
    remote, asking
        As of `ask`.
    most
        At so many studies in a row it may break off.
    """

    def __init__(self, remote: Remote, asking: Callable[[inquiry.Query], None], most: int) -> None:
        self._remote = remote
        self._asking = asking
        self._most = most
        self._in_a_row = 0
        self._broken: dict[str, Doubt] = {}

    def ask(self, study_instance_uid: str, patient_id: str) -> Doubt | None:
        """Return as `ask` does; a study at which the peer broke off is not asked about again.

        Raises
        ------
        Unavailable
            The peer could not be reached, or breaks off whatever it is asked.
        """
        if study_instance_uid in self._broken:
            return self._broken[study_instance_uid]
        try:
            doubt = ask(self._remote, study_instance_uid, patient_id, self._asking)
        except BrokenOff as error:
            self._in_a_row += 1
            if self._in_a_row > self._most:
                raise
            doubt = Doubt(f"whose the study is was asked in vain: {error}", is_another=False)
            self._broken[study_instance_uid] = doubt
        else:
            self._in_a_row = 0
        return doubt
