"""The plan of a run: what every party agrees on before the first round, and its hash."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Final, Literal, NoReturn, Self

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from privacy.secure_aggregation.encoding import Encoding, largest_value_bits
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.tail import TailLayout
from privacy.secure_aggregation.thresholds import MIN_COHORT
from privacy.transcript import digest
from wire.errors import ConfigError, RefusedError
from wire.frozen import Frozen
from wire.merging import MergingSpec
from wire.names import Name
from wire.privacy import PrivacySpec

MAX_PLAN_BYTES: Final = 1 << 20
"""A plan is a page of text; a larger one is refused before it is parsed."""

PLAN_LABEL: Final = "fedloom/plan/1"

HexDigest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 digest in small hexadecimal letters."""


DEFAULT_STALENESS: Final = 20
"""Versions behind the newest one that an update may be where nothing is said."""


class RoundsSpec(Frozen):
    """How a run proceeds, round by round, or version by version."""

    mode: Literal["synchronous", "asynchronous"] = Field(
        default="synchronous",
        description="synchronous: a round waits for its participants; asynchronous: each trains at its own pace, and a "
        "version is made whenever enough updates are there (docs/asynchrony.md).",
    )
    count: int = Field(default=30, ge=1, le=1_000_000, description="Rounds in a run: versions that are made.")
    min_participants: int = Field(
        default=4,
        ge=1,
        le=100_000,
        description="A round starts when at least so many participants are connected; asynchronous: the first one.",
    )
    participants_per_round: int = Field(
        default=0, ge=0, le=100_000, description="Participants asked to train in a round; 0 asks all that are there."
    )
    min_updates: int = Field(
        default=2, ge=1, le=100_000, description="A round that has fewer usable updates at its deadline is repeated."
    )
    deadline_s: float = Field(
        default=600.0,
        gt=0,
        le=30 * 86_400.0,
        description="Seconds from the start of a round until late updates are left out; asynchronous: of each task, "
        "and of a buffer.",
    )
    evaluate_every: int = Field(
        default=1,
        ge=0,
        le=1_000_000,
        description="Every so many rounds participants also score the model; 0 for never.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=1 << 63,
        description="Selection, initial model and local shuffling all follow from this number.",
    )
    buffer_size: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="asynchronous: updates that make a version. 0: half of min_participants below 20 of them, 10 from "
        "there; more where [merging] f or min_updates ask for more.",
    )
    max_staleness: int = Field(
        default=DEFAULT_STALENESS,
        ge=0,
        le=1_000_000,
        description="asynchronous: an update that began so many versions ago is merged, an older one is refused.",
    )
    correction: Literal["ca2fl", "none"] | None = Field(
        default=None,
        description="asynchronous: ca2fl: the last update of whoever isn't in the buffer is counted in, so that fast "
        "participants don't pull the model to their own data; none: only the buffer counts. Left out: ca2fl for up to "
        "50 participants and the rules careful and mean, else none.",
    )

    @property
    def asynchronous(self) -> bool:
        """Whether participants train at their own pace."""
        return self.mode == "asynchronous"

    @model_validator(mode="after")
    def _asynchronous_or_not(self) -> Self:
        if not self.asynchronous:
            said = {"buffer_size": 0, "max_staleness": DEFAULT_STALENESS, "correction": None}
            for key, default in said.items():
                if getattr(self, key) != default:
                    raise ValueError(
                        f"{key} = {getattr(self, key)!r} does nothing in synchronous rounds: leave it out, or set "
                        'mode = "asynchronous"'
                    )
            return self
        if self.participants_per_round:
            raise ValueError(
                f"participants_per_round = {self.participants_per_round}: in asynchronous rounds everyone who is there "
                "trains; leave it out"
            )
        if 0 < self.buffer_size < self.min_updates:
            raise ValueError(
                f"buffer_size = {self.buffer_size} is less than min_updates = {self.min_updates}: a full buffer "
                "would be too small to merge"
            )
        if self.buffer_size > self.min_participants:
            raise ValueError(
                f"buffer_size = {self.buffer_size} is more than min_participants = {self.min_participants}: each "
                "participant has one place in it, so it might never be full"
            )
        return self

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min_updates > self.min_participants:
            raise ValueError(
                f"min_updates = {self.min_updates} is more than min_participants = {self.min_participants}: "
                "a round could start that can't end"
            )
        if 0 < self.participants_per_round < self.min_updates:
            raise ValueError(
                f"min_updates = {self.min_updates} is more than participants_per_round = "
                f"{self.participants_per_round}: no round could end"
            )
        return self


