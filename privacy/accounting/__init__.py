"""What private releases cost: events, accountants that turn them into epsilon, and filters for adaptive noise."""

from privacy.accounting.accountant import COARSE, FINE, Composed, epsilon
from privacy.accounting.events import Event, GaussianEvent, Placement, Unit, dp_event, merged, parse_event
from privacy.accounting.filters import GdpFilter, RdpFilter

__all__ = [
    "COARSE",
    "FINE",
    "Composed",
    "Event",
    "GaussianEvent",
    "GdpFilter",
    "Placement",
    "RdpFilter",
    "Unit",
    "dp_event",
    "epsilon",
    "merged",
    "parse_event",
]
