"""One small greyscale image in every compressed transfer syntax that the node takes, to try the decoders on.

Every one is a ramp, so many grey values from row to row and from column to column (baseline JPEG: that divided by 16).
Encoded by dcmtk, JPEG 2000 by OpenJPEG, HTJ2K by OpenJPH.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Sample:
    """An encoded frame and what is in it.

    Parameters
    ----------
    rows, columns
        Size of the image.
    row_step, column_step
        Grey values from one row to the next, and from one column to the next.
    bits
        Stored, of as many as are allocated: 8 or 16.
    tolerance
        By how much a decoded value may differ: nothing, or what was lost in compression.
    text
        The frame in base64.
    """

    rows: int
    columns: int
    row_step: int
    column_step: int
    bits: int
    tolerance: int
    text: str

    @property
    def frame(self) -> bytes:
        """The encoded frame."""
        return base64.b64decode(self.text)

    @property
    def values(self) -> npt.NDArray[np.int64]:
        """(rows, columns) stored values."""
        row, column = np.mgrid[: self.rows, : self.columns]
        values: npt.NDArray[np.int64] = self.row_step * row + self.column_step * column
        return values >> 4 if self.bits == 8 else values


_BASELINE = Sample(
    rows=16,
    columns=16,
    row_step=100,
    column_step=13,
    bits=8,
    tolerance=3,
    text=(
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"
        "AQEBAQEBAQEBAQEBAQH/wAALCAAQABABAREA/8QAFgABAQEAAAAAAAAAAAAAAAAABgkK/8QAHxAAAAMJAAAAAAAAAAAAAAAAASEx"
        "AAQHESRDYaHw/9oACAEBAAA/AMYLhA1KNZWyHRD2WaOEDUo0lbMNGHZarjhA1KNZWyHRD2WaOEDUo0lbMNGHZb///9k="
    ),
)
_EXTENDED = Sample(
    rows=16,
    columns=16,
    row_step=100,
    column_step=13,
    bits=12,
    tolerance=8,
    text=(
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"
        "AQEBAQEBAQEBAQEBAQH/wQALDAAQABABAREA/8QAFgABAQEAAAAAAAAAAAAAAAAACg0O/8QAHBAAAAYDAAAAAAAAAAAAAAAAAAgL"
        "KDVGVGRy/9oACAEBAAA/AMYtkSQ4YZoGPRudENAIkhwwzQMejc6Iq4BEkOGGaBj0bnRDQCJIcMM0DHo3OiP/2Q=="
    ),
)
_LOSSLESS = Sample(
    rows=16,
    columns=16,
    row_step=100,
    column_step=13,
    bits=12,
    tolerance=0,
    text=(
        "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALEAAQABABAREA/8QAFwABAQEBAAAAAAAAAAAAAAAABgQHEP/aAAgBAQAGAADrbbbbbbbb"
        "bbbbbbdkZMmTJkyZMmTJkyZMmWyMmTJkyZMmTJkyZMmTLZGTJkyZMmTJkyZMmTJlsjJkyZMmTJkyZMmTJky2RkyZMmTJkyZMmTJk"
        "yZbIyZMmTJkyZMmTJkyZMtkZMmTJkyZMmTJkyZMmWyMmTJkyZMmTJkyZMmTLZGTJkyZMmTJkyZMmTJlsjJkyZMmTJkyZMmTJky2R"
        "kyZMmTJkyZMmTJkyZbIyZMmTJkyZMmTJkyZMtkZMmTJkyZMmTJkyZMmWyMmTJkyZMmTJkyZMmTLZGTJkyZMmTJkyZMmTJl//2Q=="
    ),
)
_LOSSLESS_SV1 = Sample(
    rows=16,
    columns=16,
    row_step=100,
    column_step=13,
    bits=12,
    tolerance=0,
    text=(
        "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALEAAQABABAREA/8QAFgABAQEAAAAAAAAAAAAAAAAABAcQ/9oACAEBAAEAAM1rWta1rWta"
        "1rbI1rWta1rWta1rbI1rWta1rWta1rbI1rWta1rWta1rbI1rWta1rWta1rbI1rWta1rWta1rbI1rWta1rWta1rbI1rWta1rWta1r"
        "bI1rWta1rWta1rbI1rWta1rWta1rbI1rWta1rWta1rbI1rWta1rWta1rbI1rWta1rWta1rbI1rWta1rWta1rbI1rWta1rWta1rbI"
        "1rWta1rWta1rf///2Q=="
    ),
)
_JPEG_LS = Sample(
    rows=16,
    columns=16,
    row_step=100,
    column_step=13,
    bits=12,
    tolerance=0,
    text=(
        "/9j/9wALEAAQABABAREA//gADQH//wASAEMBFABA/9oACAEBAAAAAKDMGYMwXhWE4MwXhWE4jD4bC4mZEGoMQtCkSiEOhkVERERD"
        "Q0GpkQ0NCRIkSJEiRIUKFCgxMaFChQoUKFCiiiiiihaxIoooooooIIIIIIIUsKCCCCCCCCCCCCEIlYEIQhCEIQhCEIRDfQhCEIQh"
        "CEIQhDt5CEREREREREM3URERERERERFbiIiIiSSSSI20kkkkkkkRtJJJJJKqI2VVVVVQ2wqqqqsNrv9/DP//2Q=="
    ),
)
_JPEG_LS_NEAR = Sample(
    rows=16,
    columns=16,
    row_step=100,
    column_step=13,
    bits=12,
    tolerance=8,
    text=(
        "/9j/9wALDAAQABABAREA/9oACAEBAAIAAKs63d3W7u/aYtmZibbbTWMaKVKVVyipVSrOJj5/8Uf/fE3/fxN//0m//2Sf/3Jv/3kn"
        "/3yT/35J/34i/3+Sf/8A/9k="
    ),
)
_RLE = Sample(
    rows=16,
    columns=16,
    row_step=100,
    column_step=13,
    bits=12,
    tolerance=0,
    text=(
        "AgAAAEAAAAB6AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAPEA9QD9AfwA9gHx"
        "AfgB+gIAAfIC9AL+A/sC9wPxA/cD+wQBAwPzBPME/wX6BPgF8QX2BfwG/gX0BgAPAA0aJzRBTltodYKPnKm2ww9kcX6LmKWyv8zZ"
        "5vMADRonD8jV4u/8CRYjMD1KV2RxfosPLDlGU2BteoeUoa67yNXi7w+Qnaq3xNHe6/gFEh8sOUZTD/QBDhsoNUJPXGl2g5CdqrcP"
        "WGVyf4yZprPAzdrn9AEOGw+8ydbj8P0KFyQxPktYZXJ/DyAtOkdUYW57iJWir7zJ1uMPhJGeq7jF0t/s+QYTIC06Rw/o9QIPHCk2"
        "Q1BdaneEkZ6rD0xZZnOAjZqntMHO2+j1Ag8PsL3K1+Tx/gsYJTI/TFlmcw8UIS47SFVib3yJlqOwvcrXD3iFkp+sucbT4O36BxQh"
        "LjsP3On2AxAdKjdEUV5reIWSnw=="
    ),
)
_JPEG_2000 = Sample(
    rows=32,
    columns=32,
    row_step=100,
    column_step=13,
    bits=12,
    tolerance=0,
    text=(
        "/0//UQApAAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABCwEB/1IADAAAAAEABQQEAAH/XAATQGBoaHBoaHBoaHBo"
        "aHBoaHD/ZAAlAAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjL/kAAKAAAAAABzAAH/k8fsBAnjwPwAo/kCAABHAAXA"
        "faCQ/YFADPb+vws3/n3vwD6gWD8wYCIYd78/A35hi38bwB84eB+AUDahhTkYEa89pi7WWtSxaKuPwA+QRAfaGF+nxzKjFbB/nawp"
        "XUvYrQDBWocf/9k="
    ),
)
_HTJ2K = Sample(
    rows=12,
    columns=16,
    row_step=300,
    column_step=7,
    bits=16,
    tolerance=0,
    text=(
        "/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCI"
        "kJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAHsAAf+TwAAmCfYFB3QAAMAAEsAAEwD+AId0"
        "ABD0A4d0AMAAEsAAEwDeAAJ0AKenAEI0AMAAE8AAFYDu/qMjwnUARCUqUYn6wFKBvrYAwAAqoAAWoCRJ/ueAp6dCdwBWWrFixYoV"
        "K1b++hCAe/ZCAey6AP/Z"
    ),
)

#: Keyword of a transfer syntax -> a frame that its decoder has to read.
SAMPLES = {
    "JPEGBaseline8Bit": _BASELINE,
    "JPEGExtended12Bit": _EXTENDED,
    "JPEGLossless": _LOSSLESS,
    "JPEGLosslessSV1": _LOSSLESS_SV1,
    "JPEGLSLossless": _JPEG_LS,
    "JPEGLSNearLossless": _JPEG_LS_NEAR,
    "RLELossless": _RLE,
    "JPEG2000Lossless": _JPEG_2000,
    "JPEG2000": _JPEG_2000,
    "HTJ2KLossless": _HTJ2K,
    "HTJ2KLosslessRPCL": _HTJ2K,
    "HTJ2K": _HTJ2K,
}
