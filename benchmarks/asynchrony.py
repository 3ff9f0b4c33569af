"""Time to an accuracy on a virtual clock: asynchronous rounds beside synchronous ones.

    python -m benchmarks.asynchrony [--quick] [--json PATH] [--figure PATH] [--resume PATH] [--processes N]

Ten participants hold Fashion-MNIST (Debian's package ``dataset-fashion-mnist``), each class divided among them by
Dirichlet(0.5). A perceptron with 100 hidden units is trained by SGD, 20 steps an update, and every run merges 500
updates. `benchmarks.asynchronous_run` says what of it is the platform's. All ways meet the same times, participant by
participant and training by training, from three kinds of speeds and five seeds.

A round that drops the slowest 20 % is over with eight of ten updates (over-selection); the other two begin again.

*Tuned* ways have the server's step and the participants' learning rate, for each kind of speed, from the same grid:
where time to 0.80 times time to 0.83 is least over three other seeds, scored on pictures held out of training. Who
never gets there counts with twice the run's time. *Untuned* ones have the platform's defaults, and FedBuff the
paper's.

*Secure sums* are those of the same buffers without correction: updates are clipped, weighted in whole examples and
rounded to integers as for a secure sum (16 bits a parameter); only the masks are left out, which cancel.

*Skewed* runs are untuned ones with Dirichlet(0.1): a participant has two or three classes. Goals are lower there.

A run has reached an accuracy when three evaluations in a row, ten updates apart, are above it. Final accuracy is the
mean over the last 100 updates. Ratios are to waiting for all with the same speeds and seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.asynchronous_run import (
    ALPHA,
    CA2FL,
    DEFAULT_SERVER,
    DROP,
    FEDBUFF,
    PLAIN,
    SECURE,
    UPDATES,
    WAIT,
    Case,
    Outcome,
    run,
)
from benchmarks.kept import Kept
from benchmarks.report import Report, Row

KINDS: Final = ("half-normal", "lognormal", "stragglers")
TUNED: Final = (WAIT, DROP, CA2FL, PLAIN)
GOALS: Final = (0.80, 0.82, 0.83)
TUNING_GOALS: Final = (0.80, 0.83)
SKEWED: Final = 0.1
SKEWED_GOALS: Final = (0.70, 0.75)
FASTER_TARGET: Final = 0.6
CLOSE_TARGET: Final = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """How much is run.

    Attributes:
        kinds: Of speeds.
        seeds: Of each kind.
        tuning_seeds: On which the rates are chosen; none tunes nothing.
        servers: The grid's steps of the server.
        locals: The grid's learning rates of the participants.
        updates: Of a run.
        skewed: Whether there are runs with a skewed split, too.
        judged: Whether figures are held against the targets.
    """

    kinds: tuple[str, ...]
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    servers: tuple[float, ...]
    locals: tuple[float, ...]
    updates: int
    skewed: bool
    judged: bool


FULL: Final = Setting(
    kinds=KINDS,
    seeds=tuple(range(5)),
    tuning_seeds=(100, 101, 102),
    servers=(0.35, 0.5, 0.7, 1.0, 1.4, 2.0),
    locals=(0.1, 0.2),
    updates=UPDATES,
    skewed=True,
    judged=True,
)
QUICK: Final = dataclasses.replace(FULL, kinds=KINDS[:1], seeds=(0,), tuning_seeds=(), skewed=False, judged=False)


def grid(way: str, kind: str, setting: Setting) -> list[Case]:
    """The runs by which a way is tuned."""
    chosen = itertools.product(setting.servers, setting.locals, setting.tuning_seeds)
    fill = functools.partial(Case, way=way, kind=kind, validated=True, updates=setting.updates)
    return [fill(server=server, local=local, seed=seed) for server, local, seed in chosen]


def loss(outcome: Outcome) -> float:
    """What tuning makes least: the logarithm of the product of the times to the goals."""
    late = 2 * outcome.times[-1]
    return sum(math.log(min(outcome.reached(goal), late)) for goal in TUNING_GOALS)


def tune(way: str, kind: str, setting: Setting, kept: Kept[Case, Outcome]) -> tuple[float, float]:
    """The server's step and the participants' rate."""
    losses: dict[tuple[float, float], list[float]] = {}
    for case in grid(way, kind, setting):
        losses.setdefault((case.server, case.local), []).append(loss(kept.run(case)))
    return min(losses, key=lambda pair: statistics.fmean(losses[pair]))


def measured(
    way: str, kind: str, setting: Setting, rates: tuple[float, float] | None, alpha: float = ALPHA
) -> list[Case]:
    """The runs that are reported, seed by seed; without rates those of the defaults."""
    fill = functools.partial(Case, way=way, kind=kind, updates=setting.updates, alpha=alpha)
    if rates is None:
        return [fill(server=DEFAULT_SERVER[way], seed=seed) for seed in setting.seeds]
    return [fill(server=rates[0], local=rates[1], seed=seed) for seed in setting.seeds]


def measure(report: Report, setting: Setting, kept: Kept[Case, Outcome], processes: int) -> None:
    """Run what isn't kept, and add the rows: all kinds of speeds together first, then each of them."""
    if setting.tuning_seeds:
        pairs = list(itertools.product(TUNED, setting.kinds))
        kept.run_all([case for way, kind in pairs for case in grid(way, kind, setting)], processes)
        rates = {(way, kind): tune(way, kind, setting, kept) for way, kind in pairs}
        # The same arithmetic up to rounding: the rates of one are good for the other.
        rates |= {(SECURE, kind): rates[PLAIN, kind] for kind in setting.kinds}
        tuned = {pair: measured(*pair, setting, rates[pair]) for pair in rates}
        add_rows(report, "tuned", _outcomes(tuned, kept, processes), setting, GOALS, judged=setting.judged)
        for (way, kind), (server, local) in rates.items():
            report.add(row(f"tuned; {kind}; {way}", "server's step that was chosen", server))
            report.add(row(f"tuned; {kind}; {way}", "learning rate that was chosen", local))
    pairs = list(itertools.product(DEFAULT_SERVER, setting.kinds))
    untuned = {pair: measured(*pair, setting, None) for pair in pairs}
    add_rows(report, "untuned", _outcomes(untuned, kept, processes), setting, GOALS, judged=False)
    if setting.skewed:
        skewed = {pair: measured(*pair, setting, None, SKEWED) for pair in pairs}
        add_rows(report, "skewed", _outcomes(skewed, kept, processes), setting, SKEWED_GOALS, judged=False)


