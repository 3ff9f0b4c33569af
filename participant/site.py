"""A site's folder: who the participant is, where the coordinator is, which data it brings and what it allows."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from cryptography import x509
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from participant.rules import PrivacyRules, ScheduleRules, SiteRules
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.policy import SitePolicy
from wire import (
    ConfigError,
    Credentials,
    OpeningHours,
    RefusedError,
    commented_toml,
    load_signing_key,
    opening_window,
    read_toml,
    same_key,
    save_signing_key,
    time_zone,
    validate,
)
from wire.federation import PublicKey

CONFIG: Final = "participant.toml"
JOURNAL: Final = "journal.sqlite"
LEDGER: Final = "ledger.sqlite"
BLOBS: Final = "blobs"
IDENTITY: Final = "identity"


class SecureRules(BaseModel):
    """A site's rules for secure sums (``privacy.secure_aggregation.policy.SitePolicy``)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_cohort: int = Field(default=3, ge=3, le=1_024, description="The fewest participants whose sum is published.")
    min_corrupt_percent: int = Field(
        default=10,
        ge=1,
        le=33,
        description="Corrupt participants that a cohort over 100 must be safe against, in per cent.",
    )
    min_roster_change: int = Field(
        default=2, ge=1, le=1_024, description="Rosters are equal or differ by at least so many participants."
    )
    remembered_rosters: int = Field(
        default=5, ge=0, le=32, description="Earlier rosters that a new one is compared with."
    )
    min_group: int = Field(default=3, ge=3, le=1_024, description="The smallest group whose sum is published.")
    min_same_base: int = Field(
        default=1,
        ge=1,
        le=1_024,
        description="Asynchronous rounds: from the version that this site trained from, at least so many updates of a "
        "sum are. 1 trusts the coordinator to hand out the versions that it merges; 3 or more trusts it with nothing.",
    )
    max_value_bits: int = Field(default=30, ge=2, le=30, description="The most bits that one value may take.")
    max_clip_norm: float = Field(default=1e4, gt=0, description="The largest L2 norm that an update may keep.")
    max_clip_value: float = Field(default=1e3, gt=0, description="The largest single value that an update may keep.")

    def policy(self) -> SitePolicy:
        """As the protocol's machine takes them."""
        return SitePolicy(**self.model_dump())


