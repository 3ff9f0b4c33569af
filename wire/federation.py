"""``federation.toml``: the whole federation in one file, the same for simulation, loopback and institutions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from privacy.secure_aggregation.atoms import smallest_group
from wire.config import read_toml, validate
from wire.frozen import Frozen
from wire.hours import opening_window, time_zone
from wire.merging import MergingSpec, Setting
from wire.names import Name
from wire.plan import AggregationSpec, RoundsSpec, SecureSpec
from wire.privacy import PrivacySpec

Host = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._:\[\]-]+$")]
PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""An Ed25519 public key in small hexadecimal letters."""

Port = Annotated[int, Field(ge=0, le=65_535)]


class FederationSection(Frozen):
    """Who we are."""

    name: Name = Field(default="emoji-demo", description="The federation's name: small letters, digits, hyphens.")
    root: PublicKey | None = Field(
        default=None,
        description="Public key of a federation root that is kept apart (fedloom federation init prints it): only its "
        "holder can add members. Left out, the coordinator makes a root in its own state folder.",
    )


class CoordinatorSection(Frozen):
    """The coordinator daemon."""

    host: Host = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for all of this machine's.")
    port: Port = Field(
        default=7600, description="Port for participants and operators (mutual TLS); 0 for any free one."
    )
    enrolment_port: Port = Field(default=7601, description="Port where newcomers show their token; 0 for any free one.")
    metrics_port: Port | None = Field(
        default=None,
        description="Port on 127.0.0.1 where Prometheus finds metrics (docs/metrics.md), without TLS or a login: to "
        "read them from elsewhere, put a proxy before it. 0 for any free one; left out, there are none.",
    )
    public_host: Host = Field(
        default="localhost", description="Name or address under which sites reach this machine; tokens carry it."
    )
    state: Path = Field(
        default=Path("fedloom-state"),
        description="Folder for keys, database and checkpoints; relative to this file. Back it up, keep it private.",
    )
    lease_s: float = Field(
        default=30.0, ge=1.0, le=3_600.0, description="Seconds of silence after which a participant counts as gone."
    )
    invitation_ttl_s: float = Field(
        default=86_400.0, ge=60.0, le=30 * 86_400.0, description="Seconds for which a token may be used."
    )

    certificate_days: float = Field(
        default=90.0,
        gt=0.0,
        le=3_650.0,
        description="Days for which a site's certificate is valid; it renews itself before.",
    )
    reserve_mb: int = Field(default=512, ge=0, le=1 << 30, description="Disk space to leave free, in MB.")
    max_calls: int = Field(
        default=4_096,
        ge=16,
        le=1_000_000,
        description="Calls, and connections, at a time on each port. Every connected participant has one of each all "
        "the time. Who comes when all are taken tries again later.",
    )
    peer_calls: int = Field(
        default=16, ge=4, le=1_024, description="Calls at a time of one participant, its stream and transfers included."
    )
    peer_transfers: int = Field(
        default=8, ge=1, le=1_024, description="Uploads and downloads at a time of one participant."
    )
    peer_upload_mb: int = Field(
        default=16_384,
        ge=1,
        le=1 << 24,
        description="Size in MB of what one participant may have uploaded in part, all together.",
    )
    peer_messages_per_s: float = Field(
        default=200.0,
        gt=0.0,
        le=100_000.0,
        description="Messages of one participant that are read in a second; one that sends more waits.",
    )
    peer_outbox_mb: int = Field(
        default=16,
        ge=8,
        le=4_096,
        description="Size in MB of the messages that may wait until one participant reads them. With more its stream "
        "is ended: it connects again and is told what holds then.",
    )
    initial_model: Path | None = Field(
        default=None,
        description="Checkpoint to begin with, from `fedloom model init`; made at the first start if left out.",
    )

    @model_validator(mode="after")
    def _a_stream_fits_beside_transfers(self) -> Self:
        if self.peer_transfers + 2 > self.peer_calls:
            raise ValueError(
                f"peer_calls is {self.peer_calls}; beside {self.peer_transfers} peer_transfers it must leave room "
                f"for a stream and a question: at least {self.peer_transfers + 2}"
            )
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        seen: dict[int, str] = {}
        for name in ("port", "enrolment_port", "metrics_port"):
            port = getattr(self, name)
            if port in seen:
                raise ValueError(f"{seen[port]} and {name} are both {port}; they must differ")
            if port:
                seen[port] = name
        return self


