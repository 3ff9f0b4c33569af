"""Importing user code named ``module:function``, only where the site allows it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

from core_model.errors import UserCodeError

_PATTERN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_entry_point(name: str) -> bool:
    """Whether the string has the form ``module:function``."""
    return _PATTERN.fullmatch(name) is not None


def resolve(name: str, allow: frozenset[str]) -> Callable[..., Any]:
    """Import ``module:function`` and return the function.

    The check comes before the import: a coordinator can name code, but only the site decides that it runs.

    Raises:
        UserCodeError: If the name isn't in ``allow``, can't be imported, or isn't callable.
    """
    if name not in allow:
        raise UserCodeError(
            f'This federation asks to run "{name}", which this site doesn\'t allow.',
            f"Read that code; if it may run here, add it to `allow` in participant.toml, or join with --allow {name}.",
        )
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserCodeError(
            f'"{name}" can\'t be imported: {error}.', "Install it, or put its folder on PYTHONPATH."
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UserCodeError(f'Module "{module_name}" has no function "{attribute}".', "Check the name's spelling.")
    found: Callable[..., Any] = function
    return found