class AggregationSpec(Frozen):
    """How the updates of a round become the next version: a weighted mean of differences, then a server optimizer."""

    mode: Literal["secure", "plain"] = Field(
        default="secure",
        description="secure: the coordinator learns sums over participants and nothing about any single one; "
        "plain: it sees each participant's update, example count and metrics.",
    )
    optimizer: Literal["fedavg", "fedadam"] = Field(
        default="fedavg",
        description="fedavg adds the mean difference (with momentum if set); fedadam adapts per coordinate.",
    )
    learning_rate: float = Field(
        default=1.0,
        gt=0,
        le=1_000.0,
        description="Server learning rate; asynchronous rounds take it times "
        "buffer_size over the number of participants that train.",
    )
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Server momentum of fedavg; 0 for none.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="fedadam: decay of the mean of differences.")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="fedadam: decay of the mean of squared differences.")
    tau: float = Field(default=1e-3, gt=0, le=1.0, description="fedadam: added to the root of the second moment.")


class SecureSpec(Frozen):
    """Secure sums: how updates become integers, and whose sum may be published. Only for mode = "secure"."""

    wire_bits: Literal[16, 20, 24, 32] = Field(default=16, description="Bits of each coordinate of an upload.")
    value_bits: int = Field(
        default=0,
        ge=0,
        le=30,
        description="Bits of one participant's values before masking; 0 takes as many as the sum leaves room for.",
    )
    clip_norm: float = Field(
        default=100.0, gt=0.0, le=1e9, description="Largest L2 norm of an update; a longer one is scaled down."
    )
    clip_value: float = Field(
        default=0.25,
        gt=0.0,
        le=1e9,
        description="Largest coordinate of a weighted update; smaller ones are rounded the finer for it.",
    )
    weight_cap: int = Field(
        default=1_024,
        ge=1,
        le=1 << 20,
        description="Examples beyond which a participant's weight doesn't grow. Weights are relative to it: a cap far "
        "above what participants have costs precision.",
    )
    min_cohort: int = Field(default=3, ge=3, le=1_024, description="The fewest participants whose sum is published.")
    group_size: int = Field(
        default=0,
        ge=0,
        le=1_024,
        description="0: one sum. Otherwise at least 3: the coordinator learns the sums of groups of at least so many, "
        "over which a robust rule can merge; who is in a sum with whom is fixed for the run in atoms of 3 to 5.",
    )
    corrupt_percent: int = Field(
        default=20,
        ge=1,
        le=33,
        description="Participants assumed corrupt, in per cent; for cohorts over 100 (smaller ones assume a third).",
    )
    min_roster_change: int = Field(
        default=2,
        ge=1,
        le=1_024,
        description="Two rosters of a run are equal or differ by at least so many participants, so that the difference "
        "of two sums tells about no single one.",
    )

    min_same_base: int = Field(
        default=1,
        ge=1,
        le=1_024,
        description="asynchronous rounds: from each version that updates of a sum were trained from, at least so many "
        "of them are. With 3 or more, a coordinator that makes versions up can't single one out (docs/asynchrony.md).",
    )
    audited_rounds: int = Field(
        default=2,
        ge=1,
        le=1_000_000,
        description="Rounds for which the coordinator keeps the masked updates, so that anyone can recompute the sum.",
    )

    @field_validator("group_size")
    @classmethod
    def _hides(cls, group_size: int) -> int:
        if 0 < group_size < MIN_COHORT:
            raise ValueError(
                f"{group_size}: the sum of a group hides a participant among at least {MIN_COHORT}; set 0 for one sum"
            )
        return group_size

    def encoding(self, participants: int) -> Encoding:
        """From updates to ring elements, for a roster of this length.

        Raises:
            ConfigError: The sum of so many participants needs more bits.
        """
        most = largest_value_bits(self.wire_bits, participants)
        try:
            encoding = Encoding(
                ring_bits=16 if self.wire_bits == 16 else 32,
                wire_bits=self.wire_bits,
                value_bits=self.value_bits or min(most, 30),
                clip_norm=self.clip_norm,
                clip_value=self.clip_value,
                weight_cap=self.weight_cap,
            )
            encoding.check(participants)
        except SecureAggregationError as error:
            raise ConfigError(f"[secure_aggregation] {error.message}", error.hint) from None
        return encoding


