"""Many participants at one coordinator, restarts, and kills: real processes, TLS on loopback, the disk.

    python -m benchmarks.faults [--quick] [--json PATH] [--only PART]

- ``crowd``: 1,000 participants of a few processes (`benchmarks.light_clients`), each with a certificate and a
  connection of its own, at one coordinator; asynchronous rounds of a model of 1,000 parameters, a version of every 10
  updates. They connect all at once. Then they train at a steady pace, and then flat out: a training takes no time.
  *Sealed to announced* is the time from the log's row that seals a buffer until the last participant whose update is
  in it has heard of the version, on one machine's clock.
- ``starts``: a coordinator with as many participants and a log of 10,000 rows, from the start of its process to the
  first check-in that is answered.
- ``kills``: four participants' processes, a model of 100,000 parameters. The coordinator is killed (SIGKILL) and
  started again at once, over and over; measured is the time to the next version. The run must go on, with every
  version made once.

The participants run on the same cores as the coordinator. Nothing is trained; updates are noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks import crowd, restarts
from benchmarks.report import Report, Row

START_TARGET_S: Final = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """How much is run.

    Attributes:
        participants: Of the crowd.
        train_s: Mean time of a training at the steady pace.
        steady_s: How long that is watched.
        flat_out_s: How long the other pace is.
        rows: Of the log.
        starts: On it.
        kills: Of the coordinator.
        judged: Whether figures are held against the targets.
    """

    participants: int
    train_s: float
    steady_s: float
    flat_out_s: float
    rows: int
    starts: int
    kills: int
    judged: bool


FULL: Final = Setting(
    participants=1_000, train_s=20.0, steady_s=60.0, flat_out_s=30.0, rows=10_000, starts=5, kills=10, judged=True
)
QUICK: Final = Setting(
    participants=50, train_s=1.0, steady_s=4.0, flat_out_s=3.0, rows=1_000, starts=1, kills=1, judged=False
)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of them doesn't exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def crowd_rows(found: crowd.Found, setting: Setting) -> list[Row]:
    """What a crowd came to."""
    case = f"{setting.participants:,} participants"
    rows = [
        row(case, "check-ins", found.check_ins_per_s, "/s", better="higher"),
        row(case, "connecting to welcome, all at once, p50", quantile(found.check_in_s, 0.5), "s"),
        row(case, "connecting to welcome, all at once, p99", quantile(found.check_in_s, 0.99), "s"),
        row(case, "coordinator's memory for a connection", found.connection_bytes / 1e3, "kB"),
    ]
    for name, pace in (("steady", found.steady), ("flat out", found.flat_out)):
        own = f"{case}, {name}"
        rows += [
            row(own, "updates", pace.updates_per_s, "/s", better="higher"),
            row(own, "rows of the log", pace.rows_per_s, "/s", better="higher"),
            row(own, "versions that were watched", pace.versions, better="higher"),
            row(own, "sealed to announced, p50", quantile(pace.sealed_s, 0.5), "s"),
            row(own, "sealed to announced, p99", quantile(pace.sealed_s, 0.99), "s"),
            row(own, "update announced to receipt, p99", quantile(pace.receipts_s, 0.99), "s"),
            row(own, "coordinator's processor time", pace.cpu, "cores"),
            row(own, "refused", sum(pace.refused.values())),
            *(row(own, f"refused as {code}", count) for code, count in sorted(pace.refused.items())),
        ]
    return rows


def start_rows(found: restarts.Starts, setting: Setting) -> list[Row]:
    """What starts on a long log came to."""
    case = f"{found.rows:,} rows, {setting.participants:,} participants"
    target = START_TARGET_S if setting.judged else None
    return [
        row(case, "start to first check-in, median", statistics.median(found.serving_s), "s"),
        row(case, "start to first check-in, slowest", max(found.serving_s), "s", target=target),
        row(case, "coordinator's processor time until then, median", statistics.median(found.cpu_s), "s"),
    ]


def kill_rows(found: restarts.Kills) -> list[Row]:
    """What kills came to."""
    case = f"4 participants, {len(found.next_s)} kills"
    return [
        row(case, "SIGKILL to next version, median", statistics.median(found.next_s), "s"),
        row(case, "SIGKILL to next version, slowest", max(found.next_s), "s"),
        row(case, "between versions otherwise", found.usual_s, "s"),
        row(case, "versions in the end, each made once", found.versions, better="higher"),
    ]


def row(
    case: str, metric: str, value: float, unit: str = "", *, better: str = "lower", target: float | None = None
) -> Row:
    """A figure."""
    return Row(
        case=case,
        metric=metric,
        value=value,
        unit=unit,
        better="higher" if better == "higher" else "lower",
        target=target,
    )


def parts(setting: Setting) -> dict[str, Callable[[Path], list[Row]]]:
    """What there is to measure, by name; each in an empty folder."""
    many = setting.participants
    return {
        "crowd": lambda folder: crowd_rows(
            crowd.measure(folder, many, setting.steady_s, setting.flat_out_s, setting.train_s), setting
        ),
        "starts": lambda folder: start_rows(
            restarts.measure_starts(folder, many, setting.rows, setting.starts), setting
        ),
        "kills": lambda folder: kill_rows(restarts.measure_kills(folder, 100_000, setting.kills)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="50 participants, 1,000 rows, one kill; under 60 s")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there, too")
    parser.add_argument("--only", choices=("crowd", "starts", "kills"), help="this part alone")
    options = parser.parse_args(arguments)
    setting, report = QUICK if options.quick else FULL, Report("faults")
    for name, measure in parts(setting).items():
        if options.only in (None, name):
            print(f"{name}: the machine's load is {os.getloadavg()[0]:.1f} now", flush=True)
            with tempfile.TemporaryDirectory(prefix="fedloom-faults-") as folder:
                for item in measure(Path(folder)):
                    report.add(item)
    report.finish(options.json)


if __name__ == "__main__":
    main()
