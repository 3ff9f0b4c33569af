"""What a finished simulation leaves behind: everything the report shows, as plain data with a JSON form.

The JSON is strict: JSON has no NaN, so a number that isn't finite is written as ``null`` and read back as NaN. Reading
checks types and bounds, because a record may come from another machine; an unknown key is an error that names it.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from typing import Any, Final, Literal

from wire.errors import DataError

FORMAT: Final = 1

_PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_MAX_PICTURE_BYTES: Final = 4 * 1024 * 1024
_HINT: Final = "Give the file that `fedloom simulate` wrote."

Metrics = Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """How to read one number.

    Args:
        name: Key in the ``final``, ``local_only``, ``metrics`` and ``evaluation`` tables.
        label: For people, for example ``"recall at 1 on missing pairs"``.
        better: Which direction is good.
        unit: ``"fraction"`` for values in [0, 1], shown as percentages; anything else is shown after the number.
    """

    name: str
    label: str
    better: Literal["higher", "lower"] = "higher"
    unit: str = "fraction"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The last version of the global model: digest in hex, number of parameters, version."""

    digest: str
    parameters: int
    version: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Institution:
    """One participant: its data source, its number of training records, a sentence about it."""

    name: str
    data: str = ""
    examples: int = 0
    description: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What the run has cost one participant's data, by its own ledger: epsilon at ``delta`` for one ``unit``.

    ``records`` is the number of units, ``spent`` and ``left`` are of ``budget``.
    """

    name: str
    unit: str
    spent: float
    left: float
    budget: float
    delta: float
    records: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Participation:
    """What one participant did in one round.

    ``outcome`` is "merged" or the reason why not. ``metrics`` are of its training. ``evaluation`` scores, on its local
    data, the model that the round *started from*; it is empty where none was asked for. ``verdict`` is what the merge
    made of its update, or of its group's: "kept", "clipped", "rejected", or nothing where there was one sum; ``reason``
    says why, ``weight`` is the factor in the result that it, or its group, had. ``staleness`` says how many versions
    were made between its base and the version that it is in; 0 in synchronous rounds.
    """

    name: str
    outcome: str = "merged"
    examples: int = 0
    metrics: Metrics = dataclasses.field(default_factory=dict)
    evaluation: Metrics = dataclasses.field(default_factory=dict)
    verdict: str = ""
    reason: str = ""
    weight: float = math.nan
    staleness: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """One round: the version it committed (0 if none), that version's digest in hex, its length in virtual seconds.

    ``warnings`` are the merge's, each a sentence.
    """

    number: int
    version: int
    digest: str = ""
    seconds: float = 0.0
    participants: tuple[Participation, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A small picture as PNG in base64, with its caption. ``correct`` marks the answer that was looked for.

    Raises:
        DataError: ``png`` isn't base64 of a PNG of at most 4 MiB.
    """

    png: str
    caption: str = ""
    correct: bool = False

    def __post_init__(self) -> None:
        try:
            content = base64.b64decode(self.png, validate=True)
        except (binascii.Error, ValueError):
            content = b""
        if not content.startswith(_PNG_MAGIC) or len(content) > _MAX_PICTURE_BYTES:
            raise DataError(
                f"the gallery's picture {self.caption!r} isn't base64 of a PNG of at most 4 MiB",
                "Give the bytes of a PNG file, encoded with base64.b64encode.",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval:
    """One query of the gallery: the text, the rank of the right picture (from 1), the best pictures in order."""

    institution: str
    query: str
    rank: int
    pictures: tuple[Picture, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hostility:
    """What hostile institutions did in a simulation.

    ``settings`` are the attack's parameters, ``knows`` says what it needs to know. ``score`` is the headline metric of
    the last version, the mean over the honest institutions. ``success`` is the attack success rate of a backdoor, NaN
    for other attacks.
    """

    attack: str
    description: str
    knows: str
    institutions: tuple[str, ...]
    score: float
    success: float = math.nan
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A whole run.

    Args:
        title: Of the page.
        federation: Its name.
        started: RFC 3339, with offset.
        wall_seconds: How long the simulation took.
        virtual_seconds: How long the federation would have taken by its own clock.
        command: What to type to repeat it.
        versions: Software that the result depends on, name to version.
        config: The plan as a plain table.
        plan_hash: SHA-256 in hex.
        model: The last version.
        institutions: In the order in which they are shown.
        rounds: In order.
        final: For each institution, the last version's scores on its data.
        local_only: For each institution, the scores of a model it trained alone with the same effort; may lack any.
        headline_metric: The one that the page is about.
        other_metrics: More metrics worth showing, in order.
        gallery: Retrieval examples; empty where the task isn't retrieval.
        visibility: What the coordinator can see in such a run, in words.
        guarantee: What its merging rule stands, in words.
        budgets: Each participant's privacy budget after the run; empty where no noise was added.
        hostility: One item where institutions were hostile, on purpose; none otherwise.
        format: 1.
    """

    title: str
    federation: str
    started: str
    wall_seconds: float
    virtual_seconds: float
    command: str
    versions: Mapping[str, str]
    config: Mapping[str, Any]
    plan_hash: str
    model: Model
    institutions: tuple[Institution, ...]
    rounds: tuple[Round, ...]
    final: Mapping[str, Metrics]
    headline_metric: Metric
    local_only: Mapping[str, Metrics] = dataclasses.field(default_factory=dict)
    other_metrics: tuple[Metric, ...] = ()
    gallery: tuple[Retrieval, ...] = ()
    visibility: str = ""
    guarantee: str = ""
    budgets: tuple[Budget, ...] = ()
    hostility: tuple[Hostility, ...] = ()
    format: int = FORMAT

    def to_json(self) -> str:
        """The record as strict JSON, keys in order of declaration; numbers that aren't finite become ``null``."""
        return json.dumps(_plain(dataclasses.asdict(self)), ensure_ascii=False, allow_nan=False, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> RunRecord:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: Not JSON, another format, or a key that is unknown, missing or of the wrong type; it is named.
        """
        try:
            table = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise DataError(f"the run record isn't JSON: {error}", _HINT) from None
        found = table.get("format") if isinstance(table, dict) else None
        if found != FORMAT:
            raise DataError(
                f"the run record has format {found!r}; this Fedloom reads format {FORMAT}",
                "Make the report with the version of Fedloom that wrote the record.",
            )
        record = _build(cls, table, "record")
        assert isinstance(record, cls)
        return record


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} isn't JSON")


def _plain(value: Any) -> Any:
    """Tables, lists and scalars that strict JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _wrong(where: str, expected: str, value: object) -> DataError:
    shown = repr(value)
    return DataError(
        f"run record: {where} must be {expected}, not {shown if len(shown) <= 60 else shown[:57] + '...'}",
        _HINT,
    )


def _build(expected: Any, value: Any, where: str) -> Any:
    """``value``, parsed from JSON, as the annotated type ``expected``; ``where`` is its path for error messages."""
    if dataclasses.is_dataclass(expected) and isinstance(expected, type):
        return _build_dataclass(expected, value, where)
    origin = typing.get_origin(expected)
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(where, "a list", value)
        item = typing.get_args(expected)[0]
        return tuple(_build(item, one, f"{where}[{index}]") for index, one in enumerate(value))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise _wrong(where, "a table", value)
        item = typing.get_args(expected)[1]
        return {key: _build(item, one, f"{where}.{key}") for key, one in value.items()}
    if origin is Literal:
        allowed = typing.get_args(expected)
        if value not in allowed:
            raise _wrong(where, "one of " + ", ".join(map(repr, allowed)), value)
        return value
    return value if expected is Any else _build_scalar(expected, value, where)


def _build_scalar(expected: type, value: Any, where: str) -> Any:
    if expected is float:
        if value is None:
            return math.nan
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                raise _wrong(where, "a number", value) from None
        raise _wrong(where, "a number", value)
    if expected is int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
            raise _wrong(where, "a whole number, 0 or more", value)
    elif not isinstance(value, expected):
        raise _wrong(where, "text" if expected is str else "true or false", value)
    return value


def _build_dataclass(expected: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, "a table", value)
    hints = typing.get_type_hints(expected)
    fields = dataclasses.fields(expected)
    if unknown := sorted(set(value) - {field.name for field in fields}):
        raise DataError(
            f"run record: {where} has the unknown key {unknown[0]!r}", "Was it written by a newer version of Fedloom?"
        )
    absent = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        and field.name not in value
    ]
    if absent:
        raise DataError(f"run record: {where} lacks the key {absent[0]!r}", "The file may be cut off; make it again.")
    return expected(**{key: _build(hints[key], one, f"{where}.{key}") for key, one in value.items()})
