"""What findings are shown on: the slices of a volume, images, or the traces of a waveform, on which nothing lies."""

from __future__ import annotations

from pacs_ai.pipeline import Frames, Given, TimeSeries, Volume, Waveform

#: What segments, places and maps can lie on.
Ground = Volume | Frames
#: What a result is shown on.
Shown = Ground | Waveform


def shown_as(given: Given) -> Shown:
    """Return what findings are shown on; of a series over time the volume at its first time.

    One segment lies on one grid for all times, and a frame of a segmentation has one place: its Derivation Image
    Sequence names the image that it is to be drawn over (PS3.3 C.7.6.16.2.6), which viewers take the first item of.
    The first time is what a viewer opens such a series with. The report cites the images of all times.
    """
    if not isinstance(given, TimeSeries):
        return given
    return Volume(given.voxels[0], given.affine, given.modality, given.header, given.frame_of_reference_uid)
