"""A site's folder: who the participant is, where the coordinator is, which data it brings and what it allows."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field

from wire import ConfigError, Credentials, RefusedError, read_toml, same_key, validate

CONFIG: Final = "participant.toml"
JOURNAL: Final = "journal.sqlite"
BLOBS: Final = "blobs"
IDENTITY: Final = "identity"


class SiteConfig(BaseModel):
    """The contents of ``participant.toml``: the site's own file, which nothing from the network changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    session_address: str = Field(description="Where the coordinator's session service is, host:port.")
    enrolment_address: str = Field(description="Where its enrolment service is, host:port.")
    data: str = Field(description="The site's data source.", min_length=1)
    allow: tuple[str, ...] = Field(
        default=(), description="Python entry points (module:function) on this machine that a plan may name."
    )
    reserve_mb: int = Field(default=512, ge=0, description="Disk space to leave free, in MB.")


@dataclasses.dataclass(frozen=True)
class Site:
    """A joined site. ``folder`` is readable by its owner only."""

    folder: Path
    config: SiteConfig
    credentials: Credentials

    @property
    def name(self) -> str:
        """The participant's name in the roster."""
        return self.credentials.identity.name

    @property
    def federation(self) -> str:
        """The federation's name."""
        return self.credentials.identity.federation

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
        return cls(folder, config, Credentials.load(folder / IDENTITY))

    def save(self) -> None:
        """Write the folder."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.credentials.save(self.folder / IDENTITY)
        (self.folder / CONFIG).write_text(_toml(self.config), encoding="utf-8")


def _toml(config: SiteConfig) -> str:
    lines = ["# This site's part in the federation. Nothing that comes over the network changes this file.", ""]
    for key, field in SiteConfig.model_fields.items():
        value = getattr(config, key)
        lines.append(f"# {field.description}")
        if isinstance(value, tuple):
            lines.append(f"{key} = [{', '.join(_quoted(item) for item in value)}]")
        else:
            lines.append(f"{key} = {_quoted(value) if isinstance(value, str) else value}")
        lines.append("")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    if not escaped.isprintable():
        raise ConfigError(f"{text!r} can't be written to {CONFIG}: it holds a control character")
    return f'"{escaped}"'
