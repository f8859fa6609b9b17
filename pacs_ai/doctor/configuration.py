"""Whether the configuration fits together: routes, pipelines, inputs, peers, devices, names of the Standard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacs_ai import credentials
from pacs_ai.dicom import contexts
from pacs_ai.doctor.findings import Finding, Level
from pacs_ai.errors import PacsAiError, PipelineFault, UserError
from pacs_ai.models.registry import Registry
from pacs_ai.route import rules
from pacs_ai.store.database import understood

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pacs_ai.conditions import When
    from pacs_ai.config import Config, Route
    from pacs_ai.pipeline import Card

AREA = "configuration"


def contradictions(config: Config) -> list[Finding]:
    """Return the faults with which a node must not start; a broken pipeline, which disables itself, is none."""
    registry = Registry.of(config)
    faults = [*_network_faults(config)]
    for route in config.route:
        faults += _route_faults(route, registry)
    return faults


def examine(config: Config) -> list[Finding]:
    """Return how the configuration stands: its faults, what is odd about it, and what it says where it is sound."""
    registry = Registry.of(config)
    found = contradictions(config)
    found += [_broken(config, name, reason) for name, reason in registry.broken.items()]
    found += [*_dates(config), *_oddities(config)]
    if not any(finding.level is Level.FAULT for finding in found):
        names = ", ".join(registry.names())
        words = f"{len(config.route)} route(s), {len(config.peer)} peer(s), pipelines {names}: all fit together"
        found.insert(0, Finding(Level.OK, AREA, "file", words))
    return found


def _fault(subject: str, words: str, advice: str) -> Finding:
    return Finding(Level.FAULT, AREA, subject, words, advice)


def _network_faults(config: Config) -> Iterator[Finding]:
    try:
        contexts.acceptor_contexts(
            contexts.transfer_syntaxes(config.receive.transfer_syntaxes), config.receive.further_sop_classes
        )
    except UserError as error:
        yield _fault("[receive]", str(error), "correct receive.transfer_syntaxes or receive.further_sop_classes")
    for worry in credentials.worries(config.tls):
        if worry.is_fault:
            yield _fault("[tls]", worry.words, worry.advice)
    try:
        understood(config.database_url)
    except UserError as error:
        yield _fault("[store]", str(error), "correct store.database, or leave it out: SQLite in store.folder")


def _route_faults(route: Route, registry: Registry) -> Iterator[Finding]:
    subject = f"route {route.title}"
    for name, when in _conditions(route):
        for keyword in rules.not_indexed(when):
            yield _fault(
                subject,
                f"the condition on {keyword}{name} could never hold: the index does not keep that attribute",
                "use another attribute; docs/configuration.md lists those that are kept",
            )
    try:
        card = registry.card(route.run)
    except UserError as error:
        yield _fault(subject, str(error), "correct `run`, install the package, or add a [[pipeline]] of that name")
    except PipelineFault:
        return  # it disables itself, and `examine` says why
    else:
        yield from _input_faults(subject, route, card)


def _conditions(route: Route) -> Iterator[tuple[str, When]]:
    if route.when is not None:
        yield "", route.when
    for name, when in route.inputs.items():
        yield f" of input {name}", when


def _input_faults(subject: str, route: Route, card: Card) -> Iterator[Finding]:
    wanted = set(card.inputs)
    if route.when is not None and len(wanted) > 1:
        names = ", ".join(card.inputs)
        yield _fault(subject, f"{route.run} needs the inputs {names}", "give `inputs` with a condition for each")
    elif route.inputs and set(route.inputs) != wanted:
        given, names = ", ".join(sorted(route.inputs)), ", ".join(sorted(wanted))
        yield _fault(subject, f"inputs are {given}, but {route.run} needs {names}", "name the inputs as it does")


def _broken(config: Config, name: str, reason: str) -> Finding:
    routes = [route.title for route in config.route if route.run == name]
    if not routes:
        return Finding(Level.WARNING, AREA, f"pipeline {name}", reason, "no route uses it; repair or uninstall it")
    return _fault(f"pipeline {name}", reason, f"repair it; until then route {', '.join(routes)} refuses its jobs")


def _dates(config: Config) -> Iterator[Finding]:
    for worry in credentials.worries(config.tls):
        if not worry.is_fault:
            yield Finding(Level.FAULT if worry.stops_tls else Level.WARNING, AREA, "[tls]", worry.words, worry.advice)


def _oddities(config: Config) -> Iterator[Finding]:
    def odd(subject: str, words: str, advice: str) -> Finding:
        return Finding(Level.WARNING, AREA, subject, words, advice)

    if not config.route:
        yield odd("routes", "there is no [[route]], so nothing is analysed", "add one; config/pacs-ai.toml shows how")
    for route in config.route:
        if not route.deliver_to:
            yield odd(f"route {route.title}", "its results go to nobody", "name a peer in deliver_to")
    titles = [route.title for route in config.route]
    for title in sorted({title for title in titles if titles.count(title) > 1}):
        yield odd(f"route {title}", "several routes have this name", "give each a `name` of its own")
    asked = [peer.name for peer in config.peer if peer.commitment]
    if asked and config.calling_ae_title not in config.receive.ae_titles:
        words = f"{', '.join(asked)} would answer to {config.calling_ae_title}, which receive.ae_titles does not have"
        yield odd("commitment", words, "add it there, or leave deliver.calling_ae_title out")
    if config.receive.commitment:
        words = "the node is no archive, and what it commits to is never deleted"
        yield odd(
            "receive.commitment", words, "leave it off unless you know why; pacs-ai lift --list says what is held"
        )
    if config.receive.accept == "anyone":
        yield odd("receive.accept", "anyone on the network may send", 'set receive.accept = "peers" in a clinic')
    elif not config.peer:
        yield _fault("receive.accept", "is peers, but there is no [[peer]]: nobody may send", "add the PACS as a peer")


def resolve_pipelines(config: Config) -> dict[str, str]:
    """Return what each pipeline that a route names takes and gives, for people; a broken one is left out."""
    registry, found = Registry.of(config), {}
    for name in dict.fromkeys(route.run for route in config.route):
        try:
            card = registry.card(name)
        except PacsAiError:
            continue
        found[name] = f"{card.title} {card.version}, inputs {', '.join(card.inputs)}, {len(card.labels)} label(s)"
    return found
