"""Which profile fits what a peer accepts: asked by an association that proposes every object, and sends none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom.uid import AllTransferSyntaxes

from pacs_ai import profiles
from pacs_ai.deliver import scu
from pacs_ai.dicom import contexts
from pacs_ai.doctor.findings import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pacs_ai.config import Config
    from pacs_ai.deliver.connection import Remote
    from pacs_ai.network_sections import Peer
    from pacs_ai.profiles import Encoding, Plan

PROFILE = "profile"
_UIDS = {uid.keyword: str(uid) for uid in AllTransferSyntaxes}


@dataclass(frozen=True)
class Fit:
    """How a profile fits a peer.

    Parameters
    ----------
    replaced
        What it does not take, and what it gets instead.
    missing
        What it does not take and for which there is nothing else.
    """

    replaced: tuple[tuple[Encoding, Encoding], ...]
    missing: tuple[Encoding, ...]

    @property
    def is_whole(self) -> bool:
        """Whether the peer takes everything as the profile wants it first."""
        return not self.replaced and not self.missing


def fit(chosen: Plan, accepted: Mapping[tuple[str, str], bool]) -> Fit:
    """Hold a plan against what a peer accepts, (SOP Class UID, Transfer Syntax UID) -> whether.

    What is sent in the source's own SOP class is left out: which one that is, the sources decide.
    """
    replaced, missing = [], []
    for choice in chosen:
        reached: profiles.Choice | None = choice
        while reached is not None and not _takes(reached.encoding, accepted):
            reached = reached.otherwise
        if reached is None:
            missing.append(choice.encoding)
        elif reached is not choice:
            replaced.append((choice.encoding, reached.encoding))
    return Fit(tuple(replaced), tuple(missing))


def _takes(encoding: Encoding, accepted: Mapping[tuple[str, str], bool]) -> bool:
    pair = pair_of(encoding)
    return pair is None or accepted[pair]


def pair_of(encoding: Encoding) -> tuple[str, str] | None:
    """Return (SOP Class UID, Transfer Syntax UID); None where the source decides."""
    sop_class_uid = encoding.details.sop_class_uid
    return (sop_class_uid, _UIDS[encoding.transfer_syntax]) if sop_class_uid else None


def examine_profile(config: Config, peer: Peer, remote: Remote) -> Iterator[Finding]:
    """Tell how the peer's profile fits it, and which others would.

    Raises
    ------
    Unavailable
        No association.
    """
    plans = {name: config.plan_of(name) for name in config.profile_names}
    pairs = {pair_of(encoding) for encoding in profiles.encodings(plans.values())} - {None}
    answers = scu.accepted_contexts(remote, sorted(pair for pair in pairs if pair is not None))
    accepted = {(one.sop_class_uid, one.transfer_syntax_uid): one.accepted for one in answers}
    fits = {name: fit(chosen, accepted) for name, chosen in plans.items()}
    whole = [name for name, each in fits.items() if each.is_whole and name != peer.profile]
    yield from _findings(peer, fits[peer.profile], whole, remote)


def _findings(peer: Peer, found: Fit, whole: Iterable[str], remote: Remote) -> Iterator[Finding]:
    others = ", ".join(whole)
    if found.is_whole:
        more = f"; {others} would fit too" if others else ""
        yield Finding(Level.OK, PROFILE, peer.name, f"takes every object of its profile {peer.profile}{more}")
        return
    instead = f', or set profile = "{next(iter(whole))}" (what fits: {others})' if others else ""
    for wanted, given in found.replaced:
        words = f"does not take {_named(wanted)}; gets {_named(given)} instead"
        yield Finding(Level.WARNING, PROFILE, peer.name, words, f"nothing, if that will do{instead}")
    for wanted in found.missing:
        advice = f"have its administrator enable it for {remote.calling_ae_title}{instead}"
        yield Finding(Level.FAULT, PROFILE, peer.name, f"does not take {_named(wanted)}", advice)


def _named(encoding: Encoding) -> str:
    syntax = contexts.name_of(_UIDS[encoding.transfer_syntax])
    return f"the {encoding.kind} ({contexts.name_of(encoding.details.sop_class_uid)}, {syntax})"
