"""The objects that most tests encode: one binary SEG and the SR that cites it."""

from __future__ import annotations

from pacs_ai import profiles
from pacs_ai.built_in_profiles import BUILT_IN
from pacs_ai.profiles import Choice, Encoding, Kind, Profile, Wanted

#: A plan of one SEG and one SR.
PLAN = profiles.plan(
    Profile("plain", (Wanted(Kind.SEGMENTATION), Wanted(Kind.REPORT))),
    9001,
)
SEG, SR = (choice.encoding for choice in PLAN)
SEG_AND_SR = (SEG, SR)


def encodings_of(profile: str) -> tuple[Encoding, ...]:
    """Return what a built-in profile sends first, in order."""
    return tuple(choice.encoding for choice in profiles.plan(BUILT_IN[profile], 9001))


def only(kind: Kind, form: str = "", transfer_syntax: str = "", **options: str) -> Encoding:
    """Return one encoding on its own, which cites nothing."""
    wanted = Wanted(kind, form, transfer_syntax, **options)  # type: ignore[arg-type]
    (choice,) = profiles.plan(Profile("one", (wanted,)), 9001)
    assert isinstance(choice, Choice)
    return choice.encoding