Outcomes = dict[tuple[str, str], list[Outcome]]


def _outcomes(cases: dict[tuple[str, str], list[Case]], kept: Kept[Case, Outcome], processes: int) -> Outcomes:
    kept.run_all([case for found in cases.values() for case in found], processes)
    return {pair: [kept.run(case) for case in found] for pair, found in cases.items()}


def add_rows(
    report: Report, label: str, found: Outcomes, setting: Setting, goals: Sequence[float], *, judged: bool
) -> None:
    """Rows of all kinds of speeds together, and of each. The targets are those of ``CA2FL``, over all kinds."""
    ways = list(dict.fromkeys(way for way, _ in found))
    for kinds in dict.fromkeys((setting.kinds, *((kind,) for kind in setting.kinds))):
        name = "all speeds" if len(kinds) > 1 else kinds[0]
        base = [outcome for kind in kinds for outcome in found[WAIT, kind]]
        for way in ways:
            own = [outcome for kind in kinds for outcome in found[way, kind]]
            aimed = judged and way == CA2FL and kinds == setting.kinds
            case = f"{label}; {name}; {way}"
            for item in _rows(case, own, None if way == WAIT else base, goals, aimed=aimed):
                report.add(item)


def _rows(
    case: str, own: list[Outcome], base: list[Outcome] | None, goals: Sequence[float], *, aimed: bool
) -> list[Row]:
    """A way's rows; beside those of waiting for all, where it is another."""
    rows = []
    for goal in goals:
        times = [outcome.reached(goal) for outcome in own]
        rows.append(row(case, f"time to {goal:.2f}, median", statistics.median(times)))
        rows.append(row(case, f"never reached {goal:.2f}", sum(map(math.isinf, times)), f"of {len(times)} runs"))
        if base is None:
            continue
        theirs = [outcome.reached(goal) for outcome in base]
        # Where neither gets there, neither is faster.
        shares = [1.0 if one == other else one / other for one, other in zip(times, theirs, strict=True)]
        target = FASTER_TARGET if aimed and goal == goals[0] else None
        of = f"time to {goal:.2f} / waiting for all"
        rows.append(row(case, f"{of}, median", statistics.median(shares), "x", target=target))
        rows.append(row(case, f"{of}, least", min(shares), "x"))
        rows.append(row(case, f"{of}, most", max(shares), "x"))
        rows.append(row(case, f"not faster to {goal:.2f}", sum(share >= 1 for share in shares), f"of {len(shares)}"))
    finals = [100 * outcome.final() for outcome in own]
    rows.append(dataclasses.replace(row(case, "final accuracy, mean", statistics.fmean(finals), "%"), better="higher"))
    if base is not None:
        lost = [100 * other.final() - one for one, other in zip(finals, base, strict=True)]
        target = CLOSE_TARGET if aimed else None
        rows.append(row(case, "final accuracy lost, mean", statistics.fmean(lost), "points", target=target))
        rows.append(row(case, "final accuracy lost, most", max(lost), "points"))
    wasted = [1 - outcome.merged / outcome.trainings for outcome in own]
    rows.append(row(case, "trainings thrown away", 100 * statistics.fmean(wasted), "%"))
    rows.append(row(case, "time of the run, median", statistics.median(outcome.times[-1] for outcome in own)))
    return rows


