"""The noise: its law, its precision, its keys, and what an attack on floating-point numbers finds in it (nothing).

Keys are fixed, so that no statistical test can fail by chance.
"""

from __future__ import annotations

import copy
import itertools
import math
import multiprocessing
import pickle
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.mechanisms import noise as module
from privacy.mechanisms.errors import PrivacyError
from privacy.mechanisms.lattice import Lattice
from privacy.mechanisms.noise import FINE, NoiseKey, gaussian_integers, parts, reach, slack

GOLDEN = {100.0: [57, -104, 58, 7, -5, 65], 1e6: [568412, 582136, -46698, 521563, -1948437, 377889]}
GOLDEN_UNIFORM = ["0xdafb27d59345c8a2", "0xce8769469bad12ba"]


def key(number: int = 0) -> NoiseKey:
    """A key that has given nothing yet."""
    return NoiseKey(bytes([number] * 32))


def chi_squared(found: np.ndarray, expected: np.ndarray) -> float:
    """The test's p-value over the cells that ought to be hit often enough."""
    often = expected > 5
    statistic = float(((found - expected)[often] ** 2 / expected[often]).sum())
    return float(stats.chi2.sf(statistic, int(often.sum()) - 1))


# --- the law ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.3, 1.0, 8.0, 1_000.0, 1_025.0, 3e5])
def test_every_integer_has_the_probability_of_its_interval(std: float) -> None:
    count = 400_000
    drawn = gaussian_integers(key(1), count, std)
    if std > 100:
        edges = np.floor(np.arange(-4 * std, 4 * std + 1, std / 4)) + 0.5
    else:
        edges = np.arange(-math.ceil(4 * std), math.ceil(4 * std) + 1) + 0.5
    cuts = np.concatenate(([-np.inf], edges, [np.inf]))
    assert chi_squared(np.histogram(drawn, cuts)[0], count * np.diff(stats.norm.cdf(cuts / std))) > 1e-3


