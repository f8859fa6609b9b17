"""What a DICOM service other than storing is asked on an association, and how it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pacs_ai.dicom import status

if TYPE_CHECKING:
    from pacs_ai.dicom.arrival import AssociationInfo

#: Command Field (0000,0100) of the requests that may be served, PS3.7 E.1.
N_EVENT_REPORT_RQ = 0x0100
N_ACTION_RQ = 0x0130


@dataclass(frozen=True)
class Answer:
    """Status (0000,0900) and Error Comment (0000,0902), "" for none, of a response."""

    status: int
    comment: str = ""


#: Where serving takes longer than the one who asked may be let wait.
NOT_IN_TIME = Answer(status.RESOURCE_LIMITATION, "not served in time; try again later")


@dataclass(frozen=True)
class ServiceRequest:
    """One N-EVENT-REPORT-RQ or N-ACTION-RQ (PS3.7 10.1.1, 10.1.4), its text as it came without padding.

    Parameters
    ----------
    association
        It came over.
    abstract_syntax, transfer_syntax
        Of the presentation context it came over.
    command_field
        One of the constants above.
    sop_class_uid, sop_instance_uid
        Affected (N-EVENT-REPORT) or Requested (N-ACTION).
    type_id
        Event Type ID (0000,1002) or Action Type ID (0000,1008); None where it is missing.
    data_set
        Event or action information, encoded; b"" where there is none.
    """

    association: AssociationInfo
    abstract_syntax: str
    transfer_syntax: str
    command_field: int
    sop_class_uid: str
    sop_instance_uid: str
    type_id: int | None
    data_set: bytes


#: Called in a thread that may block; must not raise.
Service = Callable[[ServiceRequest], Answer]
#: (SOP Class UID, Command Field) -> what answers it.
Services = Mapping[tuple[str, int], Service]
