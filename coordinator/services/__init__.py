"""The gRPC services of the coordinator: thin translations between the wire and the daemon."""

from coordinator.services.control import ControlService
from coordinator.services.enrolment import EnrolmentService
from coordinator.services.limits import PeerLimit
from coordinator.services.refusals import NamedErrors
from coordinator.services.session import SessionService

__all__ = ["ControlService", "EnrolmentService", "NamedErrors", "PeerLimit", "SessionService"]