@pytest.mark.parametrize("std", [FINE, 200_000.0])
def test_moments_and_independence(std: float) -> None:
    count = 2_000_000
    drawn = gaussian_integers(key(2), count, std) / std
    assert abs(drawn.mean()) < 4 / math.sqrt(count)
    assert drawn.var() == pytest.approx(1.0, abs=5 * math.sqrt(2 / count))
    assert stats.skew(drawn) == pytest.approx(0.0, abs=5 * math.sqrt(6 / count))
    assert stats.kurtosis(drawn) == pytest.approx(0.0, abs=5 * math.sqrt(24 / count))
    assert 4.7 < np.abs(drawn).max() < 6.5  # tails are there
    assert stats.kstest(drawn[:200_000], "norm").pvalue > 1e-3
    for lag in (1, 2, 8_192, 16_384, count // 2):  # partners of a pair, neighbours, tiles
        one, other = drawn[:-lag], drawn[lag:]
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(count - lag)
        assert abs(np.corrcoef(one * one, other * other)[0, 1]) < 5 / math.sqrt(count - lag)


def test_the_numbers_of_a_pair_are_independent() -> None:
    """Each octant of the plane and each ring of equal probability are met equally often."""
    drawn = gaussian_integers(key(3), 800_000, 1_000.0).reshape(-1, 2).astype(float) / 1_000.0
    angle = np.arctan2(drawn[:, 1], drawn[:, 0]) / (2 * math.pi) % 1.0
    # The rounding to integers puts points on the borders of octants; half a cell of shift takes them off.
    found = np.histogram((angle + 1 / 64) % 1.0, 32)[0]
    assert chi_squared(found, np.full(32, len(drawn) / 32)) > 1e-3
    ring = np.exp(-(drawn**2).sum(1) / 2)
    table = np.histogram2d(angle, ring, [8, 8])[0]
    assert chi_squared(table.ravel(), np.full(64, len(drawn) / 64)) > 1e-3


def test_coarse_and_fine_parts_are_all_met() -> None:
    """Noise of two parts has no lattice but that of the integers: remainders by the step are even."""
    std = 10_000.0
    step, coarse, fine = parts(std)
    drawn = gaussian_integers(key(4), 500_000, std)
    remainders = np.bincount(drawn % step, minlength=step)
    assert chi_squared(remainders, np.full(step, len(drawn) / step)) > 1e-3
    assert coarse > 60 and fine == 4 * step


@given(std=st.floats(FINE * 1.0001, 2.0**40))
def test_the_parts_add_up_and_overlap(std: float) -> None:
    step, coarse, fine = parts(std)
    assert math.hypot(step * coarse, fine) == pytest.approx(std, rel=1e-12)
    assert fine >= 4 * step
    assert coarse + fine < 4.3 * math.sqrt(std)
    # The images of the coarse lattice, damped by the fine part.
    assert math.exp(-2 * math.pi**2 * coarse**2 * 16 / (coarse**2 + 16)) < 1e-130


def lattice_law(std: float, integers: np.ndarray) -> np.ndarray:
    return stats.norm.cdf((integers + 0.5) / std) - stats.norm.cdf((integers - 0.5) / std)


@pytest.mark.parametrize(("overlap", "low", "high"), [(4.0, 0.0, 1e-11), (0.5, 1e-3, 1e-1)])
def test_two_parts_are_a_smoothed_gaussian(overlap: float, low: float, high: float) -> None:
    """The theorem in numbers: the law of M round(N1) + round(N2), against that of N + U(-M/2, M/2), rounded by a box.

    With an eighth of the overlap the lattice of the coarse part shows, so the comparison can tell.
    """
    step, coarse = 8, 12.0
    fine = overlap * step
    std = math.hypot(step * coarse, fine)
    reached = 1_200
    integers = np.arange(-reached, reached + 1)
    one = np.zeros(len(integers))
    one[reached % step :: step] = lattice_law(coarse, integers[reached % step :: step] // step)
    law = np.convolve(one, lattice_law(fine, integers), mode="same")

    # P(k) of the kernel: the Gaussian, convolved with both boxes, is a difference of second integrals of its density.
    def second(x: np.ndarray) -> np.ndarray:
        return x * stats.norm.cdf(x / std) + std * stats.norm.pdf(x / std)

    a, b = step / 2, 0.5
    kernel = (
        second(integers + a + b) - second(integers + a - b) - second(integers - a + b) + second(integers - a - b)
    ) / step
    assert kernel.sum() == pytest.approx(1.0, abs=1e-9)
    assert low <= 0.5 * float(np.abs(law - kernel).sum()) < high


# --- precision --------------------------------------------------------------------------------------------------------


def exact_pairs(random: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same pairs in 80-bit arithmetic, by the library's logarithm, sine and cosine."""
    wide = np.longdouble
    high, low = random[:, 0], random[:, 1]
    u = high.astype(wide) * wide(2.0) ** -64 + ((low & np.uint64(0x7FF)).astype(wide) + wide(0.5)) * wide(2.0) ** -75
    radius = np.sqrt(-2 * np.log(u))
    place = ((low << np.uint64(2)).view(np.int64) >> 13).astype(wide) + wide(0.5)
    turn = place * wide(2.0) ** -53 * 2 * np.arccos(wide(-1.0))
    one, other = np.cos(turn), np.sin(turn)
    swapped = (low >> np.uint64(62)) & np.uint64(1) == 1
    sign = np.where(low >> np.uint64(63) == 1, -radius, radius)
    return sign * np.where(swapped, other, one), sign * np.where(swapped, one, other)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 60, reason="no wider floats here to compare with")
def test_the_arithmetic_is_as_exact_as_the_slack_assumes() -> None:
    work = module._Work(8_192)
    worst = 0.0
    for tile in range(40):
        generate = key(tile)._open(b"noise", 0, 8_192, 16)
        work.draw(generate, 8_192)
        radius = np.abs(work._radius)
        for ours, exact in zip((work._one, work._other), exact_pairs(work._random), strict=True):
            error = np.abs((ours * work._radius).astype(np.longdouble) - exact).astype(float)
            worst = max(worst, float((error / (13.2 * radius + 2 / radius)).max() * 2.0**53))
    assert 0.05 < worst < 0.5  # what is assumed is twice as much


@pytest.mark.parametrize(
    ("high", "low", "radius"),
    [
        (0, 0, math.sqrt(2 * 76 * math.log(2))),  # the largest
        ((1 << 64) - 1, 0x7FF, 0.0),
        (1 << 63, 0, math.sqrt(2 * math.log(2))),
        (0, 0x400, math.sqrt(-2 * math.log(1024.5 * 2.0**-75))),
    ],
)
def test_extreme_bits(high: int, low: int, radius: float) -> None:
    def generate(plain: memoryview, out: memoryview) -> int:
        out[:] = high.to_bytes(8, "little") + low.to_bytes(8, "little")
        return 16

    work = module._Work(1)
    work.draw(generate, 1)
    assert abs(work._radius[0]) == pytest.approx(radius, abs=1e-12)
    assert work._one[0] == pytest.approx(math.cos(math.pi * 2.0**-53), abs=1e-15)
    assert abs(work._other[0]) < 1e-15
    for std in (100.0, 1e6):
        out = np.empty(1, np.int64)
        work.draw(generate, 1)
        (work.combined if std > FINE else work.interleaved)(out, std)
        assert abs(out[0]) <= reach(std)


@pytest.mark.parametrize("bits", range(4))
def test_the_two_highest_bits_choose_the_quarter(bits: int) -> None:
    place = 12_345 << 30  # somewhere within the eighth of a turn
    word = bits << 62 | place

    def generate(plain: memoryview, out: memoryview) -> int:
        out[:] = (1 << 63).to_bytes(8, "little") + word.to_bytes(8, "little")
        return 16

    work = module._Work(1)
    work.draw(generate, 1)
    x, y = work._one[0] * work._radius[0], work._other[0] * work._radius[0]
    assert (abs(x) > abs(y)) == (bits & 1 == 0)
    assert (max(x, y, key=abs) < 0) == (bits & 2 == 2)


def test_the_slack_in_numbers() -> None:
    """The table of the docstring, for noise on the lattice whose rounding adds a two-hundredth."""
    rows = {10**3: (3.6e-11, 1.1e-9), 10**6: (6.4e-9, 2.0e-7), 10**8: (2.0e-7, 6.5e-6), 10**9: (1.1e-6, 3.7e-5)}
    for dimension, (once, often) in rows.items():
        std = 200 * math.sqrt(dimension)
        assert slack(dimension, std) == pytest.approx(once, rel=0.05)
        assert slack(1_000 * dimension, std) == pytest.approx(often, rel=0.05)
    assert slack(10, 8.0) < slack(10, 100.0) < slack(1_000, 100.0)
    # Without its two parts the finest noise would be worth nothing at that size.
    assert math.sqrt(10**9) * 2 * 6.3e6 * 2.0**-48 > 1e-3


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [100.0, 5_000.0])
def test_the_same_numbers_by_slices(std: float) -> None:
    whole = gaussian_integers(key(), 50_000, std)
    out = np.empty(50_000, np.int64)
    assert gaussian_integers(key(), 50_000, std, out=out) is out
    assert (out == whole).all()
    cuts, sliced = [0, 2, 1_000, 8_192, 8_194, 16_386, 50_000], key()
    for first, last in itertools.pairwise(cuts):
        assert (gaussian_integers(sliced, last - first, std, start=first) == whole[first:last]).all()
    with pytest.raises(ValueError, match="pair"):
        gaussian_integers(key(), 2, std, start=1)
    with pytest.raises(ValueError, match="pair"):
        gaussian_integers(key(), 2, std, start=-2)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 8_191, 8_192, 8_193, 16_383, 16_384, 16_385])
