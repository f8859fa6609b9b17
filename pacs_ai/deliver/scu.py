"""Sends stored instances to a peer by C-STORE, byte for byte, and says for each one what became of it.

A peer that is silent, slow, lying or gone ends an attempt by its deadline and never the program: what was not
answered is `Category.TRANSIENT`, to be sent again; storing the same instance twice is harmless (same UID, same bytes).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pynetdicom.dsutils import split_dataset
from pynetdicom.sop_class import Verification

from pacs_ai.deliver import command, pdus
from pacs_ai.deliver.association import Association
from pacs_ai.deliver.connection import Remote
from pacs_ai.dicom import contexts, status
from pacs_ai.dicom.reading import READING_FAULTS
from pacs_ai.dicom.status import Category
from pacs_ai.errors import NotUnderstood, Unavailable
from pacs_ai.log import unexpected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from pydicom.tag import BaseTag

__all__ = [
    "ContextAnswer",
    "EchoResult",
    "Outcome",
    "Outgoing",
    "Remote",
    "Scan",
    "accepted_contexts",
    "echo",
    "scan",
    "send",
    "send_files",
]

_log = logging.getLogger(__name__)

MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"
SOP_INSTANCE_UID = 0x0008_0018
_OF_THE_FILE = ("MediaStorageSOPClassUID", "TransferSyntaxUID")
#: By these a peer says, amid an accepted presentation context, that it takes no such object (PS3.7 Annex C).
NOT_ACCEPTED = frozenset({status.SOP_CLASS_NOT_SUPPORTED, status.NO_SUCH_SOP_CLASS})


@dataclass(frozen=True)
class Outgoing:
    """An instance to send: a DICOM file (PS3.10) and what its data set is.

    Parameters
    ----------
    sha256
        Digest (hex) that the file must have, or it is not sent; "" where none was recorded.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    sha256: str = ""

    @property
    def pair(self) -> tuple[str, str]:
        """The presentation context that it needs: (SOP Class UID, Transfer Syntax UID)."""
        return self.sop_class_uid, self.transfer_syntax_uid


@dataclass(frozen=True)
class Outcome:
    """What became of one instance.

    Parameters
    ----------
    status
        Status of the C-STORE-RSP, 0110H where this side failed with this one alone; None where there was none to count.
    category
        SUCCESS and WARNING: the peer has it. TRANSIENT: send it again. PERMANENT: a person has to look.
    words
        The reason, for an administrator and the log.
    not_accepted
        The peer takes no object of this kind in this transfer syntax: another form may do.
    doubtful
        It was sent, or some of it, and not answered: the peer may have it.
    comment
        What the peer said of it in its own words (0000,0902), which may name a patient: for no log.
    """

    sop_instance_uid: str
    status: int | None
    category: Category
    words: str
    not_accepted: bool = False
    doubtful: bool = False
    comment: str = ""

    @property
    def stored(self) -> bool:
        """Whether the peer has it."""
        return self.category in {Category.SUCCESS, Category.WARNING}


@dataclass(frozen=True)
class EchoResult:
    """What became of a C-ECHO: round trip including the association in ms, None where it failed; and why, in words."""

    ms: float | None
    words: str


@dataclass(frozen=True)
class ContextAnswer:
    """What a peer says to one kind of object in one encoding."""

    sop_class_uid: str
    transfer_syntax_uid: str
    accepted: bool
    words: str


@dataclass(frozen=True)
class Scan:
    """The DICOM files found below some paths, and what was left out: (path, why)."""

    instances: tuple[Outgoing, ...]
    skipped: tuple[tuple[Path, str], ...]


def nothing(_instance: Outgoing) -> bool:
    """Hold nothing back."""
    return False


def send(
    remote: Remote, instances: Sequence[Outgoing], held_back: Callable[[Outgoing], bool] = nothing
) -> Iterator[Outcome]:
    """Send the instances in the order given and yield the outcome of each as it happens.

    `held_back` is asked before each: one for which it is True is left out, without an outcome.

    One association that proposes the contexts they need and Verification (several, one after another, for more than 127
    kinds).
    Once the association is lost, all instances that were not answered are `Category.TRANSIENT`.
    """
    waiting = deque(instances)
    begun: set[str] = set()
    try:
        while waiting:
            yield from _send_batch(remote, waiting, held_back, begun)
    except Unavailable as error:
        for instance in waiting:
            uid = instance.sop_instance_uid
            yield Outcome(uid, None, Category.TRANSIENT, str(error), doubtful=uid in begun)


def echo(remote: Remote) -> EchoResult:
    """Ask the peer whether it is there (C-ECHO, PS3.4 Annex A)."""
    started = time.perf_counter()
    try:
        with Association(remote, [contexts.verification_context()]) as assoc:
            if not assoc.accepted:
                return EchoResult(None, f"{remote} accepts associations but not Verification (C-ECHO)")
            context_id = next(iter(assoc.accepted.values()))
            assoc.request(context_id, command.c_echo_request(1, Verification))
            answer = _matching_answer(assoc, context_id, command.C_ECHO_RQ, 1)
    except Unavailable as error:
        return EchoResult(None, str(error))
    if answer.status != status.SUCCESS:
        return EchoResult(None, f"{remote} answered C-ECHO with {_status_words(answer)}")
    return EchoResult((time.perf_counter() - started) * 1000, f"{remote} answered")


