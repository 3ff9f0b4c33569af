"""Each formula against a slow plain oracle, and what defines the attack."""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulation.attacks import (
    ATTACKS,
    Alie,
    Disjoint,
    FreeRider,
    InnerProduct,
    Mimic,
    MinMax,
    MinSum,
    ModelReplacement,
    OptimisedAlie,
    OptimisedInnerProduct,
    RelocatedOrthogonal,
    SignFlip,
    Situation,
    Sybil,
    alie_z,
    attack,
    description,
    harm,
    mimicked,
    most_harmful,
)
from wire import ConfigError

DIRECTIONS = ("mean", "deviation", "sign")


def situation(seed: int = 0, *, honest: int = 10, attackers: int = 3, dimension: int = 40, **more: object) -> Situation:
    generator = np.random.default_rng(seed)
    rows = generator.normal(0.3, 1.0, (honest, dimension)).astype(np.float32)
    own = generator.normal(0.3, 1.0, (attackers, dimension)).astype(np.float32)
    last = generator.normal(0.0, 0.1, dimension).astype(np.float32)
    table = {"honest": rows, "attackers": attackers, "own": own, "last": last, "seed": seed, **more}
    return Situation(**table)  # type: ignore[arg-type]


def trimmed(rows: np.ndarray) -> np.ndarray:
    """A robust rule: the mean without the three lowest and the three highest of each coordinate."""
    return np.asarray(np.sort(rows.astype(np.float64), axis=0)[3:-3].mean(axis=0))


def moments(given: Situation) -> tuple[list[float], list[float]]:
    """Mean and deviation by hand."""
    columns = [[float(row[k]) for row in given.honest] for k in range(given.dimension)]
    means = [math.fsum(column) / len(column) for column in columns]
    deviations = [
        math.sqrt(math.fsum((x - mean) ** 2 for x in column) / len(column))
        for column, mean in zip(columns, means, strict=True)
    ]
    return means, deviations


# --- every attack -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
@given(seed=st.integers(0, 2**32), honest=st.integers(1, 9), attackers=st.integers(1, 5), dimension=st.integers(1, 17))
@settings(max_examples=12, deadline=None)
def test_every_attack_gives_rows_of_float32_the_same_again_and_changes_nothing(
    name: str, seed: int, honest: int, attackers: int, dimension: int
) -> None:
    given = situation(seed, honest=honest, attackers=attackers, dimension=dimension)
    before = [None if item is None else item.copy() for item in (given.honest, given.own, given.last)]
    for item in (given.honest, given.own, given.last):
        assert item is not None
        item.flags.writeable = False
    rows = attack(name)(given)
    assert (rows.shape, rows.dtype) == ((attackers, dimension), np.float32)
    np.testing.assert_array_equal(rows, attack(name)(given))
    for old, new in zip(before, (given.honest, given.own, given.last), strict=True):
        np.testing.assert_array_equal(old, new)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"nan", "inf"}))
def test_attacks_that_promise_numbers_give_numbers(name: str) -> None:
    assert np.isfinite(attack(name)(situation())).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_says_where_it_comes_from_and_what_it_knows(name: str) -> None:
    chosen = attack(name)
    assert dataclasses.is_dataclass(chosen)
    assert description(chosen).endswith((".", ","))
    assert "know" in (type(chosen).__doc__ or "").lower()
    assert chosen.knows in ("omniscient", "own data")
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.knows = "nothing"  # type: ignore[misc]


@pytest.mark.parametrize("name", [name for name in ATTACKS if attack(name).knows == "own data"])
def test_who_knows_only_its_own_data_isnt_moved_by_others(name: str) -> None:
    one, other = situation(1), situation(1)
    other = dataclasses.replace(other, honest=other.honest[::-1] * 7)
    np.testing.assert_array_equal(attack(name)(one), attack(name)(other))