@pytest.mark.parametrize("std", [10.0, 1e6])
def test_any_number_of_numbers(count: int, std: float) -> None:
    drawn = gaussian_integers(key(), count, std)
    assert drawn.shape == (count,) and drawn.dtype == np.int64
    assert (drawn == gaussian_integers(key(), count + 2, std)[:count]).all()


def test_golden_numbers() -> None:
    """A stream means the same numbers in every version: a ledger's replay and two machines' tests rest on it."""
    assert gaussian_integers(key(7), 6, 100.0).tolist() == GOLDEN[100.0]
    assert gaussian_integers(key(7), 6, 1e6).tolist() == GOLDEN[1e6]
    assert [hex(int(value)) for value in key(7).uniform(2)] == GOLDEN_UNIFORM


def test_a_key_gives_no_number_twice() -> None:
    once = key()
    gaussian_integers(once, 100, 10.0)
    for std, start in ((10.0, 0), (10.0, 98), (5_000.0, 48)):
        with pytest.raises(PrivacyError) as caught:
            gaussian_integers(once, 2, std, start=start)
        assert caught.value.code == "noise-reused"
    gaussian_integers(once, 2, 10.0, start=100)
    once.uniform(10)  # another stream of the same key
    with pytest.raises(PrivacyError):
        once.uniform(10)
    once.uniform(10, 10)


