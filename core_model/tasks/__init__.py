"""Tasks: what is built, trained and scored at an institution."""

from core_model.tasks.base import RNG_LOCK, Evaluation, LearningTask
from core_model.tasks.make import make_task
from core_model.tasks.retrieval import RetrievalTask

__all__ = ["RNG_LOCK", "Evaluation", "LearningTask", "RetrievalTask", "make_task"]
