"""Which pipelines there are: installed plugins and configured bundles; a broken one says why and harms no other."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pacs_ai.errors import PacsAiError, PipelineFault, UserError
from pacs_ai.models.anatomy import palette
from pacs_ai.models.bundle import BundleSpec, MonaiBundle
from pacs_ai.models.digest import sha256
from pacs_ai.models.package import Package, folders, input_of, read
from pacs_ai.pipeline import Card, Clearance, Code, Label, Pipeline

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pacs_ai import config, model_sections

GROUP = "pacs_ai.pipelines"
#: Pipelines for tests and for trying a viewer: used where they are named, listed nowhere.
UNLISTED = "pacs_ai.testing_pipelines"
#: Keys of [[pipeline]] that change no result: two nodes that differ only in them give the same UIDs.
NO_RESULT = {"name", "timeout_seconds", "model", "digest", "bundle", "files"}


def bundle_spec(section: model_sections.Pipeline) -> BundleSpec:
    """Turn a [[pipeline]] with ``bundle`` into what the bundle loader needs."""
    if section.bundle is None:
        raise UserError(f"[[pipeline]] {section.name} names no bundle")
    return BundleSpec(
        folder=section.bundle,
        files=section.files,
        labels={
            value: Label(
                table.name,
                Code(*table.category),
                Code(*table.type),
                Code(*table.modifier) if table.modifier else None,
                table.colour or palette(value),
            )
            for value, table in section.labels.items()
        },
        inputs={name: input_of(table) for name, table in section.inputs.items()},
        title=section.title,
        procedure=Code(*section.procedure) if section.procedure else None,
        manufacturer=section.manufacturer,
        clearance=Clearance(section.clearance),
        config=section.config,
        weights=section.weights,
        orientation=section.orientation,
        mixed_precision=section.mixed_precision,
        memory_limit_gb=section.memory_limit_gb,
        overrides=section.overrides,
        seed_weights=section.seed_weights,
    )


@dataclass(frozen=True)
class Source:
    """Where one pipeline comes from: a plugin's entry point, perhaps with a section of its own, or a bundle's section.

    Parameters
    ----------
    plugins
        Entry points of that name; more than one makes the name ambiguous.
    section
        Its [[pipeline]], None for a plugin or package that the configuration does not name.
    folder
        Of a model package.
    """

    plugins: tuple[EntryPoint, ...] = ()
    section: model_sections.Pipeline | None = None
    folder: Path | None = None

    def settings(self) -> Mapping[str, Any]:
        """Keyword arguments of the plugin."""
        return self.section.settings if self.section is not None else {}

    def build(self, name: str, settings: Mapping[str, Any]) -> Pipeline:
        """Import and construct the pipeline; whatever its author's code raises comes through."""
        if self.section is not None and self.section.bundle is not None:
            if self.plugins:
                raise PipelineFault(f"{name} is a bundle and an installed plugin as well: give the bundle another name")
            return MonaiBundle(bundle_spec(self.section))
        if self.folder is not None and not self.plugins:
            return self._package(self.folder, settings).build()
        if not self.plugins:
            wanted = self.section.use if self.section is not None and self.section.use else name
            raise PipelineFault(
                f"there is no model package {wanted} (pacs-ai models list), and no installed plugin offers it in the "
                f"entry-point group {GROUP}: install it"
            )
        if len(self.plugins) > 1:
            offers = " and ".join(sorted(plugin.value for plugin in self.plugins))
            raise PipelineFault(f"{offers} are both installed under this name: uninstall one")
        pipeline = self.plugins[0].load()(**settings)
        if not isinstance(pipeline, Pipeline) or not isinstance(pipeline.card, Card):
            raise PipelineFault(
                f"{self.plugins[0].value} is no pipeline: it needs a card (pacs_ai.pipeline.Card), prepare and run"
            )
        return pipeline

    def package(self) -> Package | None:
        """Return the model package that it is, None for a plugin or a bundle; errors as `build`."""
        is_bundle = self.section is not None and self.section.bundle is not None
        if self.folder is None or self.plugins or is_bundle:
            return None
        return self._package(self.folder, self.settings())

    def _package(self, folder: Path, settings: Mapping[str, Any]) -> Package:
        """Read the package, as the section wants it: pinned by its digest, cleared only then, with its settings."""
        package, pinned = read(folder), self.section.digest.lower() if self.section is not None else ""
        if pinned and pinned != package.digest:
            raise PipelineFault(
                f"the package in {folder} has the digest {package.digest}, not the one that [[pipeline]] names: "
                "restore the folder; only if you trust the new one, renew the digest"
            )
        changes: dict[str, Any] = {"settings": {**package.model.settings, **settings}}
        if not pinned:
            changes["clearance"] = Clearance.RESEARCH.value
        return replace(package, model=package.model.model_copy(update=changes))


