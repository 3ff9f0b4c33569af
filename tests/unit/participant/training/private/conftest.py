"""A folder of plain pictures with captions."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def shapes(tmp_path: Path) -> str:
    lines = ["file,text,split"]
    for i in range(30):
        Image.new("RGB", (8, 8), (8 * i, 255 - 8 * i, 40)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,shade number {i},{'test' if i % 5 == 0 else 'train'}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    return str(tmp_path)
