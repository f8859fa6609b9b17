"""Measure what it costs the node that many peers are idle, at once, or hostile, beside pynetdicom's own acceptor.

    scripts/bench.py front

Four scenes, each against a fresh process of each receiver:

idle      2,000 associations that say nothing: processor time over 20 s, memory, and a C-ECHO beside them
at once   200 clients that connect in the same moment and store three instances of 0.5 MB each: how many were served
hostile   200 connections that drip a byte a second, 50 that drip within a PDU of an association, 20 that announce
          10 GB, renewed as they are thrown out: the rate of two honest senders, against the rate without them
long      one instance of 2 GiB: MB/s, and the most memory that the receiver ever took

pynetdicom is given limits that let it serve as many at all (its defaults are 10 associations); what it does not manage
in time is said. Processor time is that of the receiving process alone, from /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from rich.console import Console
from rich.table import Table

from pacs_ai.dicom.identifiers import derive_uid

if TYPE_CHECKING:
    from collections.abc import Iterator

PDU_BYTES = 131072
TICKS = os.sysconf("SC_CLK_TCK")
IDLE, AT_ONCE, DRIPPING, WITHIN, ENDLESS = 2000, 200, 200, 50, 20
LONG_BYTES = 2 << 30


@dataclass(frozen=True)
class Receiver:
    """One that is measured."""

    name: str
    kind: str


RECEIVERS = (Receiver("this node, durable", "node"), Receiver("pynetdicom, raw bytes written, not synced", "stock"))


@contextlib.contextmanager
def running(receiver: Receiver) -> Iterator[tuple[int, int]]:
    """Start a receiver; yield its port and process id."""
    with tempfile.TemporaryDirectory() as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        command = [sys.executable, __file__, receiver.kind, "--port", str(port), "--folder", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.05)
            yield port, process.pid
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# What a peer says


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def request(abstract_syntax: str = CTImageStorage, calling: bytes = b"FRONT") -> bytes:
    syntaxes = item(0x30, abstract_syntax.encode()) + item(0x40, ExplicitVRLittleEndian.encode())
    body = struct.pack(">Hxx16s16s32x", 1, b"PACS_AI".ljust(16), calling.ljust(16)) + item(
        0x10, b"1.2.840.10008.3.1.1.1"
    )
    body += item(0x20, bytes((1, 0, 0, 0)) + syntaxes)
    body += item(0x50, item(0x51, struct.pack(">L", PDU_BYTES)) + item(0x52, b"2.25.1"))
    return struct.pack(">BxL", 1, len(body)) + body


def data(control: int, body: bytes) -> bytes:
    return struct.pack(">BxLLBB", 4, len(body) + 6, len(body) + 2, 1, control) + body


def element(number: int, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHL", 0, number, len(value)) + value


def command(field: int, sop_class_uid: str, further: bytes = b"", *, data_set: bool) -> bytes:
    body = element(2, sop_class_uid.encode()) + element(0x0100, struct.pack("<H", field))
    body += element(0x0110, struct.pack("<H", 1)) + element(0x0700, bytes(2))
    body += element(0x0800, struct.pack("<H", 0 if data_set else 0x0101)) + further
    return data(3, element(0, struct.pack("<L", len(body))) + body)


def header(uid: str, pixel_bytes: int) -> bytes:
    """Return a CT data set as far as its pixels."""

    def explicit(tag: int, vr: bytes, value: bytes) -> bytes:
        value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
        return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value

    study, series = derive_uid("front", "study"), derive_uid("front", "series")
    found = explicit(0x00080016, b"UI", CTImageStorage.encode()) + explicit(0x00080018, b"UI", uid.encode())
    found += explicit(0x00080060, b"CS", b"CT") + explicit(0x00100020, b"LO", b"FRONT")
    found += explicit(0x0020000D, b"UI", study.encode()) + explicit(0x0020000E, b"UI", series.encode())
    return found + struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, pixel_bytes)


def instance(uid: str, pixel_bytes: int = 524_288) -> bytes:
    """Return a whole C-STORE request."""
    whole = header(uid, pixel_bytes) + bytes(pixel_bytes)
    room = PDU_BYTES - 6
    pieces = [whole[start : start + room] for start in range(0, len(whole), room)]
    asked = command(1, CTImageStorage, element(0x1000, uid.encode()), data_set=True)
    return asked + b"".join(data(2 if piece is pieces[-1] else 0, piece) for piece in pieces)


def answer(connection: socket.socket) -> bytes:
    """Return the next PDU; b"" where the peer closed."""
    head = connection.recv(6, socket.MSG_WAITALL)
    if len(head) < 6:
        return b""
    return head + connection.recv(struct.unpack(">BxL", head)[1], socket.MSG_WAITALL)


def associate(
    port: int, seconds: float = 60.0, calling: bytes = b"FRONT", syntax: str = CTImageStorage
) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(request(syntax, calling))
    if answer(connection)[:1] != b"\2":
        connection.close()
        raise ConnectionError("not accepted")
    return connection


def echo_ms(port: int) -> float:
    began = time.monotonic()
    with associate(port, syntax="1.2.840.10008.1.1", calling=b"ECHO") as connection:
        connection.sendall(command(0x30, "1.2.840.10008.1.1", data_set=False))
        assert answer(connection)
    return 1000 * (time.monotonic() - began)


def is_success(response: bytes) -> bool:
    return struct.pack("<HHLH", 0, 0x0900, 2, 0) in response


# What it costs the receiver


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_mb(pid: int, what: str = "VmRSS") -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(what))


# The scenes


def idle(port: int, pid: int) -> str:
    before, held, began = memory_mb(pid), [], time.monotonic()
    for number in range(IDLE):
        try:
            held.append(associate(port, 5.0, b"IDLE%d" % (number % 100)))
        except OSError:
            break
        if time.monotonic() - began > 120:
            break
    opened = time.monotonic() - began
    used = cpu_seconds(pid)
    time.sleep(20)
    share = 100 * (cpu_seconds(pid) - used) / 20
    try:
        echo = f"{echo_ms(port):.0f} ms"
    except OSError as error:
        echo = type(error).__name__
    grown = memory_mb(pid)
    for each in held:
        each.close()
    memory = f"{grown:.0f} MB ({grown - before:+.0f})"
    return f"{len(held)} opened in {opened:.1f} s; {share:.1f} % of a core; {memory}; echo {echo}"


def at_once(port: int, _pid: int) -> str:
    served, lock, start = [0], threading.Lock(), threading.Barrier(AT_ONCE)

    def client(number: int) -> None:
        messages = [instance(derive_uid("front", number, each)) for each in range(3)]
        start.wait(60)
        with contextlib.suppress(OSError), associate(port, 60.0, b"AT%d" % number) as connection:
            for message in messages:
                connection.sendall(message)
                if not is_success(answer(connection)):
                    return
            with lock:
                served[0] += 1

    clients = [threading.Thread(target=client, args=(number,)) for number in range(AT_ONCE)]
    began = time.monotonic()
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    return f"{served[0]} of {AT_ONCE} served in {time.monotonic() - began:.1f} s"


def hostile(port: int, _pid: int) -> str:
    quiet = honest_rate(port, "before")
    stop = threading.Event()
    attackers = threading.Thread(target=attack, args=(port, stop))
    attackers.start()
    time.sleep(3)
    try:
        attacked = honest_rate(port, "amid")
    except (OSError, AssertionError) as error:
        return f"{quiet:.0f}/s alone; among hostile peers no service ({type(error).__name__})"
    finally:
        stop.set()
        attackers.join()
    return f"{quiet:.0f}/s alone, {attacked:.0f}/s among hostile peers ({100 * (attacked / quiet - 1):+.0f} %)"


def honest_rate(port: int, name: str, seconds: float = 10.0) -> float:
    """Return how many instances per second two senders get stored, in processes of their own."""
    script = "import bench_front,sys; bench_front.honest(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))"
    senders = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(port), f"{name}{number}", str(seconds)],
            cwd=Path(__file__).parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for number in range(2)
    ]
    total = 0
    for sender in senders:
        told, _ = sender.communicate()
        assert sender.returncode == 0, "an honest sender was not served"
        total += int(told)
    return total / seconds


def honest(port: int, name: str, seconds: float) -> None:
    with associate(port, 20.0, name.upper().encode()) as connection:
        deadline, count = time.monotonic() + seconds, 0
        while time.monotonic() < deadline:
            connection.sendall(instance(derive_uid("front", name, count)))
            assert is_success(answer(connection))
            count += 1
    print(count)


def attack(port: int, stop: threading.Event) -> None:
    """Keep hostile peers at the port until `stop`: those that are thrown out come back."""
    poll = selectors.DefaultSelector()
    kinds: dict[socket.socket, tuple[str, int]] = {}
    wanted = {"drip": DRIPPING, "within": WITHIN, "endless": ENDLESS}

    def come(kind: str, number: int) -> None:
        try:
            if kind == "within":
                connection = associate(port, 5.0, b"EVIL%d" % number)
                connection.sendall(command(1, CTImageStorage, element(0x1000, b"1.2.3"), data_set=True)[:20])
            else:
                connection = socket.create_connection(("127.0.0.1", port), 5.0)
                connection.sendall(b"\1" if kind == "drip" else struct.pack(">BxL", 1, 0xFFFFFFFF) + bytes(4096))
        except OSError:
            return
        connection.setblocking(False)
        kinds[connection] = (kind, number)
        poll.register(connection, selectors.EVENT_READ)

    while not stop.is_set():
        for kind, many in wanted.items():
            there = {number for each, number in kinds.values() if each == kind}
            for number in [number for number in range(many) if number not in there][:40]:
                if not stop.is_set():
                    come(kind, number)
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline and not stop.is_set():
            for key, _ in poll.select(0.1):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                with contextlib.suppress(BlockingIOError):
                    try:
                        ended = connection.recv(65536) == b""
                    except ConnectionError:
                        ended = True
                    if ended:
                        poll.unregister(connection)
                        del kinds[connection]
                        connection.close()
        for connection in list(kinds):
            with contextlib.suppress(OSError):
                connection.send(b"\0")
    for connection in kinds:
        connection.close()


def long(port: int, pid: int) -> str:
    before, uid, room = memory_mb(pid), derive_uid("front", "long"), PDU_BYTES - 6
    with associate(port, 600.0) as connection:
        connection.sendall(command(1, CTImageStorage, element(0x1000, uid.encode()), data_set=True))
        began = time.monotonic()
        connection.sendall(data(0, header(uid, LONG_BYTES)))
        piece, left = data(0, bytes(room)), LONG_BYTES
        while left > room:
            connection.sendall(piece)
            left -= room
        connection.sendall(data(2, bytes(left)))
        stored = is_success(answer(connection))
        took = time.monotonic() - began
    words = f"{LONG_BYTES / took / 1e6:.0f} MB/s" if stored else "NOT STORED"
    return f"{words}; {memory_mb(pid, 'VmHWM'):.0f} MB at most ({before:.0f} MB before)"


SCENES = {"idle": idle, "at once": at_once, "hostile": hostile, "long": long}


# The receivers

NODE = """
[store]
folder = {store}
[receive]
bind = "127.0.0.1"
port = {port}
max_associations = 3000
max_associations_per_peer = 3000
max_associations_per_address = 3000
max_connections_per_address = 400
network_seconds = 300
answer_seconds = 300
grace_seconds = 1
"""


def serve_node(port: int, folder: Path) -> None:
    """Become the node's receive process, its limits raised to what the scenes need."""
    from pacs_ai.store import migrate
    from pacs_ai.store.database import Database

    path = folder / "pacs-ai.toml"
    path.write_text(NODE.format(store=json.dumps(str(folder / "store")), port=port), encoding="utf-8")
    (folder / "store").mkdir(mode=0o700)
    database = Database(f"sqlite:///{folder / 'store' / 'pacs_ai.sqlite'}")
    migrate.upgrade(database)
    database.close()
    os.execv(sys.executable, [sys.executable, "-m", "pacs_ai", "--config", str(path), "run", "receive"])  # noqa: S606


