"""Whether this machine has what the work needs: versions of libraries, decoders that really decode, the device."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from contextlib import contextmanager
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from pacs_ai.dicom import contexts
from pacs_ai.doctor.findings import Finding, Level
from pacs_ai.errors import PacsAiError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom.uid import UID

    from pacs_ai.config import Config

LIBRARIES, DECODERS, DEVICE = "libraries", "decoders", "device"
FASTER = 'pip install "openvino>=2026.0,<2027"'
_REINSTALL = "install pacs_ai and its requirements again"
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?\s*(?P<bounds>[^;]*)(?P<marker>;.*)?")
_BOUND = re.compile(r"(?P<sign>>=|<=|==|!=|<|>)\s*(?P<version>[0-9][0-9.]*)")


def examine_libraries() -> Iterator[Finding]:
    """Compare the installed libraries with what this release requires (pyproject.toml)."""
    sound = 0
    for text in metadata.requires("pacs_ai") or ():
        match = _REQUIREMENT.fullmatch(text)
        if match is None or match["marker"]:  # an extra's: for developers
            continue
        fault = _library_fault(match["name"], match["bounds"])
        sound += fault is None
        if fault is not None:
            advice = f'pip install "{match["name"]}{match["bounds"]}"'
            yield Finding(Level.FAULT, LIBRARIES, match["name"], fault, advice)
    yield Finding(Level.OK, LIBRARIES, "required", f"{sound} are there, each in a version that this release takes")


def _library_fault(name: str, bounds: str) -> str | None:
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is not installed"
    kept = all(_keeps(_numbers(installed), sign, _numbers(version)) for sign, version in _pairs(bounds))
    return None if kept else f"{installed} is installed, needed is {bounds}"


def _pairs(bounds: str) -> list[tuple[str, str]]:
    return [(match["sign"], match["version"]) for match in _BOUND.finditer(bounds)]


def _numbers(version: str) -> tuple[int, ...]:
    """Return the release numbers of a version ("2.13.0+cpu" is 2, 13, 0), trailing zeros aside."""
    release = re.match(r"[0-9]+(\.[0-9]+)*", version)
    numbers = [int(part) for part in release[0].split(".")] if release else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _keeps(installed: tuple[int, ...], sign: str, bound: tuple[int, ...]) -> bool:
    return {
        ">=": installed >= bound,
        "<=": installed <= bound,
        "==": installed == bound,
        "!=": installed != bound,
        "<": installed < bound,
        ">": installed > bound,
    }[sign]


def examine_decoders(config: Config) -> Iterator[Finding]:
    """Decode a small image in every transfer syntax that the configuration accepts."""
    from pydicom.uid import UID

    try:
        import_module("pacs_ai.infer.pixels")
    except ImportError as error:
        yield Finding(Level.FAULT, DECODERS, error.name or "decoders", str(error), _REINSTALL)
        return
    sound, untried = [], []
    for uid in map(UID, contexts.transfer_syntaxes(config.receive.transfer_syntaxes)):
        verdict = _decoding_fault(uid)
        if verdict is None:
            sound.append(uid.keyword or uid.name)
        elif verdict:
            advice = f"{_REINSTALL}, or take it out of receive.transfer_syntaxes"
            yield Finding(Level.FAULT, DECODERS, uid.name, verdict, advice)
        elif not uid.is_encapsulated or uid.is_deflated:
            sound.append(uid.keyword)
        else:
            untried.append(uid.name)
    if sound:
        words = f"{len(sound)} accepted transfer syntaxes, each tried on a sample: decoded right"
        yield Finding(Level.OK, DECODERS, "tried", words)
    for name in untried:
        words = "is accepted and kept, but whether it can be decoded was not tried"
        yield Finding(Level.WARNING, DECODERS, name, words, "series in it may be refused as input; test one")


def _decoding_fault(uid: UID) -> str | None:
    """Return None where the sample is decoded right, "" where there is no sample, else what is wrong."""
    import numpy as np

    from pacs_ai.doctor.samples import SAMPLES
    from pacs_ai.infer.pixels import Layout, decode

    sample = SAMPLES.get(uid.keyword)
    if sample is None:
        return ""
    layout = Layout(
        rows=sample.rows,
        columns=sample.columns,
        frames=1,
        bits_allocated=8 if sample.bits == 8 else 16,
        bits_stored=sample.bits,
        high_bit=sample.bits - 1,
        signed=False,
        photometric_interpretation="MONOCHROME2",
        transfer_syntax_uid=uid,
    )
    try:
        with _silenced():
            found = decode(layout, sample.frame)
    except PacsAiError as error:
        return str(error)
    most = int(np.abs(found.astype(np.int64) - sample.values).max())
    return None if most <= sample.tolerance else f"a sample is decoded wrong, by up to {most} grey values"


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep off the terminal what C libraries print: GDCM tries its 8-bit decoder first, which complains."""
    sys.stderr.flush()
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


def examine_device(config: Config) -> Iterator[Finding]:
    """Resolve every configured device as a worker would."""
    try:
        from pacs_ai.infer.device import describe, resolve_device
    except ImportError as error:
        yield Finding(Level.FAULT, DEVICE, "torch", str(error), _REINSTALL)
        return
    for wanted in config.infer.devices:
        try:
            device = resolve_device(wanted)
            words = describe(device)
        except PacsAiError as error:
            yield Finding(Level.FAULT, DEVICE, wanted, str(error), "correct infer.devices, or see nvidia-smi")
        except ImportError as error:
            yield Finding(Level.FAULT, DEVICE, "torch", f"cannot be loaded: {error}", "pip install torch")
        else:
            yield Finding(Level.OK, DEVICE, wanted, f"{device}: {words}{_compiled_words(device)}")


def _compiled_words(device: str) -> str:
    """Return whether networks are compiled for the processor that they would run on."""
    if device != "cpu":
        return ""
    if importlib.util.find_spec("openvino") is not None:
        return "; OpenVINO compiles the networks for it"
    return f"; {FASTER} has OpenVINO compile the networks for it, which makes most of them faster"
