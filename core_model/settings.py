"""Reading [model], [task] and [training] from a federation's TOML, with errors that name the key and its section."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from core_model.config import LearningConfig
from core_model.errors import LearningConfigError

SECTIONS = tuple(LearningConfig.model_fields)


def parse_learning(tables: Mapping[str, Any], source: str = "configuration") -> LearningConfig:
    """Build the configuration from the tables it knows; other tables are somebody else's and ignored.

    Raises:
        LearningConfigError: Naming section and key, the reason, and the nearest valid key where one was unknown.
    """
    mine = {section: tables[section] for section in SECTIONS if section in tables}
    try:
        return LearningConfig.model_validate(mine)
    except pydantic.ValidationError as error:
        raise _explain(error, source) from None


def read_learning(path: Path) -> LearningConfig:
    """Read the configuration from a TOML file.

    Raises:
        LearningConfigError: If the file can't be read or isn't valid; the message names file, section and key.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LearningConfigError(f"{path}: no such file.", "`fedloom init` writes one to start from.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LearningConfigError(f"{path}: can't be read: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise LearningConfigError(f"{path}: not valid TOML: {error}.") from None
    return parse_learning(tables, str(path))


def _explain(error: pydantic.ValidationError, source: str) -> LearningConfigError:
    first = error.errors(include_url=False, include_context=False)[0]
    place = [str(part) for part in first["loc"]]
    section = place[0] if place else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden" and len(place) == 2:
        table = LearningConfig.model_fields[section].annotation
        keys = list(table.model_fields) if table is not None else []
        near = difflib.get_close_matches(place[1], keys, 1, 0.5)
        hint = f'Did you mean "{near[0]}"?' if near else f"Keys of [{section}]: {', '.join(keys)}."
        return LearningConfigError(f'{source}: unknown key "{place[1]}" in section [{section}]{more}.', hint)
    reason = first["msg"].removeprefix("Value error, ")
    key = place[1] if len(place) > 1 else ""
    if not key and ": " in reason:  # A check over several keys names the key itself.
        key, reason = reason.split(": ", 1)
        if not section and "." in key:
            section, key = key.split(".", 1)
    where = f"section [{section}]" + (f', key "{key}"' if key else "")
    return LearningConfigError(f"{source}: {where}: {reason}{more}.", "Correct the value and try again.")