def row(case: str, metric: str, value: float, unit: str = "", *, target: float | None = None) -> Row:
    """A figure of which less is better."""
    return Row(case=case, metric=metric, value=value, unit=unit, better="lower", target=target)


_STYLES: Final = {
    WAIT: ("0.35", "-"),
    DROP: ("C1", "-"),
    CA2FL: ("C0", "-"),
    PLAIN: ("C2", "-"),
    SECURE: ("C4", ":"),
    FEDBUFF: ("C3", "--"),
}


def draw(setting: Setting, kept: Kept[Case, Outcome], path: Path) -> None:
    """Median accuracy over virtual time without tuning: a panel for each kind of speeds, a row for each split."""
    import matplotlib
    from matplotlib.figure import Figure

    alphas = (ALPHA, SKEWED) if setting.skewed else (ALPHA,)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "asynchrony", "font.size": 9}):
        figure = Figure(figsize=(9.6, 0.8 + 2.6 * len(alphas)), layout="constrained")
        panels = figure.subplots(len(alphas), len(setting.kinds), sharey="row", squeeze=False)
        for (row_of, alpha), (column, kind) in itertools.product(enumerate(alphas), enumerate(setting.kinds)):
            axes = panels[row_of][column]
            for way, (color, line) in _STYLES.items():
                found = [kept.run(case) for case in measured(way, kind, setting, None, alpha)]
                at_s = np.linspace(0.0, min(outcome.times[-1] for outcome in found), 80)
                # An accuracy holds until the next evaluation; 0.1 is guessing.
                lines = [
                    np.concatenate([[0.1], outcome.accuracies])[np.searchsorted(outcome.times, at_s, side="right")]
                    for outcome in found
                ]
                axes.plot(at_s, np.median(lines, axis=0), color=color, linestyle=line, linewidth=1.3, label=way)
            axes.axhline((GOALS if alpha == ALPHA else SKEWED_GOALS)[0], color="0.6", linewidth=0.7, linestyle=":")
            axes.set_title(f"{kind}, Dirichlet({alpha:g})")
            axes.set_ylim(*((0.55, 0.86) if alpha == ALPHA else (0.4, 0.82)))
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            if row_of == len(alphas) - 1:
                axes.set_xlabel("virtual time (a training: about 1)")
            if not column:
                axes.set_ylabel("accuracy, median of the seeds")
        figure.legend(*panels[0][0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.asynchrony", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one kind of speed, one seed, untuned; under 60 s")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there, too")
    parser.add_argument("--figure", type=Path, metavar="PATH", help="draw accuracy over time there (.svg or .png)")
    parser.add_argument("--resume", type=Path, metavar="PATH", help="keep runs in this file; go on from what it holds")
    parser.add_argument(
        "--processes", type=int, default=len(os.sched_getaffinity(0)), help="runs at the same time, each of one thread"
    )
    options = parser.parse_args(arguments)
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # for the processes that are started; each run is one thread
    report = Report("asynchrony")
    setting = QUICK if options.quick else FULL
    kept = Kept(options.resume, run, Outcome)
    measure(report, setting, kept, options.processes)
    report.finish(options.json)
    if options.figure is not None:
        draw(setting, kept, options.figure)


if __name__ == "__main__":
    main()
