"""RLE Lossless (PS3.5 annex G), written for whole images at once: the compression that every old PACS can read."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pacs_ai.pipeline import Array

LONGEST = 128  # bytes that one count can stand for, PS3.5 G.3.1
#: Bytes that are encoded together; rows are independent of one another, so this bounds the memory.
TOGETHER = 1 << 20

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.intp]


def encode_frame(frame: Array) -> bytes:
    """Return one RLE coded frame: its header of 64 bytes and one segment for each byte plane (PS3.5 G.2, G.5).

    Parameters
    ----------
    frame
        (rows, columns) or (rows, columns, 3), of unsigned integers. Each sample's high byte comes before its low byte;
        colours follow one another as planes, whatever Planar Configuration says.
    """
    samples = frame[..., np.newaxis] if frame.ndim == 2 else frame
    octets = np.ascontiguousarray(samples).view(np.uint8).reshape(*samples.shape, samples.itemsize)
    planes = [
        encode_plane(octets[..., sample, octet])
        for sample in range(samples.shape[2])
        for octet in reversed(range(samples.itemsize))  # little endian in memory
    ]
    offsets = np.cumsum([64, *(len(plane) for plane in planes[:-1])]).tolist()
    header = struct.pack(f"<{1 + len(planes)}I", len(planes), *offsets)
    return header.ljust(64, b"\x00") + b"".join(planes)


def encode_plane(plane: Bytes) -> bytes:
    """Return one RLE segment: each row by itself, padded with a zero to even length (PS3.5 G.3.1)."""
    rows, columns = plane.shape
    block = max(1, TOGETHER // columns)
    coded = b"".join(_encode_rows(plane[first : first + block]) for first in range(0, rows, block))
    return coded + b"\x00" * (len(coded) % 2)


def _encode_rows(rows: Bytes) -> bytes:
    octets = np.ascontiguousarray(rows).ravel()
    starts, lengths, literal = _runs(octets, rows.shape[1])
    places = np.cumsum(np.where(literal, lengths + 1, 2))
    coded = np.empty(int(places[-1]), np.uint8)
    places = np.concatenate(([0], places[:-1]))
    coded[places] = np.where(literal, lengths - 1, 257 - lengths)  # -n as a byte, PS3.5 G.3.1
    coded[places[~literal] + 1] = octets[starts[~literal]]
    copied = np.repeat(literal, lengths)
    shift = np.repeat((places + 1 - starts)[literal], lengths[literal])
    sources = np.flatnonzero(copied)
    coded[sources + shift] = octets[sources]
    return coded.tobytes()


def _runs(octets: Bytes, columns: int) -> tuple[Indices, Indices, npt.NDArray[np.bool_]]:
    """Return start, length and kind (literal or repeated) of the runs; none crosses the end of a row."""
    begins = np.empty(len(octets), np.bool_)
    np.not_equal(octets[1:], octets[:-1], out=begins[1:])
    begins[::columns] = True
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=len(octets))
    single = lengths == 1
    heads = ~single  # single bytes that follow one another in a row are one literal run
    heads[1:] |= ~single[:-1]
    heads |= starts % columns == 0
    starts, literal = starts[heads], single[heads]
    return _split(starts, np.diff(starts, append=len(octets)), literal)


def _split(
    starts: Indices, lengths: Indices, literal: npt.NDArray[np.bool_]
) -> tuple[Indices, Indices, npt.NDArray[np.bool_]]:
    """Cut runs into pieces of at most 128 bytes; the last piece of a repeated run may be one byte, literally."""
    pieces = -(-lengths // LONGEST)
    if len(pieces) == pieces.sum():
        return starts, lengths, literal
    firsts = np.cumsum(pieces) - pieces
    within = (np.arange(pieces.sum()) - np.repeat(firsts, pieces)) * LONGEST
    starts = np.repeat(starts, pieces) + within
    lengths = np.minimum(np.repeat(lengths, pieces) - within, LONGEST)
    return starts, lengths, np.repeat(literal, pieces) | (lengths == 1)