class SimulatedInstitution(Frozen):
    """One simulated participant."""

    name: Name = Field(description="The participant's name.")
    data: str = Field(min_length=1, max_length=4_096, description="Its data source, as for `participant join --data`.")
    seconds: float = Field(default=1.0, ge=0.0, le=1e6, description="Virtual seconds that it trains in a round.")
    hours: tuple[Annotated[str, AfterValidator(opening_window)], ...] | None = Field(
        default=None,
        max_length=64,
        description='When it takes tasks, such as ["mon-fri 19:00-06:00"]; left out: always. Virtual time begins on '
        "Sunday, 9 September 2001, at 01:46:40 UTC.",
    )
    time_zone: Annotated[str, AfterValidator(time_zone)] | None = Field(
        default=None, description="Of its hours, by the name in the IANA database; left out: UTC."
    )


_STYLES = ("twemoji", "openmoji", "openmoji-line", "noto")


class SimulationSection(Frozen):
    """What `fedloom simulate` runs: the same federation in one process with a virtual clock."""

    workers: int = Field(
        default=0, ge=0, le=1_024, description="Participants that train at the same time; 0: one for each core."
    )
    compare_local: bool = Field(
        default=True, description="Also train each institution alone, to show what the federation adds."
    )
    attack: str | None = Field(
        default=None,
        max_length=64,
        description="What hostile institutions do, such as alie; docs/robustness.md lists the attacks.",
    )
    attack_settings: dict[str, Setting] = Field(
        default_factory=dict,
        max_length=32,
        description="How it is done where not as by default, such as { scale = 3.0 }; docs/robustness.md lists each "
        "attack's settings.",
    )
    attackers: int = Field(
        default=0, ge=0, le=100_000, description="How many institutions are hostile: the last ones of the list."
    )
    speeds: Literal["fixed", "half-normal", "lognormal", "stragglers"] = Field(
        default="fixed",
        description="How an institution's trainings differ from its seconds. fixed: not at all; half-normal: by a new "
        "random factor each time, the magnitude of a normal draw; lognormal: likewise, with speed_sigma; stragglers: "
        "some institutions are always slower.",
    )
    speed_seed: int = Field(default=0, ge=0, lt=1 << 63, description="Of the random speeds.")
    speed_sigma: float = Field(default=0.75, gt=0.0, le=5.0, description="lognormal: spread of the factor's logarithm.")
    straggler_share: float = Field(
        default=0.2, gt=0.0, lt=1.0, description="stragglers: which part of the institutions is slow."
    )
    straggler_factor: float = Field(
        default=4.0, gt=1.0, le=1e6, description="stragglers: how many times longer these take."
    )
    speed_trace: Path | None = Field(
        default=None,
        description="CSV file with the columns participant and seconds, a line for each training, instead of speeds; "
        "relative to this file.",
    )
    institutions: tuple[SimulatedInstitution, ...] = Field(
        default=tuple(SimulatedInstitution(name=style, data=f"emoji:{style}") for style in _STYLES),
        min_length=1,
        max_length=100_000,
        description="The participants: name, data source, and virtual seconds of training in a round.",
    )

    @field_validator("institutions")
    @classmethod
    def _names_differ(cls, institutions: tuple[SimulatedInstitution, ...]) -> tuple[SimulatedInstitution, ...]:
        seen: set[str] = set()
        for institution in institutions:
            if institution.name in seen:
                raise ValueError(f"the name {institution.name!r} appears twice")
            seen.add(institution.name)
        return institutions

    @model_validator(mode="after")
    def _speeds_are_said_once(self) -> Self:
        if self.speed_trace is not None and self.speeds != "fixed":
            raise ValueError(f'speeds = "{self.speeds}" with a speed_trace: leave one of them out')
        for key, only in (
            ("speed_sigma", ("lognormal",)),
            ("straggler_share", ("stragglers",)),
            ("straggler_factor", ("stragglers",)),
            ("speed_seed", ("half-normal", "lognormal", "stragglers")),
        ):
            if self.speeds not in only and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f'{key} does nothing with speeds = "{self.speeds}": leave it out')
        return self

    @model_validator(mode="after")
    def _attackers_leave_a_federation(self) -> Self:
        if (self.attack is None) != (self.attackers == 0):
            raise ValueError(
                f"attack = {self.attack!r} with attackers = {self.attackers}: give both, what hostile institutions do "
                "and how many they are, or neither"
            )
        if self.attack_settings and self.attack is None:
            raise ValueError("attack_settings without an attack: name one, or leave them out")
        most = max(0, len(self.institutions) - 2)
        if self.attackers > most:
            raise ValueError(
                f"attackers = {self.attackers} of {len(self.institutions)} institutions: two at least must be honest, "
                f"so at most {most}"
            )
        return self

    @property
    def hostile(self) -> tuple[str, ...]:
        """Names of the hostile institutions."""
        return tuple(item.name for item in self.institutions[len(self.institutions) - self.attackers :])