def serve_stock(port: int, folder: Path) -> None:
    """Run pynetdicom's own SCP, which writes what it was sent."""
    from pynetdicom import AE, AllStoragePresentationContexts, evt
    from pynetdicom.sop_class import Verification

    ae = AE(ae_title="PACS_AI")
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(context.abstract_syntax, [ExplicitVRLittleEndian])
    ae.add_supported_context(Verification, [ExplicitVRLittleEndian])
    ae.maximum_pdu_size, ae.maximum_associations, ae.network_timeout = PDU_BYTES, 3000, 300

    def opened(event: evt.Event) -> None:
        event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def store(event: evt.Event) -> int:
        (folder / str(time.monotonic_ns())).write_bytes(event.request.DataSet.getbuffer())
        return 0x0000

    handlers = [(evt.EVT_C_STORE, store), (evt.EVT_CONN_OPEN, opened)]
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    until_terminated()
    server.shutdown()
    os._exit(0)  # threads of half-open connections would hold it


def until_terminated() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()


def compare(scenes: list[str]) -> None:
    """Print the table."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, max(8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
    table = Table(title="many, idle, hostile and long", title_justify="left", show_lines=True)
    for column in ("scene", *(receiver.name for receiver in RECEIVERS)):
        table.add_column(column)
    for scene in scenes:
        told = []
        for receiver in RECEIVERS:
            with running(receiver) as (port, pid):
                try:
                    told.append(SCENES[scene](port, pid))
                except (OSError, AssertionError) as error:
                    told.append(f"no service: {type(error).__name__} {error}")
        table.add_row(scene, *told)
    Console(width=150).print(table)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Measure the listening side under load.", prog="bench.py front")
    parser.add_argument("what", nargs="*", help=f"scenes: {', '.join(SCENES)} (all)")
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    found = parser.parse_args(arguments)
    if found.port is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (8192, max(8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
        {"node": serve_node, "stock": serve_stock}[found.what[0]](found.port, found.folder)
        return
    unknown = [scene for scene in found.what if scene not in SCENES]
    if unknown:
        parser.error(f"no such scene: {', '.join(unknown)} (there are {', '.join(SCENES)})")
    compare(found.what or list(SCENES))


if __name__ == "__main__":
    main(sys.argv[1:])
