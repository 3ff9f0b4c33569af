"""What the page says, before it is drawn."""

from __future__ import annotations

import dataclasses
import math

import pytest
import report_sample

from simulation.report import Hostility, Metric, Participation, Round, RunRecord, summary
from simulation.report.staleness import staleness


def two(ours: tuple[float, float], alone: tuple[float, float], better: str = "higher") -> RunRecord:
    """A record of two institutions with these scores."""
    record = report_sample.make_record(institutions=2, rounds=1)
    return dataclasses.replace(
        record,
        headline_metric=Metric(name="m", label="score", better=better),  # type: ignore[arg-type]
        final={one.name: {"m": value} for one, value in zip(record.institutions, ours, strict=True)},
        local_only={one.name: {"m": value} for one, value in zip(record.institutions, alone, strict=True)},
    )


@pytest.mark.parametrize(
    ("record", "sentence", "verdict", "won"),
    [
        (
            two((0.6, 0.5), (0.2, 0.3)),
            "beats the best single institution by 25.0 points.",
            "All two institutions",
            True,
        ),
        (
            two((0.2, 0.2), (0.1, 0.4)),
            "falls short of the best single institution by 20.0",
            "One of the two institutions gains",
            False,
        ),
        (
            two((0.3, 0.3), (0.1, 0.3)),
            "draws level with the best single institution.",
            "One of the two institutions gains",
            False,
        ),
        (two((0.1, 0.1), (0.4, 0.3), "lower"), "beats the best single institution by 20.0", "All two", True),
        (
            two((0.5, 0.5), (0.4, 0.3), "lower"),
            "falls short of the best single institution by 20.0",
            "None of the two institutions gain ",
            False,
        ),
        (two((0.5, math.nan), (0.4, math.nan)), "beats the best single institution by 10.0", "", True),
    ],
)
def test_headline_against_the_best_alone(record: RunRecord, sentence: str, verdict: str, won: bool) -> None:
    said = summary.headline(record)
    assert sentence in said.sentence
    assert verdict in said.explanation
    assert said.won is won
    assert len(said.figures) == 3


def test_headline_names_the_rival() -> None:
    said = summary.headline(two((0.6, 0.5), (0.2, 0.3)))
    assert "OpenMoji" in said.explanation
    assert said.figures[1][0] == "Best alone, OpenMoji"


def test_headline_of_one_institution_speaks_of_no_others() -> None:
    said = summary.headline(report_sample.make_record(institutions=1, rounds=2))
    assert said.sentence.startswith("The federation beats training alone by")
    assert "averaged" not in said.explanation


def test_headline_without_local_scores_compares_nothing() -> None:
    said = summary.headline(dataclasses.replace(report_sample.make_record(), local_only={}))
    assert said.sentence.startswith("The shared model reaches")
    assert "No institution trained a model alone" in said.explanation


def test_headline_without_scores_says_so() -> None:
    said = summary.headline(dataclasses.replace(report_sample.make_record(rounds=1), final={}))
    assert said.sentence == "The federation finished one round."
    assert said.figures == ()


def test_an_evaluation_belongs_to_the_version_that_the_round_began_with() -> None:
    record = report_sample.make_record(institutions=1, rounds=3)
    (line,) = summary.curves(record)
    begun = [entry.participants[0].evaluation["missing_r1"] for entry in record.rounds]
    assert [version for version, _ in line.points] == [0, 1, 2, 3]
    assert [value for _, value in line.points] == [*begun, record.final["Twemoji"]["missing_r1"]]


def test_a_round_that_commits_nothing_moves_no_version() -> None:
    def entry(number: int, version: int, value: float) -> Round:
        part = Participation(name="Twemoji", evaluation={"missing_r1": value})
        return Round(number=number, version=version, participants=(part,))

    record = dataclasses.replace(
        report_sample.make_record(institutions=1, rounds=1),
        rounds=(entry(1, 1, 0.1), entry(2, 0, 0.2), entry(3, 2, 0.25), entry(4, 3, math.nan)),
        final={"Twemoji": {"missing_r1": 0.5}},
        model=report_sample.Model(digest="", parameters=1, version=3),
    )
    (line,) = summary.curves(record)
    assert line.points == ((0, 0.1), (1, 0.25), (3, 0.5))


def test_strangers_in_a_round_have_no_curve() -> None:
    record = report_sample.make_record(institutions=1, rounds=1)
    stranger = Participation(name="stranger", evaluation={"missing_r1": 0.9})
    record = dataclasses.replace(record, rounds=(Round(number=1, version=1, participants=(stranger,)),))
    assert [line.name for line in summary.curves(record)] == ["Twemoji"]
    assert summary.round_rows(record)[0].seats[0].place == summary.FEW


def test_gain_is_positive_where_the_federation_is_better() -> None:
    assert [round(row.gain, 6) for row in summary.comparisons(two((0.6, 0.1), (0.2, 0.3)))] == [0.4, -0.2]
    assert [round(row.gain, 6) for row in summary.comparisons(two((0.6, 0.1), (0.2, 0.3), "lower"))] == [-0.4, 0.2]