def accepted_contexts(remote: Remote, pairs: Iterable[tuple[str, str]]) -> list[ContextAnswer]:
    """Ask what the peer would take, without sending anything.

    Parameters
    ----------
    pairs
        (SOP Class UID, Transfer Syntax UID), any number.

    Raises
    ------
    Unavailable
        No association; the message says why.
    """
    distinct = list(dict.fromkeys(pairs))
    answers = []
    for start in range(0, len(distinct), contexts.MAX_NEEDED):
        batch = distinct[start : start + contexts.MAX_NEEDED]
        with Association(remote, contexts.needed(batch)) as assoc:
            answers += [
                ContextAnswer(*pair, accepted=True, words=f"{remote} accepts {_kind(*pair)}")
                if pair in assoc.accepted
                else ContextAnswer(*pair, accepted=False, words=_refusal(remote, pair, assoc.refused[pair]))
                for pair in batch
            ]
    return answers


def scan(paths: Iterable[Path]) -> Scan:
    """Find the DICOM files among `paths` and below those that are folders, in the order of their names."""
    instances: dict[str, Outgoing] = {}
    skipped = []
    for path in _files(paths):
        try:
            found = _identify(path)
        except (NotUnderstood, OSError) as error:
            skipped.append((path, str(error)))
            continue
        if found.sop_instance_uid in instances:
            skipped.append((path, f"the same instance as {instances[found.sop_instance_uid].path}"))
        else:
            instances[found.sop_instance_uid] = found
    return Scan(tuple(instances.values()), tuple(skipped))


def send_files(
    remote: Remote, instances: Sequence[Outgoing], progress: Callable[[int, int, Outcome], None] | None = None
) -> list[Outcome]:
    """Send what `scan` found and return the outcomes in that order.

    Parameters
    ----------
    progress
        Called after each instance with how many are done, how many there are, and what became of this one.

    More than 127 kinds of objects are sent kind after kind, so that few associations are needed.
    """
    ordered = list(instances)
    if len({instance.pair for instance in ordered}) > contexts.MAX_NEEDED:
        ordered.sort(key=lambda instance: instance.pair)
    outcomes = {}
    for done, outcome in enumerate(send(remote, ordered), start=1):
        outcomes[outcome.sop_instance_uid] = outcome
        if progress is not None:
            progress(done, len(ordered), outcome)
    return [outcomes[instance.sop_instance_uid] for instance in instances]


def _send_batch(
    remote: Remote, waiting: deque[Outgoing], held_back: Callable[[Outgoing], bool], begun: set[str]
) -> Iterator[Outcome]:
    """Send a first run of `waiting` in one association, taking out what has its outcome; `begun` gets what begins."""
    batch = _batch(waiting)
    with Association(remote, contexts.needed(instance.pair for instance in batch)) as assoc:
        for number, instance in enumerate(batch):
            if held_back(instance):
                waiting.popleft()
                continue
            begun.add(instance.sop_instance_uid)
            try:
                outcome = _store(assoc, number % 0xFFFF + 1, instance)
            except Unavailable:
                raise
            except Exception as error:  # noqa: BLE001 - whatever is odd about one instance must not hold up the others
                words = f"{instance.path.name} could not be sent ({unexpected(error)})"
                outcome = _broken_off(assoc, instance, words, doubtful=True)
            waiting.popleft()
            yield outcome
            if assoc.over:
                return


def _store(assoc: Association, message_id: int, instance: Outgoing) -> Outcome:
    uid = instance.sop_instance_uid
    context_id = assoc.accepted.get(instance.pair)
    if context_id is None:
        words = _refusal(assoc.remote, instance.pair, assoc.refused[instance.pair])
        return Outcome(uid, None, Category.PERMANENT, words, not_accepted=True)
    try:
        with opened(instance) as (file, length):
            assoc.request(context_id, command.c_store_request(message_id, instance.sop_class_uid, uid))
            assoc.send_data_set(context_id, file, length)
    except NotUnderstood as error:
        return Outcome(uid, None, Category.PERMANENT, str(error))
    except OSError as error:
        return _broken_off(assoc, instance, f"{instance.path.name} could not be read ({error})", doubtful=False)
    answer = _matching_answer(assoc, context_id, command.C_STORE_RQ, message_id)
    if answer.sop_instance_uid not in {"", uid} or answer.sop_class_uid not in {"", instance.sop_class_uid}:
        raise Unavailable(f"{assoc.remote} answered for another instance than the one sent; not counted as stored")
    return _outcome(assoc.remote, uid, answer)


def _broken_off(assoc: Association, instance: Outgoing, words: str, *, doubtful: bool) -> Outcome:
    """End the association, as half a data set may be under way; this instance waits alone."""
    assoc.abort()
    _log.error("sent later: %s", words)
    uid = instance.sop_instance_uid
    return Outcome(uid, status.PROCESSING_FAILURE, Category.TRANSIENT, words, doubtful=doubtful)


