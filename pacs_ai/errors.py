"""Every error of the node; the type is the policy.

PacsAiError
├── UserError         a command or configuration is wrong; the message says what to do
├── Transient         the same call may go through later: try again with backoff
│   ├── OutOfResources    disk full, below the watermark, no memory
│   ├── Unavailable       database or peer not reachable, association refused
│   └── WorkerLost        the child process that ran the model died or was killed
└── Permanent         the same call will never go through: fail at once, with the reason
├── Refused           the input cannot be analysed; the message is shown to the reader
├── Conflict          same SOP Instance UID, different content; a person decides
├── NotUnderstood     bytes that are no DICOM data set
├── Mismatch          data set and SOP class, or command and data set, disagree
└── PipelineFault     the pipeline broke its contract, or raised
"""

from __future__ import annotations


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


class WorkerLost(Transient):
    """The process that ran a model died, hung past its time limit or ran out of memory."""


class Permanent(PacsAiError):  # noqa: N818 - a policy, and the base of errors
    """The same call will never go through."""


class Refused(Permanent):
    """The input cannot be analysed.

    Pipelines raise it too: the message is shown to the people who read the study, so it says in
    words what is wrong with the series ("3 of 120 slices are missing between 40.0 and 46.0 mm").
    """


class Conflict(Permanent):
    """Two different contents came under one SOP Instance UID; a person has to decide."""


class NotUnderstood(Permanent):
    """The bytes are no DICOM data set that this node can read."""


class Mismatch(Permanent):
    """The data set and its SOP class, or the command and the data set, disagree."""


class PipelineFault(Permanent):
    """A pipeline broke its contract or raised an unexpected error."""
