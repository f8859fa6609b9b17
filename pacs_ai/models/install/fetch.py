"""Fetch a recipe's archive: from PyPI with pip, from npm, or from an https address, never more than the file itself.

Nothing that comes is imported, built or run: of PyPI only wheels are taken (pip would run the set-up program of a
source distribution), of npm the tarball with scripts switched off. Which index or registry, proxy and certificate hold
is what the user's pip and npm are configured with.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pacs_ai.errors import Unavailable, UserError
from pacs_ai.models.convert.formats.bounds import DISK, LARGEST

if TYPE_CHECKING:
    from collections.abc import Callable

    #: Told while bytes come: what, how many are there, how many there will be (None: not known).
    Progress = Callable[[str, int, int | None], None]

_PYPI = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._+!]*")
_NPM = re.compile(r"(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*@[0-9][0-9A-Za-z.+-]*")
_URL = re.compile(r"[\x21-\x7e]+")
_SECONDS = 60.0
_CHUNK = 1 << 18


def pypi(wanted: str, to: Path) -> Path:
    """Download a wheel (``name==1.2.3``) and return its path.

    Raises
    ------
    UserError
        It is no such pin, pip is missing, or there is no such wheel; the message ends with what pip said.
    """
    if not _PYPI.fullmatch(wanted):
        raise UserError(f"{wanted!r} is no pinned distribution (name==1.2.3): correct pypi in [install]")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input",
               "--ignore-requires-python", "--disable-pip-version-check", "--dest", str(to), "--", wanted]  # fmt: skip
    before = set(to.iterdir())
    _call(command, f"pip download {wanted}", "--from FOLDER installs from files that you brought")
    return _new(to, before, wanted, ".whl")


def npm(wanted: str, to: Path, progress: Progress) -> Path:
    """Download a package's tarball (``name@1.2.3``) and return its path; errors as `pypi`."""
    if not _NPM.fullmatch(wanted):
        raise UserError(f"{wanted!r} is no pinned npm package (name@1.2.3): correct npm in [install]")
    program = shutil.which("npm")
    if program is None:
        return _tarball(wanted, to, progress)
    command = [program, "pack", "--ignore-scripts", "--loglevel", "error", "--pack-destination", str(to), "--", wanted]
    before = set(to.iterdir())
    _call(command, f"npm pack {wanted}", "--from FOLDER installs from files that you brought")
    return _new(to, before, wanted, ".tgz")


def _call(command: list[str], what: str, advice: str) -> None:
    """Run a downloader, its own progress on the terminal where there is one."""
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=shown, stderr=subprocess.PIPE)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        said = [line for line in lines if line.lower().startswith(("error", "npm error"))] or lines[-1:]
        raise UserError(f"{what} failed; {advice}. It said: {' '.join(said[-2:])[:400] or 'nothing'}")


def _new(folder: Path, before: set[Path], wanted: str, suffix: str) -> Path:
    """Return the one file that came; one that was there already and fits is as good."""
    stem = re.sub(r"[@/_.-]+", "-", re.split(r"==|(?<=.)@", wanted)[0]).strip("-").lower()
    came = [path for path in set(folder.iterdir()) - before if path.suffix == suffix]
    fit = came or [
        path for path in before if path.suffix == suffix and re.sub(r"[_.-]+", "-", path.name).lower().startswith(stem)
    ]
    if len(fit) != 1:
        raise UserError(f"{wanted} brought {len(fit)} files that end in {suffix}, not one: use --from FOLDER")
    return fit[0]


def _tarball(wanted: str, to: Path, progress: Progress) -> Path:
    """Fetch the tarball without npm, from the registry that npm's environment or .npmrc names."""
    package, _, version = wanted.rpartition("@")
    registry = _registry()
    if registry is None:
        raise UserError(
            f"npm is not installed, and neither npm_config_registry nor ~/.npmrc names a registry: install npm, or "
            f"bring the tarball of {wanted} and use --from FOLDER"
        )
    name = package.rpartition("/")[2]
    return https(f"{registry.rstrip('/')}/{package}/-/{name}-{version}.tgz", to, progress)


