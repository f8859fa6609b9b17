"""H1: the whole node is killed (SIGKILL) at random instants, thousands of times, and keeps what it promised."""

from __future__ import annotations

import random
import shutil
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prove import bench, checker, held

if TYPE_CHECKING:
    from pathlib import Path

#: Cycles over one store; then a new one.
PER_STORE = 400
#: Cycles between two times when the node may come to rest and is checked.
PER_CHECK = 60
#: Mean times from the first work to the kill: half of them strike soon, half later.
MEAN_SECONDS = (0.04, 0.16)
#: One kill in so many strikes while the node starts.
EARLY = 8
#: Series that may wait for their results at once.
MOST_OPEN = 12
#: What a long run must have done: instances answered Success, objects that the destination kept, associations by TLS,
#: objects that it committed to, and requests of the sender that the node has answered.
FIGURES = ("acknowledged", "delivered", "by_tls", "committed", "pledged")
#: Cycles in which each thing that may happen has happened, however slow the machine.
LONG_ENOUGH = 200


@dataclass
class Outcome:
    """What a harness did and found."""

    name: str
    wanted: int
    done: int = 0
    seconds: float = 0.0
    figures: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def count(self, **numbers: int) -> None:
        """Add to the figures."""
        for name, number in numbers.items():
            self.figures[name] = self.figures.get(name, 0) + number


def cycle(made: bench.Bench, store: Path, peers: bench.Peers, choice: random.Random) -> None:
    """Start the node, send to it from two sides, one of them by TLS, and kill it."""
    victim = made.fork(store, peers, tls=str(made.certificates.folder))
    senders: list[threading.Thread] = []
    try:
        if choice.randrange(EARLY) == 0:
            time.sleep(choice.expovariate(1 / MEAN_SECONDS[0]) / 2)
        elif (ports := victim.hear()) is not None:
            peers.keeper.node_port = ports["port"]
            for port, tls in ((ports["port"], None), (ports["tls_port"], made.certificates.context)):
                arguments = (port, choice.getrandbits(32), MOST_OPEN, tls)
                senders.append(threading.Thread(target=peers.send_while_it_lives, args=arguments))
                senders[-1].start()
            time.sleep(choice.expovariate(1 / choice.choice(MEAN_SECONDS)))
    finally:
        end(victim, senders)


def end(victim: bench.Victim, senders: list[threading.Thread]) -> None:
    """Kill it, and wait for those who send to it."""
    try:
        victim.end()
    finally:
        for sender in senders:
            sender.join()


def figures(peers: bench.Peers) -> dict[str, int]:
    """Return what came of the peers' work, by `FIGURES`."""
    numbers = (len(peers.acked), peers.kept_objects, peers.by_tls, peers.committed_objects, peers.told_requests)
    return dict(zip(FIGURES, numbers, strict=True))


def in_vain(outcome: Outcome, *names: str, least: int = LONG_ENOUGH) -> list[str]:
    """Say what never happened in so many cycles: they proved nothing then."""
    if outcome.done < least:
        return []
    return [f"nothing {name} in {outcome.done} of {outcome.name}" for name in names if not outcome.figures.get(name)]


def run(
    folder: Path,
    cycles: int,
    seed: int,
    seconds: float,
    *,
    bug: str = "",
    twin: bool = True,
    per_check: int = PER_CHECK,
) -> Outcome:
    """Do so many cycles, or as many as fit into the time; stop at the first broken promise.

    Parameters
    ----------
    twin
        Compare the last store's results with those of the same images without any fault.
    """
    outcome, begin = Outcome("H1 kill -9", cycles), time.monotonic()
    choice = random.Random(seed)
    made = bench.Bench(folder, bug)
    while outcome.done < cycles and time.monotonic() - begin < seconds and not outcome.violations:
        store, peers = made.new_store(), made.new_peers(choice.getrandbits(32))
        _one_store(
            made, store, peers, choice, outcome, min(PER_STORE, cycles - outcome.done), begin + seconds, per_check
        )
        if twin and not outcome.violations:
            twin = False  # one store is enough: all are alike
            outcome.violations += compare_with_twin(made, store, peers)
        peers.close()
        if not outcome.violations:
            shutil.rmtree(store)
    if not outcome.violations:
        outcome.violations += in_vain(outcome, *FIGURES)
    outcome.seconds = time.monotonic() - begin
    return outcome


def _one_store(made, store, peers, choice, outcome, cycles, until, per_check) -> None:
    try:
        for number in range(1, cycles + 1):
            cycle(made, store, peers, choice)
            outcome.done += 1
            outcome.violations += peers.wrong()
            over = time.monotonic() > until
            if number % per_check == 0 or number == cycles or over:
                made.settle(store, peers)
                outcome.violations += made.violations(store, peers)
            if over or outcome.violations:
                break
    except bench.Stuck as stuck:
        outcome.violations += made.broken_by(stuck, store, peers)
    outcome.count(**figures(peers))


def compare_with_twin(made: bench.Bench, store: Path, peers: bench.Peers) -> list[str]:
    """Send the same images to a node that nobody kills, and hold the two against each other."""
    other_store, other = made.new_store(), made.new_peers(peers.seed)
    try:
        for _ in range(len({one.series for one in peers.acked.values()})):
            other.begin_series()
        made.settle(other_store, other)
        found = checker.violations(other_store, other.journals)
        twin = checker.results_of(held.Store(other_store))
        return [f"without any fault: {words}" for words in found] + checker.violations(store, peers.journals, twin)
    except bench.Stuck as stuck:
        return [f"without any fault: {stuck}"]
    finally:
        other.close()
        shutil.rmtree(other_store)