def test_an_unknown_attack_names_the_nearest_and_all_of_them() -> None:
    with pytest.raises(ConfigError, match="no attack 'aile'; did you mean 'alie'") as failure:
        attack("aile")
    assert all(name in failure.value.hint for name in ATTACKS)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("sign-flip", {"scale": -1.0}),
        ("ipm", {"scale": math.nan}),
        ("ipm-optimised", {"candidates": 1}),
        ("alie", {"z": math.inf}),
        ("alie-optimised", {"refinements": -1}),
        ("min-max", {"direction": "up"}),
        ("min-sum", {"direction": ""}),
        ("mimic", {"index": -2}),
        ("rop", {"relocation": 1.5}),
        ("rop", {"reference": -0.1}),
        ("rop", {"angle": 361.0}),
        ("rop", {"size": math.nan}),
        ("gaussian", {"std": -1.0}),
        ("inf", {"value": math.nan}),
        ("free-rider", {"gives": "money"}),
        ("free-rider-noise", {"std": math.inf}),
        ("sybil", {"noise": 2.0}),
        ("disjoint", {"scale": -1.0}),
        ("model-replacement", {"boost": -1.0}),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(name: str, parameters: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(parameters))):
        attack(name, **parameters)


@pytest.mark.parametrize(
    "changes",
    [
        {"honest": np.zeros(3, np.float32)},
        {"honest": np.zeros((0, 3), np.float32)},
        {"honest": np.zeros((3, 0), np.float32)},
        {"attackers": 0},
        {"own": np.zeros((2, 40), np.float32)},
        {"last": np.zeros(39, np.float32)},
    ],
)
def test_a_situation_that_doesnt_fit_together_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        dataclasses.replace(situation(), **changes)  # type: ignore[arg-type]


# --- directions -------------------------------------------------------------------------------------------------------


def test_sign_flip_turns_each_attackers_own_update() -> None:
    given = situation()
    assert given.own is not None
    np.testing.assert_array_equal(SignFlip()(given), -given.own)
    np.testing.assert_array_equal(SignFlip(scale=4.0)(given), -4 * given.own)


def test_inner_product_is_the_mean_turned_round() -> None:
    given = situation()
    means, _ = moments(given)
    rows = InnerProduct(scale=2.5)(given)
    np.testing.assert_allclose(rows, [[-2.5 * mean for mean in means]] * 3, rtol=1e-6)
    assert all(float(row @ given.mean) < 0 for row in rows)


@pytest.mark.parametrize(("scale", "sign"), [(3.3, 1), (3.4, -1)])
def test_the_mean_turns_round_where_attackers_outweigh_the_honest(scale: float, sign: int) -> None:
    """f * scale > h: 3 * 3.3 < 10 < 3 * 3.4."""
    given = situation()
    merged = given.rule(np.concatenate([given.honest, InnerProduct(scale=scale)(given)]))
    assert np.sign(float(merged @ given.mean)) == sign


@pytest.mark.parametrize(
    ("honest", "attackers", "share"),
    [(10, 3, 6 / 10), (16, 4, 9 / 16), (38, 12, 24 / 38), (80, 20, 49 / 80), (3, 2, 2 / 3)],
)
def test_alies_z_is_the_papers(honest: int, attackers: int, share: float) -> None:
    """(n - f - s) / (n - f) with s = floor(n / 2 + 1) - f, worked out by hand."""
    assert alie_z(honest, attackers) == pytest.approx(NormalDist().inv_cdf(share))


def test_alies_z_is_never_negative_and_always_finite() -> None:
    assert alie_z(19, 1) == 0.0
    assert alie_z(1, 1) == 0.0
    assert all(0.0 <= alie_z(h, f) < 10.0 for h in range(1, 40) for f in range(1, 40))


@pytest.mark.parametrize("z", [0.0, 1.5, -1.0])
def test_alie_shifts_each_coordinate_by_its_deviation(z: float) -> None:
    given = situation()
    means, deviations = moments(given)
    factor = z or alie_z(10, 3)
    expected = [mean - factor * deviation for mean, deviation in zip(means, deviations, strict=True)]
    np.testing.assert_allclose(Alie(z=z)(given), [expected] * 3, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [None, trimmed])
@pytest.mark.parametrize(("optimised", "plain"), [(OptimisedInnerProduct(), InnerProduct()), (OptimisedAlie(), Alie())])
@pytest.mark.parametrize("seed", range(4))
def test_the_line_search_is_at_least_as_harmful_as_the_plain_attack(
    rule: object, optimised: OptimisedInnerProduct | OptimisedAlie, plain: InnerProduct | Alie, seed: int
) -> None:
    given = situation(seed, **({"rule": rule} if rule else {}))
    worst = harm(given, optimised(given)[0].astype(np.float64))
    assert worst >= harm(given, plain(given)[0].astype(np.float64)) * (1 - 1e-6)
    if rule is None:  # the mean has no defence: as far as it is let
        strength = optimised.scale(given) if isinstance(optimised, OptimisedInnerProduct) else abs(optimised.z(given))
        assert strength == pytest.approx(optimised.largest)