def _registry() -> str | None:
    for name, value in os.environ.items():  # npm takes it in either case
        if name.lower() == "npm_config_registry" and value:
            return value
    path = Path.home() / ".npmrc"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = [line.partition("=")[2].strip() for line in lines if line.partition("=")[0].strip() == "registry"]
    return found[-1] if found else None


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https alone."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the next request, or refuse."""
        if urlsplit(newurl).scheme != "https":
            raise UserError(f"{urlsplit(req.full_url).hostname} sends on to an address that is not https: refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def https(url: str, to: Path, progress: Progress) -> Path:
    """Download one file and return its path; a part that is there is gone on with (RFC 9110 section 14, Range).

    Parameters
    ----------
    url
        https address; the last part of its path names the file.
    to
        Folder; the unfinished file there ends in ``.part`` and stays when the connection is lost.
    progress
        Told of the bytes.

    Raises
    ------
    UserError
        It is no https address, or the server says no.
    Unavailable
        The connection failed or was lost: the same command goes on where it stopped.
    """
    host, name = _address(url)
    part = to / f"{name}.part"
    try:
        response, start = _opened(url, part)
        with response:
            length = response.headers.get("Content-Length")
            total = start + int(length) if length and length.isdecimal() else None
            done = _received(response, part, start, lambda done: progress(name, done, total))
    except urllib.error.HTTPError as error:
        raise UserError(f"{host} answered {error.code} {error.reason} for {name}: is the address right?") from error
    except (OSError, http.client.HTTPException) as error:  # lost, refused, timed out, no such host, cut off
        if isinstance(error, OSError) and error.errno in DISK:
            raise
        raise _lost(name, str(error) or type(error).__name__) from error
    if total is not None and done < total:
        raise _lost(name, f"{done} of {total} bytes came")
    return part.rename(to / name)


def _address(url: str) -> tuple[str, str]:
    """Return the host of an https address of a file, and the file's name; `UserError` where it is none."""
    try:
        parts = urlsplit(url)
        host, name = (parts.hostname or "").encode("idna").decode(), Path(parts.path).name
        if parts.scheme == "https" and host and name not in {"", "..", "."} and _URL.fullmatch(url) and parts.port != 0:
            return host, name
    except ValueError as error:  # a port that is no number, brackets without an address
        raise UserError(f"{url!r} is no https address ({error}): correct url in [install]") from error
    raise UserError(f"{url!r} is no https address of a file: correct url in [install]")


def _received(response: Any, part: Path, start: int, progress: Callable[[int], None]) -> int:
    """Add what comes to the first `start` bytes of the part; return how many are there."""
    done = start
    with part.open("ab" if start else "wb") as out:
        while chunk := response.read(_CHUNK):
            done += len(chunk)
            if done > LARGEST:
                part.unlink()
                raise UserError(f"{part.stem} is longer than {LARGEST} bytes: this is no model's file")
            out.write(chunk)
            progress(done)
    return done


def _lost(name: str, words: str) -> Unavailable:
    return Unavailable(f"{name} did not come ({words}): give the command again, it goes on where it stopped")


def _opened(url: str, part: Path) -> tuple[Any, int]:
    """Ask for what is missing of the file; return the answer, and how much of the part it goes on from."""
    opener = urllib.request.build_opener(_OnlyHttps())
    have = part.stat().st_size if part.is_file() else 0
    if have:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"})  # noqa: S310 - https
        try:
            response = opener.open(request, timeout=_SECONDS)
            if response.status != 206:
                return response, 0
            if _starts(response) == have:
                return response, have
            response.close()
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            error.close()
        part.unlink()  # longer than the file is, or another piece than was asked for: from the beginning
    return opener.open(url, timeout=_SECONDS), 0


def _starts(response: Any) -> int | None:
    """Return where a part of a file begins, as the answer says."""
    stated = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(stated[1]) if stated else None
