"""A receiving node whose store and database lie on a disk that runs full; a program of its own, in its own mounts.

It prints one line of JSON: what peers were answered before, while and after the disk was full, and what was left.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from listening_bed import until
from raw_peer import RawPeer, data_set, store

from pacs_ai.receive.ingest import DurableIngest
from pacs_ai.receive.scp import Listen, Receiver
from pacs_ai.store import migrate
from pacs_ai.store.database import Database
from pacs_ai.store.files import Files
from pacs_ai.store.index import Index


def fill(path: Path, leave: int, files: Files) -> None:
    """Write zeros until so few bytes are left."""
    with path.open("wb") as ballast:
        while (free := files.free_bytes()) > leave:
            ballast.write(bytes(min(free - leave, 65536)))
            ballast.flush()


def main(folder: Path) -> None:
    database = Database(f"sqlite:///{folder}/pacs_ai.sqlite")
    migrate.upgrade(database)
    files = Files(folder / "files")
    index = Index(database, files.path, "full-disk")
    ingest = DurableIngest(files, index.record)
    receiver = Receiver(replace(Listen(port=0)), ingest)
    receiver.start()
    answers: dict[str, list[int]] = {"before": [], "full": [], "no room for the commit": [], "after": []}
    acknowledged = []

    def send(when: str, number: int, pixels: int) -> None:
        uid = f"1.2.3.{number}"
        peer.send(store(data_set(uid, pixels=pixels), uid))
        answers[when].append(peer.status())
        if answers[when][-1] == 0:
            acknowledged.append(uid)

    with RawPeer(receiver.port) as peer:
        peer.associate()
        for number in range(3):
            send("before", number, 200_000)
        fill(folder / "ballast", 100_000, files)
        for number in range(3, 8):
            send("full", number, 200_000 + number)
        for leave in (40_000, 20_000, 8_000, 0):
            fill(folder / f"ballast{leave}", leave, files)
            for number in range(4):
                send("no room for the commit", 100 + leave + number, 2_000)
        for ballast in folder.glob("ballast*"):
            ballast.unlink()
        for number in range(200, 203):
            send("after", number, 200_000)
        peer.release()
    until(lambda: receiver.associations == 0)
    receiver.stop(1.0)
    ingest.close()
    with database.read() as connection:
        rows = {row.sop_instance_uid: row.sha256 for row in connection.exec_driver_sql("SELECT * FROM instance")}
    database.close()
    lost = [uid for uid in acknowledged if uid not in rows or not files.verify(rows[uid])]
    half = [path.name for path in (folder / "files" / ".new").iterdir()]
    damaged = [path.name for path in files.folder.glob("??/*") if not files.verify(path.name)]
    sys.stdout.write(json.dumps({"answers": answers, "lost": lost, "half": half, "damaged": damaged}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
