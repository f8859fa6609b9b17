"""Measure the node: how fast it receives durably, beside what else there is on the same machine in the same run.

    scripts/bench.py receive
    scripts/bench.py front
    scripts/bench.py journey
    scripts/bench.py infer windows
    scripts/bench.py infer nnunet --python /path/to/venv/bin/python

`journey` is described in bench_journey.py beside this file, `infer` in bench_infer.py, `front` in bench_front.py.

`receive` sends 512 x 512 slices, uncompressed and as JPEG-LS, from one and from eight senders at once to: pynetdicom's
SCP with an empty handler (out of the box, and with this node's PDU size), this node (every instance durable before its
Success), dcmtk's storescp (one process for all, and one for each association) and Orthanc.
Senders hold their messages ready in memory and speak the upper layer themselves, so that they cost next to nothing;
TCP_NODELAY is on at every end. The time runs from the first byte of the first C-STORE to the last response;
negotiating and a warm-up are not counted (storescp in one process serves one association after the other, so there
the later ones' negotiation is). Each figure is the median of the rounds, and the servers take turns within a round, so
that a slow spell of the machine hits them all. Before them the disk's own primitives are measured, in the same folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench_front
import bench_infer
import bench_journey
from pydicom import dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless
from rich.console import Console
from rich.table import Table

from pacs_ai.dicom.identifiers import derive_uid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.synchronize import Barrier

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PDU_BYTES = 131072
SUCCESS = b"\x00\x00\x00\x09\x02\x00\x00\x00\x00\x00"
DEADLINE_SECONDS = 120.0
#: Instances of each sender that are sent before the time runs.
WARM_UP = 3


@dataclass(frozen=True)
class Kind:
    """What is sent."""

    name: str
    group: str
    transfer_syntax_uid: str


KINDS = (
    Kind("uncompressed", "ct_chest_tcga_thick", ExplicitVRLittleEndian),
    Kind("JPEG-LS", "ct_chest_lidc_thin", JPEGLSLossless),
)


# What is sent, and by whom


def encoded_slices(kind: Kind, senders: int, each: int, scratch: Path) -> list[list[tuple[str, bytes]]]:
    """Return per sender (SOP Instance UID, encoded data set) of slices that are all different instances."""
    paths = sorted((DATA / kind.group).glob("*.dcm")) or phantom_paths(scratch)
    found: list[list[tuple[str, bytes]]] = []
    for sender in range(senders):
        mine = []
        for number in range(each):
            ds = dcmread(paths[number % len(paths)])
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = derive_uid("bench", sender, number)
            path = scratch / "one.dcm"
            ds.save_as(path)
            raw = path.read_bytes()
            mine.append((str(ds.SOPInstanceUID), raw[144 + struct.unpack_from("<L", raw, 140)[0] :]))
        found.append(mine)
    return found


def phantom_paths(scratch: Path) -> list[Path]:
    """Write phantom slices, where the real data are not beside this checkout."""
    from pacs_ai.testing import Phantom, write_phantom

    return write_phantom(scratch / "phantom", Phantom())


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def associate_rq(called: str, transfer_syntax_uid: str) -> bytes:
    syntaxes = item(0x30, CTImageStorage.encode()) + item(0x40, transfer_syntax_uid.encode())
    user = item(0x51, struct.pack(">L", PDU_BYTES)) + item(0x52, b"2.25.1")
    body = struct.pack(">Hxx16s16s32x", 1, called.encode().ljust(16), b"BENCH".ljust(16))
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, bytes((1, 0, 0, 0)) + syntaxes) + item(0x50, user)
    return struct.pack(">BxL", 1, len(body)) + body


def c_store_rq(uid: str, data_set: bytes, pdu_bytes: int) -> bytes:
    """Return all P-DATA-TF PDUs of one C-STORE request."""

    def element(number: int, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        return struct.pack("<HHL", 0, number, len(value)) + value

    words = {0x0100: 1, 0x0110: 1, 0x0700: 0, 0x0800: 0}
    command = element(2, CTImageStorage.encode())
    command += b"".join(element(number, struct.pack("<H", word)) for number, word in words.items())
    command += element(0x1000, uid.encode())
    pieces = [(3, element(0, struct.pack("<L", len(command))) + command)]
    room = pdu_bytes - 6
    pieces += [(0, data_set[start : start + room]) for start in range(0, len(data_set), room)]
    pieces[-1] = (2, pieces[-1][1])
    return b"".join(struct.pack(">BxLLBB", 4, len(p) + 6, len(p) + 2, 1, control) + p for control, p in pieces)


def answer(connection: socket.socket) -> bytes:
    found = bytearray()
    while len(found) < 6 or len(found) < 6 + struct.unpack_from(">L", found, 2)[0]:
        piece = connection.recv(65536)
        assert piece, "the receiver closed the connection"
        found += piece
    return bytes(found)


def send(
    port: int, called: str, syntax: str, slices: Sequence[tuple[str, bytes]], start: Barrier | None, done: Any
) -> None:
    """Send all slices over one association, a response awaited after each; report when it began and ended."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(associate_rq(called, syntax))
        accept = answer(connection)
        assert accept[0] == 2, f"not accepted: {accept.hex()}"
        limit = struct.unpack_from(">L", accept, accept.index(b"\x51\x00\x00\x04", 74) + 4)[0] or PDU_BYTES
        messages = [c_store_rq(uid, data_set, min(limit, PDU_BYTES)) for uid, data_set in slices]
        store(connection, messages[:WARM_UP])
        if start is not None:
            start.wait(DEADLINE_SECONDS)
        began = time.monotonic()
        store(connection, messages[WARM_UP:])
        done.put((began, time.monotonic()))
        connection.sendall(struct.pack(">BxLL", 5, 4, 0))
        answer(connection)


