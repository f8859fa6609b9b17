"""The node's configuration: one TOML file that, read top to bottom, is the journey.

The docstring under each key is its documentation (`pacs-ai config show`, docs/configuration.md); units are in the
key; defaults stand here and nowhere else. What it says of models stands in `pacs_ai.model_sections`, of the
listener, of peers and of TLS in `pacs_ai.network_sections`.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from pacs_ai import profiles
from pacs_ai.built_in_profiles import BUILT_IN
from pacs_ai.conditions import When
from pacs_ai.errors import UserError
from pacs_ai.model_sections import AeTitle, Name, Pipeline, Seconds, Section, faults_in
from pacs_ai.network_sections import Audit, Peer, Receive, Tls


class Node(Section):
    """Who this node is."""

    name: Name = "pacs-ai"
    """Name of the node: in log lines, in the Station Name of results, and part of its device UID."""


class Store(Section):
    """Where received instances, results and the database lie."""

    folder: Path = Path("pacs-ai-data")
    """Folder for instances and results; made with mode 0700. A relative path counts from the configuration file."""
    database: str = ""
    """SQLAlchemy URL. Empty: SQLite in `folder`. Several hosts: `postgresql+psycopg://user@host/dbname`."""
    min_free_gb: Annotated[float, Field(ge=0)] = 5.0
    """Below this much free space C-STORE is answered 0xA700 (out of resources), in GB."""
    min_free_percent: Annotated[float, Field(ge=0, le=99)] = 5.0
    """Below this share of free space C-STORE is answered 0xA700 (out of resources)."""


class ObjectTable(Section):
    """One object of a profile."""

    kind: profiles.Kind
    """What it is."""
    form: str = ""
    """How it is written; empty: the kind's first (docs/results.md lists them)."""
    transfer_syntax: str = ""
    """Transfer syntax (pydicom's keyword); empty: the form's first."""
    only: profiles.Only = ""
    """Make it of `volumes` only, or of `images` only (radiographs, mammograms, ultrasound); empty: of both."""
    frames: profiles.Frames = "sparse"
    """Of a segmentation: `full` writes a frame for each segment and slice, `sparse` leaves empty ones out."""
    otherwise: ObjectTable | None = None
    """What is sent instead where the peer accepts no such object; empty: the delivery fails and says so."""

    @property
    def wanted(self) -> profiles.Wanted:
        """The same, as `pacs_ai.profiles` takes it."""
        otherwise = None if self.otherwise is None else self.otherwise.wanted
        return profiles.Wanted(self.kind, self.form, self.transfer_syntax, self.frames, otherwise, self.only)


class Profile(Section):
    """Which objects a destination gets, in which order; its name may be that of a built-in one, which it replaces."""

    name: Name
    """What a `[[peer]]` calls it."""
    objects: Annotated[tuple[ObjectTable, ...], Field(min_length=1)]
    """In the order of delivery, each in a series of its own; Series Numbers ascend in this order."""
    series_number: Annotated[int, Field(ge=1, le=99_000)] | None = None
    """Series Number of the first; empty: `deliver.series_number`."""
    honours_rejection_notes: bool = True
    """Whether the peer hides what a rejection note names (IHE IOCM). Where not, `pacs-ai retract` sends it objects
    that say RETRACTED."""

    @model_validator(mode="after")
    def _possible(self) -> Profile:
        try:
            profiles.plan(self.known, 1)
        except UserError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def known(self) -> profiles.Profile:
        """The same, as `pacs_ai.profiles` takes it."""
        return profiles.Profile(self.name, tuple(table.wanted for table in self.objects), self.honours_rejection_notes)


class Route(Section):
    """Which series go through which pipeline to which peers."""

    name: str = ""
    """Shown in `status` and `explain`; empty: the pipeline's name."""
    when: When | None = None
    """Conditions on a series, for a pipeline with one input."""
    inputs: dict[str, When] = Field(default_factory=dict)
    """Named input -> conditions, for a pipeline with several; the series are found within one study."""
    run: Name
    """Pipeline to run."""
    deliver_to: tuple[Name, ...] = ()
    """Peers that get the results."""
    report_not_analysed: bool = False
    """Whether a series that could not be analysed gets an SR that says so and why."""
    wait_for: Literal["series", "study"] = "series"
    """`study`: wait until every series of the study is complete."""
    wait_seconds: Seconds = 900.0
    """How long named inputs are waited for after the first is complete; then the job is refused: "flair missing"."""
    overdue_seconds: Seconds = 1800.0
    """A series in scope without delivered results after so long is shown as overdue."""
    priority: Literal["stat", "urgent", "routine"] | None = None
    """Priority of the jobs; empty: Requested Procedure Priority (0040,1003), else the C-STORE's own."""

    @model_validator(mode="after")
    def _conditions(self) -> Route:
        if (self.when is None) == (not self.inputs):
            raise ValueError("give either `when` (one input) or `inputs` (several), and not both")
        return self

    @property
    def title(self) -> str:
        """What it is called."""
        return self.name or self.run


