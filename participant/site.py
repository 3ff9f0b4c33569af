"""A site's folder: who the participant is, where the coordinator is, which data it brings and what it allows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from wire import ConfigError, Credentials, read_toml, validate

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