class SharedNoise(Frozen):
    """The noise that sites share, as it was solved when the run was made.

    A site adds ``share_std`` to its clipped sum, on integers of a lattice; the sum of as few honest sites as a secure
    sum may hold then has the standard deviation ``multiplier`` times the sensitivity.
    """

    multiplier: float = Field(gt=0.0, description="Noise of the smallest sum, relative to its sensitivity.")
    share_std: float = Field(gt=0.0, description="Standard deviation of a site's share, in the gradients' units.")
    honest: int = Field(ge=1, description="Honest sites that the smallest sum holds.")
    grid: float = Field(gt=0.0, description="What one integer is worth to a site, in the gradients' units.")
    quantum: float = Field(gt=0.0, description="What one integer is worth in the mean update.")
    value_bits: int = Field(ge=2, le=30, description="Bits of one site's integers.")


class InitialModel(Frozen):
    """Version 0 of the global model: a checkpoint file and its shape."""

    digest: HexDigest = Field(description="SHA-256 of the checkpoint file; its name as a blob.")
    size: int = Field(ge=9, le=1 << 44, description="Bytes of the checkpoint file.")
    dimension: int = Field(ge=1, le=1 << 42, description="Parameters d, that is float32 numbers in the data section.")
    manifest_hash: HexDigest = Field(description="SHA-256 of the checkpoint's header: length field and JSON.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size < 4 * self.dimension + 8:
            raise ValueError(f"size = {self.size} bytes can't hold dimension = {self.dimension} float32 numbers")
        return self


class RunPlan(Frozen):
    """One training run, immutable. Its hash binds everything that both sides do in the run.

    ``learning`` is the table ``{model, task, training}``, opaque here; its schema is the model's own.
    """

    format: Literal[1] = Field(default=1, description="Version of this format.")
    federation: Name = Field(description="The federation's name.")
    run_id: Name = Field(description="Unique in the federation.")
    learning: dict[str, Any] = Field(description="Tables model, task and training, as JSON values.")
    rounds: RoundsSpec = Field(description="Rounds.")
    aggregation: AggregationSpec = Field(description="Aggregation.")
    merging: MergingSpec = Field(default=MergingSpec(), description="How updates become one.")
    secure: SecureSpec | None = Field(description="Secure sums; None for plain averaging.")
    privacy: PrivacySpec = Field(default=PrivacySpec(), description="Noise and its budget.")
    shared_noise: SharedNoise | None = Field(default=None, description="Where sites share the noise.")
    metrics: tuple[str, ...] = Field(
        default=(), max_length=64, description="Metrics of which a secure sum tells the mean, sorted."
    )
    initial: InitialModel = Field(description="Version 0.")

    @model_validator(mode="after")
    def _secure_fits(self) -> Self:
        if (self.secure is not None) != (self.aggregation.mode == "secure"):
            raise ValueError(f"aggregation mode {self.aggregation.mode!r} doesn't fit the section on secure sums")
        if self.rounds.asynchronous and self.secure is not None:
            if self.privacy.distributed:
                raise ValueError("shared noise is sized for sums of synchronous rounds")
            if self.rounds.correction == "ca2fl":
                raise ValueError("of secure sums no earlier update is known that could correct them")
        if self.rounds.asynchronous and not (self.rounds.buffer_size and self.rounds.correction):
            raise ValueError("a plan of asynchronous rounds says buffer_size and correction")
        if (self.shared_noise is not None) != self.privacy.distributed:
            raise ValueError(f"shared_noise doesn't fit privacy placement {self.privacy.placement!r}")
        if self.privacy.distributed and self.secure is None:
            raise ValueError("shared noise needs secure sums")
        if self.privacy.distributed and self.secure is not None and self.secure.group_size:
            raise ValueError("shared noise is sized for one sum, not for sums of groups")
        try:
            TailLayout(self.metrics)
        except SecureAggregationError as error:
            raise ValueError(error.message) from None
        return self

    @model_validator(mode="after")
    def _learning_is_json(self) -> Self:
        _check_json(self.learning, "learning", 0)
        return self

    @property
    def visibility(self) -> str:
        """What the coordinator can see in this run, for a person."""
        noise = self.privacy.describe() or "No noise is added: what sums and model tell about a record isn't bounded."
        if self.secure is None:
            return (
                "Plain averaging: the coordinator sees each participant's update, its example count and its metrics. "
                + noise
            )
        if self.secure.group_size:
            who = f"groups of at least {self.secure.group_size} participants, fixed atoms of whom are never split,"
        else:
            who = f"at least {self.secure.min_cohort} participants"
        return (
            f"Secure sums: the coordinator sees who took part, and of {who} together the sum of their updates, their "
            "total weight and their mean metrics; of no single one does it see update, example count or metrics. "
            + self._pace_told()
        ) + noise

    def _pace_told(self) -> str:
        """What asynchronous rounds change about secure sums."""
        if self.secure is None or not self.rounds.asynchronous:
            return ""
        least = self.secure.min_same_base
        if least >= MIN_COHORT:
            return f"At least {least} updates of a sum come from the same version of the model. "
        return (
            "Updates of a sum may come from different versions of the model: this holds for a coordinator that hands "
            "out the versions that it merges, and not for one that makes versions up to single a participant out. "
        )

    def encoding(self, participants: int) -> Encoding:
        """From updates to ring elements, for a roster of this length.

        Raises:
            ConfigError: The sum of so many participants needs more bits.
        """
        if self.secure is None:
            raise ValueError("plain averaging has no ring")
        if self.shared_noise is not None:
            return self.privacy.encoding(participants, self.shared_noise.quantum, self.shared_noise.value_bits)
        return self.secure.encoding(participants)

    def canonical(self) -> bytes:
        """The plan as canonical JSON: UTF-8, sorted keys, no spaces. :meth:`parse` reads it back to an equal plan."""
        plain = self.model_dump(mode="python")
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()

    @property
    def hash(self) -> bytes:
        """32 bytes: ``privacy.digest("fedloom/plan/1", plan)`` over the plan as a plain value."""
        return digest(PLAN_LABEL, self.model_dump(mode="python"))

    @classmethod
    def parse(cls, data: bytes) -> RunPlan:
        """Read a plan that a peer or a store holds.

        Args:
            data: JSON, at most ``MAX_PLAN_BYTES``.

        Raises:
            RefusedError: ``plan-mismatch``, with what is wrong and where.
        """
        if len(data) > MAX_PLAN_BYTES:
            _refuse(f"the plan has {len(data)} bytes; at most {MAX_PLAN_BYTES} are read")
        try:
            table = json.loads(data, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            _refuse(f"the plan is not valid JSON: {error}")
        try:
            return cls.model_validate(table)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "plan"
            _refuse(f"the plan can't be used: {where}: {first['msg']}")


def _refuse(message: str) -> NoReturn:
    raise RefusedError(
        "plan-mismatch", message, "Both sides must run compatible versions of fedloom; compare `fedloom --version`."
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key appears twice")
    return table


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")


def _check_json(value: object, where: str, depth: int) -> None:
    """Refuse what wouldn't survive a round trip through JSON unchanged."""
    if depth > 32:
        raise ValueError(f"{where} nests too deep")
    if value is None or isinstance(value, bool | int | str):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is not a finite number")
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]", depth + 1)
        return
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} has a key that is not a string: {key!r}")
            _check_json(item, f"{where}.{key}", depth + 1)
        return
    raise ValueError(f"{where} is a {type(value).__name__}, which JSON can't hold")
