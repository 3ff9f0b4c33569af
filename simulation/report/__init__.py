"""The page that a simulation leaves behind: :func:`write_report` turns a :class:`RunRecord` into one HTML file.

The file is self-contained: it loads nothing from a network, runs no script, and reads in light and dark, on a phone,
with a keyboard and with a screen reader. Importing this package loads neither charts nor templates.
"""

from simulation.report.page import write_report
from simulation.report.record import (
    Budget,
    Hostility,
    Institution,
    Metric,
    Model,
    Participation,
    Picture,
    Retrieval,
    Round,
    RunRecord,
)

__all__ = [
    "Budget",
    "Hostility",
    "Institution",
    "Metric",
    "Model",
    "Participation",
    "Picture",
    "Retrieval",
    "Round",
    "RunRecord",
    "write_report",
]
