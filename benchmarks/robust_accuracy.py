"""Do merging rules hold under attack? Fashion-MNIST, ten honest institutions, three hostile ones that know the rule.

    python -m benchmarks.robust_accuracy [--quick] [--json PATH] [--figure PATH] [--keep PATH] [--processes N]

Every rule meets every attack of the simulator, and is scored by its worst. What decides are the two *optimised*
attacks: in each round they search for the strength that moves the result of that very rule furthest from the honest
mean. Sign flipping, say, hurts not even the mean. Each figure comes from what ``fedloom simulate`` does: real rounds,
the coordinator's own checks and merge, attackers behind the same protocol as everybody else.

Attack-free accuracy is that of the same ten institutions among themselves, under the same rule told to stand the same
three. `benchmarks.robust_federation` says what is trained, and on what. The same seed gives the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import os
import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from benchmarks.kept import Kept
from benchmarks.report import Report, Row
from benchmarks.robust_federation import (
    ATTACKERS,
    GROUP,
    GROUPED,
    HONEST,
    NONE,
    RULES,
    Case,
    Run,
    configuration,
    simulated,
)
from wire import FederationConfig

OPTIMISED: Final = ("ipm-optimised", "alie-optimised")
BACKDOOR: Final = "backdoor"
ATTACKS: Final = (
    *OPTIMISED,
    "min-max",
    "min-sum",
    "mimic",
    "label-flip",
    BACKDOOR,
    "sign-flip",
    "forged-count",
    "gaussian",
    "nan",
    "replay",
)
"""What every rule meets."""

DEFAULT: Final = "robust"
FORMER: Final = "norm-clip >> nnm >> trimmed-mean"
DECISIVE: Final = ("mean", FORMER, "caf", DEFAULT)
"""Rules that are run with several seeds, and on other splits."""

DECIDING: Final = (NONE, *OPTIMISED, BACKDOOR)
"""What they meet with every seed."""

LOST_TARGET: Final = 5.0
"""Points that the default recipe may lose to the worse of the two optimised attacks."""

COLLAPSED_TARGET: Final = 20.0
"""Accuracy, in per cent, under which the mean counts as collapsed."""

K = TypeVar("K", bound=Hashable)

LOST: Final = "lost to optimised attacks"
WORST: Final = "worst accuracy over attacks"
SPREAD: Final = "standard deviation, {} runs"

_MEMORY: Final = Path("/dev/shm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """How much is run.

    Attributes:
        rounds: Merges in a run.
        steps: Of an institution between two merges.
        runs: Of the decisive cases.
        alpha: The split on which every rule meets every attack.
        corners: Other splits, with one run each.
        rules: On the main split, with one run each.
        attacks: That they meet.
        decisive: Rules that are run several times, and on other splits.
        groups: How many attackers there are where sums are secure in groups; empty leaves these cases out.
        group_rounds: Merges where sums are secure in groups, with one run each; every round is one of real masks.
        judged: Whether figures are held against the targets.
    """

    rounds: int
    steps: int
    runs: int
    alpha: float
    corners: tuple[float, ...]
    rules: tuple[str, ...]
    attacks: tuple[str, ...]
    decisive: tuple[str, ...]
    groups: tuple[int, ...]
    group_rounds: int
    judged: bool

    def case(self, rule: str, attack: str, seed: int, *, alpha: float | None = None, groups: int = 0) -> Case:
        """A case of this setting; ``groups`` is how many attackers meet secure sums of groups, 0 for plain ones."""
        return Case(
            rule=rule,
            attack=attack,
            alpha=self.alpha if alpha is None else alpha,
            seed=seed,
            rounds=self.group_rounds if groups else self.rounds,
            steps=self.steps,
            groups=groups > 0,
            attackers=groups or ATTACKERS,
        )


FULL: Final = Setting(
    rounds=80,
    steps=20,
    runs=3,
    alpha=0.5,
    corners=(1.0, 0.25, 0.1),
    rules=tuple(RULES),
    attacks=ATTACKS,
    decisive=DECISIVE,
    groups=(2, 3),
    group_rounds=40,
    judged=True,
)
QUICK: Final = Setting(
    rounds=5,
    steps=10,
    runs=1,
    alpha=0.5,
    corners=(),
    rules=("mean", DEFAULT),
    attacks=OPTIMISED[:1],
    decisive=(),
    groups=(),
    group_rounds=0,
    judged=False,
)


# ---- what is run -----------------------------------------------------------------------------------------------------


def cases(setting: Setting) -> list[Case]:
    """All of a setting, those that decide first."""
    found = [
        setting.case(rule, attack, seed)
        for rule, seed, attack in itertools.product(setting.decisive, range(setting.runs), DECIDING)
    ]
    for alpha, rule, attack in itertools.product(setting.corners, setting.decisive, (NONE, *OPTIMISED)):
        found.append(setting.case(rule, attack, 0, alpha=alpha))
    for groups, attack in itertools.product(setting.groups, (NONE, *OPTIMISED)):
        found.append(setting.case(DEFAULT, attack, 0, groups=groups))
    for attack, rule in itertools.product((NONE, *setting.attacks), setting.rules):
        found.append(setting.case(rule, attack, 0))
    return list(dict.fromkeys(found))


def federation_name(case: Case) -> str:
    """What rows call the federation of a case, without rule and attack."""
    split = f"alpha {case.alpha:g}"
    return f"{split}, {GROUPED} in groups of {GROUP}, f = {case.attackers}" if case.groups else split


# ---- rows ------------------------------------------------------------------------------------------------------------


def measure(report: Report, setting: Setting, kept: Kept[FederationConfig, Run], processes: int) -> None:
    """Run all cases and add their rows."""
    wanted = cases(setting)
    kept.run_all([configuration(case) for case in wanted], processes)
    runs = {case: kept.run(configuration(case)) for case in wanted}
    for (place, rule), group in _by(wanted, lambda case: (federation_name(case), case.rule)).items():
        found = {attack: [runs[case] for case in same] for attack, same in _by(group, lambda case: case.attack).items()}
        main = setting.judged and group[0].alpha == setting.alpha
        _rule_rows(report, f"{place}, {rule}", rule, found, judged=main)
    seconds = statistics.mean(run.seconds for run in runs.values())
    case = f"{len(runs)} runs"
    report.add(Row(case=case, metric="time of a run", value=seconds, unit="s", better="lower"))


def _rule_rows(report: Report, name: str, rule: str, found: dict[str, list[Run]], *, judged: bool) -> None:
    """The rows of a rule in a federation; ``found`` has the runs of each attack, in the order of their seeds."""
    mean = {attack: statistics.mean(run.accuracy for run in runs) for attack, runs in found.items()}
    for attack, runs in found.items():
        case = f"{name}, {attack}"
        collapse = judged and rule == "mean" and attack == OPTIMISED[0]
        report.add(
            Row(
                case=case,
                metric="accuracy",
                value=mean[attack],
                unit="%",
                better="lower" if collapse else "higher",
                target=COLLAPSED_TARGET if collapse else None,
            )
        )
        if len(runs) > 1:
            spread = statistics.stdev(run.accuracy for run in runs)
            report.add(Row(case=case, metric=SPREAD.format(len(runs)), value=spread, unit="%", better="lower"))
        if attack == BACKDOOR:
            success = statistics.mean(run.success for run in runs)
            report.add(Row(case=case, metric="attack success rate", value=success, unit="%", better="lower"))
    lost = lost_points(found)
    if not math.isnan(lost):
        target = LOST_TARGET if judged and rule == DEFAULT else None
        report.add(Row(case=name, metric=LOST, value=lost, unit="points", better="lower", target=target))
    report.add(Row(case=name, metric=WORST, value=min(mean.values()), unit="%", better="higher"))


def lost_points(found: dict[str, list[Run]]) -> float:
    """Accuracy without attack, less that under the worse optimised attack *of each seed*: the mean over the seeds.

    NaN where an optimised attack or the attack-free case wasn't run.
    """
    if not {NONE, *OPTIMISED} <= found.keys():
        return math.nan
    seeds = zip(found[NONE], *(found[attack] for attack in OPTIMISED), strict=True)
    return statistics.fmean(free.accuracy - min(run.accuracy for run in attacked) for free, *attacked in seeds)


def _by(items: Iterable[Case], key: Callable[[Case], K]) -> dict[K, list[Case]]:
    found: dict[K, list[Case]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


# ---- table and figure ------------------------------------------------------------------------------------------------


def table(report: Report, alpha: float) -> tuple[list[str], list[str], list[list[float]]]:
    """Rules, attacks, and the accuracy [rules, attacks] on a split; NaN where a case wasn't run."""
    head = f"alpha {alpha:g}"
    cells: dict[tuple[str, str], float] = {}
    for row in report.rows:
        place, *rest = row.case.split(", ")
        if place == head and row.metric == "accuracy" and len(rest) == 2:
            cells[rest[0], rest[1]] = row.value
    rules = [rule for rule in RULES if any(rule == known for known, _ in cells)]
    attacks = [attack for attack in (NONE, *ATTACKS) if any(attack == known for _, known in cells)]
    return rules, attacks, [[cells.get((rule, attack), math.nan) for attack in attacks] for rule in rules]