def store(connection: socket.socket, messages: Sequence[bytes]) -> None:
    for message in messages:
        connection.sendall(message)
        response = answer(connection)
        assert SUCCESS in response, f"not stored: {response.hex()}"


def measure(server: Server, port: int, kind: Kind, slices: Sequence[Sequence[tuple[str, bytes]]]) -> float:
    """Return instances per second from all senders together."""
    called, context = server.ae_title, multiprocessing.get_context("fork")
    start, done = None if server.is_serial else context.Barrier(len(slices)), context.Queue()
    senders = [
        context.Process(target=send, args=(port, called, kind.transfer_syntax_uid, mine, start, done))
        for mine in slices
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(DEADLINE_SECONDS)
        assert sender.exitcode == 0, "a sender failed"
    times: list[tuple[float, float]] = [done.get(timeout=5) for _ in senders]
    count = sum(len(mine) - WARM_UP for mine in slices)
    return count / (max(end for _, end in times) - min(began for began, _ in times))


# Who receives


def serve_stock(port: int, pdu_bytes: int) -> None:
    """Run pynetdicom's own SCP with an empty handler."""
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    ae = AE(ae_title="STOCK")
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(context.abstract_syntax, [ExplicitVRLittleEndian, JPEGLSLossless])
    if pdu_bytes:
        ae.maximum_pdu_size = pdu_bytes

    def opened(event: evt.Event) -> None:
        event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    handlers = [(evt.EVT_C_STORE, lambda _: 0x0000), (evt.EVT_CONN_OPEN, opened)]
    ae.start_server(("127.0.0.1", port), evt_handlers=handlers)


def serve_node(port: int, folder: Path, processes: int) -> None:
    """Run the node's receiving side in so many processes: files, index in SQLite, acceptor."""
    from pacs_ai.store import schema
    from pacs_ai.store.database import Database
    from pacs_ai.store.files import Files

    database = Database(f"sqlite:///{folder / 'bench.db'}")
    schema.metadata.create_all(database.engine)
    database.engine.dispose()
    Files(folder / "files")
    (folder / "ahead").mkdir(mode=0o700)
    together = multiprocessing.get_context("fork").Barrier(processes)
    children: list[int] = []
    for _ in range(1, processes):
        child = os.fork()
        if child == 0:
            children = []
            break
        children.append(child)
    serve_node_process(port, folder, together.wait, is_shared=processes > 1)
    for child in children:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


def serve_node_process(port: int, folder: Path, before: Callable[[], object], *, is_shared: bool) -> None:
    """Run one receive process."""
    from pacs_ai.receive.ingest import DurableIngest
    from pacs_ai.receive.process import SWITCH_SECONDS
    from pacs_ai.receive.scp import Listen, Receiver
    from pacs_ai.store.ahead import SEGMENTS, Ahead
    from pacs_ai.store.database import Database
    from pacs_ai.store.files import Files
    from pacs_ai.store.index import Index

    database = Database(f"sqlite:///{folder / 'bench.db'}")
    files = Files(folder / "files")
    index = Index(database, files.path, f"bench {os.getpid()}")
    ahead = Ahead(folder / "ahead", files.disk)
    for _ in range(SEGMENTS):  # as they are in a node that has had ten quiet seconds in its life
        ahead.prepare()
    sys.setswitchinterval(SWITCH_SECONDS)
    ingest = DurableIngest(files, index.record, ahead=ahead, note_ended=index.association_ended)
    before()
    receiver = Receiver(Listen(port=port, reuse_port=is_shared), ingest)
    receiver.start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    receiver.stop(1.0)


def orthanc_configuration(port: int, folder: Path) -> Path:
    path = folder / "orthanc.json"
    path.write_text(
        json.dumps(
            {
                "Name": "bench",
                "StorageDirectory": str(folder / "storage"),
                "IndexDirectory": str(folder / "storage"),
                "HttpServerEnabled": False,
                "DicomAet": "ORTHANC",
                "DicomPort": port,
                "DicomCheckCalledAet": False,
                "DicomAlwaysAllowStore": True,
                "Plugins": [],
            }
        )
    )
    return path


def tool(name: str) -> str | None:
    """Return where Debian put a program: a virtual environment may have pynetdicom's namesakes of dcmtk's first."""
    return shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")


@dataclass(frozen=True)
class Server:
    """One that receives: its name in the table, its AE title, and how to start it."""

    name: str
    ae_title: str
    kind: str
    pdu_bytes: int = 0

    @property
    def is_serial(self) -> bool:
        """Whether it serves one association after the other."""
        return self.kind == "storescp"

    def command(self, port: int, folder: Path) -> list[str]:
        """Return the command line."""
        own = [sys.executable, __file__, "serve", self.kind, "--port", str(port), "--folder", str(folder)]
        storescp = [str(tool("storescp")), "+xa", "+B", "-pdu", str(PDU_BYTES), "-od", str(folder), str(port)]
        return {
            "stock": [*own, "--pdu", str(self.pdu_bytes)],
            "node": own,
            "nodes": own,
            "storescp": storescp,
            "forking": [storescp[0], "--fork", *storescp[1:]],
            "orthanc": ["Orthanc", str(orthanc_configuration(port, folder))],
        }[self.kind]

    def is_installed(self) -> bool:
        """Tell whether the program is there."""
        program = {"storescp": "storescp", "forking": "storescp", "orthanc": "Orthanc"}.get(self.kind)
        return program is None or tool(program) is not None


SERVERS = (
    Server("pynetdicom, empty handler", "STOCK", "stock"),
    Server("pynetdicom, empty handler, 128 KiB PDUs", "STOCK", "stock", PDU_BYTES),
    Server("this node, durable", "PACS_AI", "node"),
    Server("this node, durable, two receive processes", "PACS_AI", "nodes"),
    Server("dcmtk storescp, not synced", "STORESCP", "storescp"),
    Server("dcmtk storescp --fork, not synced", "STORESCP", "forking"),
    Server("Orthanc", "ORTHANC", "orthanc"),
)


@contextlib.contextmanager
def running(server: Server, scratch: Path) -> Iterator[int]:
    """Start a server with an empty folder of its own; yield its port."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command, environment = server.command(port, folder), {**os.environ, "TCP_NODELAY": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit(f"{process.args!r} does not listen on port {port}")


def receive(arguments: argparse.Namespace) -> None:
    """Print the tables."""
    console = Console(width=110)
    servers = [server for server in SERVERS if server.is_installed()]
    for missing in (server.name for server in SERVERS if server not in servers):
        console.print(f"[yellow]{missing}: NOT INSTALLED, so not compared[/]")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        scratch = Path(name)
        console.print(primitives(scratch))
        for kind in KINDS:
            for senders in arguments.senders:
                slices = encoded_slices(kind, senders, arguments.instances // senders + WARM_UP, scratch)
                rates: dict[str, list[float]] = {server.name: [] for server in servers}
                for _ in range(arguments.rounds):
                    for server in servers:
                        with running(server, scratch) as port:
                            rates[server.name].append(measure(server, port, kind, slices))
                console.print(table(kind, senders, slices, rates))


def primitives(folder: Path, times: int = 100, size: int = 525_000) -> Table:
    """Measure what the disk can do, one at a time."""
    content, path, segment = os.urandom(size), folder / "one", folder / "segment"
    segment.write_bytes(bytes(8 * size))
    database = sqlite3.connect(folder / "primitives.db", isolation_level=None)
    database.execute("pragma journal_mode=WAL")
    database.execute("pragma synchronous=FULL")
    database.execute("create table t(a integer primary key, b text)")
    overwritten = os.open(segment, os.O_RDWR)
    os.fsync(overwritten)

    def write(*, sync: bool) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(descriptor, content)
        if sync:
            os.fsync(descriptor)
        os.close(descriptor)
        path.rename(folder / "other")
        if sync:
            directory = os.open(folder, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)

    def overwrite() -> None:
        os.pwrite(overwritten, content, size)
        os.fdatasync(overwritten)

    acts: dict[str, Callable[[], object]] = {
        "file of 0.5 MB written and named, nothing synced": lambda: write(sync=False),
        "the same, file and directory synced": lambda: write(sync=True),
        "0.5 MB written over in a file that is there, synced": overwrite,
        "a row committed (SQLite, WAL, synchronous=FULL)": lambda: database.execute("insert into t(b) values ('x')"),
    }
    found = Table(title="the disk's own primitives", title_justify="left")
    for column in ("what", "ms, median", "per second"):
        found.add_column(column, justify="left" if column == "what" else "right")
    for words, act in acts.items():
        took = []
        for _ in range(times):
            began = time.perf_counter()
            act()
            took.append(time.perf_counter() - began)
        median = statistics.median(took)
        found.add_row(words, f"{1000 * median:.2f}", f"{1 / median:.0f}")
    os.close(overwritten)
    database.close()
    return found


def table(
    kind: Kind, senders: int, slices: Sequence[Sequence[tuple[str, bytes]]], rates: dict[str, list[float]]
) -> Table:
    size = statistics.mean(len(data_set) for mine in slices for _, data_set in mine) / 1e6
    stock = statistics.median(rates[SERVERS[0].name])
    plural = "sender" if senders == 1 else "senders"
    found = Table(title=f"{kind.name}, {size:.2f} MB each, {senders} {plural}", title_justify="left")
    found.add_column("receiver", min_width=42)
    for column in ("instances/s", "MB/s", "to the first", "rounds"):
        found.add_column(column, justify="right")
    for name, each in rates.items():
        rate = statistics.median(each)
        spread = f"{min(each):.0f} to {max(each):.0f}"
        found.add_row(name, f"{rate:.0f}", f"{rate * size:.0f}", f"{rate / stock:.2f}x", spread)
    return found


def serve(arguments: argparse.Namespace) -> None:
    if arguments.kind == "stock":
        serve_stock(arguments.port, arguments.pdu)
    else:
        serve_node(arguments.port, arguments.folder, processes=2 if arguments.kind == "nodes" else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the node.")
    commands = parser.add_subparsers(required=True)
    receiving = commands.add_parser("receive", help="durable receiving, beside other receivers")
    receiving.add_argument("--instances", type=int, default=120, help="per measurement, over all senders")
    receiving.add_argument("--rounds", type=int, default=3)
    receiving.add_argument("--senders", type=int, nargs="+", default=[1, 8])
    receiving.add_argument("--folder", type=Path, help="on the disk to measure; default the system's folder")
    receiving.set_defaults(run=receive)
    bench_journey.add_arguments(
        commands.add_parser("journey", help="from the last instance to the results in the PACS")
    )
    fronting = commands.add_parser("front", help="many, idle and hostile peers, and a long instance", add_help=False)
    fronting.add_argument("rest", nargs=argparse.REMAINDER)
    fronting.set_defaults(run=lambda arguments: bench_front.main(arguments.rest))
    inferring = commands.add_parser("infer", help="windows beside MONAI's, nnU-Net beside its own", add_help=False)
    inferring.add_argument("rest", nargs=argparse.REMAINDER)
    inferring.set_defaults(run=lambda arguments: bench_infer.main(arguments.rest))
    serving = commands.add_parser("serve", help="run one receiver (called by `receive`)")
    serving.add_argument("kind", choices=("stock", "node", "nodes"))
    serving.add_argument("--port", type=int, required=True)
    serving.add_argument("--folder", type=Path, required=True)
    serving.add_argument("--pdu", type=int, default=0)
    serving.set_defaults(run=serve)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
