#!/usr/bin/env python3
# ruff: noqa: T201 (a script: it prints)
"""Serves the OHIF viewer and Orthanc's DICOMweb on one loopback address, until it gets SIGTERM or Ctrl-C.

Needs only the standard library, the Debian package nginx-light, and npm, which fetches the prebuilt viewer once.
README.md says more.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import ctypes
import getpass
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PR_SET_PDEATHSIG = 1
FETCH_SECONDS = 600


class Missing(Exception):  # noqa: N818 - what it is
    """Something is not on this machine; the message says what to do."""


@dataclass(frozen=True)
class Package:
    """One release of an npm package, as it is fetched: no other bytes are used.

    Parameters
    ----------
    name, version
        As npm knows it.
    sha512
        Of the tarball, base64, as `npm view NAME@VERSION dist.integrity` says it.
    proof
        A file in it.
    """

    name: str
    version: str
    sha512: str
    proof: str

    @property
    def folder(self) -> Path:
        """Where it lies, unpacked."""
        return cache() / f"{self.name.strip('@').replace('/', '-')}-{self.version}"


OHIF = Package(
    "@ohif/app",
    "3.13.2",
    "WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA==",
    "dist/index.html",
)
#: Drives a browser; the newest that runs with Debian's Node.js 18.
PLAYWRIGHT = Package(
    "playwright-core",
    "1.60.0",
    "9bW6zvX/m0lEbgTKJ6YppOKx8H3VOPBMOCFh2irXFOT4BbHgrx5hPjwJYLT40Lu+4qtD36qKc/Hn56StUW57IA==",
    "index.js",
)
PACKAGES = {package.name: package for package in (OHIF, PLAYWRIGHT)}


def cache() -> Path:
    """Return the folder in which packages are kept, outside every repository."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "pacs_ai" / "viewer"


def fetch(package: Package) -> Path:
    """Return the folder of the unpacked package, fetched once; `Missing` where that is impossible."""
    if (package.folder / package.proof).exists():
        return package.folder
    npm = shutil.which("npm")
    if npm is None:
        raise Missing(f"NPM MISSING: apt-get install npm; it fetches {package.name} {package.version} once")
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache()) as name:
        tarball = _pack(npm, package, Path(name))
        _unpack(tarball, Path(name))
        with contextlib.suppress(OSError):  # another process was faster
            (Path(name) / "package").rename(package.folder)
    return package.folder