def _outcome(remote: Remote, uid: str, answer: command.Answer) -> Outcome:
    if answer.status is None:
        raise Unavailable(f"{remote} answered without a status; not counted as stored")
    category = status.classify(answer.status)
    if category in {Category.CANCEL, Category.PENDING}:
        category = Category.PERMANENT
    words = f"{remote}: {status.meaning(answer.status)}"
    not_accepted = answer.status in NOT_ACCEPTED
    return Outcome(uid, answer.status, category, words, not_accepted=not_accepted, comment=answer.comment)


def _matching_answer(assoc: Association, context_id: int, asked: int, message_id: int) -> command.Answer:
    """Return the response to this very request; any other is no answer (PS3.7 9.1.1.1, 9.3.1.2)."""
    answered_on, answer = assoc.answer()
    if answer.command != asked | command.RESPONSE or answered_on != context_id or answer.message_id != message_id:
        raise Unavailable(
            f"{assoc.remote} sent an answer that belongs to another request (Message ID {answer.message_id} instead of "
            f"{message_id}); not counted, association aborted"
        )
    return answer


def _status_words(answer: command.Answer) -> str:
    return "no status" if answer.status is None else status.meaning(answer.status)


def _kind(sop_class_uid: str, transfer_syntax_uid: str) -> str:
    return f"{contexts.name_of(sop_class_uid)} in {contexts.name_of(transfer_syntax_uid)}"


def _refusal(remote: Remote, pair: tuple[str, str], result: int) -> str:
    if result == pdus.ABSTRACT_SYNTAX_NOT_SUPPORTED:
        words = f"does not accept {contexts.name_of(pair[0])} in any encoding (asked: {contexts.name_of(pair[1])})"
    else:
        words = f"does not accept {_kind(*pair)}"
    return f"{remote} {words}; ask its administrator to enable it for {remote.calling_ae_title}"


def _batch(instances: Iterable[Outgoing]) -> list[Outgoing]:
    """Return the first instances, as many as have room in one association."""
    batch: list[Outgoing] = []
    pairs: set[tuple[str, str]] = set()
    for instance in instances:
        pairs.add(instance.pair)
        if len(pairs) > contexts.MAX_NEEDED:
            break
        batch.append(instance)
    return batch


@contextmanager
def opened(instance: Outgoing) -> Iterator[tuple[BinaryIO, int]]:
    """Open the file and yield it, standing at its data set, with the data set's length in bytes.

    Raises
    ------
    NotUnderstood
        No such file, no DICOM file, a damaged or empty one, one of another digest than was recorded, or in another
        transfer syntax than it was said to be.
    """
    try:
        meta, offset = split_dataset(instance.path)
        found = str(meta.get("TransferSyntaxUID", ""))
        file = instance.path.open("rb")
    except (FileNotFoundError, InvalidDicomError) as error:
        raise NotUnderstood(f"{instance.path.name} is missing or no DICOM file, so it cannot be sent") from error
    except READING_FAULTS as error:
        raise NotUnderstood(f"{instance.path.name} is damaged within its file meta, so it cannot be sent") from error
    with file:
        if instance.sha256 and hashlib.file_digest(file, "sha256").hexdigest() != instance.sha256:
            raise NotUnderstood(
                f"{instance.path.name} is damaged (SHA-256 differs from the recorded one), so it cannot be sent"
            )
        if found != instance.transfer_syntax_uid:
            raise NotUnderstood(
                f"{instance.path.name} is in {contexts.name_of(found) or 'an unknown encoding'}, not in "
                f"{contexts.name_of(instance.transfer_syntax_uid)} as recorded, so it cannot be sent"
            )
        length = file.seek(0, 2) - offset
        if length <= 0:
            raise NotUnderstood(f"{instance.path.name} has no data set, so it cannot be sent")
        file.seek(offset)
        yield file, length


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(found for found in path.rglob("*") if found.is_file())
        else:
            yield path


def _identify(path: Path) -> Outgoing:
    def behind(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        return int(tag) > SOP_INSTANCE_UID

    with path.open("rb") as file:
        try:
            ds = read_partial(file, stop_when=behind)
            media, syntax = (str(ds.file_meta.get(keyword) or "") for keyword in _OF_THE_FILE)
            sop_class_uid, uid = (str(ds.get(keyword) or "") for keyword in ("SOPClassUID", "SOPInstanceUID"))
        except InvalidDicomError as error:
            raise NotUnderstood("no DICOM file") from error
        except READING_FAULTS as error:
            raise NotUnderstood("a damaged DICOM file") from error
    if media == MEDIA_STORAGE_DIRECTORY:
        raise NotUnderstood("a DICOMDIR, which is not sent")
    if not syntax or not sop_class_uid or not uid:
        raise NotUnderstood("a DICOM file without SOP class, SOP instance or transfer syntax")
    return Outgoing(path, sop_class_uid, uid, syntax)
