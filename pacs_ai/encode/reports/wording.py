"""Values in the words in which people read them: "Volume 904 mL", "Right lung", "image 34"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacs_ai.encode.reports.groups import percent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pacs_ai.encode.case import Case
    from pacs_ai.encode.reports.groups import Group
    from pacs_ai.pipeline import Classification, Code, Measurement

#: UCUM's code of a unit -> what stands behind a number.
SIGNS: Mapping[str, str] = {
    "[hnsf'U]": "HU", "ml": "mL", "l": "L", "Cel": "degrees C", "deg": "degrees", "1": "",
}  # fmt: skip
#: OHIF 3.13 cuts a text off behind about 95 characters in a window of 1280 pixels.
LINE = 84
#: A number of at least so much is written without decimals.
WHOLE = 100


def amount(value: float) -> str:
    """Return a number with three significant digits, from 100 on as an integer: 904, -812, 7.36, 0.0123, 0."""
    if abs(value) >= WHOLE:
        return f"{value:.0f}"
    written = f"{value:.3g}"
    return "0" if written == "-0" else written


def unit_sign(unit: Code) -> str:
    """Return what stands behind a number; nothing for a pure number, whose UCUM code is an annotation in braces."""
    if unit.scheme != "UCUM":
        return unit.meaning
    return "" if unit.value.startswith("{") else SIGNS.get(unit.value, unit.value)


def quantity(measurement: Measurement) -> str:
    """Return "904 mL"."""
    return f"{amount(measurement.value)} {unit_sign(measurement.unit)}".strip()


def name_of(measurement: Measurement) -> str:
    """Return the concept with its derivation and method: "Mean Attenuation Coefficient", "Volume (Simpson)"."""
    derivation = "" if measurement.derivation is None else f"{measurement.derivation.meaning} "
    method = "" if measurement.method is None else f" ({measurement.method.meaning})"
    return f"{derivation}{measurement.concept.meaning}{method}"


def answer(given: Classification) -> str:
    """Return "Pneumothorax: Present (87 %; threshold 12 %)"."""
    return f"{given.concept.meaning}: {given.value.meaning}{certainty(given)}"


def certainty(given: Classification) -> str:
    """Return " (87 %; threshold 12 %)", or as much of it as there is."""
    if given.probability is None:
        return ""
    above = "" if given.threshold is None else f"; threshold {amount(percent(given.threshold))} %"
    return f" ({amount(percent(given.probability))} %{above})"


def sentences(group: Group, case: Case) -> list[str]:
    """Return all that a group says: "Nodule 1 (image 34): Long Axis 12.3 mm; Certainty of Finding 87 %".

    In lines of at most `LINE` characters where the values allow it: viewers cut longer ones off.
    """
    told = [f"{name_of(value)} {quantity(value)}" for value in group.values]
    told += [answer(one) for one in group.classifications]
    place = ", ".join(_place(group, case))
    head = f"{group.name}{f' ({place})' if place else ''}: "
    return joined(head, told or ["present"], "; ")


def joined(head: str, parts: Sequence[str], by: str) -> list[str]:
    """Return the parts in as few lines as `LINE` allows, each line with the head; none for no parts."""
    lines = [head + part for part in parts[:1]]
    for part in parts[1:]:
        if len(lines[-1]) + len(by) + len(part) <= LINE:
            lines[-1] += by + part
        else:
            lines.append(head + part)
    return lines


def _place(group: Group, case: Case) -> Iterator[str]:
    """Yield the image on which a group is seen best, its frame, and the side that an image says."""
    if group.region is None or group.label is None:
        return
    source = case.own.slices[group.region.index]
    number = next(
        (ds.get("InstanceNumber") for ds in case.own.datasets if ds.SOPInstanceUID == source.sop_instance_uid), None
    )
    if number and (source.frame_number is None or len(case.own.datasets) > 1):
        yield f"image {number}"
    if source.frame_number is not None:
        yield f"frame {source.frame_number}"
    own = case.card.label(group.label.name).modifier
    if own is None and group.label.modifier is not None:
        yield group.label.modifier.meaning.lower()
