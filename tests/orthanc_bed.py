"""A real PACS for tests: Debian's Orthanc on loopback, started as orthanc-test/start.py starts it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from free_ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).resolve().parents[1]
START = REPOSITORY / "orthanc-test" / "start.py"


class Orthanc:
    """Orthanc and the part of its REST API that the stories need.

    `stop` and `start` keep ports and storage, so that a PACS can be away for a while. `node_port` is the loopback port
    to which it sends CT and MR series (modality ``pacs_ai``, AE title PACS_AI), `peer` what to write into the node's
    configuration. All waiting is polling with a deadline.
    """

    ae_title = "ORTHANC"
    host = "127.0.0.1"

    def __init__(self, folder: Path, *, autoroute: bool = True, stable_seconds: int = 1) -> None:
        self.folder = folder
        self.dicom_port, self.http_port, self.node_port = free_port(), free_port(), free_port()
        self._options = ["--stable-seconds", str(stable_seconds), *([] if autoroute else ["--no-autoroute"])]
        self._process: subprocess.Popen[str] | None = None

    # Life

    def start(self) -> None:
        """Start Orthanc and wait until it answers."""
        assert self._process is None, "Orthanc runs already"
        ports = {"--dicom-port": self.dicom_port, "--http-port": self.http_port, "--node-port": self.node_port}
        words = [word for name, port in ports.items() for word in (name, str(port))]
        self._process = subprocess.Popen(
            [sys.executable, str(START), "--folder", str(self.folder), *words, *self._options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == "ready":
                return
        _, errors = self._process.communicate(timeout=10)
        self._process = None
        pytest.fail(f"Orthanc did not start: {errors}")

    def stop(self) -> None:
        """End Orthanc; what it stored stays."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.communicate(timeout=60)
            self._process = None

    @property
    def pid(self) -> int:
        """Process id of the script under which Orthanc runs."""
        assert self._process is not None, "Orthanc does not run"
        return self._process.pid

    def log(self) -> str:
        """Return all that Orthanc wrote to its log."""
        return (self.folder / "orthanc.log").read_text(encoding="utf-8", errors="replace")

    # REST

    def call(self, method: str, path: str, body: bytes | dict[str, Any] | None = None) -> bytes:
        """Return what REST answers; `urllib.error.HTTPError` where that is an error."""
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", content, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        """Return the JSON at `path`."""
        return json.loads(self.call("GET", path))

    def statistics(self) -> dict[str, Any]:
        """Return CountPatients, CountStudies, CountSeries, CountInstances and the sizes on disk."""
        return self.get("/statistics")

    def upload(self, *paths: Path) -> list[str]:
        """Store DICOM files by REST (files of folders too); return Orthanc's identifiers of the instances."""
        files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.dcm")))]
        return [json.loads(self.call("POST", "/instances", file.read_bytes()))["ID"] for file in files]

    def find(self, level: str, **query: str) -> list[str]:
        """Return Orthanc's identifiers at a level ("Study", "Series", "Instance") that match DICOM keywords."""
        return json.loads(self.call("POST", "/tools/find", {"Level": level, "Query": query}))

    def study(self, study_instance_uid: str) -> str | None:
        """Return Orthanc's identifier of a study, None where it has no such study."""
        return next(iter(self.find("Study", StudyInstanceUID=study_instance_uid)), None)

    def series(self, study_instance_uid: str, modality: str | None = None) -> list[dict[str, Any]]:
        """Return the main DICOM tags of a study's series, with Orthanc's identifier as "ID"."""
        query = {"StudyInstanceUID": study_instance_uid} | ({"Modality": modality} if modality else {})
        return [
            {"ID": found, **self.get(f"/series/{found}")["MainDicomTags"]} for found in self.find("Series", **query)
        ]

    def instances(self, study_instance_uid: str, modality: str | None = None) -> list[str]:
        """Return Orthanc's identifiers of a study's instances, of one modality or of all."""
        return [
            found
            for one in self.series(study_instance_uid, modality)
            for found in self.get(f"/series/{one['ID']}")["Instances"]
        ]

    def instance(self, sop_instance_uid: str) -> str | None:
        """Return Orthanc's identifier of an instance, None where it has no such instance."""
        return next(iter(self.find("Instance", SOPInstanceUID=sop_instance_uid)), None)

    def tags(self, instance: str) -> dict[str, Any]:
        """Return all tags of an instance by keyword."""
        return self.get(f"/instances/{instance}/simplified-tags")

    def metadata(self, instance: str, name: str) -> str:
        """Return one of Orthanc's metadata, "RemoteAET" or "TransferSyntax" for instance."""
        return self.call("GET", f"/instances/{instance}/metadata/{name}").decode()

    def file(self, instance: str) -> bytes:
        """Return the DICOM file as Orthanc keeps it."""
        return self.call("GET", f"/instances/{instance}/file")

    def download(self, instance: str, path: Path) -> Path:
        """Write the DICOM file to `path` and return it."""
        path.write_bytes(self.file(instance))
        return path

    def delete_all(self) -> None:
        """Delete all patients."""
        for patient in self.get("/patients"):
            self.call("DELETE", f"/patients/{patient}")

    # Sending

    def store(self, *resources: str, modality: str = "pacs_ai") -> str:
        """Send studies, series or instances to a modality in the background; return the job's identifier."""
        order = {"Resources": list(resources), "Synchronous": False}
        return json.loads(self.call("POST", f"/modalities/{modality}/store", order))["ID"]

    def echo(self, modality: str = "pacs_ai") -> bool:
        """Whether a modality answers C-ECHO."""
        try:
            self.call("POST", f"/modalities/{modality}/echo", {"Timeout": 5})
        except urllib.error.HTTPError:
            return False
        return True

    def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs, expanded."""
        return self.get("/jobs?expand")

    def job(self, identifier: str) -> dict[str, Any]:
        """Return one job."""
        return self.get(f"/jobs/{identifier}")

    def has_failed_jobs(self) -> bool:
        """Tell whether something could not be sent."""
        return any(job["State"] == "Failure" for job in self.jobs())

    def resubmit_failed(self) -> int:
        """Send again what could not be sent, as a PACS's operator would; return how many jobs."""
        failed = [job["ID"] for job in self.jobs() if job["State"] == "Failure"]
        for identifier in failed:
            self.call("POST", f"/jobs/{identifier}/resubmit", b"")
        return len(failed)

    # Waiting

    def wait_for_job(self, identifier: str, seconds: float = 120.0) -> dict[str, Any]:
        """Return the job as soon as it has succeeded or failed."""
        return self.wait_until(
            lambda: (job := self.job(identifier))["State"] in {"Success", "Failure"} and job, seconds, "the job's end"
        )

    def wait_for_instances(
        self, study_instance_uid: str, modality: str, count: int = 1, seconds: float = 120.0
    ) -> list[str]:
        """Return a study's instances of a modality as soon as there are `count`."""
        return self.wait_until(
            lambda: len(found := self.instances(study_instance_uid, modality)) >= count and found,
            seconds,
            f"{count} {modality} in Orthanc",
        )

    def wait_until(self, condition: Callable[[], Any], seconds: float = 120.0, what: str = "the condition") -> Any:
        """Return what `condition` returns as soon as that is true."""
        deadline = time.monotonic() + seconds
        pause = threading.Event()
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{what} did not come within {seconds:g} s; log:\n{self.log()[-2000:]}"
            pause.wait(0.05)
        return found


def missing() -> str:
    """Return what is not installed and how to install it, in words; "" where all is there."""
    has_binary = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    has_plugin = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so").exists()
    return "" if has_binary and has_plugin else "ORTHANC MISSING: apt-get install orthanc orthanc-dicomweb"