def test_the_line_search_finds_the_edge_of_a_rule_that_drops_who_is_too_far_out() -> None:
    given = situation()
    size = float(np.linalg.norm(given.mean))

    def gated(rows: np.ndarray) -> np.ndarray:
        wide = rows.astype(np.float64)
        return np.asarray(wide[np.linalg.norm(wide - given.mean, axis=1) <= 9.0 * size].mean(axis=0))

    assert np.linalg.norm(given.honest - given.mean, axis=1).max() < 9.0 * size
    scale = OptimisedInnerProduct(refinements=40).scale(dataclasses.replace(given, rule=gated))
    assert scale == pytest.approx(8.0, rel=1e-4)  # |-s mu - mu| = (s + 1) |mu|


def test_most_harmful_is_never_worse_than_a_candidate_and_counts_failures_as_harmless() -> None:
    given = situation(dimension=1, rule=lambda rows: rows[-1])

    def spiky(strength: float) -> np.ndarray:
        if strength > 50:
            return np.full(1, math.nan)
        return given.mean + abs(math.sin(37 * strength)) * strength

    candidates = np.linspace(0.1, 99, 60)
    best = most_harmful(given, spiky, candidates, 12)
    harms = [harm(given, spiky(float(item))) for item in candidates]
    assert best <= 50
    assert harm(given, spiky(best)) >= max(harms)

    def refuses(rows: np.ndarray) -> np.ndarray:
        raise ValueError("too many attackers")

    assert harm(dataclasses.replace(given, rule=refuses), given.mean + 1) == 0.0


# --- distances --------------------------------------------------------------------------------------------------------


def distances(given: Situation) -> np.ndarray:
    rows = given.honest.astype(np.float64)
    return np.array([[np.linalg.norm(a - b) for b in rows] for a in rows])