def _pack(npm: str, package: Package, folder: Path) -> Path:
    """Have npm fetch the tarball into `folder`, and hold it against its digest."""
    wanted = f"{package.name}@{package.version}"
    print(f"Fetching {wanted} by npm into {cache()}", file=sys.stderr)
    try:
        done = subprocess.run(
            [npm, "pack", wanted, "--silent", "--ignore-scripts"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=FETCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"npm did not fetch {wanted} within {FETCH_SECONDS} s") from None
    (tarball, *_) = *folder.glob("*.tgz"), None
    if done.returncode or tarball is None:
        raise Missing(
            f"npm could not fetch {wanted}: {(done.stderr or done.stdout).strip()[-400:]}. "
            "Behind a proxy: npm config set proxy; a registry of your own: npm config set registry"
        )
    found = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise Missing(f"what npm fetched as {wanted} has SHA-512 {found}, not {package.sha512}: it is not used")
    return tarball


def _unpack(tarball: Path, folder: Path) -> None:
    with tarfile.open(tarball) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:
            archive.extractall(folder)  # noqa: S202 - its digest is known


def nginx_binary() -> str:
    """Return the path of nginx; `Missing` where it is not installed."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Missing("NGINX MISSING: apt-get install nginx-light")
    return found


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def viewer_settings(*, fullest_slice: bool) -> str:
    """Return the viewer's app-config.js: this origin's DICOMweb, no tour, no question before a segmentation shows."""
    settings = json.loads((HERE / "ohif.json").read_text(encoding="utf-8"))
    roots = {"qidoRoot": "/dicom-web", "wadoRoot": "/dicom-web", "wadoUriRoot": "/wado"}
    origin = "".join(
        f"window.config.dataSources[0].configuration.{name} = window.location.origin + '{path}';\n"
        for name, path in roots.items()
    )
    script = (HERE / "first-slice.js").read_text(encoding="utf-8") if fullest_slice else ""
    return f"window.config = {json.dumps(settings, indent=2)};\n{origin}{script}"


def server_settings(folder: Path, static: Path, port: int, orthanc_port: int) -> str:
    """Return nginx.conf: the viewer's files, and Orthanc behind /dicom-web, /wado and /orthanc on the same origin."""
    text = (HERE / "nginx.conf").read_text(encoding="utf-8")
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""  # else its worker may not read our folders
    replaced = {"USER": user, "FOLDER": folder, "STATIC": static, "PORT": port, "ORTHANC": orthanc_port}
    for name, value in replaced.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def _die_with_parent() -> None:
    """Let nginx end with this script, however it ends (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def launch(binary: str, static: Path, folder: Path, arguments: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Start nginx in `folder`; what it complains about goes to nginx.log there."""
    (folder / "app-config.js").write_text(viewer_settings(fullest_slice=arguments.fullest_slice), encoding="utf-8")
    conf = folder / "nginx.conf"
    conf.write_text(server_settings(folder, static, arguments.port, arguments.orthanc_port), encoding="utf-8")
    with (folder / "nginx.log").open("wb") as log:
        return subprocess.Popen(
            [binary, "-p", str(folder), "-c", str(conf), "-e", "stderr"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 (one thread here)
        )


def wait_until_ready(process: subprocess.Popen[bytes], port: int, seconds: float = 20.0) -> str:
    """Wait until the viewer's page is served; return "" or, in words, why it never was."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return f"nginx ended at once with exit code {process.returncode}"
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/app-config.js", timeout=2).close()
            return ""
        time.sleep(0.05)
    return f"nginx did not answer on 127.0.0.1:{port} within {seconds:g} s"


def stop(process: subprocess.Popen[bytes]) -> None:
    """End nginx with SIGTERM, with SIGKILL after 10 s."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(arguments: argparse.Namespace, folder: Path) -> int:
    """Serve until a signal comes or nginx ends; return the exit code."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    binary = nginx_binary()
    process = launch(binary, fetch(OHIF) / "dist", folder, arguments)
    try:
        fault = wait_until_ready(process, arguments.port)
        if fault:
            words = (folder / "nginx.log").read_text(encoding="utf-8", errors="replace").strip()
            print(f"{fault}: {words[-800:]}", file=sys.stderr)
            return 1
        print(f"OHIF      http://127.0.0.1:{arguments.port}/")
        print("ready", flush=True)
        while not asked.wait(0.2):
            if process.poll() is not None:
                print(f"nginx ended with exit code {process.returncode}", file=sys.stderr)
                return 1
    finally:
        stop(process)
    return 0


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a port that was not given is chosen."""
    parser = argparse.ArgumentParser(description="Serve OHIF and an Orthanc's DICOMweb on one loopback address.")
    orders = parser.add_subparsers(dest="order", required=True)
    fetching = orders.add_parser("fetch", help="fetch packages into the cache and print their folders")
    fetching.add_argument("package", nargs="*", choices=[*PACKAGES, []], help="default: all")
    serving = orders.add_parser("serve", help="serve until Ctrl-C")
    serving.add_argument("--orthanc-port", type=int, required=True, help="REST and DICOMweb port of Orthanc")
    serving.add_argument("--port", type=int, default=0, help="port of the viewer (default: a free one)")
    serving.add_argument("--fullest-slice", action="store_true", help="begin where a segmentation has most voxels")
    arguments = parser.parse_args(words)
    if arguments.order == "serve":
        arguments.port = arguments.port or free_port()
    return arguments


def main(words: list[str] | None = None) -> int:
    """Fetch, or serve; 0 after a clean stop, 1 where it failed, 2 where something is not installed."""
    arguments = arguments_of(words)
    try:
        if arguments.order == "fetch":
            for name in arguments.package or PACKAGES:
                print(fetch(PACKAGES[name]))
            return 0
        with tempfile.TemporaryDirectory(prefix="ohif-") as folder:
            return serve(arguments, Path(folder))
    except Missing as missing:
        print(missing, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
