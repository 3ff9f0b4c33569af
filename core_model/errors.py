"""What can go wrong in the learning code, with the attributes by which the front door prints it.

This package sits below ``wire`` and can't use its classes; these carry the same attributes (``code``, ``message``,
``hint``, ``exit_code``), and nothing else is asked of an error that a person may see.
"""

from __future__ import annotations


class CoreModelError(Exception):
    """A failure with a stable code, one sentence on what happened and one on what to do.

    Args:
        message: What happened, naming the field, file, row or tensor.
        hint: What to do next. May be empty where nothing can be done.
    """

    code: str = "internal"
    exit_code: int = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[CoreModelError], tuple[str, str]]:
        """Keep the hint when the error travels between processes."""
        return type(self), (self.message, self.hint)


class LearningConfigError(CoreModelError):
    """A key or value of the tables [model], [task] or [training] that can't be used."""

    code = "config"
    exit_code = 3


class DataError(CoreModelError):
    """A data set that is missing, can't be read, or doesn't hold what it should."""

    code = "data"
    exit_code = 6


class UserCodeError(CoreModelError):
    """Code named by ``module:function`` that isn't allowed here, can't be imported, or returns the wrong thing."""

    code = "policy"
    exit_code = 4


class CoupledLossError(CoreModelError):
    """A loss that compares the records of a batch with each other: private training can't bound one record's part."""

    code = "loss-coupled"
    exit_code = 3


class ManifestError(CoreModelError):
    """A model, vector or checkpoint file that doesn't fit the manifest it should fit."""

    code = "manifest-mismatch"
    exit_code = 4


class TrainingError(CoreModelError):
    """Local training came to a result that must not be sent, such as a loss that isn't finite."""

    code = "training"
    exit_code = 6
