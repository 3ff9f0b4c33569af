"""Records to make pages from: a realistic one, and what it can be bent into."""

from __future__ import annotations

import base64
import colorsys
import dataclasses
import io
import math
import random

from PIL import Image, ImageDraw

from simulation.report import Institution, Metric, Model, Participation, Picture, Retrieval, Round, RunRecord

STYLES = {
    "Twemoji": ("emoji:twemoji", "Flat colour pictures in Twitter’s style; it lacks 141 concepts that others have."),
    "OpenMoji": ("emoji:openmoji", "Outlined colour pictures in OpenMoji’s style."),
    "OpenMoji line": ("emoji:openmoji-line", "The same hands, but line drawings only: no colour to go by."),
    "Twemoji night": ("emoji:twemoji-b", "The other half of the richest style, under a licence of its own."),
}
QUERIES = ("grinning cat with smiling eyes", "fire engine", "snow-capped mountain", "slice of pizza", "red umbrella")
RECALL = Metric(name="missing_r1", label="recall at 1 on missing pairs")


def png(seed: int, size: int = 48) -> str:
    """A small picture that differs by seed, as PNG in base64."""
    draw_from = random.Random(seed)
    image = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(draw_from.random(), 0.6, 0.9))
    pencil = ImageDraw.Draw(image)
    pencil.ellipse((3, 3, size - 3, size - 3), fill=(red, green, blue, 255), outline=(40, 40, 50, 255), width=2)
    pencil.arc((12, 14, size - 12, size - 10), 20, 160, fill=(40, 40, 50, 255), width=3)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def gallery(institutions: list[str], queries: int = 5) -> tuple[Retrieval, ...]:
    """Some hits and some misses for each institution."""
    captions = (*QUERIES, "crying face", "anchor", "hedgehog", "nazar amulet", "person in lotus position")
    found = []
    for place, name in enumerate(institutions):
        for index in range(queries):
            rank = (1, 1, 3, 1, 14)[(index + place) % 5]
            pictures = tuple(
                Picture(
                    png=png(100 * place + 10 * index + spot),
                    caption=QUERIES[index % 5] if spot == rank else captions[(index + spot + 3) % 10],
                    correct=spot == rank,
                )
                for spot in range(1, 6)
            )
            found.append(Retrieval(institution=name, query=QUERIES[index % 5], rank=rank, pictures=pictures))
    return tuple(found)


def learned(place: int, version: int, last: int) -> float:
    """A curve that rises and levels off, a little different for each institution."""
    noise = random.Random(1000 * place + version).uniform(-0.012, 0.012)
    return max(0.0, (0.52 - 0.05 * (place % 5)) * (1 - math.exp(-3.2 * version / last)) + noise)


def make_record(institutions: int = 4, rounds: int = 20, queries: int = 5) -> RunRecord:
    """A run as the simulator leaves it: in one round somebody vanished, in another somebody was late."""
    styles = list(STYLES)[:institutions]
    names = styles + [f"site-{number:03d}" for number in range(len(styles), institutions)]
    history = []
    for number in range(1, rounds + 1):
        parts = []
        for place, name in enumerate(names):
            outcome = {(3, 1): "vanished", (9, 2): "late"}.get((number, place), "merged")
            merged = outcome == "merged"
            parts.append(
                Participation(
                    name=name,
                    outcome=outcome,
                    examples=1200 + 37 * place,
                    metrics={"loss": 3.9 * math.exp(-number / rounds) + 0.05 * place} if merged else {},
                    evaluation={"missing_r1": learned(place, number - 1, rounds)} if merged else {},
                )
            )
        history.append(
            Round(number=number, version=number, digest=f"{number:064x}", seconds=18.25, participants=tuple(parts))
        )
    return RunRecord(
        title="Emoji across drawing styles",
        federation="emoji-styles",
        started="2026-11-23T09:14:00+00:00",
        wall_seconds=463.2,
        virtual_seconds=365.0,
        command="fedloom simulate --seed 7",
        versions={"fedloom": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "python": "3.11.7"},
        config={
            "federation": "emoji-styles",
            "rounds": {"count": rounds, "min_updates": 2},
            "aggregation": {"optimizer": "fedadam", "learning_rate": 0.02},
            "learning": {"model": {"width": 128, "layers": 4}, "training": {"epochs": 1, "batch_size": 128}},
        },
        plan_hash="6f2c" * 16,
        model=Model(digest="91d0" * 16, parameters=1_214_336, version=rounds),
        institutions=tuple(
            Institution(
                name=name,
                data=STYLES[name][0] if name in STYLES else f"digits:{place}/{institutions}",
                examples=1200 + 37 * place,
                description=STYLES[name][1] if name in STYLES else "",
            )
            for place, name in enumerate(names)
        ),
        rounds=tuple(history),
        final={
            name: {"missing_r1": learned(place, rounds, rounds), "missing_r10": 0.88 - 0.02 * (place % 5)}
            for place, name in enumerate(names)
        },
        local_only={
            name: {"missing_r1": 0.045 + 0.021 * (place % 7), "missing_r10": 0.21 + 0.02 * (place % 5)}
            for place, name in enumerate(names)
        },
        headline_metric=RECALL,
        other_metrics=(Metric(name="missing_r10", label="recall at 10 on missing pairs"),),
        gallery=gallery(names, queries),
    )


def classification() -> RunRecord:
    """A task without pictures, where less is better."""
    record = make_record(institutions=3, rounds=6)
    names = [one.name for one in record.institutions]
    return dataclasses.replace(
        record,
        title="Fashion in three shops",
        gallery=(),
        headline_metric=Metric(name="error", label="cross-entropy", better="lower", unit=""),
        other_metrics=(),
        final={name: {"error": 0.41 + 0.02 * place} for place, name in enumerate(names)},
        local_only={name: {"error": 0.66 - 0.03 * place} for place, name in enumerate(names)},
        rounds=tuple(
            dataclasses.replace(
                entry,
                participants=tuple(
                    dataclasses.replace(part, evaluation={"error": 2.3 / entry.number}) for part in entry.participants
                ),
            )
            for entry in record.rounds
        ),
    )