class Models(Section):
    """Model packages: folders with a `model.toml`."""

    folder: Path | None = None
    """Where `pacs-ai models install` puts them; empty: `models` in the store's folder. A relative path counts from the
    configuration file."""


class Infer(Section):
    """The workers."""

    devices: tuple[str, ...] = ("auto",)
    """One worker process per device: `auto`, `cpu`, `cuda:0`. `auto` takes every NVIDIA GPU, else the CPU."""
    idle_unload_seconds: Seconds = 3600.0
    """A worker's child process without work for so long is ended, and its memory freed."""
    jobs_per_process: Annotated[int, Field(ge=1)] = 1000
    """A worker's child process is replaced after so many jobs: what a model's libraries leak cannot add up."""


class Deliver(Section):
    """How results travel."""

    calling_ae_title: AeTitle | None = None
    """AE title that the node calls with; empty: the first of `receive.ae_titles`."""
    first_backoff_seconds: Annotated[float, Field(gt=0, le=300)] = 5.0
    """Wait after the first failure; doubled up to `longest_backoff_seconds`, with jitter."""
    longest_backoff_seconds: Annotated[float, Field(gt=0, le=300)] = 300.0
    """Longest wait between two tries."""
    give_up_hours: Annotated[float, Field(gt=0)] = 72.0
    """A result that could not be delivered for so long is failed; `pacs-ai retry` sends it again."""
    series_number: Annotated[int, Field(ge=1, le=99_000)] = 9001
    """Series Number of the first series of results; the next ones follow, in the order of the profile."""


class Retention(Section):
    """What is deleted, and when."""

    inputs_days: Annotated[float, Field(gt=0)] = 14.0
    """Received instances are deleted so many days after their jobs were done and delivered. To keep them, give a
    number as large as you like."""
    unrouted_days: Annotated[float, Field(gt=0)] = 2.0
    """Received instances that no route wanted are deleted after so many days."""


class Log(Section):
    """Log lines on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is shown."""
    format: Literal["text", "json"] = "text"
    """`json`: one object per line, for a log collector."""