def slow_gamma(inside: object, high: float) -> float:
    """The largest step within a bound, on a grid that is made ten times finer eight times."""
    assert callable(inside)
    low, step = 0.0, high
    for _ in range(9):
        step /= 10
        while inside(low + step):
            low += step
    return low


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_min_max_goes_as_far_as_two_honest_updates_are_apart(direction: str, seed: int) -> None:
    given = situation(seed)
    (row, *others) = MinMax(direction=direction)(given)  # type: ignore[arg-type]
    assert all((other == row).all() for other in others)
    furthest = max(float(np.linalg.norm(row - x)) for x in given.honest.astype(np.float64))
    assert furthest == pytest.approx(distances(given).max(), rel=1e-6)
    p = {"mean": -given.mean / np.linalg.norm(given.mean), "deviation": -given.deviation, "sign": -np.sign(given.mean)}
    bound = distances(given).max()
    gamma = slow_gamma(
        lambda g: max(np.linalg.norm(given.mean + g * p[direction] - x) for x in given.honest) <= bound, 100.0
    )
    np.testing.assert_allclose(row, given.mean + gamma * p[direction], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_min_sum_is_no_further_from_all_than_one_of_them(direction: str, seed: int) -> None:
    given = situation(seed)
    row = MinSum(direction=direction)(given)[0].astype(np.float64)  # type: ignore[arg-type]
    total = sum(float(np.linalg.norm(row - x)) ** 2 for x in given.honest.astype(np.float64))
    assert total == pytest.approx((distances(given) ** 2).sum(axis=1).max(), rel=1e-6)
    along = (row - given.mean) / np.linalg.norm(row - given.mean)
    p = {"mean": -given.mean, "deviation": -given.deviation, "sign": -np.sign(given.mean)}[direction]
    np.testing.assert_allclose(along, p / np.linalg.norm(p), atol=1e-5)


@given(seed=st.integers(0, 2**32), honest=st.integers(2, 8), dimension=st.integers(1, 9), size=st.floats(1e-6, 1e6))
@settings(max_examples=60, deadline=None)
def test_both_stay_within_their_bounds_at_any_size(seed: int, honest: int, dimension: int, size: float) -> None:
    rows = (size * np.random.default_rng(seed).normal(size=(honest, dimension))).astype(np.float32)
    given = Situation(honest=rows, attackers=2)
    furthest, total = distances(given).max(), (distances(given) ** 2).sum(axis=1).max()
    for direction in DIRECTIONS:
        far = MinMax(direction=direction)(given)[0].astype(np.float64)  # type: ignore[arg-type]
        assert max(np.linalg.norm(far - x) for x in rows) <= furthest * (1 + 1e-5)
        near = MinSum(direction=direction)(given)[0].astype(np.float64)  # type: ignore[arg-type]
        assert sum(np.linalg.norm(near - x) ** 2 for x in rows) <= total * (1 + 1e-5)


@pytest.mark.parametrize("name", ["min-max", "min-sum", "alie", "mimic"])
def test_there_is_nothing_to_hide_among_equal_updates(name: str) -> None:
    rows = np.tile(np.arange(1.0, 6.0, dtype=np.float32), (4, 1))
    np.testing.assert_array_equal(attack(name)(Situation(honest=rows, attackers=2)), rows[:2])


def test_mimic_copies_the_one_that_stands_out_along_the_largest_variance() -> None:
    given = situation()
    rows = given.honest.astype(np.float64)
    _, _, right = np.linalg.svd(rows - rows.mean(axis=0))
    expected = max(range(len(rows)), key=lambda index: abs(float(rows[index] @ right[0])))
    assert mimicked(given.honest) == expected
    np.testing.assert_array_equal(Mimic()(given), given.honest[[expected] * 3])
    np.testing.assert_array_equal(Mimic(index=2)(given), given.honest[[2] * 3])
    outlier = given.honest.copy()
    outlier[7] *= 50
    assert mimicked(outlier) == 7


# --- history ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("relocation", "reference"), [(1.0, 0.9), (0.0, 0.5), (0.3, 1.0)])
def test_rop_is_orthogonal_to_its_reference_and_no_further_out_than_half_of_the_honest(
    seed: int, relocation: float, reference: float
) -> None:
    given = situation(seed)
    assert given.last is not None
    last, mean = given.last.astype(np.float64), given.mean
    place = relocation * last + (1 - relocation) * mean
    along = reference * last + (1 - reference) * mean
    (row, *others) = RelocatedOrthogonal(relocation=relocation, reference=reference)(given).astype(np.float64)
    assert all((other == row).all() for other in others)
    pushed = row - place
    assert float(pushed @ along) == pytest.approx(0.0, abs=1e-5 * np.linalg.norm(pushed) * np.linalg.norm(along))
    away = sorted(float(np.linalg.norm(x - place)) for x in given.honest.astype(np.float64))
    assert np.linalg.norm(pushed) == pytest.approx((away[4] + away[5]) / 2, rel=1e-5)
    # What is left of the vector of ones when the part along the reference is taken out, by hand.
    share = math.fsum(along) / math.fsum(x * x for x in along)
    expected = [1.0 - share * x for x in along]
    norm = math.sqrt(math.fsum(x * x for x in expected))
    np.testing.assert_allclose(pushed / np.linalg.norm(pushed), [x / norm for x in expected], atol=1e-5)


@pytest.mark.parametrize("angle", [0.0, 45.0, 135.0, 180.0, 270.0])
def test_rop_turns_by_its_angle_and_reaches_as_far_as_its_size(angle: float) -> None:
    given = situation()
    assert given.last is not None
    one, other = (RelocatedOrthogonal(angle=angle, size=size)(given)[0] - given.last for size in (1.0, 2.5))
    along = 0.9 * given.last + 0.1 * given.mean
    cosine = float(one @ along) / float(np.linalg.norm(one) * np.linalg.norm(along))
    assert cosine == pytest.approx(math.cos(math.radians(angle)), abs=1e-5)
    np.testing.assert_allclose(other, 2.5 * one, rtol=1e-4, atol=1e-5)


def test_rop_adds_up_over_rounds_where_clipping_starts_at_the_last_update() -> None:
    """Against centred clipping whose centre is the last merged update; turned round, inner products do it no harm."""
    generator = np.random.default_rng(5)
    drifts = {}
    for name in ("rop", "ipm"):
        merged = np.zeros(60)
        for _ in range(12):
            honest = generator.normal(0.0, 1.0, (10, 60)).astype(np.float32)
            given = Situation(honest=honest, attackers=3, last=merged.astype(np.float32))
            rows = np.concatenate([honest, attack(name)(given)]).astype(np.float64)
            for _ in range(3):
                away = np.linalg.norm(rows - merged, axis=1, keepdims=True)
                merged = merged + ((rows - merged) * np.minimum(1.0, np.median(away) / away)).mean(axis=0)
        drifts[name] = float(np.linalg.norm(merged))
    assert drifts["rop"] > 3.0 * drifts["ipm"]


def test_rop_in_its_first_round_starts_from_the_honest_mean_and_stands_what_has_no_direction() -> None:
    first = dataclasses.replace(situation(), last=None)
    pushed = attack("rop")(first)[0] - first.mean
    assert float(pushed @ first.mean) == pytest.approx(0.0, abs=1e-4)
    assert np.linalg.norm(pushed) > 1.0
    still = Situation(honest=np.zeros((3, 8), np.float32), attackers=2, last=np.zeros(8, np.float32))
    assert not attack("rop")(still).any()
    # Nothing is orthogonal to the vector of ones in one dimension, or along the reference of equal numbers.
    flat = Situation(honest=np.full((3, 4), 2.0, np.float32), attackers=1, last=np.ones(4, np.float32))
    np.testing.assert_array_equal(attack("rop")(flat), np.ones((1, 4)))


# --- values -----------------------------------------------------------------------------------------------------------


def test_gaussian_has_its_deviation_and_differs_by_attacker() -> None:
    rows = attack("gaussian", std=3.0)(situation(dimension=20_000))
    assert rows.std(axis=1) == pytest.approx([3.0] * 3, rel=0.03)
    assert rows.mean(axis=1) == pytest.approx([0.0] * 3, abs=0.1)
    assert abs(np.corrcoef(rows)[0, 1]) < 0.05


def test_one_nan_and_else_the_own_update() -> None:
    given = situation()
    rows = attack("nan")(given)
    assert np.isnan(rows[:, -1]).all()
    np.testing.assert_array_equal(rows[:, :-1], given.own[:, :-1])  # type: ignore[index]
    assert np.isinf(attack("nan", value=math.inf, coordinate=43)(given)[:, 3]).all()


def test_numbers_that_break_arithmetic() -> None:
    given = situation()
    assert np.isposinf(attack("inf")(given)).all()
    huge, norm, tiny = (attack(name)(given) for name in ("huge", "norm-overflow", "denormal"))
    assert (huge == np.float32(1e30)).all()
    with np.errstate(over="ignore"):
        assert np.isfinite(norm).all() and np.isinf(norm * norm).all()
    assert ((tiny > 0) & (tiny < np.finfo(np.float32).tiny)).all()


def test_free_riders_give_nothing_that_was_not_there() -> None:
    given = situation()
    assert given.last is not None
    assert not FreeRider()(given).any()
    np.testing.assert_array_equal(FreeRider(gives="last")(given), [given.last] * 3)
    noise = FreeRider(gives="noise")(situation(dimension=9_000))
    assert noise.std() == pytest.approx(0.1, rel=0.05)
    first = dataclasses.replace(given, last=None)
    assert not FreeRider(gives="last")(first).any()
    assert FreeRider(gives="noise", std=5.0)(first).std() == pytest.approx(5.0, rel=0.3)


def test_sybils_are_nearly_but_not_quite_the_same() -> None:
    given = situation()
    rows = Sybil(scale=2.0, noise=0.01)(given).astype(np.float64)
    size = 2.0 * np.linalg.norm(given.mean)
    assert np.linalg.norm(rows + 2.0 * given.mean, axis=1) == pytest.approx([0.01 * size] * 3, rel=1e-4)
    assert len({row.tobytes() for row in rows}) == 3


def test_disjoint_attackers_share_the_coordinates() -> None:
    given = situation()
    rows = Disjoint(scale=5.0)(given)
    turned = ~np.isclose(rows, given.mean, rtol=1e-5)
    assert (turned.sum(axis=0) == 1).all()
    np.testing.assert_allclose(rows[turned], -5.0 * np.tile(given.mean, (3, 1))[turned], rtol=1e-6)


def test_model_replacement_makes_the_mean_the_attackers_model() -> None:
    """With no honest update left, n / f times the attackers' mean merges to that mean."""
    given = situation()
    assert given.own is not None
    rows = ModelReplacement()(given)
    merged = np.concatenate([np.zeros_like(given.honest), rows]).mean(axis=0)
    np.testing.assert_allclose(merged, given.own.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ModelReplacement(boost=2.0)(given), 2 * given.own)
    np.testing.assert_allclose(ModelReplacement()(dataclasses.replace(given, boost=3.0)), 3 * given.own, rtol=1e-6)
