"""What a plan amounts to as work: which pipeline in which version, on which series, for whom, and how urgent."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from pacs_ai.errors import PacsAiError, Reason
from pacs_ai.store.clock import now
from pacs_ai.store.enqueue import PRIORITY_NAMES, Address, Identity, Source, Work
from pacs_ai.store.notices import card_of

if TYPE_CHECKING:
    from pacs_ai.config import Config
    from pacs_ai.models.registry import Registry
    from pacs_ai.route.plan import Plan

_PRIORITIES = {name: number for number, name in PRIORITY_NAMES.items()}


class Works:
    """Turns plans into work; the pipelines are looked at once, since a model's digest may be that of gigabytes."""

    def __init__(self, config: Config, registry: Registry) -> None:
        self._config = config
        self._registry = registry
        self._identities = {name: identity_of(registry, name) for name in {route.run for route in config.route}}

    def identity(self, pipeline: str) -> Identity:
        """Return what a pipeline is now."""
        if pipeline not in self._identities:
            self._identities[pipeline] = identity_of(self._registry, pipeline)
        return self._identities[pipeline]

    def work(self, plan: Plan, refusal: str) -> Work:
        """Return the work of a plan; refused for a reason, also where its pipeline is disabled."""
        route, inputs = plan.route, plan.inputs
        identity = self.identity(route.run)
        if route.when is not None and len(identity.inputs) == 1:
            inputs = dict(zip(identity.inputs, inputs.values(), strict=True))
        peers = [self._config.peer_named(name) for name in route.deliver_to]
        return Work(
            study_id=next(iter(inputs.values())).study_id,
            pipeline=route.run,
            pipeline_version=identity.version,
            model_digest=identity.model_digest,
            settings_digest=identity.settings_digest,
            sources=tuple(Source(name, view.id, view.revision) for name, view in sorted(inputs.items())),
            priority=_PRIORITIES[route.priority] if route.priority else min(v.priority for v in inputs.values()),
            route=route.title,
            destinations=tuple(
                Address(p.name, p.ae_title, p.host, p.port, self._config.plan_of(p.profile)) for p in peers
            ),
            overdue_at=now() + timedelta(seconds=route.overdue_seconds),
            refusal=refusal or identity.fault,
            refused_for=Reason.MISSING_INPUT if refusal else Reason.NO_PIPELINE,
            card=identity.card,
            report_not_analysed=route.report_not_analysed,
        )


def identity_of(registry: Registry, pipeline: str) -> Identity:
    """Return what a pipeline is now, or why it is disabled."""
    try:
        card = registry.card(pipeline)
        digests = registry.model_digest(pipeline), registry.settings_digest(pipeline)
    except PacsAiError as error:
        return Identity(fault=f"pipeline {pipeline} is disabled: {error}")
    return Identity(card.version, *digests, tuple(card.inputs), card_of(card))
