"""``[privacy]``: where noise is added to what leaves a site, and how much of a record's privacy a run may cost."""

from __future__ import annotations

import math
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from privacy.secure_aggregation.encoding import Encoding, largest_value_bits
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.thresholds import thresholds
from wire.errors import ConfigError
from wire.frozen import Frozen

_WIRE_BITS: Final = 32
_SLACK: Final = 1 / 200
_COARSEST_SLACK: Final = 1 / 20
_TAILS: Final = 12.0  # standard deviations of noise that a coordinate has room for


class PrivacySpec(Frozen):
    """Differential privacy of a run; the noise that each site adds, and the budget that it is solved for."""

    placement: Literal["off", "local", "shared", "participant"] = Field(
        default="off",
        description="off: no noise. local: each site clips each record's gradient and adds all of the noise itself, at "
        "every step; nobody has to be trusted. shared: the sites act as one data set; each adds a share of the noise, "
        "and the secure sum carries all of it. participant: each site's whole update is clipped and gets a share of "
        "the noise; it hides a site, not a record.",
    )
    epsilon: float = Field(
        default=8.0, gt=0.0, le=1_000.0, description="What the whole run may cost (add-or-remove one record)."
    )
    delta: float = Field(
        default=1e-5, gt=0.0, lt=0.1, description="The other half of the promise; under 1 / records of every site."
    )
    clip_norm: float = Field(
        default=1.0, gt=0.0, le=1e6, description="L2 norm to which a record's gradient (or a site's update) is clipped."
    )
    clipping: Literal["flat", "automatic", "layers"] = Field(
        default="flat",
        description="flat: longer gradients are scaled down to clip_norm. automatic: every gradient is scaled to about "
        "clip_norm (Bu et al. 2022), so that clip_norm needs no tuning. layers: each layer's part is clipped by "
        "itself, to an equal share; the backward pass then keeps one layer's record gradients at a time.",
    )
    quantile: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Let the clipping norm follow this quantile of the gradients' norms (Andrew et al. 2019), "
        "privately; 0 keeps clip_norm. For local noise.",
    )
    schedule: Literal["constant", "linear", "exponential", "step", "spend-later", "until-exhausted"] = Field(
        default="constant",
        description="How the noise changes over the run; solved for epsilon before it starts. until-exhausted: it "
        "stays at noise_multiplier, and each site takes part for as many of the rounds as epsilon lasts.",
    )
    schedule_end: float = Field(
        default=1.0, gt=0.0, le=100.0, description="Noise of the last step relative to the first."
    )
    adaptive_noise: float = Field(
        default=0.0,
        ge=0.0,
        le=1e6,
        description="Let the noise follow what is released, by a quarter at most: less noise while the energy of the "
        "gradients' signal is under so many times that of the noise, for example 0.01; more above it; 0 keeps the "
        "planned noise. A filter that is fixed beforehand keeps epsilon; a site whose budget is used up early leaves. "
        "For local noise with sampling_rate = 1, where releases add up exactly whatever is chosen.",
    )
    sampling_rate: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="Probability with which a step uses a record (Poisson sampling). 0: [training] batch_size / "
        "records, at each site; shared noise needs one rate for all.",
    )
    noise_multiplier: float = Field(
        default=0.0,
        ge=0.0,
        le=1e4,
        description="Noise relative to the clipping norm; 0 solves it for epsilon. For shared and participant noise it "
        "is solved when the run is made and stands in its plan.",
    )
    value_bits: int = Field(
        default=27,
        ge=16,
        le=30,
        description="The most bits of one site's integers in a sum with shared noise; 27 leave room for 32 sites.",
    )
    max_chunk: int = Field(
        default=256, ge=1, le=1_000_000, description="Records that pass through the model at a time; bounds the memory."
    )
    scores: bool = Field(
        default=False,
        description="Let sites also tell how the model scores on held-out records, which no noise protects.",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.placement == "shared" and self.sampling_rate == 0:
            raise ValueError("sampling_rate: shared noise needs one rate for all sites, for example 0.05")
        if self.placement == "participant" and self.sampling_rate not in (0.0, 1.0):
            raise ValueError("sampling_rate: with noise for participants every site takes part; leave it out")
        if self.quantile and self.placement != "local":
            raise ValueError('quantile: only placement = "local" can let the clipping norm follow the data')
        if self.schedule == "until-exhausted" and not self.noise_multiplier:
            raise ValueError("noise_multiplier: how long epsilon lasts depends on it; give one, for example 1.0")
        if self.distributed and self.schedule not in ("constant", "until-exhausted"):
            raise ValueError('schedule: only placement = "local" can change the noise over the run')
        if self.adaptive_noise:
            if self.placement != "local":
                raise ValueError('adaptive_noise: only placement = "local" can let the noise follow what is released')
            if self.sampling_rate != 1.0:
                raise ValueError("adaptive_noise: it needs sampling_rate = 1; what samples cost can't be added up then")
            if self.schedule != "constant":
                raise ValueError("adaptive_noise: the noise can't follow a schedule, too; leave schedule out")
        if self.quantile and self.clipping == "automatic":
            raise ValueError("quantile: automatic clipping has no norm that could follow the data")
        if self.placement == "participant" and self.clipping != "flat":
            raise ValueError(f"clipping: a site's whole update is clipped as one; {self.clipping!r} is for records")
        if self.schedule in ("constant", "until-exhausted") and self.schedule_end != 1.0:
            raise ValueError(f"schedule_end: the schedule {self.schedule!r} ends as it begins; choose another one")
        return self

    @property
    def distributed(self) -> bool:
        """Whether sites add shares of the noise, which only a secure sum turns into all of it."""
        return self.placement in ("shared", "participant")

    def describe(self) -> str:
        """What it means for a record, for a person; empty where there is no noise."""
        cost = f"at most epsilon {self.epsilon:g} at delta {self.delta:g} for the run"
        return {
            "off": "",
            "local": f"Each record is protected by noise that its site adds: {cost}.",
            "shared": f"Each record is protected by noise that the sites add together: {cost}, as long as as many of "
            "them are honest as the secure sum assumes.",
            "participant": f"Each site as a whole is hidden by noise that the sites add together: {cost}.",
        }[self.placement]

    # ---- noise that is shared ---------------------------------------------------------------------------------------

    def honest(self, participants: int, corrupt_percent: int, min_cohort: int) -> int:
        """The fewest honest sites in a sum that such a roster may publish: their shares make all of the noise."""
        numbers = thresholds(participants, corrupt_percent, min_cohort)
        return numbers.floor - numbers.corrupt

    def lattice(self, dimension: int, batch: float, share_multiplier: float) -> tuple[float, int]:
        """The lattice on which shares of the noise are drawn: what one integer is worth, and the bits of a site's.

        Args:
            dimension: d.
            batch: Records of a step at one site, at most as expected; unused for whole updates.
            share_multiplier: Standard deviation of a site's share, relative to the clipping norm.

        Raises:
            ConfigError: value_bits leave no room for so much.
        """
        # A Poisson batch is hardly ever longer than this; what doesn't fit is clamped, which costs no privacy.
        longest = batch + 6.0 * math.sqrt(batch) if self.placement == "shared" else 1.0
        reach = self.clip_norm * (longest + _TAILS * share_multiplier)
        finest = reach / ((1 << (self.value_bits - 1)) - 1)
        grid = max(finest, self.clip_norm * _SLACK / math.sqrt(dimension))
        if (
            grid * math.sqrt(dimension) > self.clip_norm * _COARSEST_SLACK
            or self.clip_norm * share_multiplier < 8 * grid
        ):
            raise ConfigError(
                f"[privacy] value_bits = {self.value_bits} leave no room for sums of {longest:.0f} gradients of "
                f"{dimension} parameters",
                "Raise value_bits (30 at most; fewer sites fit into a sum then), or lower sampling_rate.",
            )
        return grid, min(self.value_bits, math.ceil(math.log2(reach / grid + 2.0)) + 1)

    def encoding(self, participants: int, quantum: float, value_bits: int) -> Encoding:
        """How integers on the lattice travel: as they are, 32 bits each, every site with weight 1.

        Args:
            participants: Of the roster.
            quantum: What one unit of the lattice is worth in the mean.
            value_bits: Of one site's integers.

        Raises:
            ConfigError: The sum of so many participants needs more bits.
        """
        limit = (1 << (value_bits - 1)) - 1
        try:
            encoding = Encoding(
                ring_bits=32,
                wire_bits=_WIRE_BITS,
                value_bits=value_bits,
                clip_norm=self.clip_norm,
                clip_value=quantum * limit,
                weight_cap=1,
            )
            encoding.check(participants)
        except SecureAggregationError as error:
            most = largest_value_bits(_WIRE_BITS, participants)
            raise ConfigError(f"[privacy] {error.message}", f"Set [privacy] value_bits to {most} or less.") from None
        return encoding
