#!/usr/bin/env python3
# ruff: noqa: T201 (a script: it prints)
"""Starts Debian's Orthanc as a test PACS in a private folder on loopback ports, until it gets SIGTERM or Ctrl-C.

Needs only the standard library and the Debian packages orthanc and orthanc-dicomweb. README.md says more.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
MISSING = "ORTHANC MISSING: apt-get install orthanc orthanc-dicomweb"
PLUGIN_FOLDER = Path("/usr/share/orthanc/plugins")
#: AE titles that may send and ask from this machine, besides the node's own.
KNOWN_AE_TITLES = ("STORESCU", "ECHOSCU", "SENDER", "MODALITY")
PR_SET_PDEATHSIG = 1


def orthanc_binary() -> str | None:
    """Return the path of Debian's Orthanc, None where it is not installed."""
    return shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def configuration(arguments: argparse.Namespace) -> dict[str, object]:
    """Return orthanc.json with what depends on this run: folders, ports, plugins, who may connect."""
    settings: dict[str, object] = json.loads((HERE / "orthanc.json").read_text(encoding="utf-8"))
    modalities = {"pacs_ai": [arguments.node_aet, "127.0.0.1", arguments.node_port]}
    modalities |= {title.lower(): [title, "127.0.0.1", arguments.node_port] for title in KNOWN_AE_TITLES}
    plugin = PLUGIN_FOLDER / "libOrthancDicomWeb.so"
    settings |= {
        "StorageDirectory": str(arguments.folder / "storage"),
        "IndexDirectory": str(arguments.folder / "storage"),
        "DicomPort": arguments.dicom_port,
        "HttpPort": arguments.http_port,
        "StableAge": arguments.stable_seconds,
        "DicomModalities": modalities,
        "Plugins": [str(plugin)] if plugin.exists() else [],
        "LuaScripts": [] if arguments.no_autoroute else [str(HERE / "autoroute.lua")],
        # Orthanc 1.10 cannot bind to one address; so it lets in nobody but this machine.
        "RemoteAccessAllowed": False,
        "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowStore": False,
        "DicomAlwaysAllowFind": False,
        "DicomAlwaysAllowGet": False,
        "DicomCheckModalityHost": True,
    }
    return settings


def _die_with_parent() -> None:
    """Let Orthanc end with this script, however it ends (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def launch(binary: str, folder: Path, settings: dict[str, object]) -> subprocess.Popen[bytes]:
    """Start Orthanc in `folder`; its log goes to orthanc.log there."""
    (folder / "storage").mkdir(parents=True, exist_ok=True)
    path = folder / "orthanc.json"
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    with (folder / "orthanc.log").open("ab") as log:
        return subprocess.Popen(
            [binary, str(path)],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env={**os.environ, "TCP_NODELAY": "1"},  # dcmtk: without it 17 instead of 92 instances/s
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 (one thread here)
        )


def wait_until_ready(process: subprocess.Popen[bytes], http_port: int, seconds: float) -> str:
    """Wait until REST answers; return "" or, in words, why it never did."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return f"Orthanc ended at once with exit code {process.returncode}"
        with contextlib.suppress(OSError, urllib.error.URLError):
            with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/system", timeout=2) as answer:
                json.load(answer)
            return ""
        time.sleep(0.05)
    return f"Orthanc did not answer on 127.0.0.1:{http_port} within {seconds:g} s"


def stop(process: subprocess.Popen[bytes]) -> None:
    """End Orthanc with SIGTERM, with SIGKILL after 10 s."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; ports that were not given are chosen."""
    parser = argparse.ArgumentParser(description="Start Debian's Orthanc as a test PACS that auto-routes CT and MR.")
    parser.add_argument("--folder", type=Path, help="where studies, index and log lie (default: a temporary folder)")
    parser.add_argument("--dicom-port", type=int, default=0, help="DICOM port (default: a free one)")
    parser.add_argument("--http-port", type=int, default=0, help="REST and DICOMweb port (default: a free one)")
    parser.add_argument("--node-port", type=int, default=11112, help="port of the pacs_ai node (default 11112)")
    parser.add_argument("--node-aet", default="PACS_AI", help="AE title of the pacs_ai node (default PACS_AI)")
    parser.add_argument("--stable-seconds", type=int, default=3, help="a quiet series is sent after so long")
    parser.add_argument("--no-autoroute", action="store_true", help="do not send series to the node")
    parser.add_argument("--ready-seconds", type=float, default=30.0, help="give up if it does not answer by then")
    arguments = parser.parse_args(words)
    arguments.dicom_port = arguments.dicom_port or free_port()
    arguments.http_port = arguments.http_port or free_port()
    return arguments


def serve(binary: str, arguments: argparse.Namespace) -> int:
    """Run Orthanc until a signal comes or it ends; return the exit code."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    process = launch(binary, arguments.folder, configuration(arguments))
    try:
        fault = wait_until_ready(process, arguments.http_port, arguments.ready_seconds)
        if fault:
            print(f"{fault}; see {arguments.folder / 'orthanc.log'}", file=sys.stderr)
            return 1
        print(f"DICOM     ORTHANC at 127.0.0.1:{arguments.dicom_port}")
        print(f"REST      http://127.0.0.1:{arguments.http_port}/")
        print(f"DICOMweb  http://127.0.0.1:{arguments.http_port}/dicom-web/")
        print(f"routes to {arguments.node_aet} at 127.0.0.1:{arguments.node_port}")
        print("ready", flush=True)
        while not asked.wait(0.2):
            if process.poll() is not None:
                print(f"Orthanc ended with exit code {process.returncode}", file=sys.stderr)
                return 1
    finally:
        stop(process)
    return 0


def main(words: list[str] | None = None) -> int:
    """Start Orthanc; 0 after a clean stop, 1 where it failed, 2 where it is not installed."""
    arguments = arguments_of(words)
    binary = orthanc_binary()
    if binary is None:
        print(MISSING, file=sys.stderr)
        return 2
    with contextlib.ExitStack() as cleanup:
        if arguments.folder is None:
            arguments.folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="orthanc-test-")))
        arguments.folder = arguments.folder.resolve()
        return serve(binary, arguments)


if __name__ == "__main__":
    sys.exit(main())