class FederationConfig(Frozen):
    """A Fedloom federation. Every key may be left out; what stands here is the default unless you change it."""

    federation: FederationSection = Field(default=FederationSection(), description="Who we are.")
    coordinator: CoordinatorSection = Field(default=CoordinatorSection(), description="The coordinator daemon.")
    rounds: RoundsSpec = Field(default=RoundsSpec(), description="How a run proceeds, round by round.")
    aggregation: AggregationSpec = Field(
        default=AggregationSpec(), description="How the updates of a round become the next version of the model."
    )
    merging: MergingSpec = Field(default=MergingSpec(), description="How updates become one, whoever sent them.")
    secure_aggregation: SecureSpec = Field(
        default=SecureSpec(), description='Secure sums, where [aggregation] mode = "secure".'
    )
    privacy: PrivacySpec = Field(
        default=PrivacySpec(), description="Differential privacy: noise, and the budget that it is solved for."
    )
    model: dict[str, Any] = Field(default_factory=dict, description="The model that is trained.")
    task: dict[str, Any] = Field(default_factory=dict, description="What it is trained for.")
    training: dict[str, Any] = Field(default_factory=dict, description="How each participant trains in a round.")
    simulation: SimulationSection = Field(
        default=SimulationSection(), description="Only for `fedloom simulate`: institutions on this machine."
    )

    @model_validator(mode="after")
    def _groups_are_possible(self) -> Self:
        """Sums of groups: two of them at least, whole atoms, and no noise that is sized for one sum."""
        size = self.secure_aggregation.group_size
        if self.aggregation.mode == "plain" or not size:
            return self
        if self.privacy.distributed:
            raise ValueError(
                f'[privacy] placement = "{self.privacy.placement}": sites size their shares of the noise for one sum; '
                f'with [secure_aggregation] group_size = {size} choose placement = "local"'
            )
        if self.rounds.participants_per_round:
            raise ValueError(
                f"[rounds] participants_per_round = {self.rounds.participants_per_round}: with [secure_aggregation] "
                f"group_size = {size} whole atoms take part; leave it out"
            )
        two = 2 * smallest_group(size)
        if self.rounds.min_participants < two:
            raise ValueError(
                f"[rounds] min_participants = {self.rounds.min_participants}: two groups of {two // 2} participants "
                f"([secure_aggregation] group_size = {size}) need at least {two}. Set it to {two} or more, or "
                "group_size = 0 for one sum"
            )
        return self

    @model_validator(mode="after")
    def _asynchronous_sums_are_possible(self) -> Self:
        """Secure sums of asynchronous rounds: nothing that needs all of a round, or the single updates."""
        spec = self.secure_aggregation
        if not self.rounds.asynchronous or self.aggregation.mode == "plain":
            if spec.min_same_base != type(spec).model_fields["min_same_base"].default:
                raise ValueError(
                    f"[secure_aggregation] min_same_base = {spec.min_same_base} does nothing without asynchronous "
                    'rounds and [aggregation] mode = "secure": leave it out'
                )
            return self
        if self.privacy.distributed:
            raise ValueError(
                f'[privacy] placement = "{self.privacy.placement}" with [rounds] mode = "asynchronous": sites size '
                "their shares of the noise for updates that count fully, and here older ones count for less. Choose "
                'placement = "local", or mode = "synchronous"'
            )
        if self.rounds.correction == "ca2fl":
            raise ValueError(
                '[rounds] correction = "ca2fl" with [aggregation] mode = "secure": it needs the single updates, which '
                'the coordinator doesn\'t see. Leave it out, or set correction = "none"'
            )
        if spec.group_size and spec.min_same_base > 1:
            raise ValueError(
                f"[secure_aggregation] min_same_base = {spec.min_same_base} with group_size = {spec.group_size}: each "
                "group would need so many of one version among its few. Leave one of them out"
            )
        least = max(spec.min_cohort, spec.group_size, spec.min_same_base)
        if 0 < self.rounds.buffer_size < least:
            raise ValueError(
                f"[rounds] buffer_size = {self.rounds.buffer_size}: a secure sum needs at least {least} updates "
                "([secure_aggregation] min_cohort, group_size and min_same_base)"
            )
        return self

    @model_validator(mode="after")
    def _sums_are_possible(self) -> Self:
        """A round that could begin with too few participants for a secure sum would wait for ever."""
        if self.aggregation.mode == "plain":
            if self.privacy.distributed:
                raise ValueError(
                    f'[privacy] placement = "{self.privacy.placement}": no site adds all of the noise, so it needs '
                    '[aggregation] mode = "secure"; or choose placement = "local"'
                )
            return self
        floor = self.secure_aggregation.min_cohort
        for key in ("min_participants", "participants_per_round"):
            count = getattr(self.rounds, key)
            if 0 < count < floor:
                raise ValueError(
                    f"[rounds] {key} = {count}: a secure sum needs at least {floor} participants "
                    f"([secure_aggregation] min_cohort). Set it to {floor} or more; or set [aggregation] mode = "
                    '"plain", in which the coordinator sees each update'
                )
        return self

    def learning(self) -> dict[str, Any]:
        """The tables ``{model, task, training}`` as a plan carries them."""
        return {"model": self.model, "task": self.task, "training": self.training}

    def with_learning(self, tables: Mapping[str, dict[str, Any]]) -> Self:
        """A copy with these learning tables, as after their defaults were filled in."""
        return self.model_copy(update={name: tables[name] for name in ("model", "task", "training")})

    def changed(self, **sections: Mapping[str, Any]) -> Self:
        """A copy in which command-line options replace single keys; an option that is None changes nothing.

        >>> FederationConfig().changed(rounds={"count": 3, "seed": None}).rounds.count
        3

        Raises:
            ConfigError: If a value isn't allowed.
        """
        tables = self.model_dump(mode="python")
        for section, options in sections.items():
            tables[section].update({key: value for key, value in options.items() if value is not None})
        return validate(type(self), tables, "command line")


def load(path: Path) -> FederationConfig:
    """Read a ``federation.toml``. Relative paths in it are relative to the file; they are returned resolved so.

    Raises:
        ConfigError: With every mistake of the file.
    """
    config = validate(FederationConfig, read_toml(path), str(path))
    section = config.coordinator
    places: dict[str, Any] = {"state": path.parent / section.state.expanduser()}
    if section.initial_model is not None:
        places["initial_model"] = path.parent / section.initial_model.expanduser()
    changes: dict[str, Any] = {"coordinator": section.model_copy(update=places)}
    if (trace := config.simulation.speed_trace) is not None:
        changes["simulation"] = config.simulation.model_copy(update={"speed_trace": path.parent / trace.expanduser()})
    return config.model_copy(update=changes)
