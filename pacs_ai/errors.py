"""Every error of the node; the type is the policy.

PacsAiError
├── UserError         a command or configuration is wrong; the message says what to do
├── Transient         the same call may go through later: try again with backoff
│   ├── OutOfResources    disk full, below the watermark, no memory
│   ├── Unavailable       database or peer not reachable, association refused
│   │   └── BrokenOff         the peer was reached, and rejected, broke off or left without answer what was begun
│   └── WorkerLost        the child process that ran the model died or was killed
└── Permanent         the same call will never go through: fail at once, with the reason
├── Refused           the input cannot be analysed; the message is shown to the reader
├── Conflict          same SOP Instance UID, different content; a person decides
├── NotUnderstood     bytes that are no DICOM data set
├── Mismatch          data set and SOP class, or command and data set, disagree
├── NotOffered        a peer does not offer what is asked of it
└── PipelineFault     the pipeline broke its contract, or raised
"""

from __future__ import annotations

from enum import StrEnum


class PacsAiError(Exception):
    """Any error that the node raises on purpose."""


class UserError(PacsAiError):
    """A command or the configuration is wrong; the message says what to do."""


class Transient(PacsAiError):  # noqa: N818 - a policy, and the base of errors
    """The same call may go through later."""


class OutOfResources(Transient):
    """Disk, memory or a configured limit is exhausted."""


class Unavailable(Transient):
    """The database or a peer cannot be reached now, or refuses now."""


class BrokenOff(Unavailable):
    """A peer spoke DICOM, and rejected, broke off or left without answer what was begun: it is not away."""


class WorkerLost(Transient):
    """The process that ran a model died, hung past its time limit or ran out of memory."""


class Permanent(PacsAiError):  # noqa: N818 - a policy, and the base of errors
    """The same call will never go through."""


class Reason(StrEnum):
    """Why an input was refused, for programs; `Refused`'s message says it to people."""

    MODALITY = "modality"  #: of another kind than the pipeline takes
    BODY_PART = "body-part"  #: shows another part of the body
    VIEW = "view"  #: from another direction
    LATERALITY = "laterality"  #: of the other side, or of an unknown one
    AGE = "age"  #: the patient is younger or older than those that the model was made for
    CONTRAST = "contrast"  #: with contrast medium where none may be, or without, or in another phase
    LOCALIZER = "localizer"  #: scout images only
    TOO_FEW = "too-few"  #: slices, images, times, channels or seconds
    TOO_SMALL = "too-small"  #: rows or columns
    RESOLUTION = "resolution"  #: slices or pixels too far apart
    MISSING_SLICE = "missing-slice"  #: a gap in the stack, or a phase that is not complete
    DUPLICATE = "duplicate"  #: several images at one position
    TILT = "tilt"  #: a sheared stack (gantry tilt)
    GEOMETRY = "geometry"  #: no regular grid, or no positions
    DIMENSIONS = "dimensions"  #: times, echoes or weightings where one volume is wanted, or the other way round
    INTENSITY = "intensity"  #: values that are no numbers, all alike, or outside of what the model knows
    LOSSY = "lossy"  #: compressed with loss
    BURNED_IN = "burned-in"  #: text or marks in the pixels
    NOISE = "noise"  #: too noisy to be measured
    OUT_OF_DISTRIBUTION = "out-of-distribution"  #: unlike anything that the model was trained on
    ALIGNMENT = "alignment"  #: two series that cannot be brought onto one grid
    MISSING_INPUT = "missing-input"  #: a series that the pipeline needs never came
    IDENTITY = "identity"  #: more than one patient or study
    UNREADABLE = "unreadable"  #: pixels or attributes that cannot be read
    IMPLAUSIBLE_RESULT = "implausible-result"  #: what was found lies outside of what is possible
    DELETED = "deleted"  #: by retention, before it was analysed
    NO_PIPELINE = "no-pipeline"  #: it is disabled or not installed
    OTHER = "other"


class Refused(Permanent):
    """The input cannot be analysed.

    Pipelines raise it too: the message is shown to the people who read the study, so it says in
    words what is wrong with the series ("3 of 120 slices are missing between 40.0 and 46.0 mm").

    Parameters
    ----------
    message
        For people, without any value of a patient.
    reason
        For programs: the kept code of it.
    """

    def __init__(self, message: str, reason: Reason = Reason.OTHER) -> None:
        super().__init__(message)
        self.reason = reason


class Conflict(Permanent):
    """Two different contents came under one SOP Instance UID; a person has to decide."""


class NotUnderstood(Permanent):
    """The bytes are no DICOM data set that this node can read."""


class Mismatch(Permanent):
    """The data set and its SOP class, or the command and the data set, disagree."""


class NotOffered(Permanent):
    """A peer does not offer the service that is asked of it, or refuses this request.

    Parameters
    ----------
    message
        For people and logs.
    comment
        What the peer said of it in its own words, which may name a patient: for the database only.
    """

    def __init__(self, message: str, comment: str = "") -> None:
        super().__init__(message)
        self.comment = comment


class PipelineFault(Permanent):
    """A pipeline broke its contract or raised an unexpected error."""
