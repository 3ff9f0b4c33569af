"""From a data source's string to one institution's data."""

from __future__ import annotations

import re
import urllib.parse

from core_model.data.examples import DataSource
from core_model.entry import is_entry_point
from core_model.errors import DataError

KINDS = ("emoji", "fashion-mnist", "digits", "folder")

_PART = re.compile(r"(\d{1,6})/(\d{1,6})")


def is_user_code(data: str) -> bool:
    """Whether the string names a function (``module:function``) and not a built-in source or a folder."""
    return data.partition(":")[0] not in KINDS and is_entry_point(data)


def open_source(data: str, *, image_size: int = 64) -> DataSource:
    """Open a built-in data set or a folder.

    Args:
        data: "emoji:<institution>", "fashion-mnist:<k>/<n>?split=dirichlet&alpha=0.5&seed=0", "digits:<k>/<n>...",
            "folder:/path", or the path of a folder. With "features=scattering" among the options of the middle two,
            examples have features for a linear model.
        image_size: Pixels to which a folder's pictures are fitted; the built-in sets have a size of their own.

    Raises:
        DataError: If the string isn't understood, or the data aren't there or can't be read.
    """
    kind, colon, rest = data.partition(":")
    if kind == "emoji" and colon:
        from core_model.data.emoji import load_emoji

        return load_emoji(rest)
    if kind in ("fashion-mnist", "digits") and (colon or kind == data):
        part, parts, options = _part(rest or "1/1", data)
        features = options.pop("features", "none")
        if kind == "digits":
            from core_model.data.digits import load_digits

            return _with_features(load_digits(part, parts, options, data), features)
        from core_model.data.fashion_mnist import load_fashion_mnist

        return _with_features(load_fashion_mnist(part, parts, options, data), features)
    from core_model.data.folder import load_folder

    return load_folder(rest if kind == "folder" and colon else data, image_size)


def _with_features(source: DataSource, features: str) -> DataSource:
    if features == "none":
        return source
    if features != "scattering":
        raise DataError(f'Data source "{source.name}": unknown features "{features}".', "Features: none, scattering.")
    from core_model.data.scattering import described

    return DataSource(
        name=source.name,
        train=described(source.train),
        evaluation={name: described(part) for name, part in source.evaluation.items()},
        classes=source.classes,
    )


def _part(text: str, source: str) -> tuple[int, int, dict[str, str]]:
    place, _, query = text.partition("?")
    match = _PART.fullmatch(place)
    if match is None:
        raise DataError(f'Data source "{source}": "{place}" is not <k>/<n>.', 'Such as "digits:1/4?split=dirichlet".')
    try:
        options = dict(urllib.parse.parse_qsl(query, strict_parsing=True)) if query else {}
    except ValueError:
        hint = "Write key=value&key=value."
        raise DataError(f'Data source "{source}": can\'t read the options "{query}".', hint) from None
    return int(match[1]), int(match[2]), options
