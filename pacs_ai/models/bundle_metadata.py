"""What the metadata of a MONAI bundle say of its inputs and its output, read once, whatever they hold in its place."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pacs_ai.errors import PipelineFault
from pacs_ai.pipeline import Code

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

METADATA = "configs/metadata.json"
#: Its table of inputs and outputs.
FORMATS = "network_data_format"
#: What the zoo's metadata call a modality -> Modality (0008,0060).
MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR", "PT": "PT", "PET": "PT", "MG": "MG", "MAMMOGRAM": "MG", "US": "US"}
#: Modality -> procedure reported (CID 100).
PROCEDURES = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
    "PT": Code("44136-0", "LN", "PET unspecified body region"),
}
#: Most digits of a channel's number.
_DIGITS = 6


@dataclass(frozen=True)
class Described:
    """What its table `FORMATS` says.

    Parameters
    ----------
    stated
        The modality as it is written, None where it is not.
    inputs
        Names of the inputs in the order of the image channels; one is called ``image``.
    type, format
        Of the output, as they are written.
    channels
        Number and name of the output's channels, by number.
    count
        Channels of the output; 1 where it is not stated.
    """

    stated: object
    inputs: tuple[str, ...]
    type: object
    format: object
    channels: tuple[tuple[int, str], ...]
    count: int

    @property
    def modality(self) -> str | None:
        """The Modality value (0008,0060), None where none of DICOM's for volumes is stated."""
        return MODALITIES.get(str(self.stated).upper())

    @property
    def segments(self) -> bool:
        """Whether the output is a segmentation."""
        return self.type == "image" and self.format not in ("image", "magnitude")

    def check_segments(self, name: str) -> None:
        """Raise `PipelineFault` unless the bundle `name` is for segmentation."""
        if not self.segments:
            raise PipelineFault(
                f"{name} is no segmentation bundle: {METADATA} calls its output {self.type!r} of format "
                f"{self.format!r}. Only segmentation bundles can be run"
            )


def parsed(content: bytes, folder: object) -> dict[str, Any]:
    """Return ``configs/metadata.json`` of a folder; `PipelineFault` where it is no JSON object."""
    try:
        metadata = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PipelineFault(f"{METADATA} in {folder} is no JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise PipelineFault(f"{METADATA} in {folder} is no JSON object")
    return metadata


def described(metadata: Mapping[str, Any]) -> Described:
    """Return what the metadata say; what is of another form than MONAI's counts as not said."""
    formats = table(metadata, FORMATS)
    image = table(table(formats, "inputs"), "image")
    output = table(table(formats, "outputs"), "pred")
    channels = _channels(image)
    count = output.get("num_channels")
    return Described(
        image.get("modality"),
        input_names(name for _, name in channels) if len(channels) > 1 else ("image",),
        output.get("type", "image"),
        output.get("format"),
        _channels(output),
        count if isinstance(count, int) and count > 0 else 1,
    )


def table(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return what lies under the key, {} where that is no table."""
    value = found.get(key)
    return value if isinstance(value, dict) else {}


def _channels(entry: Mapping[str, Any]) -> tuple[tuple[int, str], ...]:
    named = table(entry, "channel_def").items()
    numbered = [(str(number), name) for number, name in named]
    return tuple(sorted((int(n), one_line(name)) for n, name in numbered if n.isdecimal() and len(n) <= _DIGITS))


def input_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names that routes can bind, one for each: lower case, words joined by ``_``; the second t1 is t1_2."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"\W+", "_", name.lower()).strip("_") or "image"
        number = 1 + sum(one == plain or re.fullmatch(rf"{re.escape(plain)}_\d+", one) is not None for one in found)
        found.append(plain if number == 1 else f"{plain}_{number}")
    return tuple(found)


def one_line(text: object) -> str:
    """Return a text in one line of what can be printed: it may stand in a comment, and on a terminal."""
    return " ".join("".join(one if one.isprintable() else " " for one in str(text)).split())
