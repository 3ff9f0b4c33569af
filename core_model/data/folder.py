"""A user's own data: a folder of picture files with a manifest that says what each shows.

``manifest.csv`` (UTF-8, with a header line) or ``manifest.parquet``, columns:

- ``file``: path of a picture, relative to the folder;
- ``text``: what it shows, for retrieval or as a second input; and/or
- ``label``: its class, an integer from 0, the same numbering at all institutions;
- ``person`` (optional): whose record it is, any name; private training then protects persons, with all they have;
- ``split`` (optional): "train", or the name of a held-out set such as "test". Without the column one row in ten, chosen
  by a hash of its file name, is held out as "test".
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from core_model.data.examples import DataSource, Examples
from core_model.errors import DataError
from core_model.seeds import derive

COLUMNS = ("file", "text", "label", "person", "split")

_SPLIT = re.compile(r"[a-z][a-z0-9_]{0,31}")
_MAX_LABEL = 1_000_000


class _Row(NamedTuple):
    where: str
    path: Path
    text: str | None
    label: int | None
    person: str | None
    split: str


def load_folder(folder: str, image_size: int) -> DataSource:
    """Read the manifest and all pictures, each fitted into ``image_size`` x ``image_size`` pixels on white.

    Everything is held in memory: 3 x image_size^2 bytes a picture.

    Raises:
        DataError: Naming manifest, row and column of what can't be used.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f'Data source "{folder}" is not a folder.', "`fedloom data list` lists the sources.")
    root = root.resolve()
    rows = list(_rows(root))
    parts: dict[str, list[_Row]] = {"train": []}
    for row in rows:
        parts.setdefault(row.split, []).append(row)
    if not parts["train"]:
        raise DataError(
            f"{root}: the manifest has no training rows.", 'Rows with split "train" are what is trained on.'
        )
    examples = {name: _examples(members, image_size) for name, members in parts.items()}
    labels = [row.label for row in rows if row.label is not None]
    return DataSource(
        name=f"folder:{folder}",
        train=examples.pop("train"),
        evaluation=dict(sorted(examples.items())),
        classes=max(labels) + 1 if labels else 0,
    )


def _rows(root: Path) -> Iterator[_Row]:
    manifest, records = _open_manifest(root)
    seen: dict[str, bool] | None = None
    for where, record in records:
        row = _parse(root, where, record)
        has = {"text": row.text is not None, "label": row.label is not None, "person": row.person is not None}
        if seen is not None and has != seen:
            column = next(name for name in has if has[name] != seen[name])
            raise DataError(f'{where}: column "{column}" is filled in some rows and empty in others.')
        seen = has
        yield row
    if seen is None:
        raise DataError(f"{manifest}: no rows.", "One row for each picture.")


def _open_manifest(root: Path) -> tuple[Path, Iterator[tuple[str, Mapping[str, Any]]]]:
    found = [path for name in ("manifest.csv", "manifest.parquet") if (path := root / name).is_file()]
    if len(found) != 1:
        what = "both manifest.csv and manifest.parquet" if found else "neither manifest.csv nor manifest.parquet"
        raise DataError(f"{root} has {what}.", f"Keep one of them, with the columns {', '.join(COLUMNS)}.")
    return found[0], _read_csv(found[0]) if found[0].suffix == ".csv" else _read_parquet(found[0])


def _read_csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(path, list(reader.fieldnames or ()))
            for record in reader:
                where = f"{path}, line {reader.line_num}"
                if None in record or None in record.values():
                    raise DataError(f"{where}: {'more' if None in record else 'fewer'} cells than columns.")
                yield where, record
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: can't be read: {error}.", "CSV in UTF-8 with a header line.") from None


def _read_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path}: Parquet needs pyarrow, which isn't installed.", "pip install pyarrow") from None
    try:
        table = parquet.ParquetFile(path)
        _check_columns(path, table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", record
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: can't be read: {error}.") from None


def _check_columns(path: Path, names: list[str]) -> None:
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        raise DataError(f'{path}: unknown column "{unknown[0]}".', f"Columns: {', '.join(COLUMNS)}.")
    if "file" not in names or not {"text", "label"} & set(names):
        raise DataError(f'{path}: needs the column "file" and at least one of "text" and "label".')


def _parse(root: Path, where: str, record: Mapping[str, Any]) -> _Row:
    name = str(record["file"] or "")
    path = (root / name).resolve()
    if not name or not path.is_relative_to(root):
        raise DataError(f'{where}, column "file": "{name}" is not inside {root}.', "Paths are relative to the folder.")
    if not path.is_file():
        raise DataError(f'{where}, column "file": there is no file "{name}".')
    text = record.get("text")
    label: int | None = None
    written = record.get("label")
    if written is not None and str(written).strip():
        try:
            label = int(str(written))
        except ValueError:
            label = -1
        if not 0 <= label <= _MAX_LABEL:
            raise DataError(
                f'{where}, column "label": "{written}" is not an integer from 0.',
                "Number the classes, the same way at all institutions.",
            )
    split = record.get("split")
    if split is None:
        digest = hashlib.sha256(name.encode()).digest()
        split = "test" if "split" not in record and digest[0] < 26 else "train"
    if _SPLIT.fullmatch(str(split)) is None:
        raise DataError(f'{where}, column "split": "{split}" is not a name in lower case.', 'Such as "train", "test".')
    return _Row(where, path, _filled(text), label, _filled(record.get("person")), str(split))


def _filled(cell: Any) -> str | None:
    """A cell's text; None where there is none."""
    return None if cell is None else str(cell).strip() or None


def _examples(rows: list[_Row], size: int) -> Examples:
    images = torch.from_numpy(np.stack([_picture(row, size) for row in rows]))
    texts = [(row.text,) for row in rows if row.text is not None]
    labels = [row.label for row in rows if row.label is not None]
    persons = [derive("person", row.person) for row in rows if row.person is not None]
    return Examples(
        images=images,
        captions=texts or None,
        labels=torch.tensor(labels, dtype=torch.int64) if labels else None,
        persons=torch.tensor(persons, dtype=torch.int64) if persons else None,
    )


def _picture(row: _Row, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    from PIL import Image, ImageOps

    try:
        with Image.open(row.path) as image:
            rgba = image.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f'{row.where}, column "file": {row.path.name} is not a picture: {error}.') from None
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    fitted = ImageOps.pad(flat, (size, size), Image.Resampling.LANCZOS, color="white")
    return np.ascontiguousarray(np.asarray(fitted).transpose(2, 0, 1))