class PrivacyBudget(BaseModel):
    """A site's privacy budget (``participant.rules.PrivacyRules``)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    required: bool = Field(default=False, description="Take part only in runs that add noise for each record.")
    epsilon: float = Field(
        default=10.0,
        gt=0,
        le=1_000,
        description="What each data set may pay in all, over all runs and coordinators. Taken up with its first "
        "private run; from then on `fedloom participant budget set` changes it.",
    )
    delta: float = Field(
        default=0.0, ge=0, lt=0.1, description="Of that promise; 0 takes a tenth of 1 / records, at most 1e-5."
    )


class Schedule(BaseModel):
    """When this site works, and how much (``participant.rules.ScheduleRules``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time_zone: Annotated[str, AfterValidator(lambda name: time_zone(name) if name else "")] = Field(
        default="", description="The site's, by its name in the IANA database, such as Europe/Zurich."
    )
    hours: tuple[Annotated[str, AfterValidator(opening_window)], ...] = Field(
        default=(),
        max_length=64,
        description='When it takes tasks, such as ["mon-fri 19:00-06:00", "sat-sun"]; empty: always. A window whose '
        "end isn't behind its beginning ends on the next day.",
    )
    at_the_end: Literal["finish", "pause"] = Field(
        default="finish",
        description="What becomes of a training when a window ends: it is finished, or paused until the next window.",
    )
    max_rounds_a_day: int = Field(default=0, ge=0, le=1_000_000, description="Trainings in a day; 0: any number.")
    max_bytes_a_day: int = Field(
        default=0,
        ge=0,
        le=1 << 60,
        description="Bytes of models and updates in a day, down and up together; 0: any number.",
    )

    @model_validator(mode="after")
    def _says_whose_time(self) -> Self:
        if (self.hours or self.max_rounds_a_day or self.max_bytes_a_day) and not self.time_zone:
            raise ValueError('time_zone is missing: whose hours and days are these? Write for example "Europe/Zurich"')
        if self.at_the_end == "pause" and not self.hours:
            raise ValueError('at_the_end = "pause" does nothing without hours: leave it out')
        return self

    def rules(self) -> ScheduleRules:
        """As the agent takes them."""
        return ScheduleRules(
            hours=OpeningHours.parse(self.hours, self.time_zone or "UTC"),
            pause=self.at_the_end == "pause",
            max_rounds_a_day=self.max_rounds_a_day,
            max_bytes_a_day=self.max_bytes_a_day,
        )


class SiteConfig(BaseModel):
    """The contents of ``participant.toml``: the site's own file, which nothing from the network changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    session_address: str = Field(description="Where the coordinator's session service is, host:port.")
    enrolment_address: str = Field(description="Where its enrolment service is, host:port.")
    root: PublicKey = Field(
        description="Public key of the federation root, whose word this site takes for who is a member."
    )
    data: str = Field(description="The site's data source.", min_length=1)
    allow: tuple[str, ...] = Field(
        default=(), description="Python entry points (module:function) on this machine that a plan may name."
    )
    reserve_mb: int = Field(default=512, ge=0, description="Disk space to leave free, in MB.")
    allow_plain: bool = Field(
        default=False,
        description="Take part in runs with plain averaging, too, where the coordinator sees this site's updates.",
    )
    secure_aggregation: SecureRules = Field(
        default=SecureRules(), description="What this site demands of secure sums; no coordinator can override it."
    )
    privacy: PrivacyBudget = Field(
        default=PrivacyBudget(), description="The privacy budget of this site's data; no coordinator can override it."
    )
    schedule: Schedule = Field(
        default=Schedule(), description="When this site works, and how much; no coordinator can override it."
    )


@dataclasses.dataclass(frozen=True)
class Site:
    """A joined site. ``folder`` is readable by its owner only.

    ``credentials`` are for TLS; ``signing_key`` is the key that the federation root certifies.
    """

    folder: Path
    config: SiteConfig
    credentials: Credentials
    signing_key: SigningKey

    @property
    def name(self) -> str:
        """The participant's name in the roster."""
        return self.credentials.identity.name

    @property
    def federation(self) -> str:
        """The federation's name."""
        return self.credentials.identity.federation

    @property
    def rules(self) -> SiteRules:
        """What this site demands of a run."""
        return SiteRules(
            allow_plain=self.config.allow_plain,
            secure=self.config.secure_aggregation.policy(),
            privacy=PrivacyRules(**self.config.privacy.model_dump()),
            schedule=self.config.schedule.rules(),
        )

    @property
    def root(self) -> bytes:
        """The federation root's public key, 32 bytes."""
        return bytes.fromhex(self.config.root)

    def renewal_due(self, now: datetime.datetime) -> bool:
        """Whether two thirds of the certificate's life are over."""
        certificate = x509.load_pem_x509_certificate(self.credentials.certificate_pem)
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        return now > certificate.not_valid_before_utc + life * 2 / 3

    def renewed(self, certificate_pem: bytes) -> Site:
        """This site with a new certificate for its key, written to disk.

        Raises:
            RefusedError: the certificate is for another key or another name.
        """
        credentials = dataclasses.replace(self.credentials, certificate_pem=certificate_pem)
        same = same_key(certificate_pem, self.credentials.certificate_pem)
        if not same or (credentials.identity.name, credentials.identity.federation) != (self.name, self.federation):
            raise RefusedError("certificate-foreign", "the coordinator renewed another certificate than this site's")
        credentials.save(self.folder / IDENTITY)
        return dataclasses.replace(self, credentials=credentials)

    @classmethod
    def load(cls, folder: Path) -> Site:
        """Read a site's folder.

        Raises:
            ConfigError: nobody has joined from this folder, or its configuration has a mistake.
        """
        path = folder / CONFIG
        if not path.exists():
            raise ConfigError(
                f"no federation was joined from {folder}",
                "Join one first: fedloom participant join TOKEN --data PATH (and the same --home, if you gave one).",
            )
        config = validate(SiteConfig, read_toml(path), str(path))
        return cls(folder, config, Credentials.load(folder / IDENTITY), load_signing_key(folder / IDENTITY))

    def save(self) -> None:
        """Write the folder.

        Raises:
            ConfigError: a value holds a control character, which nobody would see in the file.
        """
        config = self.config
        for text in (config.session_address, config.enrolment_address, config.data, *config.allow):
            if not text.isprintable():
                raise ConfigError(f"{text!r} can't be written to {CONFIG}: it holds a control character")
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.credentials.save(self.folder / IDENTITY)
        save_signing_key(self.folder / IDENTITY, self.signing_key)
        (self.folder / CONFIG).write_text(commented_toml(self.config), encoding="utf-8")
