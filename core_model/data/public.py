"""Texts that are public and no institution's data: what private training may compare a record with."""

from __future__ import annotations

from core_model.errors import DataError


def emoji_names() -> tuple[str, ...]:
    """English names of all emoji that are fully qualified in Unicode's list, sorted; each once.

    Raises:
        DataError: The package with the list isn't installed.
    """
    try:
        import emoji
    except ImportError:
        raise DataError(
            "The names of emoji, which private retrieval is trained against, aren't installed.",
            "pip install 'fedloom[demo]', or name public captions of your own: bank = [...] in [task].",
        ) from None
    qualified = emoji.STATUS["fully_qualified"]
    names = {
        str(row["en"]).strip(":").replace("_", " ").replace("-", " ")
        for row in emoji.EMOJI_DATA.values()
        if row["status"] == qualified and "skin_tone" not in row["en"]
    }
    return tuple(sorted(names))