def test_streams_of_one_key_are_unrelated() -> None:
    """Uniform draws, which the sampler uses, tell nothing of the noise: they are other bits of the cipher."""
    uniform = key(5).uniform(2_000)
    generate = key(5)._open(b"noise", 0, 1_000, 16)
    noise = bytearray(16_000)
    generate(memoryview(bytes(16_000)), memoryview(noise))
    assert not set(uniform.tolist()) & set(np.frombuffer(noise, "<u8").tolist())


def test_keys() -> None:
    assert NoiseKey.fresh().secret != NoiseKey.fresh().secret
    assert "00" not in repr(key()) and "secret" not in repr(key())
    for how in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds a secret"):
            how(key())
    for length in (0, 5, 31, 33):
        with pytest.raises(PrivacyError) as caught:
            NoiseKey(bytes(length))
        assert caught.value.code == "noise-key"


def blocks(seed: int) -> list[int]:
    """What a worker process draws with a key of its own."""
    np.random.seed(seed)
    return NoiseKey.fresh().uniform(20_000).tolist()


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_worker_processes_draw_different_numbers(how: str) -> None:
    """No 64-bit block of two workers is equal, although their other generators are."""
    context = multiprocessing.get_context(how)
    with context.Pool(2) as pool:
        one, other = pool.map(blocks, [1, 1], chunksize=1)
    assert len(set(one) | set(other)) == 40_000


def test_two_releases_from_one_state_differ_everywhere() -> None:
    """A step that is repeated after a crash is noised anew: the difference of both is zero in no block."""
    lattice = Lattice.for_clip(1.0, 100_000)
    total = np.linspace(-1, 1, 100_000)
    one, other = (lattice.release(total, 1.0, NoiseKey.fresh()) for _ in range(2))
    same = one == other
    assert not same.reshape(-1, 50).all(1).any()
    assert same.mean() < 1e-3
    assert abs(np.corrcoef(one - total / lattice.grid, other - total / lattice.grid)[0, 1]) < 0.02


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf, 2.0**41])
def test_noise_without_meaning(std: float) -> None:
    with pytest.raises(PrivacyError) as caught:
        gaussian_integers(key(), 4, std)
    assert caught.value.code == "noise-std"


# --- attacks on floating-point numbers --------------------------------------------------------------------------------


def off_grid(values: np.ndarray) -> float:
    """Share of the small values that aren't multiples of 2^-24: float32 betrays what it was made from."""
    small = values[np.abs(values) < 0.05].astype(np.float64)
    return float(np.mean(small * 2.0**24 != np.rint(small * 2.0**24)))


@pytest.mark.parametrize("sums", [1, 4])
def test_floating_point_noise_betrays_the_sum_and_ours_does_not(sums: int) -> None:
    """Mironov 2012, Jin et al. 2022: one coordinate tells the world g = 0 from the world g = 1.

    Adding up four numbers and halving, a remedy in use elsewhere, still leaves half of the coordinates to tell.
    """
    count = 400_000
    generator = np.random.default_rng(1)
    naive = sum(generator.standard_normal(count).astype(np.float32) for _ in range(sums)) / np.float32(sums**0.5)
    assert off_grid(np.float32(1.0) + naive) == 0.0
    assert off_grid(np.float32(0.0) + naive) > (0.9 if sums == 1 else 0.4)

    lattice = Lattice.for_clip(1.0, count)
    released = {}
    for number, value in ((1, 0.0), (2, 1.0)):
        integers = lattice.release(np.full(count, value, np.float32), 1.0, key(number))
        values = lattice.values(integers)
        assert (np.rint(values / lattice.grid) == integers).all()  # on the lattice, in both worlds
        released[value] = integers
    # As integers both worlds have every remainder equally often: nothing but the shift by the sum tells them apart.
    for integers in released.values():
        for modulus in (2, 3, 64, 1_000):
            found = np.bincount(integers % modulus, minlength=modulus)
            assert chi_squared(found, np.full(modulus, count / modulus)) > 1e-4


# --- speed ------------------------------------------------------------------------------------------------------------


def test_noise_takes_no_time_to_speak_of() -> None:
    """25 ns of processor time a number are the aim, and 4 to 16 what it takes; the bound allows for a slow machine."""
    out = np.empty(1_000_000, np.int64)
    best = math.inf
    for number in range(3):
        started = time.process_time()
        gaussian_integers(key(number), len(out), 4e5, out=out)
        best = min(best, time.process_time() - started)
    assert best / len(out) < 200e-9