class Config(Section):
    """The whole file."""

    node: Node = Node()
    store: Store = Store()
    receive: Receive = Receive()
    tls: Tls = Tls()
    peer: tuple[Peer, ...] = ()
    profile: tuple[Profile, ...] = ()
    pipeline: tuple[Pipeline, ...] = ()
    route: tuple[Route, ...] = ()
    models: Models = Models()
    infer: Infer = Infer()
    deliver: Deliver = Deliver()
    retention: Retention = Retention()
    audit: Audit = Audit()
    log: Log = Log()

    @field_validator("peer", "profile", "pipeline")
    @classmethod
    def _unique(cls, tables: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [table.name for table in tables]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the name {', '.join(twice)} is used twice")
        return tables

    @model_validator(mode="after")
    def _resolved(self) -> Config:
        known = {peer.name for peer in self.peer}
        faults = [
            f"route {route.title}: deliver_to names {name!r}, which is no [[peer]]"
            for route in self.route
            for name in route.deliver_to
            if name not in known
        ]
        faults += [
            f"peer {peer.name}: there is no profile {peer.profile!r} (known: {', '.join(self.profile_names)})"
            for peer in self.peer
            if peer.profile not in self.profile_names
        ]
        faults += self._namesake_faults()
        faults += self._tls_faults()
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _namesake_faults(self) -> list[str]:
        """Say where it matters which of several peers with one AE title calls: its calls do not tell."""
        called: dict[str, list[Peer]] = {}
        for peer in self.peer:
            called.setdefault(peer.ae_title, []).append(peer)
        found = []
        for title, peers in called.items():
            names = " and ".join(peer.name for peer in peers)
            found += [
                f"peers {names} have one AE title, {title}: give them the same {key}"
                for key in ("quiet_seconds", "certificate_name")
                if len({getattr(peer, key) for peer in peers}) > 1
            ]
            if self.receive.commitment and len({(peer.host, peer.port, peer.tls) for peer in peers}) > 1:
                found.append(
                    f"peers {names} have one AE title, {title}, but not one host, port and tls, so it is not known "
                    "which of them asks for storage commitment: keep one of them, or set receive.commitment = false"
                )
        return found

    def _tls_faults(self) -> list[str]:
        receive = self.receive
        found = []
        if receive.tls_port is None and not receive.plain:
            found.append("receive: plain is false and there is no tls_port, so nobody could reach the node")
        if receive.plain and receive.tls_port == receive.port:
            found.append("receive: port and tls_port are the same; give tls_port another, such as 2762")
        if not self.tls.is_given:
            wanting = [f"peer {peer.name}: tls" for peer in self.peer if peer.tls]
            wanting += ["receive.tls_port"] * (receive.tls_port is not None)
            wanting += ["audit.repository"] * bool(self.audit.repository)
            found += [f"{what} needs [tls] with certificate_file, key_file and trusted_file" for what in wanting]
        return found

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the database."""
        return self.store.database or f"sqlite:///{self.store.folder.resolve() / 'pacs_ai.sqlite'}"

    @property
    def models_folder(self) -> Path:
        """Where installed model packages lie."""
        return self.models.folder or self.store.folder / "models"

    @property
    def audit_folder(self) -> Path:
        """Where the audit trail's file lies."""
        return self.audit.folder or self.store.folder / "audit"

    @property
    def calling_ae_title(self) -> str:
        """AE title that the node calls others with."""
        return self.deliver.calling_ae_title or self.receive.ae_titles[0]

    @property
    def profile_names(self) -> tuple[str, ...]:
        """The profiles that a peer may name."""
        return tuple(dict.fromkeys((*BUILT_IN, *(profile.name for profile in self.profile))))

    def profile_named(self, name: str) -> profiles.Profile:
        """Return the profile of that name, the file's own before a built-in one; UserError where there is none."""
        own = next((profile.known for profile in self.profile if profile.name == name), None)
        found = own or BUILT_IN.get(name)
        if found is None:
            raise UserError(f"there is no profile {name!r} (known: {', '.join(self.profile_names)})")
        return found

    def plan_of(self, profile: str) -> profiles.Plan:
        """Return what a destination of that profile gets."""
        own = next((one.series_number for one in self.profile if one.name == profile), None)
        return profiles.plan(self.profile_named(profile), own or self.deliver.series_number)

    def plans_of(self, pipeline: str) -> tuple[profiles.Plan, ...]:
        """Return what the destinations of all routes that run a pipeline get."""
        peers = [self.peer_named(name) for route in self.route if route.run == pipeline for name in route.deliver_to]
        return tuple(self.plan_of(name) for name in dict.fromkeys(peer.profile for peer in peers))

    def peer_named(self, name: str) -> Peer:
        """Return the peer of that name; UserError with the known names where there is none."""
        for peer in self.peer:
            if peer.name == name:
                return peer
        names = ", ".join(sorted(peer.name for peer in self.peer)) or "none"
        raise UserError(f"there is no [[peer]] called {name!r} in the configuration (known: {names})")


def load(path: Path | None) -> Config:
    """Read the file; without one, the embedded defaults.

    Raises
    ------
    UserError
        Names every fault at once, each with its path in the file.
    """
    if path is None:
        return Config()
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"there is no configuration file {path}; see config/pacs-ai.toml for one to start from"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the configuration file {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is no valid TOML: {error}") from error
    try:
        config = Config.model_validate(table)
    except ValidationError as error:
        raise UserError(f"{path} has {error.error_count()} fault(s):\n{faults_in(error, Config)}") from error
    return _with_whole_paths(config, path.resolve().parent)


def _with_whole_paths(config: Config, folder: Path) -> Config:
    """Return the configuration with its relative paths counted from the file's folder."""
    store = config.store.model_copy(update={"folder": folder / config.store.folder})
    models = config.models.model_copy(
        update={"folder": None if config.models.folder is None else folder / config.models.folder}
    )
    pipelines = tuple(
        p if p.bundle is None else p.model_copy(update={"bundle": folder / p.bundle}) for p in config.pipeline
    )
    tls = config.tls.model_copy(
        update={name: folder / path for name, path in config.tls if isinstance(path, Path)}  # of its three files
    )
    audit = config.audit.model_copy(
        update={"folder": None if config.audit.folder is None else folder / config.audit.folder}
    )
    whole = {"store": store, "models": models, "pipeline": pipelines, "tls": tls, "audit": audit}
    return config.model_copy(update=whole)
