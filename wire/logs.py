"""Structured logs: every line says which run, round and participant it is about.

Modules log with ``logging.getLogger(__name__)`` and pass facts as ``extra={"blob": ...}``. Where in the work a line
comes from is set once with :func:`about` and follows the code through ``await`` (contextvars).
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Final, TextIO

_ABOUT: contextvars.ContextVar[dict[str, str | int] | None] = contextvars.ContextVar("fedloom_about", default=None)

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

# A secret should never be logged in the first place; this is the second fence.
_SECRET_KEY = re.compile(r"secret|token|password|key_pem|private", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"fedloom[0-9]+-[A-Za-z0-9_-]+|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*-----|$)", re.DOTALL
)
HIDDEN: Final = "[hidden]"


@contextlib.contextmanager
def about(*, run: str | None = None, round: int | None = None, participant: str | None = None) -> Iterator[None]:
    """Say what the log lines inside the block are about; what isn't given stays as it was outside."""
    given: dict[str, str | int | None] = {"run": run, "round": round, "participant": participant}
    merged = dict(_ABOUT.get() or {})
    merged.update({key: value for key, value in given.items() if value is not None})
    token = _ABOUT.set(merged)
    try:
        yield
    finally:
        _ABOUT.reset(token)


def _facts(record: logging.LogRecord) -> dict[str, object]:
    facts: dict[str, object] = dict(_ABOUT.get() or {})
    for key, value in vars(record).items():
        if key not in _STANDARD:
            facts[key] = HIDDEN if _SECRET_KEY.search(key) else _plain(value)
    return facts


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes):
        return value.hex()
    return _hide(str(value))


def _hide(text: str) -> str:
    return _SECRET_TEXT.sub(HIDDEN, text)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then the facts."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _hide(record.getMessage()),
        }
        line.update({key: value for key, value in _facts(record).items() if key not in line})
        if record.exc_info:
            line["exception"] = _hide(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """For a person: time, level, message, then ``key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        facts = " ".join(f"{key}={value}" for key, value in _facts(record).items())
        # A line break in a peer's text must not forge a line of the log.
        message = _hide(record.getMessage()).replace("\r", " ").replace("\n", " ")
        line = f"{_time(record)} {record.levelname.lower():7} {message}" + (f"  {facts}" if facts else "")
        return line + ("\n" + _hide(self.formatException(record.exc_info)) if record.exc_info else "")


def set_up_logging(*, level: str = "INFO", json_lines: bool = False, stream: TextIO | None = None) -> logging.Handler:
    """Send the log to ``stream`` (standard error by default), replacing what an earlier call set up.

    Args:
        level: Name of the lowest level shown.
        json_lines: Machine-readable lines instead of text.
        stream: Where to.

    Returns:
        The handler, for a test or a daemon that ends to remove.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if getattr(handler, "fedloom", False)]:
        root.removeHandler(handler)
    new = logging.StreamHandler(stream if stream is not None else sys.stderr)
    new.setFormatter(JsonFormatter() if json_lines else TextFormatter())
    new.fedloom = True  # type: ignore[attr-defined]
    root.addHandler(new)
    root.setLevel(level.upper())
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of each plugin and each look at the schema
    return new