def _by_name(plugins: Iterable[EntryPoint]) -> dict[str, tuple[EntryPoint, ...]]:
    """Return the different entry points of each name."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for plugin in plugins:
        others = found.get(plugin.name, ())
        if plugin.value not in {other.value for other in others}:
            found[plugin.name] = (*others, plugin)
    return found


def _incomplete(folder: Path) -> bool:
    """Whether files of a package that came with the node are still to be installed; a broken one is no such."""
    try:
        return bool(read(folder).missing)
    except PacsAiError:
        return False


class Registry:
    """The pipelines of this node, by name.

    Parameters
    ----------
    sections
        The configuration's [[pipeline]] tables.
    plugins
        Entry points of the group ``pacs_ai.pipelines``; None: those of the installed packages.
    models
        Folder of installed model packages; those that come with the node are known without it.
    """

    def __init__(
        self,
        sections: Iterable[model_sections.Pipeline] = (),
        plugins: Iterable[EntryPoint] | None = None,
        models: Path | None = None,
    ) -> None:
        installed = _by_name(entry_points(group=GROUP) if plugins is None else plugins)
        unlisted = _by_name(entry_points(group=UNLISTED) if plugins is None else ())
        self._cards: dict[str, Card | str] = {}
        self._unlisted = {name: Source(offers) for name, offers in unlisted.items() if name not in installed}
        packages: dict[str, Path] = {}
        for folder in folders(models):
            packages.setdefault(folder.name, folder)
        self._sources = {name: Source(offers) for name, offers in installed.items()}
        self._uninstalled: dict[str, Source] = {}
        for name, folder in packages.items():
            known = self._uninstalled if _incomplete(folder) else self._sources
            known.setdefault(name, Source(folder=folder))
        for section in sections:
            wanted = section.use or section.model or section.name
            offers = () if section.model else installed.get(wanted, unlisted.get(wanted, ()))
            self._sources[section.name] = Source(offers, section, packages.get(wanted))

    @classmethod
    def of(cls, config: config.Config) -> Registry:
        """Return the pipelines of a configuration; what a route names and is not installed counts as broken."""
        made = cls(config.pipeline, models=config.models_folder)
        for name in {route.run for route in config.route} & set(made._uninstalled):
            made._sources[name] = made._uninstalled.pop(name)
        return made

    def _card_or_reason(self, name: str) -> Card | str:
        """Return the card, or the reason why there is none; built when it is first asked for, which imports a lot."""
        if name not in self._cards:
            try:
                self._cards[name] = self.create(name).card
            except PacsAiError as error:
                self._cards[name] = str(error)
        return self._cards[name]

    def _all_cards(self) -> Iterator[tuple[str, Card | str]]:
        return ((name, self._card_or_reason(name)) for name in sorted(self._sources))

    def names(self) -> tuple[str, ...]:
        """Return the names of the pipelines that can be used, sorted."""
        return tuple(name for name, card in self._all_cards() if isinstance(card, Card))

    @property
    def broken(self) -> Mapping[str, str]:
        """Name -> why that plugin or bundle cannot be used."""
        return {name: reason for name, reason in self._all_cards() if isinstance(reason, str)}

    def _source(self, name: str) -> Source:
        if name not in self._sources and name in self._unlisted:
            return self._unlisted[name]
        if name not in self._sources and name in self._uninstalled:
            return self._uninstalled[name]
        if name not in self._sources:
            known = ", ".join(sorted(self._sources)) or "none"
            raise UserError(
                f"there is no pipeline {name}: installed or configured are {known}; pacs-ai models list shows what can "
                "be installed"
            )
        return self._sources[name]

    def is_own(self, name: str) -> bool:
        """Whether the pipeline is a plugin that comes with the node; `UserError` where there is none of that name."""
        plugins = self._source(name).plugins
        return bool(plugins) and all(plugin.value.startswith("pacs_ai.") for plugin in plugins)

    def card(self, name: str) -> Card:
        """Return the card; executes no bundle, and of the built-in pipelines imports no torch.

        Raises
        ------
        UserError
            There is no pipeline of that name.
        PipelineFault
            It is broken; the message says why.
        """
        self._source(name)
        card = self._card_or_reason(name)
        if isinstance(card, str):
            raise PipelineFault(card)
        return card

    def create(self, name: str, settings: Mapping[str, Any] | None = None) -> Pipeline:
        """Construct the pipeline, not yet prepared.

        Parameters
        ----------
        name
            As in the configuration.
        settings
            Keyword arguments of the plugin in place of the configured ones; a bundle takes none.

        Raises
        ------
        UserError
            There is no pipeline of that name.
        PipelineFault
            It cannot be imported or constructed, or breaks the contract; the message says why.
        """
        source = self._source(name)
        given = source.settings() if settings is None else settings
        try:
            return source.build(name, given)
        except PacsAiError:
            raise
        except (Exception, SystemExit) as error:  # a plugin may raise anything, and harms only itself
            reason = f"pipeline {name} cannot be loaded: {type(error).__name__}: {error}"
            if isinstance(error, TypeError) and given:
                reason += f" (is there a setting that it does not take? Given are {', '.join(sorted(given))})"
            raise PipelineFault(reason) from error

    def package(self, name: str) -> Package | None:
        """Return the model package that the pipeline is, None for a plugin or a bundle; errors as `create`."""
        return self._source(name).package()

    def model_digest(self, name: str) -> str:
        """Return the SHA-256 (hex) of the model: the card's, else that of the source of the pipeline's module.

        Raises
        ------
        UserError, PipelineFault
            As `card`; also where the card states none and there is no source file to take it from.
        """
        card = self.card(name)
        if card.model_digest:
            return card.model_digest
        pipeline = self.create(name)
        path = inspect.getsourcefile(type(pipeline))
        if path is None or not Path(path).is_file():
            raise PipelineFault(f"pipeline {name} has no source file: its author must state model_digest in the card")
        return sha256(Path(path))

    def settings_digest(self, name: str, settings: Mapping[str, Any] | None = None) -> str:
        """Return the SHA-256 (hex) of what is configured and changes results; equal for equal settings in any order."""
        source = self._source(name)
        section, given = source.section, source.settings() if settings is None else settings
        skipped = NO_RESULT | {"settings"}
        content = {} if section is None else section.model_dump(mode="json", exclude=skipped, exclude_defaults=True)
        if given:
            content["settings"] = dict(given)
        if "inputs" in content:
            content["inputs"] = list(content["inputs"].items())  # their order is that of the image channels
        try:
            text = json.dumps(content, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"settings of [[pipeline]] {name} must be numbers, texts, lists and tables: {error}"
            ) from error
        return hashlib.sha256(text.encode()).hexdigest()
