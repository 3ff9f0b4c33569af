"""What a federation, a participant or an operator may be called."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import StringConstraints

from wire.errors import ConfigError

NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9-]{0,62}$"
"""A name is a DNS label: it stands in certificates, file names, metrics and on screens."""

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A pydantic field type for names."""

_NAME = re.compile(NAME_PATTERN.rstrip("$") + r"\Z")


def is_name(value: str) -> bool:
    """Whether ``value`` may be a name."""
    return _NAME.match(value) is not None


def check_name(value: str, what: str = "name") -> str:
    """Return ``value`` if it may be a name.

    Raises:
        ConfigError: If it may not; the message names ``what``.
    """
    if not is_name(value):
        raise ConfigError(
            f"{what} {value!r} can't be used as a name",
            "A name has 1 to 63 characters: small letters a-z, digits and hyphens; the first is a letter or a digit.",
        )
    return value
