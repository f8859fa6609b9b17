"""Which kinds of DICOM objects, in which encodings, this node takes from a peer or offers to one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydicom import uid
from pynetdicom import AllStoragePresentationContexts, build_context, register_uid, sop_class
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import Verification, uid_to_service_class

from pacs_ai.dicom.attributes import is_uid
from pacs_ai.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pynetdicom.presentation import PresentationContext

#: Every SOP class of the Storage Service Class (PS3.4 B.5) that pynetdicom knows.
STORAGE_SOP_CLASSES: tuple[str, ...] = tuple(
    sorted(str(known.abstract_syntax) for known in AllStoragePresentationContexts)
)

#: Accepted where nothing else is configured, the preferred first (PS3.5 Annex A).
DEFAULT_TRANSFER_SYNTAXES: tuple[str, ...] = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEGLSNearLossless,
    uid.JPEG2000Lossless,
    uid.JPEG2000,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.HTJ2K,
)

#: Presentation Context IDs are odd and below 256, so that a requestor has 128 of them (PS3.8 9.3.2.2).
MAX_CONTEXTS = 128
#: One of them is for Verification, so that so many are left for what a requestor needs.
MAX_NEEDED = MAX_CONTEXTS - 1

#: C-ECHO is asked for in these (PS3.4 Annex A).
_UNCOMPRESSED = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)
_VERIFICATION = (str(Verification), str(uid.ImplicitVRLittleEndian))
_NAMES = {name: str(syntax) for syntax in uid.AllTransferSyntaxes for name in (syntax.keyword, syntax.name)}


def transfer_syntaxes(names: Iterable[str]) -> tuple[str, ...]:
    """Return the UIDs of transfer syntaxes that are given by keyword, by name or as UIDs, in the order given.

    Parameters
    ----------
    names
        PS3.6 Annex A: "JPEGLSLossless", "JPEG-LS Lossless Image Compression" and "1.2.840.10008.1.2.4.80" are the same.

    Raises
    ------
    UserError
        A name that the Standard does not have, or none at all.
    """
    found = tuple(dict.fromkeys(_transfer_syntax(name) for name in names))
    if not found:
        raise UserError("no transfer syntax is listed; leave the setting out to accept the default ones")
    return found


def acceptor_contexts(
    syntaxes: Sequence[str] = DEFAULT_TRANSFER_SYNTAXES, further_sop_classes: Iterable[str] = ()
) -> list[PresentationContext]:
    """Return what the node accepts as an SCP: Verification, every storage SOP class and the further ones.

    Parameters
    ----------
    syntaxes
        UIDs in order of preference: of those that a peer proposes in one context, the first is taken (PS3.8 9.3.3.2).
    further_sop_classes
        UIDs of private or newer storage SOP classes.

    Raises
    ------
    UserError
        A further SOP class that is no UID, or that belongs to another service than storage.
    """
    further = tuple(dict.fromkeys(further_sop_classes))
    for sop_class_uid in further:
        _register(sop_class_uid)
    classes = dict.fromkeys((*STORAGE_SOP_CLASSES, *further))
    accepted = [build_context(sop_class_uid, list(syntaxes)) for sop_class_uid in classes]
    return [verification_context(), *accepted]


def verification_context() -> PresentationContext:
    """Return the context of C-ECHO, for either side."""
    return build_context(Verification, list(_UNCOMPRESSED))


def needed(pairs: Iterable[tuple[str, str]]) -> list[PresentationContext]:
    """Return the contexts that a requestor has to propose to send these instances as they are, and Verification.

    One context bears one transfer syntax, so that the acceptor cannot choose one in which an instance would first
    have to be re-encoded. Verification comes last. Nearly every acceptor takes it, and some that would take none
    of the others reject the whole association where it is missing: with it, they refuse context by context.

    Parameters
    ----------
    pairs
        (SOP Class UID, Transfer Syntax UID) of each instance; repeats are welcome.

    Raises
    ------
    UserError
        More than `MAX_NEEDED` different pairs: send them in several associations.
    """
    distinct = dict.fromkeys((str(sop_class_uid), str(syntax)) for sop_class_uid, syntax in pairs)
    if len(distinct) > MAX_NEEDED:
        raise UserError(
            f"{len(distinct)} different pairs of SOP class and transfer syntax do not fit into one association, which "
            f"has room for {MAX_NEEDED}; send fewer kinds of objects at once"
        )
    return [build_context(sop_class_uid, syntax) for sop_class_uid, syntax in dict.fromkeys([*distinct, _VERIFICATION])]


def _transfer_syntax(name: str) -> str:
    name = name.strip()
    if name in _NAMES:
        return _NAMES[name]
    if is_uid(name) and "." in name:
        return name
    raise UserError(
        f'"{name}" is no transfer syntax; give its keyword ("JPEGLSLossless"), its name as in PS3.6 Annex A, or its UID'
    )


def _register(sop_class_uid: str) -> None:
    """Tell pynetdicom that a SOP class it does not know is stored like any other."""
    if not is_uid(sop_class_uid) or "." not in sop_class_uid:
        raise UserError(f'"{sop_class_uid}" is no SOP Class UID: digits and dots, at most 64 characters')
    service = uid_to_service_class(sop_class_uid)
    if service is StorageServiceClass:
        return
    if service.__name__ != "ServiceClass":
        raise UserError(f"{sop_class_uid} is no storage SOP class but one of {service.__name__}")
    register_uid(sop_class_uid, "Storage_" + sop_class_uid.replace(".", "_"), StorageServiceClass)


def name_of(known: str) -> str:
    """Return the name of a UID (PS3.6 Annex A), also of SOP classes that only pynetdicom knows."""
    name = uid.UID(known).name
    if name != known:
        return str(name)
    keyword = next((word for word, value in vars(sop_class).items() if value == known), known)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", keyword)
