"""Emoji across drawing styles: real pictures with their names; each style is an institution.

Four institutions: Twitter's colour art ("twemoji"), OpenMoji in colour ("openmoji"), OpenMoji's line layer alone
("openmoji-line") and Google's monochrome Noto Emoji ("noto"). The split shows what a federation is for: 160 concepts
are held out everywhere ("unseen"); each institution also lacks its own 15 % of the others ("missing"), which the other
three do train on. Variants of one concept by gender, person or direction stay together on one side of each split.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from core_model.data.cache import prepared, verify
from core_model.data.examples import DataSource, Examples
from core_model.errors import DataError

INSTITUTIONS = ("twemoji", "openmoji", "openmoji-line", "noto")
UNSEEN = 160
MISSING_SHARE = 0.15
FORMAT = "2"
"""Raised whenever the prepared files would come out differently."""

_PEOPLE = ("man", "woman", "men", "women", "person", "people", "boy", "girl", "male", "female", "mr", "mrs")
_VARIANT = frozenset((*_PEOPLE, "facing", "right", "left", "hand", "hands", "holding"))


@dataclasses.dataclass(frozen=True)
class Concept:
    """One emoji. ``character`` is the fully qualified sequence; ``captions`` begins with its English name."""

    character: str
    captions: tuple[str, ...]
    category: str
    group: str


def group_of(name: str) -> str:
    """The name without what tells variants of one concept apart: gender, person, direction, hands.

    >>> group_of("woman surfing") == group_of("man surfing") == "surfing"
    True
    """
    for family in ("family", "couple with heart", "kiss"):
        if name == family or name.startswith((f"{family} ", f"{family}:")):
            return family
    rest = [word for word in name.split() if word not in _VARIANT]
    return " ".join(rest) or "person"


def split(groups: list[str]) -> tuple[list[int], list[list[int]]]:
    """Indices held out everywhere, and for each institution the indices that it lacks; by whole groups.

    The order of groups is that of their SHA-256, so that a new emoji moves no old one.
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    order = sorted(members, key=lambda group: hashlib.sha256(f"fedloom/emoji/{group}".encode()).digest())
    unseen: list[int] = []
    position = 0
    while len(unseen) < min(UNSEEN, len(groups) // 4):
        unseen += members[order[position]]
        position += 1
    share = round((len(groups) - len(unseen)) * MISSING_SHARE)
    missing: list[list[int]] = []
    for _ in INSTITUTIONS:
        lacks: list[int] = []
        while len(lacks) < share:
            lacks += members[order[position]]
            position += 1
        missing.append(sorted(lacks))
    return sorted(unseen), missing


def prepare_emoji() -> str:
    """Draw all pictures into the cache, unless they are there, and return the folder.

    Raises:
        DataError: If a package is missing; the hint is the command to type.
    """
    return str(_folder())


def load_emoji(institution: str) -> DataSource:
    """One institution's pairs, prepared on first use. Labels are Unicode's eight categories.

    Args:
        institution: One of :data:`INSTITUTIONS`, or "all": the training pairs of all four pooled, which is what a
            federation does without; nothing is held out then but what is unseen everywhere, in the first style.

    Raises:
        DataError: If there is no such institution, or a package is missing.
    """
    if institution == "all":
        return _pooled([load_emoji(name) for name in INSTITUTIONS])
    if institution not in INSTITUTIONS:
        raise DataError(
            f'Data source "emoji:{institution}": no such institution.', f"There are: {', '.join(INSTITUTIONS)}."
        )
    from safetensors.torch import load_file

    folder = _folder()
    concepts = _concepts(json.loads(verify(folder, "concepts.json").read_text(encoding="utf-8")))
    images = load_file(verify(folder, f"{institution}.safetensors"))["images"]
    categories = sorted({concept.category for concept in concepts})
    everything = Examples(
        images=images,
        captions=[concept.captions for concept in concepts],
        labels=torch.tensor([categories.index(concept.category) for concept in concepts]),
    )
    unseen, lacks = split([concept.group for concept in concepts])
    missing = lacks[INSTITUTIONS.index(institution)]
    train = sorted(set(range(len(concepts))).difference(unseen, missing))
    return DataSource(
        name=f"emoji:{institution}",
        train=everything.select(train),
        evaluation={"missing": everything.select(missing), "unseen": everything.select(unseen)},
        classes=len(categories),
    )


def _pooled(sources: list[DataSource]) -> DataSource:
    parts = [source.train for source in sources]
    train = Examples(
        images=torch.cat([part.images for part in parts if part.images is not None]),
        captions=[texts for part in parts for texts in part.captions or ()],
        labels=torch.cat([part.labels for part in parts if part.labels is not None]),
    )
    unseen = {"unseen": sources[0].evaluation["unseen"]}
    return DataSource(name="emoji:all", train=train, evaluation=unseen, classes=sources[0].classes)


def _folder() -> Path:
    from core_model.data import emoji_art

    return prepared("emoji", {"format": FORMAT, **emoji_art.versions()}, emoji_art.draw)


def _concepts(rows: list[dict[str, Any]]) -> list[Concept]:
    return [Concept(row["character"], tuple(row["captions"]), row["category"], row["group"]) for row in rows]