def test_loss_is_weighted_by_examples_and_only_of_merged_updates() -> None:
    parts = (
        Participation(name="a", examples=300, metrics={"loss": 1.0}),
        Participation(name="b", examples=100, metrics={"loss": 5.0}),
        Participation(name="c", examples=900, metrics={"loss": 9.0}, outcome="late"),
        Participation(name="d", examples=900, metrics={"loss": math.nan}),
        Participation(name="e", examples=900),
    )
    assert summary.weighted_loss(parts) == pytest.approx(2.0)
    assert math.isnan(summary.weighted_loss(parts[2:]))


def test_attendance_and_absences() -> None:
    record = report_sample.make_record()
    assert summary.attendance(record)["OpenMoji"] == (19, 20)
    row = summary.round_rows(record)[2]
    assert (row.merged, row.invited, row.absences) == (3, 4, "OpenMoji: vanished")
    assert [seat.merged for seat in row.seats] == [True, False, True, True]


def test_many_participants_are_counted_by_reason() -> None:
    row = summary.round_rows(report_sample.make_record(institutions=100, rounds=9, queries=0))[8]
    assert row.seats == ()
    assert (row.merged, row.absences) == (99, "1 late")


def test_quantiles() -> None:
    assert summary.quantile([3.0, 1.0, 2.0, math.nan], 0.5) == 2.0
    assert summary.quantile([0.0, 1.0], 0.25) == 0.25
    assert summary.quantile([7.0], 0.9) == 7.0
    assert math.isnan(summary.quantile([math.nan], 0.5))
    assert math.isnan(summary.mean([]))


def test_verdicts_show_hostile_and_rejected_institutions_first() -> None:
    record = report_sample.make_record(institutions=3, rounds=3)
    names = [item.name for item in record.institutions]

    def judged(entry: Round, verdicts: list[str]) -> Round:
        parts = [
            dataclasses.replace(part, verdict=verdict, reason="too far" if verdict == "rejected" else "", weight=0.25)
            for part, verdict in zip(entry.participants, verdicts, strict=True)
        ]
        return dataclasses.replace(entry, participants=tuple(parts), warnings=("nobody stands out",))

    plans = (["kept", "kept", "rejected"], ["kept", "clipped", "rejected"], ["kept", "clipped", ""])
    record = dataclasses.replace(
        record, rounds=tuple(judged(entry, plan) for entry, plan in zip(record.rounds, plans, strict=True))
    )
    found = summary.verdicts(record)
    assert found is not None
    assert [row.name for row in found.rows] == names[::-1]
    assert [(row.kept, row.clipped, row.rejected) for row in found.rows] == [(0, 0, 2), (1, 2, 0), (3, 0, 0)]
    assert found.rows[0].cells[:2] == (("rejected", "too far"),) * 2
    assert found.rows[0].weight == "25.0\u202f%"
    assert (found.rounds, found.more, found.warnings) == ((1, 2, 3), 0, (("nobody stands out", 3),))
    hostile = Hostility(attack="x", description="", knows="own data", institutions=(names[0],), score=0.0)
    again = summary.verdicts(dataclasses.replace(record, hostility=(hostile,)))
    assert again is not None
    assert [row.name for row in again.rows] == [names[0], names[2], names[1]]


def test_without_verdicts_there_is_no_table() -> None:
    assert summary.verdicts(report_sample.make_record()) is None


def test_ages_show_those_first_that_were_merged_least_often() -> None:
    record = report_sample.make_record(institutions=3, rounds=2)
    names = [item.name for item in record.institutions]
    ages = [
        {names[0]: ("merged", 0), names[1]: ("refused: update-stale", 9)},
        {names[0]: ("merged", 2), names[2]: ("merged", 8)},
    ]
    rounds = [
        dataclasses.replace(
            entry,
            participants=tuple(
                dataclasses.replace(entry.participants[0], name=name, outcome=outcome, staleness=age)
                for name, (outcome, age) in table.items()
            ),
        )
        for entry, table in zip(record.rounds, ages, strict=True)
    ]
    found = staleness(dataclasses.replace(record, rounds=tuple(rounds)))
    assert found is not None
    assert [(row.name, row.merged, row.mean, row.most) for row in found.rows] == [
        (names[1], 0, "", ""),
        (names[2], 1, "8.0", "8"),
        (names[0], 2, "1.0", "2"),
    ]
    assert found.rows[0].cells == (("out", "refused: update-stale"), ("", "no update"))
    assert found.rows[1].cells == (("", "no update"), ("age4", "8 versions behind"))
    assert found.rows[2].cells == (("age0", "fresh"), ("age2", "2 versions behind"))
    assert found.versions == (1, 2)


def test_where_nobody_is_behind_there_is_no_table_of_ages() -> None:
    assert staleness(report_sample.make_record()) is None