def markdown(report: Report, alpha: float) -> str:
    """The table as Markdown, with the worst case over the attacks as the last column."""
    rules, attacks, cells = table(report, alpha)
    lines = ["| rule | " + " | ".join(attacks) + " | worst |", "|---" * (len(attacks) + 2) + "|"]
    for rule, row in zip(rules, cells, strict=True):
        worst = min((value for value in row if not math.isnan(value)), default=math.nan)
        shown = ["" if math.isnan(value) else f"{value:.1f}" for value in row]
        lines.append(f"| {rule} | " + " | ".join(shown) + f" | **{worst:.1f}** |")
    return "\n".join(lines)


def draw(report: Report, alpha: float, path: Path) -> None:
    """Accuracy of every rule under every attack, as numbers on a scale of colours."""
    import matplotlib
    from matplotlib.figure import Figure

    rules, attacks, cells = table(report, alpha)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": report.name, "font.size": 9}):
        figure = Figure(figsize=(9.6, 1.8 + 0.32 * len(rules)), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(cells, cmap="RdYlGn", vmin=10, vmax=90, aspect="auto")
        axes.set_xticks(range(len(attacks)), attacks, rotation=35, ha="right")
        axes.set_yticks(range(len(rules)), rules)
        for (y, row), x in itertools.product(enumerate(cells), range(len(attacks))):
            if not math.isnan(row[x]):
                axes.text(x, y, f"{row[x]:.0f}", ha="center", va="center")
        axes.set_title(f"test accuracy, %; {ATTACKERS} of {HONEST + ATTACKERS} institutions are hostile", fontsize=10)
        axes.spines[:].set_visible(False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.robust_accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="two rules, one attack, 5 rounds; under 60 s")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--figure", type=Path, help="draw rules and attacks here (.svg or .png)")
    parser.add_argument("--keep", type=Path, help="keep finished runs in this file, and go on from what it holds")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--processes", type=int, default=cores, help=f"simulations at the same time ({cores})")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if _MEMORY.is_dir():
        # A simulated coordinator syncs its store to disk as a real one does, which would take half of the time.
        os.environ.setdefault("TMPDIR", str(_MEMORY))
    setting = QUICK if options.quick else FULL
    report = Report("robust_accuracy")
    measure(report, setting, Kept(options.keep, simulated, Run), options.processes)
    report.finish(options.json)
    print(f"\n{markdown(report, setting.alpha)}")
    if options.figure is not None:
        draw(report, setting.alpha, options.figure)


if __name__ == "__main__":
    main()
