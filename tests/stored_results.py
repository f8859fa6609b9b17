"""Encoded objects as the stations keep them: small files of the right SOP class, of the source's patient."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom import uid as uids

from pacs_ai import profiles
from pacs_ai.dicom.identifiers import derive_uid
from pacs_ai.store import schema
from pacs_ai.store.filling import NewResult

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stations import Sender, Stations

    from pacs_ai.profiles import Encoding, Plan
    from pacs_ai.store.files import Files
    from pacs_ai.store.queue import Claim


def keep_sources(files: Files, sender: Sender) -> None:
    """Put what a sender wrote into the store."""
    files.sync([files.write([path.read_bytes()]) for path in sorted(sender.folder.iterdir())])


def stored(
    files: Files, held: Claim, encoding: Encoding, study: str = "7", patient: str = "P1", character_set: str = ""
) -> NewResult:
    """Write one small object of a job into the store; `study` is a sender's."""
    ds = Dataset()
    if character_set:
        ds.SpecificCharacterSet = character_set
    ds.SOPClassUID = encoding.details.sop_class_uid
    ds.SOPInstanceUID = derive_uid(held.job_key, encoding.key)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.2.9.{study}", derive_uid(held.job_key, encoding.series)
    ds.PatientID, ds.PatientName = patient, "Doe^Jane"
    ds.Modality, ds.Manufacturer = encoding.details.modality, "pacs_ai"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = getattr(uids, encoding.transfer_syntax, uids.ExplicitVRLittleEndian)
    written = io.BytesIO()
    dcmwrite(written, ds, enforce_file_format=True, implicit_vr=False, little_endian=True)
    file = files.write([written.getvalue()])
    files.sync([file])
    return NewResult(
        kind=encoding.label,
        encoding=encoding.key,
        study_instance_uid=str(ds.StudyInstanceUID),
        series_instance_uid=str(ds.SeriesInstanceUID),
        sop_instance_uid=str(ds.SOPInstanceUID),
        sop_class_uid=str(ds.SOPClassUID),
        transfer_syntax_uid=str(ds.file_meta.TransferSyntaxUID),
        sha256=file.sha256,
        size=file.size,
    )


def finish_with(stations: Stations, files: Files, encoded: Iterable[Encoding], **whose: str) -> int:
    """Have the next job done with an object of each encoding; returns the job."""
    held, made = stations.claim(), tuple(encoded)
    results = [stored(files, held, one, **whose) for one in made]
    stations.finish_with(held, results, [one.key for one in made])
    return held.job_id


def kinds(stations: Stations, peer: str, state: str) -> list[str]:
    """Return form and kind of what a peer's deliveries in a state are of, in the order of sending."""
    results = {row.id: row for row in stations.rows(schema.result)}
    rows = stations.rows(schema.delivery, schema.delivery.c.peer == peer, schema.delivery.c.state == state)
    ordered = sorted(rows, key=lambda row: (row.job_id, row.place, results[row.result_id].ordinal))
    return [" ".join(results[row.result_id].encoding.split("/")[:2]) for row in ordered]


def plan_of(*wanted: object) -> Plan:
    """Return the plan of a profile of these objects (`pacs_ai.profiles.Wanted`)."""
    return profiles.plan(profiles.Profile("test", wanted), 9001)  # type: ignore[arg-type]
