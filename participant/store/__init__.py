"""What a site remembers of its tasks, so that being killed costs neither a second training nor a second payment."""

from participant.store.journal import Assignment, ParticipantStore
from participant.store.records import Day, TaskRecord, TaskState

__all__ = ["Assignment", "Day", "ParticipantStore", "TaskRecord", "TaskState"]
